"""Breakdown points: how many Byzantine clients a coordinate withstands."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from fairjax.core.types import Params
from fairjax.robust.aggregators import trim_count


class Ring(NamedTuple):
    """Coordinates that the same tiers hold."""

    tiers: tuple[int, ...]
    parameters: int
    """Number of these coordinates."""
    clients: int
    """Fewest clients that hold one of them."""


def rings(params: Params, holders: PyTree[Int[np.ndarray, "T ..."]]) -> list[Ring]:
    """The coverage rings of a population, that of the most tiers first.

    Args:
        params: the plain model.
        holders: how many clients of every tier hold a coordinate, [T, ...] a leaf; the
            dimensions after the tiers broadcast to the parameter.
    """
    ring_sizes: dict[tuple[int, ...], tuple[int, int]] = {}
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(holders), strict=True)
    for leaf, leaf_holders in leaves:
        flat = np.broadcast_to(leaf_holders, (len(leaf_holders), *leaf.shape)).reshape(
            len(leaf_holders), -1
        )
        total = flat.sum(axis=0)
        tier_index = np.arange(len(leaf_holders))
        patterns = np.where(flat > 0, 1, 0).T @ (1 << tier_index)
        for pattern in np.unique(patterns):
            tiers = tuple(int(tier) for tier in tier_index if pattern >> tier & 1)
            ring_holders = total[patterns == pattern]
            size, fewest = ring_sizes.get(tiers, (0, int(ring_holders[0])))
            ring_sizes[tiers] = (
                size + len(ring_holders),
                min(fewest, int(ring_holders.min())),
            )
    order = sorted(ring_sizes, key=lambda tiers: (-len(tiers), tiers))
    return [Ring(tiers, *ring_sizes[tiers]) for tiers in order]


def breakdown(aggregator: str, holders: int, *, beta: float) -> int:
    """How many Byzantine clients among a coordinate's holders an aggregator withstands.

        mean 0;   median floor((M - 1) / 2);   trimmed mean floor(beta M);
        Krum and Multi-Krum 0

    Krum's guarantee is about whole changes and f Byzantine clients in the whole cohort:
    a change near the others may be far from them in one coordinate, the more so in a
    coordinate that few clients hold.

    Args:
        aggregator: one of `aggregators.AGGREGATORS`.
        holders: M, clients of a round that hold the coordinate.
        beta: the trimmed mean's share that is cut at each end.
    """
    if aggregator == "median":
        return max(holders - 1, 0) // 2
    if aggregator == "trimmed_mean":
        return int(trim_count(beta, jnp.asarray(holders)))
    return 0
