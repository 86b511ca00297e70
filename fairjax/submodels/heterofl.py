"""Static width prefixes: poorer clients train the first units of hidden layers."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import rng
from fairjax.core.method import Method
from fairjax.core.types import Axes, ClientView, Units
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

    A client of tier t trains the first ceil(budget_t * U) of the U units of every
    hidden axis, input and output sides alike, and every input feature and class.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, in (0, 1], smallest tier first.
        scaler: divide hidden activations by the tier's share, in training and in
            evaluation, so that narrow and wide layers feed the next one alike. The
            whole model has no scaler.
        masked_loss: set the logits of classes without records at the client to 0 (not
            to minus infinity) in its loss, and leave the head's rows of those classes
            out of its update.
        redraw: dynamic tiers: every client's tier is drawn anew in every round, tier t
            with probability redraw_t / sum(redraw), whatever its device. The method
            then has no static sizes and runs masked, and a tier is evaluated by the
            sub-model of a tier drawn. None: tiers are fixed.

    Edge cases: on `vit` a unit of an attention is a whole head, for this and every
    other method that cuts widths: with three heads the budgets 0.25, 0.5 and 0.75 keep
    one, two and three.

    Source: E. Diao, J. Ding and V. Tarokh, "HeteroFL: Computation and Communication
    Efficient Federated Learning for Heterogeneous Clients", ICLR 2021,
    arXiv:2010.01264, with the rounding, masked loss and modes "fix" and "dynamic" of
    the released code. Deviates: clients are weighted by the fairness rule (the released
    code counts each once: rule "uniform"); attention is cut by heads, where that code
    keeps every head and cuts the dimensions of each.
    """
    per_tier = width.sizes(axes, budget)

    def units(key: Array, round: Array, client: ClientView) -> Units:
        return unit_axes.prefix(axes, width.tier_sizes(per_tier, client.tier))

    def draw_tier(key: Array, client: ClientView) -> Array:
        shares = jnp.asarray([math.log(s) if s else -math.inf for s in redraw or ()])
        return jax.random.categorical(rng.fold_in(key, client.client), shares)

    return width.width_method(
        units,
        per_tier,
        budget,
        scaler=scaler,
        masked_loss=masked_loss,
        draw_tier=None if redraw is None else draw_tier,
    )
