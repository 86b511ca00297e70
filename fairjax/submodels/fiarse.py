"""Importance masks: a client trains the largest weights of the incoming model."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fairjax.core import require, trees
from fairjax.core.method import Method, Reparameterisation
from fairjax.core.types import ClientView, Masks, Params, Submodel


def fiarse(budget: tuple[float, ...], *, layerwise: bool) -> Method:
    """FIARSE: a tier trains the share of weights that is largest in absolute value.

    With theta the incoming model, N the number of its maskable coordinates (kernels and
    biases) and k = floor(budget_t * N), at least 1,

        tau_t = the k-th largest |theta|.

    The threshold is fixed for the round, the mask is not: every local step runs
    w * 1[|w| >= tau_t] with the current weights w, starting from w = theta, and takes
    the gradient of `straight_through`. So a weight that shrinks below tau_t leaves the
    forward pass and gets no gradient from then on; one that starts below it never
    enters. All weights equal to tau_t are in the mask.

    A client sends the change of the weights themselves, also of those that have left
    the forward pass, and covers every coordinate that it started with. Evaluation,
    deployment and cost take the incoming model's mask, 1[|theta| >= tau_t].

    A layer is a dictionary that holds a "kernel"; all its leaves are maskable. Leaves
    of other dictionaries (norms, embeddings) are never masked.

    Args:
        budget: share of the maskable *parameters* of every tier, in (0, 1], smallest
            first. (Half the width is a quarter of the parameters.)
        layerwise: take the largest of every layer by itself, kernel and bias together,
            not of all layers jointly.

    Edge cases: with budget 1 the mask is full and tau is the smallest |theta|, so the
    gradient differs from FedAvg's by the gain at that tau; where tau is 0 (a model with
    a bias of 0), they agree. No unit is dropped, so no smaller network exists and no
    computation is saved.

    Source: X. Wu et al., "FIARSE: Model-Heterogeneous Federated Learning via
    Importance-Aware Submodel Extraction", NeurIPS 2024, arXiv:2407.19389; the mask of
    every step and the upload as in the released code. Deviates: a coordinate's mean is
    over the clients that cover it, by their weights; the released code weights clients
    alike and divides by the number of nonzero changes.
    """

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        layers = _layers(params)
        if not layers:
            require.fail("params", 'layers with a "kernel"', jax.tree.structure(params))
        joint_threshold = None
        if not layerwise:
            joint_threshold = _threshold(jax.tree.leaves(layers), budget, client)

        def per_leaf(node: Any) -> Any:
            if not isinstance(node, Mapping):
                # No absolute value is below 0, so the whole leaf is in the mask.
                return jnp.zeros((), node.dtype)
            if "kernel" not in node:
                return {name: per_leaf(child) for name, child in node.items()}
            tau = joint_threshold
            if tau is None:
                tau = _threshold(jax.tree.leaves(node), budget, client)
            return jax.tree.map(lambda leaf: tau, node)

        return Submodel(extra=per_leaf(params))

    return Method(
        submodel=submodel,
        mask=_mask,
        local=Reparameterisation(
            to_local=_to_local, effective=_effective, to_update=_to_update
        ),
    )


def _threshold(
    leaves: list[Array], budget: tuple[float, ...], client: ClientView
) -> Float[Array, ""]:
    """The k-th largest magnitude among all coordinates of the leaves."""
    magnitudes = jnp.sort(jnp.concatenate([jnp.abs(leaf).ravel() for leaf in leaves]))
    total = magnitudes.shape[0]
    # The rounding keeps 0.29 * 100 = 28.999999999999996 from becoming 28.
    sizes = [max(1, int(round(share * total, 9))) for share in budget]
    threshold_index = jnp.asarray([total - size for size in sizes])[client.tier]
    return magnitudes[threshold_index]


def _mask(params: Params, submodel: Submodel) -> Masks:
    """The coordinates that are at least the sub-model's thresholds."""
    if submodel.extra is None:
        return jax.tree.map(jnp.ones_like, params)
    return jax.tree.map(
        lambda leaf, tau: (jnp.abs(leaf) >= tau).astype(leaf.dtype),
        params,
        submodel.extra,
    )


def _to_local(
    key: Array,
    plain: Params,
    submodel: Submodel,
    memory: None,
    forward_mask: Masks,
    update_mask: Masks,
) -> tuple[PyTree, PyTree]:
    """The weights beside their thresholds, which are not trained."""
    # Weights outside the mask enter as 0 and are not trained: no mask need travel.
    weights = jax.tree.map(jnp.multiply, plain, forward_mask)
    zero_mask = jax.tree.map(jnp.zeros_like, submodel.extra)
    return (
        {"weights": weights, "threshold": submodel.extra},
        {"weights": update_mask, "threshold": zero_mask},
    )


def _effective(local: PyTree) -> Params:
    return jax.tree.map(straight_through, local["weights"], local["threshold"])


def _to_update(
    before: PyTree, after: PyTree, update_mask: Masks
) -> tuple[Params, Masks]:
    """The change of the weights themselves."""
    delta = trees.subtract(after["weights"], before["weights"])
    return trees.multiply(delta, update_mask), update_mask


def _layers(node: Any) -> list[Any]:
    """The outermost dictionaries that hold a "kernel"."""
    if not isinstance(node, Mapping):
        return []
    if "kernel" in node:
        return [node]
    return [layer for child in node.values() for layer in _layers(child)]


@jax.custom_jvp
def straight_through(
    weight: Float[Array, "..."], tau: Float[Array, ""]
) -> Float[Array, "..."]:
    """The weight where it is at least tau, else 0; its gradient sees the mask move.

        f(w, tau) = w 1[|w| >= tau]
        d f / d w     = (1 + 2 tau |w| / (|w| + tau)^2) 1[|w| >= tau]

    and 0 along tau. The gain is 1.5 at |w| = tau and falls to 1 for large weights. For
    tau = 0 no weight is masked and the gain is 1.

    Source: Wu et al. 2024 (see `fiarse`), the straight-through gradient of their
    threshold.
    """
    return jnp.where(jnp.abs(weight) >= tau, weight, jnp.zeros_like(weight))


@straight_through.defjvp
def _straight_through_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    weight, tau = primals
    size = jnp.abs(weight)
    total = jnp.where(tau > 0, size + tau, jnp.ones_like(size))
    gain = (1 + 2 * tau * size / total**2) * (size >= tau).astype(size.dtype)
    return straight_through(weight, tau), gain * tangents[0]
