"""Weights over a cohort, on the simplex of its valid clients."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fairjax.core.rule import CohortStats


def softmax(
    log_weights: Float[Array, "K"], valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    """Softmax over the valid slots: exp(l_k) / sum_j exp(l_j), 0 elsewhere.

    Weights enter as logarithms, so that no loss or exponent overflows. A slot whose
    logarithm is NaN or +inf (from a loss that is not finite) counts as not valid.
    Without a valid slot all weights are 0.

    Args:
        log_weights: l.
        valid: the slots that count.

    Example:
        >>> log_weights = jnp.array([200.0, 200.0, 500.0])
        >>> softmax(log_weights, jnp.array([True, True, False])).tolist()
        [0.5, 0.5, 0.0]
    """
    valid = valid & (log_weights < jnp.inf)
    log_weights = jnp.where(valid, log_weights, -jnp.inf)
    maximum = jnp.max(log_weights, where=valid, initial=-jnp.inf)
    exp_weights = jnp.exp(log_weights - jnp.where(jnp.isfinite(maximum), maximum, 0))
    total = jnp.sum(exp_weights)
    return exp_weights / jnp.where(total > 0, total, 1)


def log_count(stats: CohortStats) -> Float[Array, "K"]:
    """Log n_k; -inf for a client without records.

    Args:
        stats: statistics of the cohort.
    """
    dtype = jnp.float32 if stats.loss is None else loss(stats).dtype
    return jnp.log(stats.count.astype(dtype))


def record_weights(stats: CohortStats, valid: Bool[Array, "K"]) -> Float[Array, "K"]:
    """p_k = n_k / sum_j n_j over the valid clients.

    Args:
        stats: statistics of the cohort.
        valid: the clients that count.

    Example:
        >>> stats = CohortStats(count=jnp.array([10, 30, 60]))
        >>> record_weights(stats, jnp.array([True, True, False])).round(2)
        Array([0.25, 0.75, 0.  ], dtype=float32)

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data" (FedAvg), AISTATS 2017, arXiv:1602.05629.
    """
    return softmax(log_count(stats), valid)


def uniform_weights(stats: CohortStats, valid: Bool[Array, "K"]) -> Float[Array, "K"]:
    """1 / K over the K valid clients.

    Args:
        stats: not read; rules call all weights alike.
        valid: the clients that count.
    """
    return softmax(jnp.zeros(valid.shape), valid)


def renormalise(
    weights: Float[Array, "K"], valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    """The weights renormalised over the valid clients, 0 elsewhere.

    If the valid clients have weight 0 together, all weights are 0.

    Args:
        weights: non-negative weights.
        valid: the clients that count.

    Example:
        >>> weights = jnp.array([0.25, 0.5, 0.25])
        >>> renormalise(weights, jnp.array([True, False, True])).tolist()
        [0.5, 0.0, 0.5]
    """
    masked_weights = jnp.where(valid, weights, 0)
    total = jnp.sum(masked_weights)
    return masked_weights / jnp.where(total > 0, total, 1)


def loss(stats: CohortStats) -> Float[Array, "K"]:
    """The losses of the cohort, for a rule that reads them, in float32 at least.

    Args:
        stats: statistics of the cohort.
    """
    assert stats.loss is not None
    is_wide = jnp.finfo(stats.loss.dtype).bits >= 32
    return stats.loss if is_wide else stats.loss.astype(jnp.float32)


def has_finite_loss(stats: CohortStats, valid: Bool[Array, "K"]) -> Bool[Array, "K"]:
    """Valid clients whose loss is finite; only these are given weight.

    Args:
        stats: statistics of the cohort.
        valid: the clients that count.
    """
    return valid & jnp.isfinite(loss(stats))


def project(
    point: Float[Array, "K"], low: Float[Array, "K"], high: Float[Array, "K"]
) -> Float[Array, "K"]:
    """The point of {x : sum x = 1, low <= x <= high} that is nearest to `point`.

        x_k = clip(y_k + tau, low_k, high_k),   tau such that sum_k x_k = 1

    Distance is Euclidean. The sum of x is piecewise linear in tau and grows with it.
    One sort of the 2 K values of tau where the slope changes finds the piece on which
    the sum crosses 1. With low = 0 and high = 1 the result is the projection onto the
    simplex.

    Args:
        point: y, finite.
        low: lower bounds, of sum at most 1.
        high: upper bounds, of sum at least 1, else the result is `high`.

    Example:
        >>> project(jnp.array([1.0, 0.5, -1.0]), jnp.zeros(3), jnp.ones(3)).tolist()
        [0.75, 0.25, 0.0]
    """
    # A common shift of y changes only tau; a largest entry of 0 keeps tau exact.
    is_fixed = low >= high
    maximum = jnp.max(point, where=~is_fixed, initial=-jnp.inf)
    point = jnp.where(
        is_fixed, low, point - jnp.where(jnp.isfinite(maximum), maximum, 0)
    )
    slope = jnp.where(is_fixed, 0, jnp.ones_like(point))
    breakpoints = jnp.concatenate([low - point, high - point])
    breakpoints, slope_change = jax.lax.sort(
        (breakpoints, jnp.concatenate([slope, -slope])), num_keys=1
    )
    slope = jnp.cumsum(slope_change)
    rise = jnp.cumsum(slope[:-1] * jnp.diff(breakpoints))
    total = jnp.sum(low) + jnp.concatenate([jnp.zeros_like(rise[:1]), rise])
    piece = jnp.maximum(jnp.sum(total <= 1) - 1, 0)
    tau = breakpoints[piece] + (1 - total[piece]) / jnp.maximum(slope[piece], 1)
    return jnp.where(is_fixed, low, jnp.clip(point + tau, low, high))


def normalise(
    mass: Float[Array, "K"], fallback: Float[Array, "K"]
) -> Float[Array, "K"]:
    """`mass` divided by its sum, or `fallback` where that sum is 0.

    Args:
        mass: non-negative weights.
        fallback: weights on the simplex.

    Example:
        >>> normalise(jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5])).tolist()
        [0.25, 0.75]
    """
    total = jnp.sum(mass)
    return jnp.where(total > 0, mass / jnp.where(total > 0, total, 1), fallback)
