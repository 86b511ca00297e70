"""Depth prefixes: sub-models that end early, and the exits inside them."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from fairjax.core import require
from fairjax.core.types import Axes, Kept, Size, Units

BLOCKS = "blocks"
"""The list of a model's residual blocks."""

EXIT = "exit"
"""What the names of exits' heads begin with; in the list they stand with a block."""


def prefix(axes: Axes, length: int | Int[Array, ""]) -> Units:
    """The first `length` residual blocks; every axis whole."""
    return Units({}, {BLOCKS: jnp.arange(axes.blocks[BLOCKS]) < length})


def size(length: int) -> Size:
    """The static size of `prefix`."""
    return Size({}, {BLOCKS: tuple(range(length))})


def exits(axes: Axes, kept: Kept) -> Bool[Array, "exits"]:
    """Which exits of the plain model lie inside what is kept.

    A sliced network has the kept exits alone; where they are a prefix, the first
    entries speak for them.
    """
    if kept.forward is None or BLOCKS not in kept.forward.blocks:
        return jnp.ones(len(axes.exits), bool)
    return kept.forward.blocks[BLOCKS][np.array(axes.exits)].astype(bool)


def counts(
    where: str, given: Sequence[int], budget: Sequence[float], total: int
) -> tuple[int, ...]:
    """How many of `total` every tier keeps: as given, or ceil(budget * total).

    Args:
        where: the option's name, for the refusal.
        given: one number per tier; () decides by budget.
        budget: share of every tier, in (0, 1].
        total: what there is to keep.

    Raises:
        InputError: another number of tiers, or a number outside 1 .. total.
    """
    if total < 1:
        require.fail(where, "a model that has what this counts", total)
    if not given:
        # Rounded first, as in `axes.prefix_sizes`.
        given = [max(1, math.ceil(round(share * total, 9))) for share in budget]
    if len(given) != len(budget):
        require.fail(where, f"{len(budget)} values, as tiers.budget", given)
    for number in given:
        require.in_range(where, number, 1, total)
    return tuple(given)
