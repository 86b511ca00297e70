"""Static width prefixes: a poorer client trains the lead of every hidden layer."""

import jax.numpy as jnp
from jaxtyping import Array

from fairjax import losses
from fairjax.submodels import axes as unit_axes
from fairjax.types import (
    Axes,
    Batch,
    Context,
    Kept,
    Member,
    Method,
    OutputsAt,
    Params,
    Size,
)


def heterofl(
    axes: Axes, budget: tuple[float, ...], *, scaler: bool, masked_loss: bool
) -> Method:
    """HeteroFL with fixed tiers.

    A client of tier t keeps the first ceil(budget_t * U) of the U units of every hidden
    axis, input and output sides alike, and every input feature and class.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, in (0, 1], smallest tier first.
        scaler: divide hidden activations by the tier's share while training, so that
            narrow and wide layers feed the next one alike.
        masked_loss: set the logits of classes that the client does not hold to 0 (not
            to minus infinity) in its loss, and leave the head's rows of those classes
            out of its update.

    Source: Diao, Ding and Tarokh 2021, with the released code's rounding and masked
    loss. Deviates: tiers are not redrawn every round; clients are weighted by the
    fairness rule (the released code counts each once: rule "uniform").
    """
    per_tier = [unit_axes.prefix_sizes(axes, share) for share in budget]

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        sizes = {
            name: jnp.asarray([tier[name] for tier in per_tier])[member.tier]
            for name in unit_axes.hidden(axes)
        }
        forward = unit_axes.prefix(axes, sizes)
        update = None
        if masked_loss:
            held = {unit_axes.CLASSES: member.labels > 0}
            update = forward._replace(axes={**forward.axes, **held})
        scale = jnp.asarray(budget)[member.tier] if scaler else None
        return Kept(forward, update, scale)

    return Method(
        units=units,
        size=lambda tier: Size(dict(per_tier[tier]), {}),
        objective=_masked_cross_entropy if masked_loss else None,
    )


def _masked_cross_entropy(
    outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
):
    logits = outputs_at(None).logits
    held = context.member.labels > 0
    logits = jnp.where(held, logits, jnp.zeros_like(logits))
    return losses.mean(losses.cross_entropy(logits, batch.y), batch.where), {}
