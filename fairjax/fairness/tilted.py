"""TERM: weights that grow exponentially with the loss."""

from jaxtyping import Array, Float

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import Cohort, Scalar
from fairjax.fairness.weights import gap_to_max, stateless


def term(*, t: Scalar) -> Rule:
    """w_k proportional to n_k exp(t F_k): the gradient's weights under a tilted loss.

        (1 / t) log sum_k p_k exp(t F_k),   p_k = n_k / n

    F_k is the loss of client k at the incoming model. t = 0 is FedAvg, and
    t -> infinity leaves the worst client alone, as does any t at which the tilt of
    every other client overflows. The published code normalises by a moving average
    over rounds. This rule normalises by the sum of the round, so that the weights are
    a simplex point.

    Args:
        t: tilt, from 0, per nat.

    Raises:
        InputError: t is negative or not finite.

    Source: Li et al., "Tilted empirical risk minimization", ICLR 2021,
    arXiv:2007.01162, lemma 1.
    """
    require.in_range("t", t, 0)

    def weigh(cohort: Cohort, stats: CohortStats) -> Float[Array, "K"]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        tilt = t * gap_to_max(simplex.loss(stats), valid)
        return simplex.softmax(simplex.log_count(stats) + tilt, valid)

    return stateless(weigh, "losses", weights_from="losses")
