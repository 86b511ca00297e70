"""From the cohort's changes to the next plain model.

The masked mean is an associative pair of sums over clients,

    num = sum_k w_k m_k d_k,    den = sum_k b_k m_k,    mean = num / den where den > 0,

so it comes out the same, up to float order, whether clients are vmapped, scanned,
spread over devices or summed in secret. With b = w ("cover") the normalisation by
coordinate makes w_k a weight among the clients that hold a coordinate: a lone holder's
weight cancels. With b_k = n_k / sum_j n_j, whatever the rule ("fixed"), it does not: a
hospital of twice its share of the weight moves by twice its change what it alone holds.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from fairjax.core import trees
from fairjax.core.types import Masks, Params, Protection, Sent


def share(
    delta: Params,
    cover: Masks,
    weight: Float[Array, ""],
    base: Float[Array, ""] | None = None,
) -> tuple[Params, Masks]:
    """One client's addend (w m d, b m) of (num, den); `base` None: the weight."""
    base = weight if base is None else base
    return scale(trees.multiply(delta, cover), weight), scale(cover, base)


def scale(tree: PyTree[Array], factor: Float[Array, ""]) -> PyTree[Array]:
    """The tree times a number, in its own dtypes."""
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)


def weigh(sent: Sent, weight: Float[Array, ""], base: Float[Array, ""]) -> Sent:
    """What is sent with w = b = 1, at weight w and base b."""
    return Sent(
        scale(sent.num, weight),
        scale(sent.den, base),
        {
            path: (scale(num, weight), scale(den, base))
            for path, (num, den) in sent.tiers.items()
        },
    )


def change(sent: Sent) -> tuple[Params, dict[str, Array]]:
    """The vector that a client sends: of the plain model and of its tier's copies."""
    return sent.num, {path: num for path, (num, _) in sent.tiers.items()}


def changed(sent: Sent, change: tuple[Params, dict[str, Array]]) -> Sent:
    """What is sent with another vector in its place."""
    num, tiers = change
    dens = {path: den for path, (_, den) in sent.tiers.items()}
    return Sent(num, sent.den, {path: (tiers[path], dens[path]) for path in dens})


OPEN = Protection(
    protect=lambda key, state, cohort, member, sent, weight, base: weigh(
        sent, weight, base
    ),
    release=lambda key, state, cohort, valid, sums, public: (sums, state),
)
"""No clipping, no noise: the server sees the weighted sums."""


def masked_mean(num: Params, den: Masks) -> Params:
    """The ratio num / den where somebody covers the coordinate, exactly 0 elsewhere."""

    def one(n: Array, d: Array) -> Array:
        covered = d > 0
        return jnp.where(covered, n / jnp.where(covered, d, jnp.ones_like(d)), 0)

    return jax.tree.map(one, num, den)


def finish(
    server: optax.GradientTransformation,
    opt_state: optax.OptState,
    params: Params,
    num: Params,
    den: Masks,
) -> tuple[Params, optax.OptState]:
    """Steps the server optimiser along the masked mean, read as a negative gradient.

    SGD with learning rate 1 gives params + mean: FedAvg. A coordinate that nobody
    covers keeps its value exactly, and its moments too: for it the round did not
    happen.

    Source: FedOpt, Reddi et al. 2021, algorithm 1; the masked form is ours.
    """
    gradient = jax.tree.map(jnp.negative, masked_mean(num, den))
    updates, new_state = server.update(gradient, opt_state, params)
    covered = jax.tree.map(lambda d: d > 0, den)
    stepped = optax.apply_updates(params, updates)
    keep = lambda c, new, old: jnp.where(c, new, old)  # noqa: E731
    new_params = jax.tree.map(keep, covered, stepped, params)
    # Which moments belong to which coordinate, in the shape of the server's state.
    moved = optax.tree_utils.tree_map_params(
        server,
        lambda _, c: c,
        new_state,
        covered,
        transform_non_params=lambda _: jnp.ones((), bool),
    )
    new_state = jax.tree.map(keep, moved, new_state, opt_state)
    return new_params, new_state


def scaled(
    server: optax.GradientTransformation, factor: Float[Array, ""] | float
) -> optax.GradientTransformation:
    """The optimiser with its updates times a factor; its state is as without.

    So a factor of 1 is the optimiser itself, bit for bit, and moments gather what
    clients sent whatever the factor is.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = server.update(updates, state, params)
        return scale(updates, jnp.asarray(factor)), state

    return optax.GradientTransformation(server.init, update)


def coverage(den: Masks, params: Params) -> Float[Array, ""]:
    """Share of the parameter coordinates that at least one client covered."""
    held = jax.tree.map(
        lambda d, p: jnp.sum(d > 0).astype(jnp.float32) * (p.size // d.size),
        den,
        params,
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    return jnp.asarray(sum(jax.tree.leaves(held)) / total)
