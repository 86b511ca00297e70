"""Depth prefixes: sub-models that end early, and the exits inside them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from fairjax.core import axes as unit_axes
from fairjax.core import require
from fairjax.core.types import Axes, Size, Submodel, Units

BLOCKS = "blocks"
"""The block list of a model's residual blocks."""

EXIT = "exit"
"""Prefix of the names of exits' heads; `LeafAxes.block` places each with a block."""


def prefix(axes: Axes, length: int | Int[Array, ""]) -> Units:
    """The first `length` residual blocks; every axis whole."""
    return Units({}, {BLOCKS: jnp.arange(axes.blocks[BLOCKS]) < length})


def size(length: int) -> Size:
    """The static size of `prefix`."""
    return Size({}, {BLOCKS: tuple(range(length))})


def exits(axes: Axes, submodel: Submodel) -> Bool[Array, "exits"]:
    """Which exits of the plain model lie inside the sub-model.

    A sliced network has these exits alone; where they are a prefix, they are the first
    entries.
    """
    if submodel.forward is None or BLOCKS not in submodel.forward.blocks:
        return jnp.ones(len(axes.exits), bool)
    return submodel.forward.blocks[BLOCKS][np.array(axes.exits)].astype(bool)


def counts(
    field: str, tier_counts: Sequence[int], budget: Sequence[float], total: int
) -> tuple[int, ...]:
    """Every tier's number of blocks or exits: as given, or ceil(budget * total).

    Args:
        field: the method's argument that gives the numbers, for the error.
        tier_counts: one number per tier; (): by budget.
        budget: share of every tier, in (0, 1].
        total: number in the plain model.

    Raises:
        InputError: a model without any, another number of tiers, or a number outside
            1 .. total.
    """
    if total < 1:
        require.fail(field, "a model that has what this counts", total)
    if not tier_counts:
        tier_counts = [unit_axes.prefix_size(share, total) for share in budget]
    if len(tier_counts) != len(budget):
        require.fail(field, f"{len(budget)} values, one per tier", tier_counts)
    for number in tier_counts:
        require.in_range(field, number, 1, total)
    return tuple(tier_counts)
