"""Masks of a sub-model's units, and the way between a full tree and a sliced one.

A unit axis has a name, and `types.Axes` says which dimensions of every parameter lie on
which axis. Let u_a be 1 for the units of axis a that are present and u_l for block l.
The mask of a parameter with dimensions on axes a and b and inside block l is

    mask[.., i, .., j] = u_a[unit(i)] * u_b[unit(j)] * u_l,

an outer product that is stored as a broadcastable array. A masked network equals the
sliced one because *every* axis of *every* leaf is masked, biases and norms included.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from fairjax.core import require, trees
from fairjax.core.types import Axes, LeafAxes, Masks, Params, Size, Submodel, Units

_Like = Array | jax.ShapeDtypeStruct


class Part(NamedTuple):
    """Where a sliced network lies in the plain one."""

    index: Mapping[str, Int[Array | np.ndarray, "k"]]
    """Units of every sliced axis, ascending; an axis that is missing is whole."""
    blocks: Mapping[str, tuple[int, ...]]
    """Positions of every block list, ascending; a list that is missing is whole."""


CLASSES = "classes"
"""The axis of a head's outputs. A sub-model's forward pass never drops a class; its
update may."""


def hidden_axes(axes: Axes) -> dict[str, int]:
    """{axis: number of units} of the axes that a narrower sub-model may cut."""
    return {name: units for name, units in axes.units.items() if name != CLASSES}


def prefix_size(share: float, total: int) -> int:
    """ceil(share * total), at least 1.

    Args:
        share: in (0, 1].
        total: number of units, blocks or ranks.

    Example:
        >>> prefix_size(0.07, 100)
        7
    """
    # The rounding keeps 0.07 * 100 = 7.000000000000001 from becoming 8 units.
    return max(1, math.ceil(round(share * total, 9)))


def prefix_sizes(axes: Axes, budget: float) -> dict[str, int]:
    """ceil(budget * units) of every hidden axis, at least 1.

    Args:
        axes: the axes of the plain model.
        budget: the share of every axis, in (0, 1].

    Example:
        >>> axes = Axes({}, units={"hidden": 10, "classes": 2}, blocks={})
        >>> prefix_sizes(axes, 0.25)
        {'hidden': 3}
    """
    return {
        name: prefix_size(budget, units) for name, units in hidden_axes(axes).items()
    }


def prefix(axes: Axes, sizes: Mapping[str, int | Int[Array, ""]]) -> Units:
    """The first `sizes[name]` units of every named axis, and all blocks.

    Args:
        axes: the axes of the plain model.
        sizes: number of units by axis, which may be traced.

    Example:
        >>> axes = Axes({}, units={"hidden": 3}, blocks={})
        >>> prefix(axes, {"hidden": 2}).axes["hidden"].tolist()
        [True, True, False]
    """
    return Units(
        {name: jnp.arange(axes.units[name]) < size for name, size in sizes.items()}, {}
    )


def _is_leaf(node: object) -> bool:
    return isinstance(node, LeafAxes)


def masks(params: PyTree[_Like], axes: Axes, units: Units | None) -> Masks:
    """The 0/1 mask of every parameter for the units that are present.

    Args:
        params: the plain parameters; only their shapes and dtypes are used.
        axes: the meaning of their dimensions.
        units: the units that are present; None: all. With NumPy arrays the masks are
            computed in NumPy, and nothing is compiled.

    Returns:
        A tree like `params`. A leaf has length 1 in every dimension whose axis `units`
        does not name, so that masks of T tiers never cost T copies of a model.

    Example:
        >>> axes = Axes({"kernel": LeafAxes((None, "hidden"))}, {"hidden": 3}, {})
        >>> units = prefix(axes, {"hidden": 2})
        >>> masks({"kernel": jnp.ones((4, 3))}, axes, units)["kernel"].tolist()
        [[1.0, 1.0, 0.0]]
    """

    def per_leaf(leaf: LeafAxes, param: _Like) -> Array:
        mask = np.ones((1,) * param.ndim, param.dtype)
        if units is None:
            return jnp.asarray(mask)
        for dim, name in enumerate(leaf.dims):
            if name is not None and name in units.axes:
                unit_mask = units.axes[name].astype(param.dtype)
                width = param.shape[dim] // unit_mask.shape[0]
                entries = unit_mask.repeat(width) if width > 1 else unit_mask
                shape = [1] * param.ndim
                shape[dim] = param.shape[dim]
                mask = mask * entries.reshape(shape)
        if leaf.block is not None and leaf.block[0] in units.blocks:
            name, position = leaf.block
            mask = mask * units.blocks[name][position].astype(param.dtype)
        return jnp.asarray(mask)

    return jax.tree.map(per_leaf, axes.tree, params, is_leaf=_is_leaf)


def locate_slice(units: Units | None, size: Size) -> Part:
    """The indices of the units that are present, `size.axes[name]` of every axis.

    Args:
        units: the units that are present; None: all. NumPy arrays give NumPy indices.
        size: the number of units that are present in every sliced axis. It must agree
            with `units`, since a traced mask has no static number of ones.

    Example:
        >>> units = Units({"hidden": np.array([True, False, True])}, {})
        >>> locate_slice(units, Size({"hidden": 2}, {})).index["hidden"].tolist()
        [0, 2]
    """

    def unit_index(unit_mask: Any, count: int) -> Any:
        if isinstance(unit_mask, np.ndarray):
            return np.flatnonzero(unit_mask)[:count].astype(np.int32)
        return jnp.nonzero(unit_mask, size=count)[0].astype(jnp.int32)

    index = {
        name: unit_index(units.axes[name], count)
        for name, count in size.axes.items()
        if units is not None and name in units.axes
    }
    return Part(index, size.blocks)


def restrict(units: Units | None, slice_index: Part) -> Units | None:
    """Units of the plain network in the coordinates of the sliced one.

    Args:
        units: the units that are present in the plain network; None: all.
        slice_index: where the sliced network lies.
    """
    if units is None:
        return None
    return Units(
        {
            name: mask[slice_index.index[name]] if name in slice_index.index else mask
            for name, mask in units.axes.items()
        },
        {
            name: mask[np.array(slice_index.blocks[name])]
            if name in slice_index.blocks
            else mask
            for name, mask in units.blocks.items()
        },
    )


def restrict_submodel(submodel: Submodel, slice_index: Part | None) -> Submodel:
    """A sub-model of the plain network, in the coordinates of the sliced one.

    Args:
        submodel: the sub-model.
        slice_index: where the sliced network lies; None: the network is not sliced.
    """
    if slice_index is None:
        return submodel
    return submodel._replace(
        forward=restrict(submodel.forward, slice_index),
        update=restrict(submodel.update, slice_index),
    )


def _entries(
    index: Int[Array | np.ndarray, "k"], length: int, units: int
) -> Int[Array | np.ndarray, "entries"]:
    width = length // units
    return (index[:, None] * width + np.arange(width, dtype=index.dtype)).ravel()


def take(params: Params, axes: Axes, slice_index: Part) -> Params:
    """Gathers the units of a slice from every leaf into a dense, smaller tree.

    Leaves of dropped blocks are left out. A tree with such leaves consists of
    dictionaries, and a dictionary that would be empty is left out too.

    Args:
        params: a tree of the plain model's shapes.
        axes: the meaning of its dimensions.
        slice_index: where the sliced network lies.

    Example:
        >>> axes = Axes({"bias": LeafAxes(("hidden",))}, {"hidden": 3}, {})
        >>> slice_index = Part({"hidden": np.array([0, 2])}, {})
        >>> bias = jnp.array([5.0, 6.0, 7.0])
        >>> take({"bias": bias}, axes, slice_index)["bias"].tolist()
        [5.0, 7.0]
    """

    def per_leaf(leaf: LeafAxes, param: Array) -> Array:
        for dim, name in enumerate(leaf.dims):
            if name is None or _is_whole(name, axes, slice_index):
                continue
            entries = _entries(
                slice_index.index[name], param.shape[dim], axes.units[name]
            )
            param = jnp.take(param, entries, axis=dim)
        return param

    def is_dropped(leaf: LeafAxes) -> bool:
        if leaf.block is None or leaf.block[0] not in slice_index.blocks:
            return False
        return leaf.block[1] not in slice_index.blocks[leaf.block[0]]

    def prune(node: Any, tree: Any) -> Any:
        if tree is None:
            return None
        if not isinstance(tree, Mapping):
            return jax.tree.map(per_leaf, tree, node, is_leaf=_is_leaf)
        children = {name: prune(node[name], tree[name]) for name in tree}
        return {
            name: value
            for name, value in children.items()
            if value is not None and not (isinstance(value, dict) and not value)
        }

    leaves = jax.tree.leaves(axes.tree, is_leaf=_is_leaf)
    if not any(is_dropped(leaf) for leaf in leaves):
        return jax.tree.map(per_leaf, axes.tree, params, is_leaf=_is_leaf)
    leaf_axes = jax.tree.map(
        lambda leaf: None if is_dropped(leaf) else leaf, axes.tree, is_leaf=_is_leaf
    )
    return prune(params, leaf_axes)


def scatter(
    sliced_params: Params, axes: Axes, slice_index: Part, template: Params
) -> Params:
    """Spreads a sliced tree over zeros of the full shapes: the adjoint of `take`.

        <take(p), s> = <p, scatter(s)> for all p and s;   scatter(take(p)) = p * mask

    Args:
        sliced_params: a tree of the sliced network's shapes.
        axes: the meaning of the plain model's dimensions.
        slice_index: where the sliced network lies.
        template: a tree of the plain model's shapes and dtypes.

    Example:
        >>> axes = Axes({"bias": LeafAxes(("hidden",))}, {"hidden": 3}, {})
        >>> slice_index, full = Part({"hidden": np.array([0, 2])}, {}), jnp.zeros(3)
        >>> bias = jnp.array([5.0, 7.0])
        >>> scatter({"bias": bias}, axes, slice_index, {"bias": full})["bias"].tolist()
        [5.0, 0.0, 7.0]
    """
    sliced_leaves = trees.leaves_by_path(sliced_params)

    def per_leaf(path: str, leaf: LeafAxes, param: Array) -> Array:
        if path not in sliced_leaves:
            return jnp.zeros_like(param)
        values = sliced_leaves[path]
        for dim, name in enumerate(leaf.dims):
            if name is None or _is_whole(name, axes, slice_index):
                continue
            entries = _entries(
                slice_index.index[name], param.shape[dim], axes.units[name]
            )
            # A gather: every full entry is read from its sliced one, or is 0. A scatter
            # writes single entries, at which XLA:CPU is slow.
            number = jnp.arange(entries.shape[0], dtype=jnp.int32)
            source = jnp.full(param.shape[dim], entries.shape[0], jnp.int32)
            source = source.at[entries].set(number)
            values = jnp.take(values, source, axis=dim, mode="fill", fill_value=0)
        return values

    paths = trees.leaves_by_path(axes.tree, is_leaf=_is_leaf)
    return trees.map_with_path(
        lambda path, param: per_leaf(path, paths[path], param), template
    )


def _is_whole(name: str, axes: Axes, slice_index: Part) -> bool:
    """Whether a slice has all units of an axis, which are then in their order."""
    index = slice_index.index.get(name)
    return index is None or index.shape[0] == axes.units[name]


def check(where: str, params: PyTree[_Like], axes: Axes) -> None:
    """Refuses axes that do not fit the parameters.

    Args:
        where: what messages call the parameters.
        params: the parameters; only their shapes are used.
        axes: the meaning of their dimensions.

    Raises:
        InputError: the trees differ, or a leaf has another rank, an axis or block list
            that is not named, a length that is no multiple of its axis's units, or a
            position beyond its block list.
    """
    if jax.tree.structure(params) != jax.tree.structure(axes.tree, is_leaf=_is_leaf):
        text = "expected axes for every parameter, no others"
        raise require.InputError(text, where)

    def per_leaf(path: tuple, leaf: LeafAxes, param: _Like) -> None:
        leaf_path = f"{where}{jax.tree_util.keystr(path)}"
        if len(leaf.dims) != param.ndim:
            require.fail(leaf_path, f"{param.ndim} axis names", leaf.dims)
        for dim, name in enumerate(leaf.dims):
            if name is None:
                continue
            require.one_of(leaf_path, name, axes.units)
            if param.shape[dim] % axes.units[name]:
                require.fail(
                    leaf_path,
                    f"a multiple of the {axes.units[name]} units of axis {name!r}",
                    param.shape[dim],
                )
        if leaf.block is not None:
            require.one_of(leaf_path, leaf.block[0], axes.blocks)
            length = axes.blocks[leaf.block[0]]
            require.in_range(f"{leaf_path} block", leaf.block[1], 0, length - 1)

    jax.tree.map_with_path(per_leaf, axes.tree, params, is_leaf=_is_leaf)
