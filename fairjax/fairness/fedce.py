"""FedCE: weights by what a client contributes, in gradient space and in data space."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fairjax.core import aggregate, require, simplex, trees
from fairjax.core.rule import CohortStats, FederationFacts, Rule
from fairjax.core.types import Cohort, Masks, Params
from fairjax.fairness.update_stack import gram

MODES = ("plus", "times")
_MIN_WEIGHT = 1e-3
"""The smallest part of a weight, as in the published port."""


class _FedCEState(NamedTuple):
    """Sums over rounds, per client."""

    cosine: Float[Array, "N"]
    error: Float[Array, "N"]
    weight: Float[Array, "N"]
    """The weight of the previous round."""
    rounds: Int[Array, "N"]
    """Rounds in which the client took part: a mean is over these alone."""


def fedce(*, mode: str) -> Rule:
    """Weights by contribution in gradient space and in data space.

        cos_k = cosine of d_k and sum_{i != k} w_i d_i,   w of the previous round,
        err_k = validation error at k of the model without k's change,
        a_k = 1 - mean over rounds of cos_k,   b_k = mean over rounds of err_k,
        w_k proportional to a_k + b_k ("plus") or a_k b_k ("times"),

    a and b normalised over clients and, like w, at least 0.001. w is uniform before the
    first round, whose errors count as 1. The model without k's change is the incoming
    model plus the mean of the other clients' changes, weighted by w without k. It is
    evaluated on the validation records of k, and the error enters in the next round. A
    client without validation records gets the mean error of the clients that have some.

    All clients take part in every round.

    Args:
        mode: "plus" or "times".

    Raises:
        InputError: the mode is unknown.

    Source: Jiang et al., "Fair federated medical image segmentation via client
    contribution estimation", CVPR 2023, arXiv:2303.16520, section 3 and its port to
    NVFlare, with accuracy instead of the Dice score.
    """
    require.one_of("mode", mode, MODES)

    def init(params: PyTree, facts: FederationFacts) -> _FedCEState:
        clients = len(facts.count)
        zero, all_ones = jnp.zeros(clients), jnp.ones(clients)
        return _FedCEState(
            zero, all_ones, all_ones / clients, jnp.zeros(clients, jnp.int32)
        )

    def weigh(
        state: _FedCEState, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        assert stats.errors is not None
        client_index, valid = cohort.client, cohort.valid
        old_weights = simplex.renormalise(state.weight[client_index], valid)
        inner_products = gram(stats.delta, stats.delta).astype(old_weights.dtype)
        cosine = state.cosine[client_index] + _cosines(inner_products, old_weights)
        rounds = (state.rounds[client_index] + 1).astype(old_weights.dtype)
        a = _floor_weights(jnp.maximum(1 - cosine / rounds, 0), valid)
        b = _floor_weights(state.error[client_index] / rounds, valid)
        weights = _floor_weights(a + b if mode == "plus" else a * b, valid)
        weights = simplex.renormalise(weights, valid)
        other_updates = _leave_one_out(stats.delta, stats.cover, weights)
        error = _impute_mean(
            stats.errors(other_updates).astype(old_weights.dtype), valid
        )
        slot = jnp.where(valid, client_index, len(state.weight))

        def scatter(old: Array, new: Array) -> Array:
            return old.at[slot].set(new, mode="drop")

        return weights, _FedCEState(
            scatter(state.cosine, cosine),
            scatter(state.error, state.error[client_index] + error),
            scatter(state.weight, weights),
            state.rounds.at[slot].add(1, mode="drop"),
        )

    reads = frozenset({"updates", "validation"})
    return Rule(weigh, reads, "updates", full_participation=True, init=init)


def _floor_weights(
    values: Float[Array, "K"], valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    share = simplex.renormalise(values, valid)
    return jnp.where(valid, jnp.maximum(share, _MIN_WEIGHT), 0)


def _cosines(
    inner_products: Float[Array, "K K"], weights: Float[Array, "K"]
) -> Float[Array, "K"]:
    """Cosine of every change and the weighted sum of the others, 0 if either is 0."""
    squared_norms = jnp.diagonal(inner_products)
    cross_products = inner_products @ weights - weights * squared_norms
    # |sum_i w_i d_i - w_k d_k|^2, from inner products alone.
    total = weights @ inner_products @ weights
    others_squared_norm = (
        total - 2 * weights * (inner_products @ weights) + weights**2 * squared_norms
    )
    length = jnp.sqrt(jnp.maximum(squared_norms, 0)) * jnp.sqrt(
        jnp.maximum(others_squared_norm, 0)
    )
    return jnp.where(length > 0, cross_products / jnp.where(length > 0, length, 1), 0)


def _leave_one_out(deltas: Params, covers: Masks, weights: Float[Array, "K"]) -> Params:
    """For each client the masked mean of the others' changes, [K, ...] a leaf."""
    weighted_updates = jax.vmap(aggregate.weighted_update)(
        deltas, covers, weights, weights
    )
    num, den = (
        jax.tree.map(
            lambda total, leaf: total - leaf,
            trees.sum_first(weighted_trees),
            weighted_trees,
        )
        for weighted_trees in weighted_updates
    )
    # A difference that is only a rounding error covers nothing.
    den = jax.tree.map(lambda leaf: jnp.where(leaf > 1e-6, leaf, 0), den)
    return aggregate.masked_mean(num, den)


def _impute_mean(
    error: Float[Array, "K"], valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    """Unknown errors replaced by the mean of the known ones; 1 if none is known."""
    has_error = valid & ~jnp.isnan(error)
    number = jnp.sum(has_error).astype(error.dtype)
    mean = jnp.sum(error, where=has_error) / jnp.maximum(number, 1)
    return jnp.where(has_error, error, jnp.where(number > 0, mean, 1))
