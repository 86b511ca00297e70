"""Width and depth cut together, with step sizes and norms of every tier's own."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax import checks
from fairjax.submodels import axes as unit_axes
from fairjax.submodels import depth
from fairjax.types import Axes, Kept, Member, Method, Params, Size, Units


def nefl(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    width: tuple[float, ...],
    dropped: tuple[int, ...],
) -> Method:
    """NeFL: nested sub-models in both directions, each with its own step sizes.

    A tier keeps the first ceil(sqrt(width) * U) of the U units of every hidden axis and
    all residual blocks but its last `dropped` identity blocks: x + s F(x) of a dropped
    block is x, and the learnable s of the others make up for it. Step sizes and the
    norms' scale and bias are private to the tier; all else is the mean over those who
    hold it, and what nobody holds keeps its value.

    Args:
        axes: unit axes of the plain model.
        budget: share of the parameters of every tier, in (0, 1], smallest first.
        width: share of the parameters that narrowing leaves, per tier; (): budget.
        dropped: blocks dropped per tier, the last one first; (): none. Blocks of
            `Axes.fixed` are never dropped.

    Raises:
        InputError: another number of tiers, or more blocks than can be dropped.

    Source: Kang et al. 2023. Deviates: the released code zeroes a block that nobody in
    the cohort holds; tiers do not jitter from round to round.
    """
    shares = width or budget
    drops = dropped or (0,) * len(budget)
    for where, values in {"width": shares, "dropped": drops}.items():
        if len(values) != len(budget):
            what = f"{len(budget)} values, as tiers.budget"
            checks.fail(f"submodel.nefl.{where}", what, values)
    sizes = [unit_axes.prefix_sizes(axes, math.sqrt(share)) for share in shares]
    length = axes.blocks.get(depth.BLOCKS, 0)
    identity = [block for block in range(length) if block not in axes.fixed]
    for number in drops:
        # One block at least remains.
        most = min(len(identity), max(length - 1, 0))
        checks.in_range("submodel.nefl.dropped", number, 0, most)
    gone = [identity[len(identity) - number :] for number in drops]
    kept = [tuple(b for b in range(length) if b not in blocks) for blocks in gone]
    table = jnp.asarray([[b in blocks for b in range(length)] for blocks in kept])

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        here = {
            name: jnp.asarray([tier[name] for tier in sizes])[member.tier]
            for name in unit_axes.hidden(axes)
        }
        blocks = {depth.BLOCKS: table[member.tier]} if length else {}
        return Kept(Units(unit_axes.prefix(axes, here).axes, blocks))

    def size(tier: int) -> Size:
        return Size(sizes[tier], {depth.BLOCKS: kept[tier]} if length else {})

    return Method(units=units, size=size, private=_inconsistent)


def _inconsistent(params: Params) -> Any:
    """Marks leaves named "step" and the scale and bias of norms as the tier's own."""

    def mark(node: Any, own: bool) -> Any:
        if not isinstance(node, Mapping):
            return jax.tree.map(lambda leaf: "tier" if own else "shared", node)
        norm = {"scale", "bias"} <= node.keys() and "kernel" not in node
        return {
            name: mark(below, norm or name == "step") for name, below in node.items()
        }

    return mark(params, False)
