"""Masks from kept units, and the way between a full tree and a sliced one.

A unit axis has a name, and every parameter says which of its dimensions lie on which
axis (`types.Axes`). Keeping a set of units then means, for a parameter p with
dimensions on axes a and b and inside block l,

    mask[.., i, .., j] = kept_a[unit(i)] * kept_b[unit(j)] * kept_l,

an outer product that is stored as a broadcastable array. Masking *every* axis of
*every* leaf, biases and norms included, is what makes a masked network equal to the
sliced one.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from fairjax.core import require, trees
from fairjax.core.types import Axes, Kept, LeafAxes, Masks, Params, Size, Units

_Like = Array | jax.ShapeDtypeStruct


class Part(NamedTuple):
    """Where a sliced network lies in the plain one."""

    index: Mapping[str, Int[Array | np.ndarray, "k"]]
    """Kept units of every sliced axis, ascending; a missing axis is whole."""
    blocks: Mapping[str, tuple[int, ...]]
    """Kept positions of every block list; a missing list is whole."""


CLASSES = "classes"
"""The axis of a head's outputs. Sub-models never drop a class; an update may."""


def hidden(axes: Axes) -> dict[str, int]:
    """{axis: units} of the axes that a narrower sub-model may cut."""
    return {name: units for name, units in axes.units.items() if name != CLASSES}


def prefix_sizes(axes: Axes, budget: float) -> dict[str, int]:
    """ceil(budget * units) of every hidden axis, at least 1."""
    # The rounding keeps 0.07 * 100 = 7.000000000000001 from becoming 8 units.
    return {
        name: max(1, math.ceil(round(budget * units, 9)))
        for name, units in hidden(axes).items()
    }


def prefix(axes: Axes, sizes: Mapping[str, int | Int[Array, ""]]) -> Units:
    """The first `sizes[name]` units of every named axis; all blocks."""
    return Units(
        {name: jnp.arange(axes.units[name]) < size for name, size in sizes.items()}, {}
    )


def _is_leaf(node: object) -> bool:
    return isinstance(node, LeafAxes)


def masks(params: PyTree[_Like], axes: Axes, units: Units | None) -> Masks:
    """The 0/1 mask of every parameter for the kept units.

    Args:
        params: the plain parameters; only their shapes and dtypes are used.
        axes: what their dimensions mean.
        units: the kept units; None keeps all. NumPy's take NumPy alone: nothing is
            compiled.

    Returns:
        A tree like `params`; a leaf has length 1 in every dimension that no kept axis
        restricts, so that masks of T tiers never cost T copies of a model.
    """

    def one(leaf: LeafAxes, param: _Like) -> Array:
        mask = np.ones((1,) * param.ndim, param.dtype)
        if units is None:
            return jnp.asarray(mask)
        for dim, name in enumerate(leaf.dims):
            if name is not None and name in units.axes:
                kept = units.axes[name].astype(param.dtype)
                width = param.shape[dim] // kept.shape[0]
                entries = kept.repeat(width) if width > 1 else kept
                shape = [1] * param.ndim
                shape[dim] = param.shape[dim]
                mask = mask * entries.reshape(shape)
        if leaf.block is not None and leaf.block[0] in units.blocks:
            name, position = leaf.block
            mask = mask * units.blocks[name][position].astype(param.dtype)
        return jnp.asarray(mask)

    return jax.tree.map(one, axes.tree, params, is_leaf=_is_leaf)


def part(units: Units | None, size: Size) -> Part:
    """The kept units as indices of static length `size.axes[name]`; NumPy's of NumPy's.

    `size` must be what the masks keep: a static shape cannot be read off a traced mask.
    """

    def where(kept: Any, count: int) -> Any:
        if isinstance(kept, np.ndarray):
            return np.flatnonzero(kept)[:count].astype(np.int32)
        return jnp.nonzero(kept, size=count)[0].astype(jnp.int32)

    index = {
        name: where(units.axes[name], count)
        for name, count in size.axes.items()
        if units is not None and name in units.axes
    }
    return Part(index, size.blocks)


def restrict(units: Units | None, inside: Part) -> Units | None:
    """Units of the plain network in the coordinates of the sliced one."""
    if units is None:
        return None
    return Units(
        {
            name: kept[inside.index[name]] if name in inside.index else kept
            for name, kept in units.axes.items()
        },
        {
            name: kept[np.array(inside.blocks[name])] if name in inside.blocks else kept
            for name, kept in units.blocks.items()
        },
    )


