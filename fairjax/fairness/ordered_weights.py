"""Weights by loss rank: the conditional value at risk and ordered averaging."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import Cohort
from fairjax.fairness.weights import stateless


def _distort_weights(
    cohort: Cohort,
    stats: CohortStats,
    distortion: Callable[[Float[Array, "K"]], Float[Array, "K"]],
) -> Float[Array, "K"]:
    """Ordered weights: worst first, client k gets what g gains over its share p_k.

        w_k = (p_k / P_k) (g(A_k + P_k) - g(A_k)),

    A_k is the share of the clients with a higher loss and P_k that of the clients with
    the same loss, so tied clients divide their weight by records. g is concave,
    g(0) = 0 and g(1) = 1.
    """
    loss, valid = simplex.loss(stats), simplex.has_finite_loss(stats, cohort.valid)
    share = simplex.record_weights(stats, valid)
    above_share = jnp.sum(jnp.where(loss > loss[:, None], share, 0), axis=1)
    tied_share = jnp.sum(jnp.where(loss == loss[:, None], share, 0), axis=1)
    gain = distortion(jnp.minimum(above_share + tied_share, 1)) - distortion(
        jnp.minimum(above_share, 1)
    )
    weights = share / jnp.where(tied_share > 0, tied_share, 1) * gain
    return simplex.renormalise(weights, valid)


def cvar(*, alpha: float) -> Rule:
    """Weights of the conditional value at risk: only the worst-served share alpha.

        max { sum_k w_k F_k : w on the simplex, w_k <= p_k / alpha },   p_k = n_k / n

    alpha = 1 is FedAvg, and alpha -> 0 leaves the worst client. A client that lies
    across the border of the share counts in part.

    Args:
        alpha: in (0, 1].

    Raises:
        InputError: alpha is outside (0, 1].

    Source: Rockafellar and Uryasev, "Optimization of conditional value-at-risk",
    Journal of Risk 2000, doi:10.21314/JOR.2000.038; in federated learning Laguel et
    al., "A superquantile approach to federated learning with heterogeneous devices",
    CISS 2021, doi:10.1109/CISS50987.2021.9400318.
    """
    require.in_range("alpha", alpha, 0, 1, open_low=True)
    return stateless(
        lambda cohort, stats: _distort_weights(
            cohort, stats, lambda share: jnp.minimum(share / alpha, 1)
        ),
        "losses",
        weights_from="losses",
    )


def ordered(*, power: float) -> Rule:
    """Ordered weights that fall with the rank: `_distort_weights` by g(u) = u^power.

    power = 1 is FedAvg. A smaller power moves weight smoothly to higher losses, and
    power -> 0 leaves the worst client alone.

    Args:
        power: in (0, 1].

    Raises:
        InputError: power is outside (0, 1].

    Source: ordered weighted averaging, Yager, "On ordered weighted averaging
    aggregation operators in multicriteria decisionmaking", IEEE Transactions on
    Systems, Man, and Cybernetics 1988, doi:10.1109/21.87068, with the proportional
    hazards transform as the distortion, Wang, "Insurance pricing and increased limits
    ratemaking by proportional hazards transforms", Insurance: Mathematics and Economics
    1995, volume 17, pages 43 to 54.
    """
    require.in_range("power", power, 0, 1, open_low=True)
    return stateless(
        lambda cohort, stats: _distort_weights(
            cohort, stats, lambda share: share**power
        ),
        "losses",
        weights_from="losses",
    )
