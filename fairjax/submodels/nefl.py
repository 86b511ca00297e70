"""Width and depth cut together, with step sizes and norms of every tier's own."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import require
from fairjax.core.types import Axes, Kept, Member, Method, Params, Size, Units
from fairjax.submodels import depth

Dropped = int | tuple[int, ...]
"""Identity blocks of a tier: how many from the end, or at which positions."""


def nefl(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    width: tuple[float, ...],
    dropped: tuple[Dropped, ...],
) -> Method:
    """NeFL: nested sub-models in both directions, each with its own step sizes.

    A tier keeps the first ceil(sqrt(width) * U) of the U units of every hidden axis and
    all residual blocks but those it drops: x + s F(x) of a dropped block is x, and the
    learnable s of the others make up for it. Step sizes and the norms' scale and bias
    are private to the tier, and the whole model has the richest tier's; all else is the
    mean over those who hold it, and what nobody holds keeps its value.

    Args:
        axes: unit axes of the plain model.
        budget: share of the parameters of every tier, in (0, 1], smallest first.
        width: share of the parameters that narrowing leaves, per tier; (): budget.
        dropped: per tier how many identity blocks are dropped, the last one first, or
            the positions of those that are, from 0: ((4, 5), 1, 0); (): none. Identity
            blocks are all but those of `Axes.fixed`.

    Raises:
        InputError: another number of tiers, more blocks than can be dropped, or a
            position where none can.

    Source: Kang et al. 2023 (NeFL, arXiv 2308.07761; IEEE TMC 2025). Deviates: clients
    are weighted by the fairness rule (the released code counts each once: rule
    "uniform"); it zeroes a block that nobody in the cohort holds; tiers do not jitter
    from round to round; moments of batch norms are a tier's own under moments
    "per_tier" alone, as they are there. A block that changes the stream's shape goes
    with its projection, so it cannot be dropped; three of the released tiers (D,
    ResNet-18) drop such a block, keep its projection, and throw away what that learns.
    On `vit` attention is cut by heads and shared, and a block has one s; there every
    head is narrowed, attention is a tier's own, and each half of a block has an s.
    """
    shares = width or budget
    drops = dropped or (0,) * len(budget)
    for where, values in {"width": shares, "dropped": drops}.items():
        if len(values) != len(budget):
            what = f"{len(budget)} values, as tiers.budget"
            require.fail(f"submodel.nefl.{where}", what, values)
    sizes = [unit_axes.prefix_sizes(axes, math.sqrt(share)) for share in shares]
    length = axes.blocks.get(depth.BLOCKS, 0)
    gone = [_gone(axes, length, choice) for choice in drops]
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


def _gone(axes: Axes, length: int, choice: Dropped) -> tuple[int, ...]:
    """Positions of the blocks that a tier drops."""
    where = "submodel.nefl.dropped"
    identity = [block for block in range(length) if block not in axes.fixed]
    # One block at least remains.
    most = min(len(identity), max(length - 1, 0))
    if isinstance(choice, tuple):
        if len(choice) > most or len(set(choice)) < len(choice):
            require.fail(where, f"at most {most} positions, each once", choice)
        if not set(choice) <= set(identity):
            require.fail(where, f"positions among {identity}", choice)
        return choice
    if not isinstance(choice, int):
        require.fail(where, "a number or a tuple of positions per tier", choice)
    require.in_range(where, choice, 0, most)
    return tuple(identity[len(identity) - choice :])


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
