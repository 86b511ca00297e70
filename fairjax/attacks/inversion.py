"""Gradient inversion: records that would explain what a client sent.

The attacker simulates the client, and seeks the images for which the simulation sends
what was seen. Here a simulation is any differentiable function

    simulate(images [n, H, W, channels] in [0, 1]) -> change of the plain model,

so the same attacks read a gradient, the change after some local steps and that of a
whole round; what the attacker takes for the client is the simulation's affair (see
`fairjax.attacks.exposure`). Nothing here knows the truth: attempts are ranked by the
attacker's own objective.
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

# --------------------------------------------------------------------------- objectives


def cosine_distance(simulated: Params, seen: Params, cover: Masks) -> Float[Array, ""]:
    """Distance 1 - <m s, m u> / (|m s| |m u|) over the coordinates that were sent.

    Where one of them is 0 it is 1. It does not see the scale of an update, so neither a
    learning rate nor clipping hides anything from it.

    Source: Geiping, Bauermeister, Dröge and Moeller 2020, eq. (4).
    """
    ours, theirs = trees.multiply(simulated, cover), trees.multiply(seen, cover)
    # The root of a sum of squares has no finite slope at 0.
    tiny = jnp.finfo(jnp.float32).tiny
    lengths = [
        jnp.sqrt(jnp.maximum(optax.tree.norm(tree, squared=True), tiny))
        for tree in (ours, theirs)
    ]
    product = jnp.asarray(optax.tree.vdot(ours, theirs))
    return 1 - product / (lengths[0] * lengths[1])


def squared_distance(simulated: Params, seen: Params, cover: Masks) -> Float[Array, ""]:
    """Squared distance over the coordinates that were sent, in squares of what was.

        |m s - m u|^2 / |m u|^2

    Source: Zhu, Liu and Han 2019 (DLG), eq. (3). Deviates: relative, so that its size
    does not hang on the learning rate.
    """
    away = trees.multiply(trees.subtract(simulated, seen), cover)
    size = optax.tree.norm(trees.multiply(seen, cover), squared=True)
    tiny = jnp.finfo(size.dtype).tiny
    return optax.tree.norm(away, squared=True) / jnp.maximum(size, tiny)


def total_variation(images: Float[Array, "n H W ch"]) -> Float[Array, ""]:
    """Mean difference of neighbouring pixels, down and across."""
    down = jnp.mean(jnp.abs(images[:, 1:] - images[:, :-1]))
    across = jnp.mean(jnp.abs(images[:, :, 1:] - images[:, :, :-1]))
    return down + across


def class_signal(change: Params, axes: Axes) -> Float[Array, "C"]:
    """What an update says of every class: largest for a class that was trained.

    The gradient of a mean cross-entropy at the head's bias is p_c - (share of class c),
    which is negative for classes of the batch alone, and an update goes against it.
    Heads without a bias are read by the sums of their columns, whose signs agree while
    what they read is not negative.

    Source: Zhao, Mopuri and Bilen 2020 (iDLG), eq. (3).
    """
    leaves = trees.named(axes.tree, is_leaf=lambda node: isinstance(node, LeafAxes))
    changes = trees.named(change)
    found = {path: leaf.dims for path, leaf in leaves.items() if CLASSES in leaf.dims}
    biases = [path for path, dims in found.items() if len(dims) == 1]
    signals = [
        jnp.moveaxis(changes[path], found[path].index(CLASSES), -1)
        for path in biases or found
    ]
    return sum(
        (jnp.sum(each.reshape(-1, each.shape[-1]), 0) for each in signals),
        start=jnp.zeros(()),
    )


def labels(signal: Float[Array, "C"], records: int) -> Int[Array, "records"]:
    """The classes that the records seem to have, most likely first.

    One record's class is the largest signal (iDLG). Of several records as many classes
    are named, so repeated ones are missed, as in Yin et al. 2021; beyond C records the
    order starts again.
    """
    order = jnp.argsort(-signal)
    return order[jnp.arange(records) % signal.shape[0]].astype(jnp.int32)


# ------------------------------------------------------------------------------ attacks


class Seen(NamedTuple):
    """What the server received of one client."""

    change: Params
    """0 where `cover` is."""
    cover: Masks
    """The coordinates that it speaks for, which a server must know to average."""


class Found(NamedTuple):
    """What an attempt ends with."""

    images: Float[Array, "n H W ch"]
    labels: Int[Array, "n"]
    value: Float[Array, ""]
    """The attacker's objective, infinite where it is not finite."""
    choice: Int[Array, ""]
    """The candidate that the client was taken for."""


Simulate = Callable[[Any, Float[Array, "n H W ch"], Array], Params]
"""(candidate, images, labels) -> change. The labels are classes [n], or distributions
over them [n, C]. A candidate is what the client may be: a tree of arrays."""


