"""FairFed: weights that follow how far a hospital's group gap is from everybody's."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from fairjax.core import require, simplex
from fairjax.core.types import Cells, Cohort, Rule, Scores
from fairjax.fairness.weights import LOSS


def _opportunity_gap(cells: Cells) -> Float[Array, "..."]:
    """Sensitivity in group 0 minus that in group 1; NaN where one has no positives."""
    positives, found = cells.count[..., :2, 1], cells.right[..., :2, 1]
    rate = found / jnp.where(positives > 0, positives, jnp.nan)
    return rate[..., 0] - rate[..., 1]


def _accuracy(cells: Cells) -> Float[Array, "..."]:
    count = jnp.sum(cells.count, axis=(-2, -1))
    return jnp.sum(cells.right, axis=(-2, -1)) / jnp.maximum(count, 1)


def fairfed(*, beta: float) -> Rule:
    """FairFed: weights move to hospitals whose equal-opportunity gap is everybody's.

        Delta_k = |gap - gap_k|, or |accuracy - accuracy_k| where gap_k is not defined,
        v_k <- v_k - beta (Delta_k - mean_j Delta_j),   w_k = v_k / sum_j v_j

    with v_k = n_k / n at first; the new v weigh the round in which they are found. A
    gap is the difference of the sensitivities in the attribute's two groups, over
    training records at the incoming model; `gap` counts the records of all clients
    together. A negative v_k is set to 0, which the publication leaves open. beta = 0 is
    FedAvg.

    All hospitals take part in every round. One that a fault keeps away has the share of
    all v that it had: where others' negative ones are set to 0, it gains as they do.

    Source: FairFed, Ezzeldin et al. 2023, "FairFed: enabling group fairness in
    federated learning", algorithm 1.
    """
    require.in_range("fairness.fairfed.beta", beta, 0)

    def init(params: PyTree, counts: Int[Array, "N"], tiers: int) -> Float[Array, "N"]:
        share = counts.astype(jnp.float32)
        return share / jnp.sum(share)

    def weigh(
        state: Float[Array, "N"], cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        assert scores.cells is not None
        valid = simplex.known(scores, cohort.valid)
        together = Cells(
            *(
                jnp.sum(cell, axis=0, where=valid[:, None, None])
                for cell in scores.cells
            )
        )
        by_gap = jnp.abs(_opportunity_gap(together) - _opportunity_gap(scores.cells))
        by_accuracy = jnp.abs(_accuracy(together) - _accuracy(scores.cells))
        away = jnp.where(jnp.isnan(by_gap), by_accuracy, by_gap)
        number = jnp.maximum(jnp.sum(valid), 1).astype(away.dtype)
        mean = jnp.sum(away, where=valid) / number
        before = jnp.where(valid, state[cohort.client], 0)
        moved = before - beta * (away - mean).astype(state.dtype)
        moved = jnp.where(valid, jnp.maximum(moved, 0), 0)
        slot = jnp.where(valid, cohort.client, len(state))
        weights = simplex.restricted(moved, simplex.by_records(scores, valid))
        had = jnp.sum(before)
        growth = jnp.where(had > 0, jnp.sum(moved) / jnp.where(had > 0, had, 1), 1)
        return weights, (state * growth).at[slot].set(moved, mode="drop")

    return Rule(weigh, LOSS, everyone=True, init=init)
