"""From the cohort's deltas to the next plain model.

The masked mean is an associative pair of sums over clients,

    num = sum_k w_k m_k d_k,    den = sum_k b_k m_k,    mean = num / den where den > 0,

so vmapped, scanned, sharded and secret sums give the same mean up to float order. Here
d is a client's delta, m its mask, w its weight and b its weight in the denominator.

With b = w ("cover"), w_k is a weight among the clients that hold a coordinate. If one
client alone holds it, its weight cancels. With b_k = n_k / sum_j n_j under every rule
("fixed"), it does not: a client whose weight is twice its share of the records moves a
coordinate that it alone holds by twice its delta.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from fairjax.core import trees
from fairjax.core.protocols import Protection
from fairjax.core.types import Masks, Params, Upload


def weighted_update(
    delta: Params,
    cover: Masks,
    weight: Float[Array, ""],
    denominator_weight: Float[Array, ""] | None = None,
) -> tuple[Params, Masks]:
    """One client's addend (w m d, b m) to (num, den).

    Args:
        delta: d.
        cover: m, a 0/1 mask that broadcasts to `delta`.
        weight: w.
        denominator_weight: b; None: w.

    Example:
        >>> delta, cover = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.0, 0.0])}
        >>> num, den = weighted_update(delta, cover, jnp.array(3.0))
        >>> num["w"].tolist(), den["w"].tolist()
        ([3.0, 0.0], [3.0, 0.0])
    """
    denominator_weight = weight if denominator_weight is None else denominator_weight
    return scale(trees.multiply(delta, cover), weight), scale(cover, denominator_weight)


def scale(tree: PyTree[Array], factor: Float[Array, ""]) -> PyTree[Array]:
    """The tree times a number, in its own dtypes."""
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)


def scale_upload(
    upload: Upload, weight: Float[Array, ""], denominator_weight: Float[Array, ""]
) -> Upload:
    """An upload of w = b = 1 at these weights.

    Args:
        upload: the client's upload with w = b = 1.
        weight: w.
        denominator_weight: b.
    """
    return Upload(
        scale(upload.num, weight),
        scale(upload.den, denominator_weight),
        {
            path: (scale(num, weight), scale(den, denominator_weight))
            for path, (num, den) in upload.tiers.items()
        },
    )


def update(upload: Upload) -> tuple[Params, dict[str, Array]]:
    """The vector in an upload: deltas of the plain model and of the tier's copies."""
    return upload.num, {path: num for path, (num, _) in upload.tiers.items()}


def with_update(upload: Upload, update: tuple[Params, dict[str, Array]]) -> Upload:
    """The upload with another vector in the place of its own, covers unchanged."""
    num, tiers = update
    dens = {path: den for path, (_, den) in upload.tiers.items()}
    return Upload(num, upload.den, {path: (tiers[path], dens[path]) for path in dens})


OPEN = Protection(
    protect=lambda key, state, cohort, client, upload, weight, denominator_weight: (
        scale_upload(upload, weight, denominator_weight)
    ),
    release=lambda key, state, cohort, valid, sums, public: (sums, state),
)
"""No clipping, no noise: the server sees the weighted sums."""


def masked_mean(num: Params, den: Masks) -> Params:
    """The ratio num / den where a client covers the coordinate, exactly 0 elsewhere.

    Args:
        num: sum_k w_k m_k d_k.
        den: sum_k b_k m_k; it broadcasts to `num`.

    Example:
        >>> num, den = {"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([2.0, 0.0])}
        >>> masked_mean(num, den)["w"].tolist()
        [1.5, 0.0]

    Source: Diao et al., "HeteroFL: Computation and Communication Efficient Federated
    Learning for Heterogeneous Clients", ICLR 2021, arXiv:2010.01264, where w = b = 1.
    """

    def per_leaf(n: Array, d: Array) -> Array:
        has_cover = d > 0
        return jnp.where(has_cover, n / jnp.where(has_cover, d, jnp.ones_like(d)), 0)

    return jax.tree.map(per_leaf, num, den)


def finish(
    server: optax.GradientTransformation,
    opt_state: optax.OptState,
    params: Params,
    num: Params,
    den: Masks,
) -> tuple[Params, optax.OptState]:
    """Steps the server optimiser along the masked mean, read as a negative gradient.

    SGD with learning rate 1 gives params + mean, which is FedAvg. A coordinate that no
    client covers keeps its value and its moments exactly.

    Args:
        server: the server optimiser.
        opt_state: its state.
        params: the plain model before the round.
        num: sum_k w_k m_k d_k.
        den: sum_k b_k m_k.

    Returns:
        (new plain model, new state of the server optimiser).

    Example:
        >>> server, params = optax.sgd(1.0), {"w": jnp.array([1.0, 1.0])}
        >>> num, den = {"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([2.0, 0.0])}
        >>> finish(server, server.init(params), params, num, den)[0]["w"].tolist()
        [2.5, 1.0]

    Source: Reddi et al., "Adaptive Federated Optimization" (FedOpt), ICLR 2021,
    arXiv:2003.00295, algorithm 1; the masked form is ours.
    """
    gradient = jax.tree.map(jnp.negative, masked_mean(num, den))
    updates, new_state = server.update(gradient, opt_state, params)
    has_cover = jax.tree.map(lambda d: d > 0, den)
    candidate_params = optax.apply_updates(params, updates)
    select = lambda c, new, old: jnp.where(c, new, old)  # noqa: E731
    new_params = jax.tree.map(select, has_cover, candidate_params, params)
    # A moment stays where its coordinate is uncovered; whatever is no moment (a step
    # count) advances.
    moment_mask = optax.tree_utils.tree_map_params(
        server,
        lambda _, c: c,
        new_state,
        has_cover,
        transform_non_params=lambda _: jnp.ones((), bool),
    )
    new_state = jax.tree.map(select, moment_mask, new_state, opt_state)
    return new_params, new_state


def scale_updates(
    server: optax.GradientTransformation, factor: Float[Array, ""] | float
) -> optax.GradientTransformation:
    """The optimiser with its updates times a factor, which its state never sees.

    A factor of 1 is the optimiser itself, bit for bit. Moments follow the clients'
    deltas, whatever the factor is.

    Args:
        server: the optimiser.
        factor: the factor on its updates.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = server.update(updates, state, params)
        return scale(updates, jnp.asarray(factor)), state

    return optax.GradientTransformation(server.init, update)


def coverage(den: Masks, params: Params) -> Float[Array, ""]:
    """Share of the parameter coordinates that at least one client covered, in [0, 1].

    Args:
        den: sum_k b_k m_k; a leaf may have length 1 in a dimension of its parameter.
        params: the plain model; only its shapes are used.

    Example:
        >>> coverage({"w": jnp.array([[1.0, 0.0]])}, {"w": jnp.ones((3, 2))}).item()
        0.5
    """
    num_covered = jax.tree.map(
        lambda d, p: jnp.sum(d > 0).astype(jnp.float32) * (p.size // d.size),
        den,
        params,
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    return jnp.asarray(sum(jax.tree.leaves(num_covered)) / total)
