"""FedMGDA+: the common descent direction of normalised changes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import Cohort, Masks, Params
from fairjax.fairness.update_stack import gram, nonzero, squared_norms, weighted_sum


def fedmgda(*, epsilon: float) -> Rule:
    """The common descent direction of the normalised changes.

        u_k = d_k / |d_k|,   w = argmin |sum_k w_k u_k|^2,   |w - p|_inf <= epsilon,
        change = sum_k w_k u_k

    with w on the simplex and p_k = n_k / n. The change has at most unit length:
    the server's learning rate sets its scale and has to be tuned anew. epsilon = 0 is
    FedAvg of normalised changes. At epsilon = 1 the change has an inner product of at
    least |change|^2 with every u_k, so that no client is made worse, to first order. A
    coordinate is not divided by the weights that cover it, which would turn the
    direction away from the minimum.

    Args:
        epsilon: largest distance of a weight from p_k, in [0, 1].

    Raises:
        InputError: epsilon is outside [0, 1].

    Source: Hu et al., "Federated learning meets multi-objective optimization", IEEE
    Transactions on Network Science and Engineering 2022, arXiv:2006.11489, algorithm 1.
    """
    require.in_range("epsilon", epsilon, 0, 1)

    def weigh(
        state: PyTree, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        share = simplex.record_weights(stats, cohort.valid)
        inner = gram(stats.delta, stats.delta)
        length = nonzero(jnp.sqrt(jnp.diagonal(inner)))
        inner = inner / (length * length[:, None])
        center = share.astype(inner.dtype)
        return min_norm(inner, center, epsilon, cohort.valid), state

    def combine(
        state: PyTree,
        cohort: Cohort,
        stats: CohortStats,
        weights: Float[Array, "K"],
    ) -> tuple[Params, Masks, PyTree]:
        length = nonzero(jnp.sqrt(squared_norms(stats.delta)))
        update = weighted_sum(weights / length, stats.delta)
        return update, _any_cover(stats.cover, weights), state

    return Rule(weigh, frozenset({"updates"}), "updates", combine=combine)


def _any_cover(covers: Masks, weights: Float[Array, "K"]) -> Masks:
    """1 where a client of positive weight covers the coordinate, else 0.

    As a denominator it leaves the sum of the changes as it is.
    """
    return jax.tree.map(
        lambda total: (total > 0).astype(total.dtype),
        weighted_sum((weights > 0).astype(weights.dtype), covers),
    )


def min_norm(
    gram: Float[Array, "K K"],
    center: Float[Array, "K"],
    epsilon: float,
    valid: Bool[Array, "K"],
    *,
    steps: int = 500,
) -> Float[Array, "K"]:
    """Argmin |sum_k x_k u_k|^2 over the simplex with |x - center|_inf <= epsilon.

    The method is accelerated projected gradient descent from `center` with the step
    1 / trace.

    Args:
        gram: inner products of the u_k.
        center: a simplex point over the valid clients.
        epsilon: 0 gives `center`, 1 the whole simplex.
        valid: the clients that count; the others get 0.
        steps: number of iterations.

    Source: Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm for
    linear inverse problems" (FISTA), SIAM Journal on Imaging Sciences 2009,
    doi:10.1137/080716542.
    """
    low = jnp.where(valid, jnp.maximum(center - epsilon, 0), 0)
    high = jnp.where(valid, jnp.minimum(center + epsilon, 1), 0)
    bound = jnp.trace(jnp.where(valid, gram, 0))
    step_size = 1 / jnp.where(bound > 0, bound, 1)

    def step(carry: tuple[Array, Array, Array], _: None):
        x, lookahead, momentum = carry
        new = simplex.project(lookahead - step_size * (gram @ lookahead), low, high)
        next_momentum = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        lookahead = new + (momentum - 1) / next_momentum * (new - x)
        return (new, lookahead, next_momentum), None

    start = jnp.where(valid, center, 0)
    first = (start, start, jnp.ones((), start.dtype))
    return jax.lax.scan(step, first, None, length=steps)[0][0]
