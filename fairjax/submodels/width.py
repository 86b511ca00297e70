"""What the width methods share: sizes of every tier, and HeteroFL's two options."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from fairjax.core import axes as unit_axes
from fairjax.core import losses
from fairjax.core.types import (
    Axes,
    Batch,
    Context,
    Kept,
    Member,
    OutputsAt,
    Size,
    Units,
)

Sizes = list[dict[str, int]]
"""{axis: units kept} of every tier, smallest first."""


def sizes(axes: Axes, budget: tuple[float, ...]) -> Sizes:
    """ceil(budget_t * U) of the U units of every hidden axis, at least 1, per tier."""
    return [unit_axes.prefix_sizes(axes, share) for share in budget]


def at(per_tier: Sizes, tier: Int[Array, ""]) -> dict[str, Int[Array, ""]]:
    """The sizes of one tier, whose number is data."""
    return {
        name: jnp.asarray([tier[name] for tier in per_tier], jnp.int32)[tier]
        for name in per_tier[0]
    }


def size(per_tier: Sizes, tier: int) -> Size:
    """The sizes of one tier, for a sliced network."""
    return Size(per_tier[tier], {})


def kept(
    forward: Units,
    budget: tuple[float, ...],
    tier: Int[Array, ""],
    member: Member,
    *,
    scaler: bool,
    masked_loss: bool,
) -> Kept:
    """These units, with the scaler and the masked head of HeteroFL where asked for.

    Args:
        forward: the units present.
        budget: width share of every tier.
        tier: the client's tier in this round.
        member: who it is.
        scaler: divide hidden activations by the tier's share; see `heterofl`.
        masked_loss: leave the head's rows of classes that the client does not hold out
            of its update; goes with `masked_cross_entropy`.

    Source: Diao, Ding and Tarokh 2021, section 3.
    """
    update = None
    if masked_loss:
        held = {unit_axes.CLASSES: member.labels > 0}
        update = forward._replace(axes={**forward.axes, **held})
    scale = jnp.asarray(budget)[tier] if scaler else None
    return Kept(forward, update, scale)


def masked_cross_entropy(
    outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy after the logits of classes not held are set to 0.

    They are set to 0 and not to minus infinity: an absent class keeps its exp(0) in the
    softmax, but sends no gradient.

    Source: the masking trick of Diao, Ding and Tarokh 2021, as in the released code.
    """
    logits = outputs_at(None).logits
    held = context.member.labels > 0
    logits = jnp.where(held, logits, jnp.zeros_like(logits))
    return losses.over(batch, losses.cross_entropy(logits, batch.y)), {}
