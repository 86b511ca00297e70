"""Bootstrap intervals of any figure that takes weights.

Means and ranks have percentile intervals (`bounds`). What measures a distance, and so
cannot be negative, needs another kind (`around`): it is larger in resamples than in the
records, the smaller the truth the more, and quantiles of it would leave out the very
value that was found. Bias-corrected quantiles (Efron 1987) do not mend that: where all
resamples lie above the estimate the correction is infinite, and their acceleration is
a jackknife over clusters, of which there may be four.

A resample is how often it holds every record, [E] whole numbers; a statistic maps them
to figures. What does not depend on them, above all the sort of the scores, is then done
once for a whole chunk of resamples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

Draw = Callable[[Key[Array, ""]], Int[Array, "E"]]


class Interval(NamedTuple):
    """Lower and upper bound of every figure that the statistic gives."""

    low: PyTree[Float[Array, "..."]]
    high: PyTree[Float[Array, "..."]]


def records(key: Key[Array, ""], rows: int) -> Int[Array, "{rows}"]:
    """`rows` records drawn with replacement from as many."""
    drawn = _whole(jax.random.uniform(key, (rows,)), rows)
    return jnp.zeros((rows,), jnp.int32).at[drawn].add(1)


def clustered(
    key: Key[Array, ""],
    offset: Int[Array, "N"],
    count: Int[Array, "N"],
    *,
    rows: int,
    longest: int,
    within: bool | Bool[Array, ""] = False,
) -> Int[Array, "{rows}"]:
    """N hospitals drawn with replacement, then within each as many patients as it has.

    Every draw of a hospital draws its patients anew. It says what other hospitals of
    the same kind would make of a figure; with few of them the interval is too narrow.
    `within` takes every hospital once, and so says what other patients of these very
    hospitals would. Source: Davison & Hinkley 1997, Bootstrap Methods and their
    Application, 3.8.

    Args:
        key: of this resample.
        offset: first patient of every hospital.
        count: patients of every hospital, at least 1.
        rows: of all.
        longest: largest count.
        within: whether hospitals are not drawn.

    Returns:
        How often every patient counts. Where a patient has several records, each of
        them counts as often: `clustered(...)[patient]`.
    """
    hospitals = count.shape[0]
    # All from one call: what threefry costs is compiling it.
    u = jax.random.uniform(key, (hospitals, 1 + longest))
    everyone = jnp.arange(hospitals, dtype=jnp.int32)
    drawn = jnp.where(within, everyone, _whole(u[:, 0], hospitals))
    size = count[drawn][:, None]
    chosen = offset[drawn][:, None] + _whole(u[:, 1:], size)
    chosen = jnp.where(jnp.arange(longest) < size, chosen, rows)
    return jnp.zeros((rows,), jnp.int32).at[chosen].add(1, mode="drop")


def _whole(u: Float[Array, "..."], below: int | Array) -> Int[Array, "..."]:
    """A whole number in [0, below) from a uniform one in [0, 1)."""
    size = jnp.asarray(below, jnp.int32)
    number = (u * size.astype(u.dtype)).astype(jnp.int32)
    return jnp.minimum(number, size - 1)  # should the product round up


def resampled(
    statistic: Callable[[Int[Array, "E"]], PyTree[Num[Array, "..."]]],
    draw: Draw,
    key: Key[Array, ""],
    numbers: Int[Array, "R"],
) -> PyTree[Num[Array, "R ..."]]:
    """A statistic of some resamples, side by side; number 0 is the records themselves.

    Args:
        statistic: weights -> figures.
        draw: key -> weights: `functools.partial(records, rows=...)`, or `clustered`.
        key: of all resamples; number r draws with `fold_in(key, r)`.
        numbers: which resamples.
    """

    def one(number: Array) -> PyTree[Num[Array, "..."]]:
        weight = draw(jax.random.fold_in(key, number))
        return statistic(jnp.where(number == 0, jnp.ones_like(weight), weight))

    return jax.vmap(one)(numbers)


def bounds(values: PyTree[Float[Array, "R ..."]], level: float = 0.95) -> Interval:
    """Quantiles (1 -+ level) / 2 over the resamples in which a figure is known.

    NaN if fewer than half of them are. Source: Efron & Tibshirani 1993, An Introduction
    to the Bootstrap, 13.3.
    """
    tails = [(1 - level) / 2, (1 + level) / 2]
    both = jax.tree.map(lambda leaf: _quantiles(leaf, tails), values)
    return Interval(*(jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1)))


def reach(away: PyTree[Float[Array, "R ..."]], level: float = 0.95) -> PyTree:
    """The distance c within which a share `level` of the resamples lies.

    For a figure q(v) that is a seminorm of what was estimated, v (a range, a sum of
    absolute values): with `away` = q(v* - v) over resamples v*,

        [max(q(v) - c, 0), q(v) + c]

    covers q of the truth at the level, since |q(v) - q(truth)| <= q(v - truth) whatever
    the truth is, 0 included; it holds the estimate, and is rather too wide. For the
    range of group means it is what Tukey's simultaneous band of all pairwise
    differences says of the largest. NaN as in `bounds`.

    Source: Tukey 1953, "The problem of multiple comparisons"; by resampling Romano &
    Wolf 2005, JASA 100, 94-108.
    """
    return jax.tree.map(lambda leaf: _quantiles(leaf, [level])[0], away)


def _quantiles(leaf: Float[Array, "R ..."], tails: list[float]) -> Float[Array, "..."]:
    often = 2 * jnp.sum(~jnp.isnan(leaf), axis=0) >= leaf.shape[0]
    found = jnp.nanquantile(leaf, jnp.asarray(tails, leaf.dtype), axis=0)
    return jnp.where(often, found, jnp.nan)


def interval(
    statistic: Callable[[Int[Array, "E"]], PyTree[Float[Array, "..."]]],
    draw: Draw,
    key: Key[Array, ""],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    chunk: int = 64,
) -> Interval:
    """The `bounds` of a statistic over the resamples 1 to `resamples`.

    Args:
        statistic: weights -> figures.
        draw: key -> weights.
        key: of all resamples.
        resamples: how many.
        level: nominal coverage.
        chunk: resamples side by side; it bounds the memory and changes nothing else.
    """
    # Whole chunks, so that the statistic is compiled once; what is too much is cut.
    chunks = -(-resamples // chunk)
    numbers = 1 + jnp.arange(chunks * chunk).reshape(chunks, chunk)
    values = jax.lax.map(lambda each: resampled(statistic, draw, key, each), numbers)
    return bounds(
        jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:resamples], values
        ),
        level,
    )
