"""Gradient inversion: images that would explain what a client sent.

The attacker simulates the client, and searches for images at which the simulation sends
what the server received. A simulation is any differentiable function

    simulate(images [n, H, W, channels] in [0, 1]) -> change of the plain model,

so the same attacks read a gradient, the change after some local steps, and the change
of a whole round. The simulation decides what the attacker takes the client for (see
`fairjax.attacks.exposure`). No attack knows the truth: the attacker's own objective
ranks its attempts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from fairjax.core import rng, trees
from fairjax.core.axes import CLASSES
from fairjax.core.types import Axes, LeafAxes, Masks, Params


def cosine_distance(update: Params, target: Params, cover: Masks) -> Float[Array, ""]:
    """The cosine distance of two updates over the coordinates that were sent.

        1 - <m s, m u> / (|m s| |m u|)

    It is 1 where m s or m u is 0. It does not depend on the scale of an update, so
    neither a learning rate nor clipping hides anything from it.

    Args:
        update: s, the simulated update.
        target: u, the received update.
        cover: m.

    Source: Geiping, Bauermeister, Dröge and Moeller, "Inverting gradients: How easy is
    it to break privacy in federated learning?", NeurIPS 2020, arXiv:2003.14053, eq.
    (4).
    """
    masked_update, masked_target = (
        trees.multiply(update, cover),
        trees.multiply(target, cover),
    )
    # The root of a sum of squares has no finite slope at 0.
    tiny = jnp.finfo(jnp.float32).tiny
    lengths = [
        jnp.sqrt(jnp.maximum(optax.tree.norm(tree, squared=True), tiny))
        for tree in (masked_update, masked_target)
    ]
    product = jnp.asarray(optax.tree.vdot(masked_update, masked_target))
    return 1 - product / (lengths[0] * lengths[1])


def squared_distance(update: Params, target: Params, cover: Masks) -> Float[Array, ""]:
    """The relative squared distance of two updates over the coordinates that were sent.

        |m s - m u|^2 / |m u|^2

    Args:
        update: s, the simulated update.
        target: u, the received update.
        cover: m.

    Source: Zhu, Liu and Han, "Deep leakage from gradients" (DLG), NeurIPS 2019,
    arXiv:1906.08935, eq. (3). Deviates: the distance is relative, so that its size does
    not depend on the learning rate.
    """
    residual = trees.multiply(trees.subtract(update, target), cover)
    size = optax.tree.norm(trees.multiply(target, cover), squared=True)
    tiny = jnp.finfo(size.dtype).tiny
    return optax.tree.norm(residual, squared=True) / jnp.maximum(size, tiny)


def total_variation(images: Float[Array, "n H W ch"]) -> Float[Array, ""]:
    """The mean absolute difference of neighbouring pixels, down and across."""
    vertical_diff = jnp.mean(jnp.abs(images[:, 1:] - images[:, :-1]))
    horizontal_diff = jnp.mean(jnp.abs(images[:, :, 1:] - images[:, :, :-1]))
    return vertical_diff + horizontal_diff


def class_signal(update: Params, axes: Axes) -> Float[Array, "C"]:
    """A signal per class, which is largest for a class that the client trained on.

    The gradient of a mean cross-entropy at the head's bias is p_c - (share of class c).
    It is negative for classes of the batch alone, and an update has the opposite sign.
    A head without a bias gives the sums of its kernel's columns: their signs agree as
    long as the head's inputs are not negative.

    Args:
        update: the received update.
        axes: the model's; they name the leaves of the head.

    Source: Zhao, Mopuri and Bilen, "iDLG: Improved deep leakage from gradients", 2020,
    arXiv:2001.02610, eq. (3).
    """
    leaves = trees.leaves_by_path(
        axes.tree, is_leaf=lambda node: isinstance(node, LeafAxes)
    )
    updates = trees.leaves_by_path(update)
    head_dims = {
        path: leaf.dims for path, leaf in leaves.items() if CLASSES in leaf.dims
    }
    biases = [path for path, dims in head_dims.items() if len(dims) == 1]
    signals = [
        jnp.moveaxis(updates[path], head_dims[path].index(CLASSES), -1)
        for path in biases or head_dims
    ]
    return sum(
        (jnp.sum(signal.reshape(-1, signal.shape[-1]), 0) for signal in signals),
        start=jnp.zeros(()),
    )


def labels(signal: Float[Array, "C"], records: int) -> Int[Array, "records"]:
    """The classes that the records seem to have, most likely first.

    One record has the class of the largest signal (iDLG). Several records have as many
    different classes, so repeated classes are missed, as in Yin et al., "See through
    gradients: Image batch recovery via GradInversion", CVPR 2021, arXiv:2104.07586.
    Beyond C records the order starts again.

    Args:
        signal: of `class_signal`.
        records: how many records there are.
    """
    order = jnp.argsort(-signal)
    return order[jnp.arange(records) % signal.shape[0]].astype(jnp.int32)


class Observation(NamedTuple):
    """What the server received from one client."""

    update: Params
    """The change of the plain model; 0 where `cover` is 0."""
    cover: Masks
    """The coordinates of the update. A server must know them to average updates."""


class Result(NamedTuple):
    """The result of an attempt."""

    images: Float[Array, "n H W ch"]
    labels: Int[Array, "n"]
    value: Float[Array, ""]
    """The attacker's objective; infinity stands for any value that is not finite."""
    choice: Int[Array, ""]
    """The index of the candidate that the attacker takes for the client."""


