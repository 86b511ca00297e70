"""Rules that weigh clients: pure functions from what is known to a simplex point.

All of them give exactly 0 to a padded slot, sum to 1 over the valid ones, and are all
zero for a cohort without a valid client (the round then changes nothing). They commute
with permutations of the cohort.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from fairjax import checks
from fairjax.types import Cohort, Rule, Scores

_FLOOR = 1e-10
"""Losses are floored here, as in the reference code of q-FFL: log 0 is not a weight."""


def simplex(
    log_weights: Float[Array, "K"], valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    """Softmax over the valid slots: exp(l_k) / sum_j exp(l_j), 0 elsewhere.

    In logarithms, so that no loss or exponent overflows. A slot whose logarithm is NaN
    or +inf (a loss that is no finite number) counts as not valid.
    """
    valid = valid & (log_weights < jnp.inf)
    log_weights = jnp.where(valid, log_weights, -jnp.inf)
    top = jnp.max(log_weights, where=valid, initial=-jnp.inf)
    raw = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0))
    total = jnp.sum(raw)
    return raw / jnp.where(total > 0, total, 1)


def _log_count(scores: Scores, dtype: jnp.dtype = jnp.float32) -> Float[Array, "K"]:
    return jnp.log(scores.count.astype(dtype))


def size() -> Rule:
    """w_k = n_k / sum_j n_j, n_k the training records of client k.

    Source: FedAvg, McMahan et al. 2017.
    """

    def weigh(
        state: PyTree, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        return simplex(_log_count(scores), cohort.valid), state

    return Rule(weigh)


def uniform() -> Rule:
    """w_k = 1 / K over the valid clients: every hospital counts the same."""

    def weigh(
        state: PyTree, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        return simplex(jnp.zeros(cohort.valid.shape), cohort.valid), state

    return Rule(weigh)


def q_ffl(*, q: float) -> Rule:
    """w_k proportional to n_k F_k^q, F_k the loss of client k at the incoming model.

    q = 0 is FedAvg; a larger q moves weight to the clients that are served worst, and
    q -> infinity leaves only the worst. These are the weights under which a step along
    the mean change is a step on the q-FFL objective; the update rule with a Lipschitz
    estimate of the step size is q-FedAvg.

    Source: Li et al. 2020, "Fair resource allocation in federated learning", eq. (2).
    """
    checks.in_range("fairness.q_ffl.q", q, 0)

    def weigh(
        state: PyTree, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        assert scores.loss is not None
        log_loss = jnp.log(jnp.maximum(scores.loss, _FLOOR))
        log_weights = _log_count(scores, log_loss.dtype) + q * log_loss
        return simplex(log_weights, cohort.valid), state

    return Rule(weigh, needs="loss")


def over_valid(
    weights: Float[Array, "K"], valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    """The weights renormalised over the clients that are still valid."""
    kept = jnp.where(valid, weights, 0)
    total = jnp.sum(kept)
    return kept / jnp.where(total > 0, total, 1)
