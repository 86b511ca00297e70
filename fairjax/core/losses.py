"""Per-example losses; how they are averaged over valid records is the caller's."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from fairjax.core.types import Batch


def cross_entropy(
    logits: Float[Array, "B C"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """-log softmax(logits)[label], one value per record, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def divergence(
    teacher: Float[Array, "B C"], student: Float[Array, "B C"], temperature: float = 1.0
) -> Float[Array, "B"]:
    """KL(softmax(teacher / T) || softmax(student / T)), one value per record, in nats.

    No gradient reaches the teacher.
    """
    target = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    predicted = jax.nn.log_softmax(student / temperature)
    return optax.losses.kl_divergence_with_log_targets(predicted, target)


def mean(
    losses: Float[Array, "B"],
    where: Bool[Array, "B"],
    weights: Float[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """sum_b v_b l_b / sum_b v_b over valid records, v_b the weight (1 when None).

    No valid record, or only weights of 0, gives 0.
    """
    value = where.astype(losses.dtype)
    if weights is not None:
        value = value * weights
    total = jnp.sum(value)
    # Zero the loss of padding itself: 0 * inf is NaN.
    kept = jnp.where(value > 0, losses, jnp.zeros_like(losses))
    return jnp.sum(value * kept) / jnp.where(total > 0, total, jnp.ones_like(total))


def over(
    batch: Batch, losses: Float[Array, "B"], weights: Float[Array, "B"] | None = None
) -> Float[Array, ""]:
    """sum_b v_b f_b l_b / sum_b v_b over a batch's valid records, f_b its factors.

    A factor does not enter the divisor, unlike a weight: a batch whose records all have
    the same one is scaled by it.
    """
    if batch.factor is not None:
        losses = losses * batch.factor.astype(losses.dtype)
    return mean(losses, batch.where, weights)
