"""Ordered dropout: a client trains all nested widths up to its own, one per step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import losses
from fairjax.core.method import Method, Reparameterisation
from fairjax.core.types import (
    Axes,
    Batch,
    ClientView,
    Context,
    OutputsAt,
    Params,
    Size,
    Submodel,
)
from fairjax.submodels import width


def fjord(axes: Axes, budget: tuple[float, ...], *, distill: bool) -> Method:
    """FjORD: every local step draws a width p up to the client's own, p_max.

    p is uniform over the budgets of all tiers that are at most p_max. The step runs the
    first ceil(p * U) units of every hidden axis; the client trains, decays, sends back
    and deploys the prefix at p_max. So the server averages a slice of the model over
    the clients that are wide enough for it. Input features and classes are never
    dropped. The key of the step draws p, so two clients draw independently.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, in (0, 1], smallest tier first.
        distill: the step's loss is CE(f_pmax, y) + CE(f_p, softmax(f_pmax)), the
            teacher detached, at temperature 1: width p learns from soft targets alone.
            Else it is the run's own objective at width p.

    The training cost of a tier is the mean over its widths, with the pass of the
    teacher; its memory is that of p_max.

    Source: S. Horvath et al., "FjORD: Fair and Accurate Federated Learning under
    heterogeneous targets with Ordered Dropout", NeurIPS 2021, arXiv:2102.13451, section
    3, with the self-distillation of the authors' Flower baseline (the paper's loss
    mixes soft and true labels by a weight).
    """
    per_tier = width.sizes(axes, budget)
    widths = sorted(set(budget))
    per_width = width.sizes(axes, tuple(widths))
    rank = [widths.index(share) for share in budget]

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        prefix = unit_axes.prefix(axes, width.tier_sizes(per_tier, client.tier))
        return Submodel(prefix, prefix, extra=jnp.asarray(rank, jnp.int32)[client.tier])

    def per_step(key: Array, step: Array, submodel: Submodel) -> Submodel:
        width_index = jax.random.randint(key, (), 0, submodel.extra + 1)
        narrow = unit_axes.prefix(axes, width.tier_sizes(per_width, width_index))
        return submodel._replace(forward=narrow)

    def per_step_sizes(tier: int) -> tuple[Size, ...]:
        return tuple(Size(sizes, {}) for sizes in per_width[: rank[tier] + 1])

    return Method(
        submodel=submodel,
        size=lambda tier: width.size(per_tier, tier),
        local=Reparameterisation(per_step=per_step, per_step_sizes=per_step_sizes),
        objective=_distillation_loss if distill else None,
    )


def _distillation_loss(
    outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
) -> tuple[Array, dict[str, Array]]:
    """CE(f_pmax, y) + CE(f_p, softmax(f_pmax)), without a gradient to the teacher."""
    widest_submodel = context.submodel._replace(forward=context.submodel.update)
    widest_logits = outputs_at(widest_submodel).logits
    narrow_logits = outputs_at(None).logits
    soft_targets = jax.lax.stop_gradient(jax.nn.softmax(widest_logits))
    hard_loss = losses.cross_entropy(widest_logits, batch.y)
    distillation = -jnp.sum(soft_targets * jax.nn.log_softmax(narrow_logits), axis=-1)
    return losses.batch_mean(batch, hard_loss + distillation), {}
