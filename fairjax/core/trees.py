"""The few tree functions that `jax.tree` and `optax.tree` lack."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Num, PyTree, Shaped

from fairjax.core.types import Masks, Params


def multiply(params: Params, masks: Masks) -> Params:
    """The product params * masks in the dtype of `params`; masks broadcast.

    Example:
        >>> multiply({"w": jnp.ones((2, 2))}, {"w": jnp.array([[1, 0]])})["w"].tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """
    return jax.tree.map(lambda p, m: p * m.astype(p.dtype), params, masks)


def subtract(new: Params, old: Params) -> Params:
    """The difference new - old."""
    return jax.tree.map(jnp.subtract, new, old)


def select(
    where: Bool[Array, ""], new: PyTree[Shaped[Array, "..."]], old: PyTree
) -> PyTree:
    """The whole tree `new` if `where` is True, else `old`; leaves of any dtype."""
    return jax.tree.map(lambda n, o: jnp.where(where, n, o), new, old)


MAX_NORM = 2.0**50
"""Largest norm of a delta that training may give. Squares and products of deltas within
it, and sums of thousands of these, stay within float32."""


def is_bounded(tree: PyTree[Num[Array, "..."]]) -> Bool[Array, ""]:
    """Whether a tree is finite and its norm is at most `MAX_NORM`.

    Example:
        >>> bool(is_bounded({"w": jnp.array([1.0, 2.0])}))
        True
        >>> bool(is_bounded({"w": jnp.array([1.0, jnp.nan])}))
        False
    """
    squares = [
        jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)
    ]
    # NaN and infinity fail this comparison.
    return jnp.asarray(sum(squares) <= MAX_NORM**2)


def all_finite(tree: PyTree[Num[Array, "..."]]) -> Bool[Array, ""]:
    """Whether no leaf holds NaN or infinity."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


def sum_first(tree: PyTree[Num[Array, "K ..."]]) -> PyTree[Num[Array, "..."]]:
    """The sum over the leading axis of every leaf.

    On CPU this is a product with ones: XLA there fuses a sum over a leading axis with
    the products that it adds up, into a loop 5 to 60 times slower than either.

    Example:
        >>> sum_first({"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])})["w"].tolist()
        [4.0, 6.0]
    """

    def product(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return plain(leaf)
        return jnp.tensordot(jnp.ones(leaf.shape[0], leaf.dtype), leaf, 1)

    def plain(leaf: Array) -> Array:
        return jnp.sum(leaf, axis=0)

    def map_leaves(per_leaf: Callable[[Array], Array]) -> Callable[[PyTree], PyTree]:
        return lambda tree: jax.tree.map(per_leaf, tree)

    return jax.lax.platform_dependent(
        tree, cpu=map_leaves(product), default=map_leaves(plain)
    )


def unwrap_keys(tree: PyTree) -> PyTree:
    """The tree with every random key replaced by its data, an array of integers."""

    def per_leaf(leaf: Any) -> Any:
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf

    return jax.tree.map(per_leaf, tree)


def wrap_keys(tree: PyTree, template: PyTree) -> PyTree:
    """The inverse of `unwrap_keys`.

    Args:
        tree: a tree without random keys.
        template: a tree of the same structure, with keys where the result has keys.
    """

    def per_leaf(leaf: Any, template_leaf: Any) -> Any:
        if not _is_key(template_leaf):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(template_leaf))

    return jax.tree.map(per_leaf, tree, template)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def pick(tree: PyTree[Shaped[Array, "N ..."]], index: Any) -> PyTree:
    """Row `index` (or rows) of every leaf.

    Example:
        >>> pick({"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, 1)["w"].tolist()
        [3.0, 4.0]
    """
    return jax.tree.map(lambda leaf: leaf[index], tree)


def leaves_by_path(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """{path: leaf}; a path is written like "hidden0/kernel".

    Args:
        tree: any tree.
        is_leaf: nodes that count as leaves, as for `jax.tree.leaves`.

    Example:
        >>> leaves_by_path({"hidden0": {"bias": 1, "kernel": 2}})
        {'hidden0/bias': 1, 'hidden0/kernel': 2}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    }


def map_with_path(f: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """Maps `f(path, leaf)` over the leaves, with paths as in `leaves_by_path`.

    Example:
        >>> map_with_path(lambda path, leaf: f"{path} = {leaf}", {"head": {"bias": 1}})
        {'head': {'bias': 'head/bias = 1'}}
    """
    return jax.tree.map_with_path(
        lambda path, leaf: f(
            jax.tree_util.keystr(path, simple=True, separator="/"), leaf
        ),
        tree,
    )
