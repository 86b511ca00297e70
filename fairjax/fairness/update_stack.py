"""Sums and inner products over the stack of a cohort's changes.

A client's change d_k is 0 outside what it covers, so inner products run over common
support and norms over a client's own coordinates.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fairjax.core.types import Params


def gram(left: Params, right: Params) -> Float[Array, "K J"]:
    """Inner products of two stacks of trees, [K, ...] and [J, ...] a leaf."""

    def per_leaf(a: Array, b: Array) -> Array:
        return a.reshape(a.shape[0], -1) @ b.reshape(b.shape[0], -1).T

    return sum_leaves(jax.tree.map(per_leaf, left, right))


def sum_leaves(tree: PyTree[Array]) -> Array:
    """The sum of all leaves, which have one shape."""
    return functools.reduce(jnp.add, jax.tree.leaves(tree))


def weighted_sum(coefficients: Float[Array, "K"], stack: Params) -> Params:
    """sum_k c_k d_k, leaf by leaf."""
    return jax.tree.map(
        lambda leaf: jnp.tensordot(coefficients.astype(leaf.dtype), leaf, 1), stack
    )


def squared_norms(stack: Params) -> Float[Array, "K"]:
    """|d_k|^2 of every change."""

    def per_leaf(leaf: Array) -> Array:
        return jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim)))

    return sum_leaves(jax.tree.map(per_leaf, stack))


def nonzero(length: Float[Array, "..."]) -> Float[Array, "..."]:
    """A length as a divisor: 1 instead of 0."""
    return jnp.where(length > 0, length, 1)
