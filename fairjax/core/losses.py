"""Losses per record, and their mean over the valid records of a batch."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from fairjax.core.types import Batch


def cross_entropy(
    logits: Float[Array, "B C"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """-log softmax(logits)[label], one value per record, in nats.

    Example:
        >>> cross_entropy(jnp.array([[0.0, jnp.log(3.0)]]), jnp.array([1])).round(4)
        Array([0.2877], dtype=float32)
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def divergence(
    teacher: Float[Array, "B C"], student: Float[Array, "B C"], temperature: float = 1.0
) -> Float[Array, "B"]:
    """KL(softmax(teacher / T) || softmax(student / T)), one value per record, in nats.

    No gradient reaches the teacher.

    Args:
        teacher: logits of the target distribution.
        student: logits that are trained.
        temperature: T, above 0.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
    arXiv:1503.02531; without its factor T^2.
    """
    target = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    log_probs = jax.nn.log_softmax(student / temperature)
    return optax.losses.kl_divergence_with_log_targets(log_probs, target)


def mean(
    losses: Float[Array, "B"],
    where: Bool[Array, "B"],
    weights: Float[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """sum_b v_b l_b / sum_b v_b over valid records, v_b the weight (1 when None).

    Without a valid record, or with weights of 0 alone, the mean is 0. The loss of a
    record that does not count may be NaN or infinite.

    Args:
        losses: l.
        where: valid records.
        weights: a non-negative factor on v; None: 1.

    Example:
        >>> losses, where = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0], bool)
        >>> weighted = mean(losses, where, jnp.array([3.0, 1.0, 1.0]))
        >>> mean(losses, where).item(), weighted.item()
        (2.0, 1.5)
    """
    value = where.astype(losses.dtype)
    if weights is not None:
        value = value * weights
    total = jnp.sum(value)
    # The loss itself is set to 0, since 0 * inf is NaN.
    valid_losses = jnp.where(value > 0, losses, jnp.zeros_like(losses))
    return jnp.sum(value * valid_losses) / jnp.where(
        total > 0, total, jnp.ones_like(total)
    )


def batch_mean(
    batch: Batch, losses: Float[Array, "B"], weights: Float[Array, "B"] | None = None
) -> Float[Array, ""]:
    """sum_b v_b f_b l_b / sum_b v_b over a batch's valid records, f_b its factors.

    Unlike a weight, a factor does not enter the divisor: a factor that all records
    share scales the mean.

    Args:
        batch: the batch; f is `Batch.factor`, 1 where that is None.
        losses: l.
        weights: as for `mean`.
    """
    if batch.factor is not None:
        losses = losses * batch.factor.astype(losses.dtype)
    return mean(losses, batch.where, weights)
