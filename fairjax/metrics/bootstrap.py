"""Percentile bootstrap intervals of any figure that takes weights.

A resample is how often it holds every record, [E] whole numbers; a statistic maps them
to figures. What does not depend on them, above all the sort of the scores, is then done
once for a whole chunk of resamples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

Draw = Callable[[Key[Array, ""]], Int[Array, "E"]]


class Interval(NamedTuple):
    """Bounds of every figure, each shaped like what the statistic gives."""

    low: PyTree[Float[Array, "..."]]
    high: PyTree[Float[Array, "..."]]


def records(key: Key[Array, ""], rows: int) -> Int[Array, "{rows}"]:
    """`rows` records drawn with replacement from as many."""
    drawn = jax.random.randint(key, (rows,), 0, rows)
    return jnp.zeros((rows,), jnp.int32).at[drawn].add(1)


def clustered(
    key: Key[Array, ""],
    offset: Int[Array, "N"],
    count: Int[Array, "N"],
    *,
    rows: int,
    longest: int,
) -> Int[Array, "{rows}"]:
    """N hospitals drawn with replacement, then within each as many patients as it has.

    Every draw of a hospital draws its patients anew. It says what other hospitals of
    the same kind would make of a figure; with few of them the interval is too narrow.
    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, 3.8.

    Args:
        key: of this resample.
        offset: first patient of every hospital.
        count: patients of every hospital, at least 1.
        rows: of all.
        longest: largest count.

    Returns:
        How often every patient counts. Where a patient has several records, each of
        them counts as often: `clustered(...)[patient]`.
    """
    which, within = jax.random.split(key)
    drawn = jax.random.randint(which, count.shape, 0, count.shape[0])
    size = count[drawn][:, None]
    place = jax.random.randint(within, (count.shape[0], longest), 0, size)
    inside = jnp.arange(longest) < size
    chosen = jnp.where(inside, offset[drawn][:, None] + place, rows)
    return jnp.zeros((rows,), jnp.int32).at[chosen].add(1, mode="drop")


def interval(
    statistic: Callable[[Int[Array, "E"]], PyTree[Float[Array, "..."]]],
    draw: Draw,
    key: Key[Array, ""],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    chunk: int = 64,
) -> Interval:
    """Quantiles (1 -+ level) / 2 of a statistic over resamples.

    Args:
        statistic: weights -> figures.
        draw: key -> weights: `functools.partial(records, rows=...)`, or `clustered`.
        key: of all resamples; each has a key of its own, whatever the chunk.
        resamples: how many.
        level: nominal coverage.
        chunk: resamples side by side; it bounds the memory.

    Returns:
        Bounds over the resamples in which a figure can be estimated; NaN if fewer than
        half of them are. Source: Efron & Tibshirani 1993, An Introduction to the
        Bootstrap, 13.3.
    """
    keys = jax.random.split(key, resamples)
    values = jax.lax.map(lambda key: statistic(draw(key)), keys, batch_size=chunk)

    def bounds(leaf: Array) -> Array:
        tails = jnp.asarray([(1 - level) / 2, (1 + level) / 2], leaf.dtype)
        known = jnp.sum(~jnp.isnan(leaf), axis=0)
        return jnp.where(
            2 * known >= resamples, jnp.nanquantile(leaf, tails, axis=0), jnp.nan
        )

    both = jax.tree.map(bounds, values)
    return Interval(*(jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1)))
