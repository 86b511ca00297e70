"""FairFed: weights by how far a client's group gap is from that of all clients."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, FederationFacts, Rule
from fairjax.core.types import Cohort, GroupStats
from fairjax.fairness.weights import LOSSES


def _opportunity_gap(group_stats: GroupStats) -> Float[Array, "..."]:
    """Sensitivity in group 0 minus that in group 1; NaN where one has no positives."""
    positives, true_positives = (
        group_stats.count[..., :2, 1],
        group_stats.correct[..., :2, 1],
    )
    sensitivity = true_positives / jnp.where(positives > 0, positives, jnp.nan)
    return sensitivity[..., 0] - sensitivity[..., 1]


def _accuracy(group_stats: GroupStats) -> Float[Array, "..."]:
    count = jnp.sum(group_stats.count, axis=(-2, -1))
    return jnp.sum(group_stats.correct, axis=(-2, -1)) / jnp.maximum(count, 1)


def fairfed(*, beta: float) -> Rule:
    """Weights move to clients whose equal-opportunity gap is that of all clients.

        Delta_k = |gap - gap_k|, or |accuracy - accuracy_k| where gap_k is not defined,
        v_k <- v_k - beta (Delta_k - mean_j Delta_j),   w_k = v_k / sum_j v_j

    with v_k = n_k / n at first. The new v weight the round in which they are computed.
    A gap is the difference of the sensitivities in the attribute's two groups, over
    training records at the incoming model; `gap` counts the records of all clients
    together. A negative v_k is set to 0, which the publication leaves open. beta = 0 is
    FedAvg.

    All clients take part in every round. A client that a fault keeps away keeps its
    share of all v: if negative v of other clients are set to 0, it gains as they do.

    Args:
        beta: step size of v, from 0.

    Raises:
        InputError: beta is negative or not finite.

    Source: Ezzeldin et al., "FairFed: enabling group fairness in federated learning",
    AAAI 2023, arXiv:2110.00857, algorithm 1.
    """
    require.in_range("beta", beta, 0)

    def init(params: PyTree, facts: FederationFacts) -> Float[Array, "N"]:
        share = facts.count.astype(jnp.float32)
        return share / jnp.sum(share)

    def weigh(
        state: Float[Array, "N"], cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        assert stats.group_stats is not None
        valid = simplex.has_finite_loss(stats, cohort.valid)
        pooled_stats = GroupStats(
            *(
                jnp.sum(cell, axis=0, where=valid[:, None, None])
                for cell in stats.group_stats
            )
        )
        gap_deviation = jnp.abs(
            _opportunity_gap(pooled_stats) - _opportunity_gap(stats.group_stats)
        )
        accuracy_deviation = jnp.abs(
            _accuracy(pooled_stats) - _accuracy(stats.group_stats)
        )
        deviation = jnp.where(
            jnp.isnan(gap_deviation), accuracy_deviation, gap_deviation
        )
        number = jnp.maximum(jnp.sum(valid), 1).astype(deviation.dtype)
        mean = jnp.sum(deviation, where=valid) / number
        old_weights = jnp.where(valid, state[cohort.client], 0)
        new_weights = old_weights - beta * (deviation - mean).astype(state.dtype)
        new_weights = jnp.where(valid, jnp.maximum(new_weights, 0), 0)
        slot = jnp.where(valid, cohort.client, len(state))
        weights = simplex.normalise(new_weights, simplex.record_weights(stats, valid))
        old_total = jnp.sum(old_weights)
        growth = jnp.where(
            old_total > 0,
            jnp.sum(new_weights) / jnp.where(old_total > 0, old_total, 1),
            1,
        )
        return weights, (state * growth).at[slot].set(new_weights, mode="drop")

    reads = LOSSES | {"labels"}
    return Rule(weigh, reads, "losses", full_participation=True, init=init)
