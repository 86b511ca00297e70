"""Width and depth cut together; the deepest exit teaches the earlier ones."""

import math

import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import losses, require
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
    Units,
)
from fairjax.submodels import depth


def scalefl(
    axes: Axes,
    budget: tuple[float, ...],
    rounds: int,
    *,
    width: tuple[float, ...],
    exits: tuple[int, ...],
    gamma: float,
    temperature: float,
    warmup: float,
) -> Method:
    """ScaleFL: a tier keeps a prefix of every hidden axis and of the exits.

        loss = sum_{j < E} (j + 1) l_j / (E (E + 1) / 2),    l_last = CE_last,
        l_j = CE_j + gamma T^2 KL(softmax(z_last / T) || softmax(z_j / T)),

    over the E exits that the client keeps. The KL terms begin when more than
    warmup * rounds are finished: of 40 rounds with warmup 0.25, in the 12th. It answers
    with its deepest exit.

    Args:
        axes: unit axes of the plain model, which has exits.
        budget: share of every tier, in (0, 1], smallest tier first; it decides what the
            next two leave open.
        rounds: of the whole run.
        width: share of every hidden axis per tier, of which floor(width * U) of U units
            remain, at least 1; (): sqrt(budget).
        exits: exits that every tier keeps; (): ceil(budget * exits).
        gamma: strength of the distillation; 0: without.
        temperature: T.
        warmup: share of the rounds before the distillation, in [0, 1]; with 0 the first
            round alone is without.

    Raises:
        InputError: a model without exits, or options that do not fit the tiers.

    Source: Ilhan, Su and Liu 2023 (ScaleFL, CVPR). Deviates: the teacher gets no
    gradient and the distillation is on (the released code does neither by default); KL
    is summed over classes and averaged over records (there over both); clients are
    weighted by the fairness rule (there each counts once: rule "uniform").
    """
    given = width or tuple(math.sqrt(share) for share in budget)
    if len(given) != len(budget):
        require.fail("submodel.scalefl.width", f"{len(budget)} values, per tier", width)
    sizes = [
        {
            name: max(1, math.floor(round(share * units, 9)))
            for name, units in unit_axes.hidden(axes).items()
        }
        for share in given
    ]
    kept_exits = depth.counts("submodel.scalefl.exits", exits, budget, len(axes.exits))
    lengths = [axes.exits[number - 1] + 1 for number in kept_exits]
    # The first whole number above it: the condition is strict.
    start = math.floor(round(warmup * rounds, 9)) + 1

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        here = {
            name: jnp.asarray([tier[name] for tier in sizes])[member.tier]
            for name in unit_axes.hidden(axes)
        }
        blocks = depth.prefix(axes, jnp.asarray(lengths)[member.tier]).blocks
        forward = Units(unit_axes.prefix(axes, here).axes, blocks)
        return Kept(forward, scale=jnp.asarray(given)[member.tier])

    def objective(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        outputs = outputs_at(None)
        dtype = outputs.logits.dtype
        present = depth.exits(axes, context.kept).astype(dtype)
        # An exit has a teacher where a deeper one is kept.
        taught = jnp.concatenate([present[1:], jnp.zeros(1, dtype)])
        begun = (context.round >= start).astype(dtype)
        strength = gamma * temperature**2 * begun * taught
        loss = jnp.zeros((), dtype)
        for j, logits in enumerate(outputs.exits):
            each = losses.cross_entropy(logits, batch.y)
            if gamma:
                each = each + strength[j] * losses.divergence(
                    outputs.logits, logits, temperature
                )
            loss += (j + 1) * present[j] * losses.over(batch, each)
        count = jnp.sum(present)
        return loss / (count * (count + 1) / 2), {}

    def size(tier: int) -> Size:
        return Size(sizes[tier], depth.size(lengths[tier]).blocks)

    return Method(units=units, size=size, objective=objective)