def inside(kept: Kept, part: Part | None) -> Kept:
    """What is kept of the plain network, in the coordinates of the sliced one."""
    if part is None:
        return kept
    return kept._replace(
        forward=restrict(kept.forward, part), update=restrict(kept.update, part)
    )


def _entries(
    index: Int[Array | np.ndarray, "k"], length: int, units: int
) -> Int[Array | np.ndarray, "entries"]:
    width = length // units
    return (index[:, None] * width + np.arange(width, dtype=index.dtype)).ravel()


def take(params: Params, axes: Axes, inside: Part) -> Params:
    """Gathers the kept units of every leaf into a dense, smaller tree.

    Leaves of dropped blocks are left out; a tree that has such leaves is made of
    dictionaries, and those that would be empty are left out too.
    """

    def one(leaf: LeafAxes, param: Array) -> Array:
        for dim, name in enumerate(leaf.dims):
            if name is None or _whole(name, axes, inside):
                continue
            entries = _entries(inside.index[name], param.shape[dim], axes.units[name])
            param = jnp.take(param, entries, axis=dim)
        return param

    def dropped(leaf: LeafAxes) -> bool:
        if leaf.block is None or leaf.block[0] not in inside.blocks:
            return False
        return leaf.block[1] not in inside.blocks[leaf.block[0]]

    def prune(node: Any, tree: Any) -> Any:
        if tree is None:
            return None
        if not isinstance(tree, Mapping):
            return jax.tree.map(one, tree, node, is_leaf=_is_leaf)
        below = {name: prune(node[name], tree[name]) for name in tree}
        return {
            name: value
            for name, value in below.items()
            if value is not None and not (isinstance(value, dict) and not value)
        }

    leaves = jax.tree.leaves(axes.tree, is_leaf=_is_leaf)
    if not any(dropped(leaf) for leaf in leaves):
        return jax.tree.map(one, axes.tree, params, is_leaf=_is_leaf)
    gaps = jax.tree.map(
        lambda leaf: None if dropped(leaf) else leaf, axes.tree, is_leaf=_is_leaf
    )
    return prune(params, gaps)


def put(small: Params, axes: Axes, inside: Part, like: Params) -> Params:
    """Spreads a sliced tree over zeros of the full shapes: the adjoint of `take`.

    <take(p), s> = <p, put(s)> for all p and s; put(take(p)) = p * mask.
    """
    held = trees.named(small)

    def one(path: str, leaf: LeafAxes, param: Array) -> Array:
        if path not in held:
            return jnp.zeros_like(param)
        part = held[path]
        for dim, name in enumerate(leaf.dims):
            if name is None or _whole(name, axes, inside):
                continue
            entries = _entries(inside.index[name], param.shape[dim], axes.units[name])
            # Read from where a full entry comes from, or 0: XLA:CPU is slow at writing
            # single entries.
            number = jnp.arange(entries.shape[0], dtype=jnp.int32)
            source = jnp.full(param.shape[dim], entries.shape[0], jnp.int32)
            source = source.at[entries].set(number)
            part = jnp.take(part, source, axis=dim, mode="fill", fill_value=0)
        return part

    paths = trees.named(axes.tree, is_leaf=_is_leaf)
    return trees.map_named(lambda path, param: one(path, paths[path], param), like)


def _whole(name: str, axes: Axes, inside: Part) -> bool:
    """Whether all units of an axis are kept, in their order."""
    index = inside.index.get(name)
    return index is None or index.shape[0] == axes.units[name]


def check(where: str, params: PyTree[_Like], axes: Axes) -> None:
    """Refuses axes that do not fit the parameters: a wrong rank, axis or length."""
    if jax.tree.structure(params) != jax.tree.structure(axes.tree, is_leaf=_is_leaf):
        raise require.InputError(
            f"{where}: expected axes for every parameter, no others"
        )

    def one(path: tuple, leaf: LeafAxes, param: _Like) -> None:
        here = f"{where}{jax.tree_util.keystr(path)}"
        if len(leaf.dims) != param.ndim:
            require.fail(here, f"{param.ndim} axis names", leaf.dims)
        for dim, name in enumerate(leaf.dims):
            if name is None:
                continue
            require.one_of(here, name, axes.units)
            if param.shape[dim] % axes.units[name]:
                require.fail(
                    here,
                    f"a multiple of the {axes.units[name]} units of axis {name!r}",
                    param.shape[dim],
                )
        if leaf.block is not None:
            require.one_of(here, leaf.block[0], axes.blocks)
            length = axes.blocks[leaf.block[0]]
            require.in_range(f"{here} block", leaf.block[1], 0, length - 1)

    jax.tree.map_with_path(one, axes.tree, params, is_leaf=_is_leaf)