def cosine(
    key: Key[Array, ""],
    simulate: Simulate,
    candidates: PyTree[Array],
    seen: Seen,
    labels: Int[Array, "n"],
    *,
    shape: tuple[int, int, int],
    iterations: int,
    rate: float,
    variation: float,
    phases: int = 4,
) -> Found:
    """Matches the direction of the update with smooth images.

        min over x in [0, 1]:  1 - cos(simulate(x), seen) + variation * TV(x)

    by Adam on the sign of the gradient from uniform noise, the rate falling to a tenth
    after 3/8, 5/8 and 7/8 of the iterations.

    With several candidates the iterations are cut into equal phases. Each but the
    first, which takes candidate 0, begins by taking the candidate for which the
    objective is least at the images so far: descent in turns over what the client is
    and what it holds, which may end beside the best candidate.

    Args:
        key: of the start.
        simulate: the attacker's simulation of the client.
        candidates: what the client may be, [M, ...] a leaf.
        seen: what the server received.
        labels: of the images, as the attacker believes.
        shape: (H, W, channels).
        iterations: in all.
        rate: of Adam at first, in pixel ranges.
        variation: weight of `total_variation`.
        phases: as above; one candidate has one.

    Source: Geiping et al. 2020, section 4, with the released code's falls of the rate.
    Deviates: the candidates.
    """
    number = jax.tree.leaves(candidates)[0].shape[0]
    phases = min(phases, iterations) if number > 1 else 1
    falls = {iterations * part // 8: 0.1 for part in (3, 5, 7)}
    optimizer = optax.chain(
        optax.stateless(lambda updates, params: jax.tree.map(jnp.sign, updates)),
        optax.adam(optax.piecewise_constant_schedule(rate, falls)),
    )

    def objective(images: Array, choice: Array) -> Array:
        change = simulate(trees.pick(candidates, choice), images, labels)
        distance = cosine_distance(change, seen.change, seen.cover)
        return distance + variation * total_variation(images)

    def likeliest(images: Array) -> Array:
        values = jax.lax.map(
            lambda choice: _finite(objective(images, choice)),
            jnp.arange(number, dtype=jnp.int32),
        )
        return jnp.argmin(values).astype(jnp.int32)

    def one_step(carry: Any, _: None) -> tuple[Any, None]:
        images, state, choice = carry
        grads = jnp.nan_to_num(jax.grad(objective)(images, choice))
        updates, state = optimizer.update(grads, state)
        return (jnp.clip(images + updates, 0, 1), state, choice), None

    def one_phase(carry: Any, first: Array) -> tuple[Any, None]:
        images, state, choice = carry
        if number > 1:
            choice = jnp.where(first, choice, likeliest(images))
        carry = images, state, choice
        return jax.lax.scan(one_step, carry, length=iterations // phases)

    start = jax.random.uniform(key, (labels.shape[0], *shape))
    carry = start, optimizer.init(start), jnp.zeros((), jnp.int32)
    carry, _ = jax.lax.scan(one_phase, carry, jnp.arange(phases) == 0)
    images, _, choice = carry
    return Found(images, labels, _finite(objective(images, choice)), choice)


def dlg(
    key: Key[Array, ""],
    simulate: Simulate,
    candidates: PyTree[Array],
    seen: Seen,
    labels: Int[Array, "n"],
    *,
    shape: tuple[int, int, int],
    classes: int,
    iterations: int,
) -> Found:
    """Matches the update itself, seeking images and labels together.

        min over x, z:  |simulate(x, softmax(z)) - seen|^2 / |seen|^2

    by L-BFGS from uniform noise and normal z; images are clipped to [0, 1] in the end.

    Args:
        key: of the start.
        simulate: the attacker's simulation, of distributions over classes.
        candidates: one candidate, [1, ...] a leaf.
        seen: what the server received.
        labels: only their number counts.
        shape: (H, W, channels).
        classes: C.
        iterations: of L-BFGS, each with a line search.

    Source: Zhu, Liu and Han 2019, algorithm 1. Deviates: relative distance; uniform
    noise in the range of pixels.
    """
    candidate = trees.pick(candidates, 0)
    solver = optax.lbfgs()
    first, second = rng.at(key, 0), rng.at(key, 1)
    number = labels.shape[0]
    sought = (
        jax.random.uniform(first, (number, *shape)),
        jax.random.normal(second, (number, classes)),
    )

    def objective(sought: tuple[Array, Array]) -> Array:
        images, logits = sought
        change = simulate(candidate, images, jax.nn.softmax(logits))
        return squared_distance(change, seen.change, seen.cover)

    value_and_grad = optax.value_and_grad_from_state(objective)

    def one(carry: Any, _: None) -> tuple[Any, None]:
        sought, state = carry
        value, grads = value_and_grad(sought, state=state)
        updates, new_state = solver.update(
            grads, state, sought, value=value, grad=grads, value_fn=objective
        )
        moved = optax.apply_updates(sought, updates)
        # A search that has lost its footing stays where it was.
        sound = trees.all_finite(moved)
        return trees.select(sound, (moved, new_state), carry), None

    (sought, _), _ = jax.lax.scan(one, (sought, solver.init(sought)), length=iterations)
    images, logits = sought
    named = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    choice = jnp.zeros((), jnp.int32)
    return Found(jnp.clip(images, 0, 1), named, _finite(objective(sought)), choice)


def restarted(
    key: Key[Array, ""],
    attempt: Callable[[Key[Array, ""]], Found],
    restarts: int,
    *,
    size: int | None = None,
) -> Found:
    """The attempt that the attacker prefers: of the least objective, from many starts.

    More restarts keep the starts that there were.

    Args:
        key: of the starts.
        attempt: (key of a start) -> what it ends with.
        restarts: how many starts there are.
        size: starts side by side; None: one after another. Side by side, every start
            convolves with kernels of its own, for which a CPU has no fast convolution.
    """
    starts = jnp.arange(restarts, dtype=jnp.int32)
    found = jax.lax.map(
        lambda start: attempt(rng.at(key, start)), starts, batch_size=size
    )
    return trees.pick(found, jnp.argmin(found.value))


def _finite(value: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(jnp.isfinite(value), value, jnp.inf)
