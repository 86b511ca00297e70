"""Narrow and short sub-models whose tiers have step sizes and norms of their own."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import require
from fairjax.core.method import Method
from fairjax.core.types import Axes, ClientView, Params, Size, Submodel, Units
from fairjax.submodels import depth
from fairjax.submodels.width import tier_sizes

Dropped = int | tuple[int, ...]
"""Identity blocks that a tier drops: their number, from the end, or positions."""


def nefl(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    width: tuple[float, ...],
    dropped: tuple[Dropped, ...],
) -> Method:
    """NeFL: nested sub-models in both directions, each with its own step sizes.

    A tier trains the first ceil(sqrt(width) * U) of the U units of every hidden axis
    and all residual blocks but those it drops: x + s F(x) of a dropped block is x, and
    the learnable s of the others make up for it. Step sizes and the norms' scale and
    bias have the scope "tier", and the whole model has the richest tier's. Every other
    coordinate is the mean over the clients that cover it, and keeps its value where
    none does.

    Args:
        axes: unit axes of the plain model.
        budget: share of the parameters of every tier, in (0, 1], smallest first.
        width: share of the parameters that narrowing leaves, per tier; (): budget.
        dropped: per tier the number of identity blocks to drop, the last one first, or
            their positions, from 0: ((4, 5), 1, 0); (): none. Identity blocks are all
            but those of `Axes.reshaping_blocks`.

    Raises:
        InputError: another number of tiers, more blocks than can be dropped, or a
            position whose block cannot be dropped.

    Source: H. Kang et al., "NeFL: Nested Federated Learning for Heterogeneous Clients",
    2023, arXiv:2308.07761, and IEEE TMC 2025. Deviates: clients are weighted by the
    fairness rule (the released code counts each once: rule "uniform"); a block that no
    client of the cohort covers keeps its value (the code zeroes it); tiers do not
    jitter from round to round. Moments of batch norms are a tier's own only under
    moments "per_tier", as in the code. A block that changes the stream's shape goes
    with its projection, so it cannot be dropped; three of the released tiers (D,
    ResNet-18) drop such a block, keep its projection, and discard what that learns. On
    `vit` attention is cut by heads and shared, and a block has one s; the code narrows
    every head, attention is a tier's own, and each half of a block has an s.
    """
    shares = width or budget
    drops = dropped or (0,) * len(budget)
    for name, values in {"width": shares, "dropped": drops}.items():
        if len(values) != len(budget):
            requirement = f"{len(budget)} values, one per tier"
            require.fail(name, requirement, values)
    sizes = [unit_axes.prefix_sizes(axes, math.sqrt(share)) for share in shares]
    length = axes.blocks.get(depth.BLOCKS, 0)
    dropped_blocks = [_dropped_blocks(axes, length, choice) for choice in drops]
    remaining_blocks = [
        tuple(b for b in range(length) if b not in blocks) for blocks in dropped_blocks
    ]
    table = jnp.asarray(
        [[b in blocks for b in range(length)] for blocks in remaining_blocks]
    )

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        axis_sizes = tier_sizes(sizes, client.tier)
        blocks = {depth.BLOCKS: table[client.tier]} if length else {}
        return Submodel(Units(unit_axes.prefix(axes, axis_sizes).axes, blocks))

    def size(tier: int) -> Size:
        return Size(
            sizes[tier], {depth.BLOCKS: remaining_blocks[tier]} if length else {}
        )

    return Method(submodel=submodel, size=size, scopes=_scopes)


def _dropped_blocks(axes: Axes, length: int, choice: Dropped) -> tuple[int, ...]:
    """Positions of the blocks that a tier drops."""
    field = "dropped"
    identity = [block for block in range(length) if block not in axes.reshaping_blocks]
    # One block at least remains.
    max_drops = min(len(identity), max(length - 1, 0))
    if isinstance(choice, tuple):
        if len(choice) > max_drops or len(set(choice)) < len(choice):
            require.fail(field, f"at most {max_drops} positions, each once", choice)
        if not set(choice) <= set(identity):
            require.fail(field, f"positions among {identity}", choice)
        return choice
    if not isinstance(choice, int):
        require.fail(field, "a number or a tuple of positions per tier", choice)
    require.in_range(field, choice, 0, max_drops)
    return tuple(identity[len(identity) - choice :])


def _scopes(params: Params) -> Any:
    """Scope "tier" for leaves named "step" and for the scale and bias of norms."""

    def mark(node: Any, is_tier_leaf: bool) -> Any:
        if not isinstance(node, Mapping):
            return jax.tree.map(lambda leaf: "tier" if is_tier_leaf else "shared", node)
        norm = {"scale", "bias"} <= node.keys() and "kernel" not in node
        return {
            name: mark(child, norm or name == "step") for name, child in node.items()
        }

    return mark(params, False)
