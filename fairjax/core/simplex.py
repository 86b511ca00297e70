"""Weights over a cohort: all that is needed to stay on the simplex of valid clients."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fairjax.core.types import Scores


def softmax(
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


def log_count(scores: Scores) -> Float[Array, "K"]:
    """Log n_k; -inf for a client without records."""
    dtype = jnp.float32 if scores.loss is None else loss(scores).dtype
    return jnp.log(scores.count.astype(dtype))


def by_records(scores: Scores, valid: Bool[Array, "K"]) -> Float[Array, "K"]:
    """p_k = n_k / sum_j n_j over the valid clients: FedAvg's weights."""
    return softmax(log_count(scores), valid)


def alike(scores: Scores, valid: Bool[Array, "K"]) -> Float[Array, "K"]:
    """1 / K over the valid clients."""
    return softmax(jnp.zeros(valid.shape), valid)


def over_valid(
    weights: Float[Array, "K"], valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    """The weights renormalised over the clients that are still valid."""
    kept = jnp.where(valid, weights, 0)
    total = jnp.sum(kept)
    return kept / jnp.where(total > 0, total, 1)


def loss(scores: Scores) -> Float[Array, "K"]:
    """The losses of a rule that asked for them, in float32 at least."""
    assert scores.loss is not None
    wide = jnp.finfo(scores.loss.dtype).bits >= 32
    return scores.loss if wide else scores.loss.astype(jnp.float32)


def known(scores: Scores, valid: Bool[Array, "K"]) -> Bool[Array, "K"]:
    """Valid clients whose loss is a finite number; only they are given weight."""
    return valid & jnp.isfinite(loss(scores))


def project(
    point: Float[Array, "K"], low: Float[Array, "K"], high: Float[Array, "K"]
) -> Float[Array, "K"]:
    """The point of {x : sum x = 1, low <= x <= high} that is nearest to `point`.

        x_k = clip(y_k + tau, low_k, high_k),   tau such that sum_k x_k = 1

    (Euclidean). The sum grows with tau, piecewise linearly: one sort of the 2 K places
    where its slope changes finds the piece that crosses 1. With low = 0 and high = 1 it
    is the projection onto the simplex.

    Args:
        point: y, finite.
        low: lower bounds, of sum at most 1.
        high: upper bounds, of sum at least 1, else the result is `high`.
    """
    # A common shift moves tau alone; the largest entry at 0 keeps it exact.
    fixed = low >= high
    top = jnp.max(point, where=~fixed, initial=-jnp.inf)
    point = jnp.where(fixed, low, point - jnp.where(jnp.isfinite(top), top, 0))
    slope = jnp.where(fixed, 0, jnp.ones_like(point))
    at = jnp.concatenate([low - point, high - point])
    at, change = jax.lax.sort((at, jnp.concatenate([slope, -slope])), num_keys=1)
    slope = jnp.cumsum(change)
    rise = jnp.cumsum(slope[:-1] * jnp.diff(at))
    total = jnp.sum(low) + jnp.concatenate([jnp.zeros_like(rise[:1]), rise])
    piece = jnp.maximum(jnp.sum(total <= 1) - 1, 0)
    tau = at[piece] + (1 - total[piece]) / jnp.maximum(slope[piece], 1)
    return jnp.where(fixed, low, jnp.clip(point + tau, low, high))


def restricted(
    mass: Float[Array, "K"], fallback: Float[Array, "K"]
) -> Float[Array, "K"]:
    """`mass` normalised; where nothing is left of it, `fallback`."""
    total = jnp.sum(mass)
    return jnp.where(total > 0, mass / jnp.where(total > 0, total, 1), fallback)
