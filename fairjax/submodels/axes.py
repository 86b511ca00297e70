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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from fairjax import checks
from fairjax.types import Axes, LeafAxes, Masks, Params, Size, Units

_Like = Array | jax.ShapeDtypeStruct

Indices = Mapping[str, Int[Array, "k"]]
"""Kept units of every sliced axis, as ascending indices; a missing axis is whole."""


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


def masks(params: Params, axes: Axes, units: Units | None) -> Masks:
    """The 0/1 mask of every parameter for the kept units.

    Args:
        params: the plain parameters; only their shapes and dtypes are used.
        axes: what their dimensions mean.
        units: the kept units; None keeps all.

    Returns:
        A tree like `params`; a leaf has length 1 in every dimension that no kept axis
        restricts, so that masks of T tiers never cost T copies of a model.
    """

    def one(leaf: LeafAxes, param: Array) -> Array:
        mask = jnp.ones((1,) * param.ndim, param.dtype)
        if units is None:
            return mask
        for dim, name in enumerate(leaf.dims):
            if name is not None and name in units.axes:
                kept = units.axes[name].astype(param.dtype)
                entries = jnp.repeat(kept, param.shape[dim] // kept.shape[0])
                shape = [1] * param.ndim
                shape[dim] = param.shape[dim]
                mask = mask * entries.reshape(shape)
        if leaf.block is not None and leaf.block[0] in units.blocks:
            name, position = leaf.block
            mask = mask * units.blocks[name][position].astype(param.dtype)
        return mask

    return jax.tree.map(one, axes.tree, params, is_leaf=_is_leaf)


def indices(units: Units, size: Size) -> Indices:
    """The kept units as indices of static length `size.axes[name]`.

    `size` must be the number of units that the masks keep: a static shape cannot be
    read off a traced mask.
    """
    return {
        name: jnp.nonzero(mask, size=size.axes[name])[0].astype(jnp.int32)
        for name, mask in units.axes.items()
    }


def _entries(index: Int[Array, "k"], length: int, units: int) -> Int[Array, "entries"]:
    width = length // units
    return (index[:, None] * width + jnp.arange(width, dtype=index.dtype)).ravel()


def take(params: Params, axes: Axes, kept: Indices) -> Params:
    """Gathers the kept units of every leaf into a dense, smaller tree."""

    def one(leaf: LeafAxes, param: Array) -> Array:
        for dim, name in enumerate(leaf.dims):
            if name is not None and name in kept:
                entries = _entries(kept[name], param.shape[dim], axes.units[name])
                param = jnp.take(param, entries, axis=dim)
        return param

    return jax.tree.map(one, axes.tree, params, is_leaf=_is_leaf)


def put(small: Params, axes: Axes, kept: Indices, like: Params) -> Params:
    """Scatters a sliced tree into zeros of the full shapes: the adjoint of `take`.

    <take(p), s> = <p, put(s)> for all p and s; put(take(p)) = p * mask.
    """
    zeros = jax.tree.map(jnp.zeros_like, like)
    return jax.linear_transpose(lambda full: take(full, axes, kept), zeros)(small)[0]


def check(where: str, params: PyTree[_Like], axes: Axes) -> None:
    """Refuses axes that do not fit the parameters: a wrong rank, axis or length."""
    if jax.tree.structure(params) != jax.tree.structure(axes.tree, is_leaf=_is_leaf):
        raise checks.InputError(
            f"{where}: expected axes for every parameter, no others"
        )

    def one(path: tuple, leaf: LeafAxes, param: _Like) -> None:
        here = f"{where}{jax.tree_util.keystr(path)}"
        if len(leaf.dims) != param.ndim:
            checks.fail(here, f"{param.ndim} axis names", leaf.dims)
        for dim, name in enumerate(leaf.dims):
            if name is None:
                continue
            checks.one_of(here, name, axes.units)
            if param.shape[dim] % axes.units[name]:
                checks.fail(
                    here,
                    f"a multiple of the {axes.units[name]} units of axis {name!r}",
                    param.shape[dim],
                )
        if leaf.block is not None:
            checks.one_of(here, leaf.block[0], axes.blocks)

    jax.tree.map_with_path(one, axes.tree, params, is_leaf=_is_leaf)
