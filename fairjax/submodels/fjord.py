"""Ordered dropout: a client trains all nested widths up to its own, one per step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import losses
from fairjax.core.types import (
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
from fairjax.submodels import width


def fjord(axes: Axes, budget: tuple[float, ...], *, distill: bool) -> Method:
    """FjORD: in every local step a width p is drawn up to the client's own, p_max.

    p is uniform over the budgets of all tiers that are at most p_max. The step runs the
    first ceil(p * U) units of every hidden axis; the client trains, decays, sends back
    and deploys the prefix at p_max. So the server averages a slice of the model over
    the clients that are wide enough for it. Input features and classes are never
    dropped.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, in (0, 1], smallest tier first.
        distill: the step's loss is CE(f_pmax, y) + CE(f_p, softmax(f_pmax)), the
            teacher detached, at temperature 1: width p learns from soft targets alone.
            Else it is the run's own objective at width p.

    p is drawn with the key of the step, which is the client's own: two clients draw
    apart in the same step. Its bill for training is the mean over the widths, the pass
    of the teacher included; for room, that of p_max.

    Source: Horvath et al. 2021 (NeurIPS, arXiv 2102.13451), section 3, with the
    self-distillation of the authors' Flower baseline (the paper's loss mixes soft and
    true labels by a weight).
    """
    per_tier = width.sizes(axes, budget)
    widths = sorted(set(budget))
    per_width = width.sizes(axes, tuple(widths))
    rank = [widths.index(share) for share in budget]

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        own = unit_axes.prefix(axes, width.at(per_tier, member.tier))
        return Kept(own, own, extra=jnp.asarray(rank, jnp.int32)[member.tier])

    def inner(key: Array, step: Array, kept: Kept) -> Kept:
        drawn = jax.random.randint(key, (), 0, kept.extra + 1)
        narrow = unit_axes.prefix(axes, width.at(per_width, drawn))
        return kept._replace(forward=narrow)

    return Method(
        units=units,
        size=lambda tier: width.size(per_tier, tier),
        inner=inner,
        narrow=lambda tier: tuple(Size(own, {}) for own in per_width[: rank[tier] + 1]),
        objective=_distilled if distill else None,
    )


def _distilled(
    outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
) -> tuple[Array, dict[str, Array]]:
    own = context.kept._replace(forward=context.kept.update)
    widest, narrow = outputs_at(own).logits, outputs_at(None).logits
    soft = jax.lax.stop_gradient(jax.nn.softmax(widest))
    hard = losses.cross_entropy(widest, batch.y)
    from_teacher = -jnp.sum(soft * jax.nn.log_softmax(narrow), axis=-1)
    return losses.over(batch, hard + from_teacher), {}
