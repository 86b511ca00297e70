"""FedCE: weights by what a hospital adds to the others, in directions and in errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fairjax.core import aggregate, require, simplex, trees
from fairjax.core.types import Cohort, Masks, Params, Rule, Scores
from fairjax.fairness.directions import gram

MODES = ("plus", "times")
_LEAST = 1e-3
"""No part of a weight is smaller, as in the published port."""


class _Record(NamedTuple):
    """Sums over rounds, per hospital."""

    cosine: Float[Array, "N"]
    error: Float[Array, "N"]
    weight: Float[Array, "N"]
    """Of the round before."""
    rounds: Int[Array, "N"]
    """How many it took part in: a mean is over these alone."""


def fedce(*, mode: str) -> Rule:
    """FedCE: contribution in gradient space and in data space.

        cos_k = cosine of d_k and sum_{i != k} w_i d_i,   w of the round before,
        err_k = validation error at k of the model that the others' changes make,
        a_k = 1 - mean over rounds of cos_k,   b_k = mean over rounds of err_k,
        w_k proportional to a_k + b_k ("plus") or a_k b_k ("times"),

    a and b normalised over clients and, like w, at least 0.001. w is uniform before the
    first round, whose errors count as 1. The others' model is the incoming one plus the
    mean of their changes, weighted by w without k; it is judged on the validation
    records of k, and the error enters in the next round. A client without validation
    records has the mean error of those with some.

    All hospitals take part in every round.

    Source: FedCE, Jiang et al. 2023, "Fair federated medical image segmentation via
    client contribution estimation", section 3 and its port to NVFlare, with accuracy
    for the Dice score.
    """
    require.one_of("fairness.fedce.mode", mode, MODES)

    def init(params: PyTree, counts: Int[Array, "N"], tiers: int) -> _Record:
        clients = len(counts)
        zero, one = jnp.zeros(clients), jnp.ones(clients)
        return _Record(zero, one, one / clients, jnp.zeros(clients, jnp.int32))

    def weigh(
        state: _Record, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        assert scores.errors is not None
        who, valid = cohort.client, cohort.valid
        before = simplex.over_valid(state.weight[who], valid)
        inner = gram(scores.delta, scores.delta).astype(before.dtype)
        cosine = state.cosine[who] + _cosines(inner, before)
        rounds = (state.rounds[who] + 1).astype(before.dtype)
        a = _at_least(jnp.maximum(1 - cosine / rounds, 0), valid)
        b = _at_least(state.error[who] / rounds, valid)
        weights = _at_least(a + b if mode == "plus" else a * b, valid)
        weights = simplex.over_valid(weights, valid)
        others = _without_each(scores.delta, scores.cover, weights)
        error = _filled(scores.errors(others).astype(before.dtype), valid)
        slot = jnp.where(valid, who, len(state.weight))

        def kept(old: Array, new: Array) -> Array:
            return old.at[slot].set(new, mode="drop")

        return weights, _Record(
            kept(state.cosine, cosine),
            kept(state.error, state.error[who] + error),
            kept(state.weight, weights),
            state.rounds.at[slot].add(1, mode="drop"),
        )

    needs = frozenset({"update", "validation"})
    return Rule(weigh, needs, everyone=True, init=init)


def _at_least(values: Float[Array, "K"], valid: Bool[Array, "K"]) -> Float[Array, "K"]:
    share = simplex.over_valid(values, valid)
    return jnp.where(valid, jnp.maximum(share, _LEAST), 0)


def _cosines(
    inner: Float[Array, "K K"], weights: Float[Array, "K"]
) -> Float[Array, "K"]:
    """Cosine of every change and the weighted sum of the others', 0 if one is 0."""
    own = jnp.diagonal(inner)
    mixed = inner @ weights - weights * own
    # |sum_i w_i d_i - w_k d_k|^2, from inner products alone.
    total = weights @ inner @ weights
    rest = total - 2 * weights * (inner @ weights) + weights**2 * own
    length = jnp.sqrt(jnp.maximum(own, 0)) * jnp.sqrt(jnp.maximum(rest, 0))
    return jnp.where(length > 0, mixed / jnp.where(length > 0, length, 1), 0)


def _without_each(deltas: Params, covers: Masks, weights: Float[Array, "K"]) -> Params:
    """The masked mean of the others' changes, for each client, [K, ...] a leaf."""
    shares = jax.vmap(aggregate.share)(deltas, covers, weights, weights)
    num, den = (
        jax.tree.map(lambda total, own: total - own, trees.sum_first(part), part)
        for part in shares
    )
    # A difference that is only rounding covers nothing.
    den = jax.tree.map(lambda leaf: jnp.where(leaf > 1e-6, leaf, 0), den)
    return aggregate.masked_mean(num, den)


def _filled(error: Float[Array, "K"], valid: Bool[Array, "K"]) -> Float[Array, "K"]:
    """Unknown errors replaced by the mean of the known ones; 1 if none is known."""
    known = valid & ~jnp.isnan(error)
    number = jnp.sum(known).astype(error.dtype)
    mean = jnp.sum(error, where=known) / jnp.maximum(number, 1)
    return jnp.where(known, error, jnp.where(number > 0, mean, 1))
