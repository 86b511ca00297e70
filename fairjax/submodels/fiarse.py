"""Importance masks: a client trains the largest weights of the incoming model."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fairjax.core import require, trees
from fairjax.core.types import Kept, Masks, Member, Method, Params


def fiarse(budget: tuple[float, ...], *, layerwise: bool) -> Method:
    """FIARSE: a tier keeps the share of weights that is largest in absolute value.

    With theta the incoming model, N its maskable coordinates (kernels and biases) and
    k = floor(budget_t * N), at least 1,

        tau_t = the k-th largest |theta|.

    The threshold is fixed for the round, the mask is not: every local step runs the
    weights w as they have become, w * 1[|w| >= tau_t], starting from w = theta, with
    the gradient of `through`. A weight that shrinks below tau_t therefore leaves the
    forward pass and gets no gradient from then on; one that starts below it never
    enters. Equal values at tau are all kept.

    A client sends the change of the weights themselves, of those also that have left
    the forward pass, and answers for every coordinate that it started with. What is
    scored, deployed and billed is the incoming model's mask, 1[|theta| >= tau_t].

    A layer is a dictionary that holds a "kernel"; all it holds is maskable. Leaves of
    other dictionaries (norms, embeddings) are always kept whole.

    Args:
        budget: share of the maskable *parameters* of every tier, in (0, 1], smallest
            first. (Half the width is a quarter of the parameters.)
        layerwise: take the largest of every layer by itself, kernel and bias together,
            not of all layers jointly.

    Edge cases: with budget 1 all is kept and tau is the smallest |theta|, so the
    gradient differs from FedAvg's by the gain at that tau; where tau is 0 (a model
    with a bias of 0) by nothing. No unit is dropped, so there is no network of a
    smaller size and no computation is saved.

    Source: Wu et al. 2024 (NeurIPS, arXiv 2407.19389); the mask of every step and the
    upload as in the released code. Deviates: a coordinate's mean is over the clients
    that kept it, by their weights; the released code weighs clients alike and divides
    by the number of changes other than 0.
    """

    def sorted_by_size(leaves: list[Array]) -> Float[Array, "n"]:
        return jnp.sort(jnp.concatenate([jnp.abs(leaf).ravel() for leaf in leaves]))

    def threshold(leaves: list[Array], member: Member) -> Float[Array, ""]:
        ascending = sorted_by_size(leaves)
        total = ascending.shape[0]
        # The rounding keeps 0.29 * 100 = 28.999999999999996 from becoming 28.
        sizes = [max(1, int(round(share * total, 9))) for share in budget]
        place = jnp.asarray([total - size for size in sizes])[member.tier]
        return ascending[place]

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        layers = _layers(params)
        if not layers:
            require.fail("model", 'layers with a "kernel"', jax.tree.structure(params))
        joint = None if layerwise else threshold(jax.tree.leaves(layers), member)

        def per_leaf(node: Any) -> Any:
            if not isinstance(node, Mapping):
                # Nothing is below 0, so that all of it is kept.
                return jnp.zeros((), node.dtype)
            if "kernel" not in node:
                return {name: per_leaf(below) for name, below in node.items()}
            tau = joint
            if tau is None:
                tau = threshold(jax.tree.leaves(node), member)
            return jax.tree.map(lambda leaf: tau, node)

        return Kept(extra=per_leaf(params))

    def mask(params: Params, kept: Kept) -> Masks:
        if kept.extra is None:
            return jax.tree.map(jnp.ones_like, params)
        return jax.tree.map(
            lambda leaf, tau: (jnp.abs(leaf) >= tau).astype(leaf.dtype),
            params,
            kept.extra,
        )

    def enter(
        key: Array,
        plain: Params,
        kept: Kept,
        memory: None,
        forward: Masks,
        update: Masks,
    ) -> tuple[PyTree, PyTree]:
        # Dropped weights enter as 0 and are not trained, so the mask need not travel.
        weights = jax.tree.map(jnp.multiply, plain, forward)
        fixed = jax.tree.map(jnp.zeros_like, kept.extra)
        return (
            {"weights": weights, "threshold": kept.extra},
            {"weights": update, "threshold": fixed},
        )

    def effective(local: PyTree) -> Params:
        return jax.tree.map(through, local["weights"], local["threshold"])

    def leave(before: PyTree, after: PyTree, update: Masks) -> tuple[Params, Masks]:
        change = trees.subtract(after["weights"], before["weights"])
        return trees.multiply(change, update), update

    return Method(units=units, mask=mask, enter=enter, effective=effective, leave=leave)


def _layers(node: Any) -> list[Any]:
    """All dictionaries that hold a "kernel", the outermost ones."""
    if not isinstance(node, Mapping):
        return []
    if "kernel" in node:
        return [node]
    return [layer for below in node.values() for layer in _layers(below)]


@jax.custom_jvp
def through(weight: Float[Array, "..."], tau: Float[Array, ""]) -> Float[Array, "..."]:
    """The weight where it is at least tau, else 0; its gradient sees the mask move.

        through(w, tau) = w 1[|w| >= tau]
        d through / d w = (1 + 2 tau |w| / (|w| + tau)^2) 1[|w| >= tau]

    and 0 along tau. The gain is 1.5 at |w| = tau and falls to 1 for large weights. For
    tau = 0 all weights are kept and it is 1.

    Source: Wu et al. 2024, the straight-through gradient of their threshold.
    """
    return jnp.where(jnp.abs(weight) >= tau, weight, jnp.zeros_like(weight))


@through.defjvp
def _through_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    weight, tau = primals
    size = jnp.abs(weight)
    total = jnp.where(tau > 0, size + tau, jnp.ones_like(size))
    gain = (1 + 2 * tau * size / total**2) * (size >= tau).astype(size.dtype)
    return through(weight, tau), gain * tangents[0]
