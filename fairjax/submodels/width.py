"""What the width methods share: sizes of every tier, and HeteroFL's two options."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Int

from fairjax.core import axes as unit_axes
from fairjax.core import losses
from fairjax.core.method import Method
from fairjax.core.types import (
    Axes,
    Batch,
    ClientView,
    Context,
    OutputsAt,
    Params,
    Size,
    Submodel,
    Units,
)

Sizes = list[dict[str, int]]
"""{axis: units of the sub-model} of every tier, smallest first."""


def sizes(axes: Axes, budget: tuple[float, ...]) -> Sizes:
    """ceil(budget_t * U) of the U units of every hidden axis, at least 1, per tier."""
    return [unit_axes.prefix_sizes(axes, share) for share in budget]


def tier_sizes(per_tier: Sizes, tier: Int[Array, ""]) -> dict[str, Int[Array, ""]]:
    """The sizes of one tier, whose number may be traced."""
    return {
        name: jnp.asarray([row[name] for row in per_tier], jnp.int32)[tier]
        for name in per_tier[0]
    }


def size(per_tier: Sizes, tier: int) -> Size:
    """The sizes of one tier, for a sliced network."""
    return Size(per_tier[tier], {})


def width_method(
    units: Callable[[Array, Array, ClientView], Units],
    per_tier: Sizes,
    budget: tuple[float, ...],
    *,
    scaler: bool,
    masked_loss: bool,
    draw_tier: Callable[[Array, ClientView], Int[Array, ""]] | None = None,
) -> Method:
    """A method whose sub-models are narrow, with HeteroFL's two options.

    Args:
        units: (key, round, client) -> the units of the client, whose tier is that of
            the round.
        per_tier: number of those units, from `sizes`.
        budget: width share of every tier.
        scaler: divide hidden activations by the tier's share; see `heterofl`.
        masked_loss: leave classes without records at the client out of its loss
            (`masked_cross_entropy`), and the head's rows of those classes out of its
            update.
        draw_tier: (key, client) -> the client's tier of the round, for which no static
            size is known; None: the client's own.

    Source: HeteroFL (see `fairjax.submodels.heterofl`), section 3.
    """

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        if draw_tier is not None:
            client = client._replace(tier=draw_tier(key, client))
        forward, update = units(key, round, client), None
        if masked_loss:
            class_units = {unit_axes.CLASSES: client.labels > 0}
            update = forward._replace(axes={**forward.axes, **class_units})
        scale = jnp.asarray(budget)[client.tier] if scaler else None
        return Submodel(forward, update, scale)

    return Method(
        submodel=submodel,
        size=None if draw_tier is not None else lambda tier: size(per_tier, tier),
        objective=masked_cross_entropy if masked_loss else None,
        reads_labels=masked_loss,
    )


def masked_cross_entropy(
    outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy after the logits of classes without records are set to 0.

    They are set to 0 and not to minus infinity: an absent class keeps its exp(0) in the
    softmax, but sends no gradient.

    Source: the masking trick of HeteroFL (see `fairjax.submodels.heterofl`), as in the
    released code.
    """
    logits = outputs_at(None).logits
    has_class = context.client.labels > 0
    logits = jnp.where(has_class, logits, jnp.zeros_like(logits))
    return losses.batch_mean(batch, losses.cross_entropy(logits, batch.y)), {}
