"""q-FFL: weights that grow with a power of the loss."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import Cohort, Scalar
from fairjax.fairness.weights import gap_to_max, stateless

_FLOOR = 1e-10
"""Smaller losses count as this one, as in the reference code: log 0 is not a weight."""


def q_ffl(*, q: Scalar) -> Rule:
    """w_k proportional to n_k F_k^q, F_k the loss of client k at the incoming model.

    q = 0 is FedAvg. A larger q moves weight to the clients that are served worst, and
    q -> infinity leaves only the worst one. With these weights a step along the mean
    change is a step on the q-FFL objective. `q_fedavg.q_fedavg` is the update rule
    that estimates the step size from Lipschitz constants.

    Args:
        q: fairness, from 0.

    Raises:
        InputError: q is negative or not finite.

    Source: Li et al., "Fair resource allocation in federated learning", ICLR 2020,
    arXiv:1905.10497, eq. (2).
    """
    require.in_range("q", q, 0)

    def weigh(cohort: Cohort, stats: CohortStats) -> Float[Array, "K"]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        log_loss = jnp.log(jnp.maximum(simplex.loss(stats), _FLOOR))
        power = q * gap_to_max(log_loss, valid)
        return simplex.softmax(simplex.log_count(stats) + power, valid)

    return stateless(weigh, "losses", weights_from="losses")
