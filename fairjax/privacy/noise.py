"""Gaussian noise on trees."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from fairjax import keys


def gaussian(
    key: Key[Array, ""],
    tree: PyTree[Float[Array, "..."]],
    std: float | Float[Array, ""],
) -> PyTree[Array]:
    """The tree plus independent N(0, std^2) on every coordinate.

    The noise is drawn in float32 by JAX's generator, which the run's seed fixes. That
    is what an experiment wants to repeat, and no secret: a deployment needs a secure
    generator and arithmetic without the gaps of floats (Mironov 2012).
    """

    def one(index: int, leaf: Array) -> Array:
        drawn = jax.random.normal(keys.at(key, index), leaf.shape, jnp.float32)
        return leaf + (jnp.asarray(std, jnp.float32) * drawn).astype(leaf.dtype)

    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([one(i, leaf) for i, leaf in enumerate(leaves)])
