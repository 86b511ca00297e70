"""One table of a network's parameters, from which its init and its axes both follow.

A model that is a plain function of a dictionary lists its parameters once, each with
its shape, initial distribution, unit axes and place in the block list.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fairjax.core.types import Axes, LeafAxes, Params

Dim = tuple[str | None, int]
"""A dimension: (unit axis or None, length)."""

Block = tuple[str, int] | None
"""(block list, position) of a leaf that a depth tier may drop."""

NORMS = ("group", "batch", "layer", "none")

initializers = jax.nn.initializers


class Leaf(NamedTuple):
    """One parameter."""

    dims: tuple[Dim, ...]
    init: Callable[..., Array]
    """(key, shape, dtype) -> values."""
    block: Block = None


Table = dict[str, Any]
"""Leaves in nested dictionaries, like their parameters."""


def dense(*dims: Dim, block: Block = None) -> Table:
    """Kernel and bias of a dense map.

    Args:
        *dims: dimensions of the kernel; the last one is the output.
        block: place in a block list.
    """
    return {
        "kernel": Leaf(dims, initializers.lecun_normal(), block),
        "bias": bias(dims[-1], block),
    }


def bias(channels: Dim, block: Block = None) -> Leaf:
    """A bias, initially 0."""
    return Leaf((channels,), initializers.zeros, block)


def conv(size: int, inputs: Dim, outputs: Dim, block: Block = None) -> Table:
    """Kernel of a convolution without bias."""
    dims = ((None, size), (None, size), inputs, outputs)
    return {"kernel": Leaf(dims, initializers.he_normal(), block)}


def norm(name: str, kind: str, channels: Dim, block: Block = None) -> Table:
    """{name: scale and bias} of a norm; empty for kind "none"."""
    if kind == "none":
        return {}
    return {
        name: {
            "scale": Leaf((channels,), initializers.ones, block),
            "bias": bias(channels, block),
        }
    }


def step(learnable: bool, block: Block) -> Table:
    """The learnable step size of a residual block, initially 1; empty if not learnt."""
    return {"step": Leaf((), initializers.ones, block)} if learnable else {}


def _is_leaf(node: object) -> bool:
    return isinstance(node, Leaf)


def init(key: Key[Array, ""], table: Table) -> Params:
    """Draws every parameter in float32, each with a key of its own."""
    leaves, structure = jax.tree.flatten(table, is_leaf=_is_leaf)
    draws = [
        leaf.init(key, tuple(length for _, length in leaf.dims), jnp.float32)
        for key, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def axes(
    table: Table, units: Mapping[str, int], blocks: Mapping[str, int] | None = None
) -> Axes:
    """The axes of a table's parameters.

    Args:
        table: the leaves.
        units: number of units per axis; axes without a leaf are left out.
        blocks: length of every block list.
    """

    def per_leaf(leaf: Leaf) -> LeafAxes:
        return LeafAxes(tuple(name for name, _ in leaf.dims), leaf.block)

    leaves = jax.tree.leaves(table, is_leaf=_is_leaf)
    axis_names = {name for leaf in leaves for name, _ in leaf.dims}
    return Axes(
        jax.tree.map(per_leaf, table, is_leaf=_is_leaf),
        {name: count for name, count in units.items() if name in axis_names},
        dict(blocks or {}),
    )
