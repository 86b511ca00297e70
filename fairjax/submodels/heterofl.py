"""Static width prefixes: a poorer client trains the lead of every hidden layer."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import rng
from fairjax.core.types import Axes, Kept, Member, Method, Params
from fairjax.submodels import width


def heterofl(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    scaler: bool,
    masked_loss: bool,
    redraw: tuple[float, ...] | None = None,
) -> Method:
    """HeteroFL: nested prefixes of every hidden layer.

    A client of tier t keeps the first ceil(budget_t * U) of the U units of every hidden
    axis, input and output sides alike, and every input feature and class.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, in (0, 1], smallest tier first.
        scaler: divide hidden activations by the tier's share, in training and wherever
            the sub-model answers, so that narrow and wide layers feed the next one
            alike. The whole model has no scaler.
        masked_loss: set the logits of classes that the client does not hold to 0 (not
            to minus infinity) in its loss, and leave the head's rows of those classes
            out of its update.
        redraw: dynamic tiers: every client's tier is drawn anew in every round, tier t
            with probability redraw_t / sum(redraw), whatever its device. A slot then
            has no static size, so the method runs masked, and the sub-model by which a
            tier is evaluated is that of the tier drawn. None: tiers are fixed.

    Edge cases: on `vit` a unit of an attention is a whole head, for this and every
    other method that cuts widths: of three heads the budgets 0.25, 0.5 and 0.75 keep
    one, two and three.

    Source: Diao, Ding and Tarokh 2021 (ICLR, arXiv 2010.01264), with the released
    code's rounding, masked loss and modes "fix" and "dynamic". Deviates: clients are
    weighted by the fairness rule (the released code counts each once: rule "uniform");
    attention is cut by heads, where that code keeps every head and cuts the dimensions
    of each.
    """
    per_tier = width.sizes(axes, budget)

    def tier_of(key: Array, member: Member) -> Array:
        if redraw is None:
            return member.tier
        share = jnp.asarray([math.log(s) if s else -math.inf for s in redraw])
        return jax.random.categorical(rng.at(key, member.client), share)

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        tier = tier_of(key, member)
        return width.kept(
            unit_axes.prefix(axes, width.at(per_tier, tier)),
            budget,
            tier,
            member,
            scaler=scaler,
            masked_loss=masked_loss,
        )

    return Method(
        units=units,
        size=None if redraw is not None else lambda tier: width.size(per_tier, tier),
        objective=width.masked_cross_entropy if masked_loss else None,
    )