Simulate = Callable[[Any, Float[Array, "n H W ch"], Array], Params]
"""(candidate, images, labels) -> change of the plain model. The labels are classes [n],
or distributions over classes [n, C]. A candidate is what the client may be: a tree of
arrays."""


def cosine(
    key: Key[Array, ""],
    simulate: Simulate,
    candidates: PyTree[Array],
    observation: Observation,
    labels: Int[Array, "n"],
    *,
    shape: tuple[int, int, int],
    iterations: int,
    learning_rate: float,
    variation: float,
    phases: int = 4,
) -> Result:
    """Matches the direction of the update with smooth images.

        min over x in [0, 1]:  1 - cos(simulate(x), u) + variation * TV(x)

    with u the received update, by Adam on the sign of the gradient from uniform noise.
    The learning rate falls to a tenth after 3/8, 5/8 and 7/8 of the iterations.

    With several candidates the iterations are cut into equal phases. The first phase
    takes candidate 0. Every other phase first takes the candidate with the least
    objective at the images so far. This is descent in turns over the candidate and the
    images, and it may end beside the best candidate.

    Args:
        key: of the start.
        simulate: the attacker's simulation of the client.
        candidates: what the client may be, [M, ...] a leaf.
        observation: what the server received.
        labels: the images' classes, as the attacker believes.
        shape: (H, W, channels).
        iterations: of all phases together.
        learning_rate: of Adam at first, in pixel ranges.
        variation: weight of `total_variation`.
        phases: as above; with one candidate there is one phase.

    Source: Geiping et al. 2020 (see `cosine_distance`), section 4, with the
    learning-rate schedule of the released code. Deviates: the candidates.
    """
    number = jax.tree.leaves(candidates)[0].shape[0]
    phases = min(phases, iterations) if number > 1 else 1
    boundaries_and_scales = {iterations * eighths // 8: 0.1 for eighths in (3, 5, 7)}
    optimizer = optax.chain(
        optax.stateless(lambda updates, params: jax.tree.map(jnp.sign, updates)),
        optax.adam(
            optax.piecewise_constant_schedule(learning_rate, boundaries_and_scales)
        ),
    )

    def objective(images: Array, choice: Array) -> Array:
        update = simulate(trees.pick(candidates, choice), images, labels)
        distance = cosine_distance(update, observation.update, observation.cover)
        return distance + variation * total_variation(images)

    def best_candidate(images: Array) -> Array:
        values = jax.lax.map(
            lambda choice: _finite_or_inf(objective(images, choice)),
            jnp.arange(number, dtype=jnp.int32),
        )
        return jnp.argmin(values).astype(jnp.int32)

    def one_step(carry: Any, _: None) -> tuple[Any, None]:
        images, state, choice = carry
        grads = jnp.nan_to_num(jax.grad(objective)(images, choice))
        updates, state = optimizer.update(grads, state)
        return (jnp.clip(images + updates, 0, 1), state, choice), None

    def one_phase(carry: Any, is_first: Array) -> tuple[Any, None]:
        images, state, choice = carry
        if number > 1:
            choice = jnp.where(is_first, choice, best_candidate(images))
        carry = images, state, choice
        return jax.lax.scan(one_step, carry, length=iterations // phases)

    start = jax.random.uniform(key, (labels.shape[0], *shape))
    carry = start, optimizer.init(start), jnp.zeros((), jnp.int32)
    carry, _ = jax.lax.scan(one_phase, carry, jnp.arange(phases) == 0)
    images, _, choice = carry
    return Result(images, labels, _finite_or_inf(objective(images, choice)), choice)


def dlg(
    key: Key[Array, ""],
    simulate: Simulate,
    candidates: PyTree[Array],
    observation: Observation,
    labels: Int[Array, "n"],
    *,
    shape: tuple[int, int, int],
    classes: int,
    iterations: int,
) -> Result:
    """Matches the update itself, over images and labels together.

        min over x, z:  |simulate(x, softmax(z)) - u|^2 / |u|^2

    with u the received update, by L-BFGS from uniform noise and normal z. The images
    are clipped to [0, 1] in the end.

    Args:
        key: of the start.
        simulate: the attacker's simulation, of distributions over classes.
        candidates: one candidate, [1, ...] a leaf.
        observation: what the server received.
        labels: [n]; only their number counts.
        shape: (H, W, channels).
        classes: C.
        iterations: of L-BFGS, each with a line search.

    Source: Zhu, Liu and Han 2019 (see `squared_distance`), algorithm 1. Deviates: the
    distance is relative, and the start is uniform noise in the range of pixels.
    """
    candidate = trees.pick(candidates, 0)
    solver = optax.lbfgs()
    image_key, label_key = rng.fold_in(key, 0), rng.fold_in(key, 1)
    number = labels.shape[0]
    variables = (
        jax.random.uniform(image_key, (number, *shape)),
        jax.random.normal(label_key, (number, classes)),
    )

    def objective(variables: tuple[Array, Array]) -> Array:
        images, logits = variables
        update = simulate(candidate, images, jax.nn.softmax(logits))
        return squared_distance(update, observation.update, observation.cover)

    value_and_grad = optax.value_and_grad_from_state(objective)

    def lbfgs_step(carry: Any, _: None) -> tuple[Any, None]:
        variables, state = carry
        value, grads = value_and_grad(variables, state=state)
        updates, new_state = solver.update(
            grads, state, variables, value=value, grad=grads, value_fn=objective
        )
        new_variables = optax.apply_updates(variables, updates)
        # A step that is not finite is not taken.
        is_finite = trees.all_finite(new_variables)
        return trees.select(is_finite, (new_variables, new_state), carry), None

    (variables, _), _ = jax.lax.scan(
        lbfgs_step, (variables, solver.init(variables)), length=iterations
    )
    images, logits = variables
    predicted_labels = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    choice = jnp.zeros((), jnp.int32)
    return Result(
        jnp.clip(images, 0, 1),
        predicted_labels,
        _finite_or_inf(objective(variables)),
        choice,
    )


def best_of_restarts(
    key: Key[Array, ""],
    attempt: Callable[[Key[Array, ""]], Result],
    restarts: int,
    *,
    size: int | None = None,
) -> Result:
    """The attempt with the least objective among those from several starts.

    More restarts keep the earlier starts.

    Args:
        key: of the starts.
        attempt: (key of a start) -> the result from there.
        restarts: the number of starts.
        size: starts at the same time; None: one after another. Starts at the same time
            convolve with different kernels, for which a CPU has no fast convolution.
    """
    starts = jnp.arange(restarts, dtype=jnp.int32)
    results = jax.lax.map(
        lambda start: attempt(rng.fold_in(key, start)), starts, batch_size=size
    )
    return trees.pick(results, jnp.argmin(results.value))


def _finite_or_inf(value: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(jnp.isfinite(value), value, jnp.inf)
