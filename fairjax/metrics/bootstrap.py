"""Bootstrap intervals of any figure that takes weights.

Means and ranks have percentile intervals (`bounds`). A figure that measures a distance
cannot be negative and needs another interval (`reach`): resamples give larger distances
than the records, the more so the smaller the true distance is, and their quantiles
could exclude the estimate itself. Bias-corrected quantiles (Efron, "Better bootstrap
confidence intervals", Journal of the American Statistical Association 1987,
doi:10.1080/01621459.1987.10478410) do not solve this. If all resamples lie above the
estimate the correction is infinite, and the acceleration is a jackknife over clusters,
of which there may be only four.

A resample states how often each record counts, [E] whole numbers, and a statistic maps
these counts to figures. Computations that do not depend on them, above all the sort of
the scores, are done once for a whole chunk of resamples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

Draw = Callable[[Key[Array, ""]], Int[Array, "E"]]
"""Key -> how often each record counts."""


class Interval(NamedTuple):
    """Lower and upper bound of every figure of a statistic."""

    low: PyTree[Float[Array, "..."]]
    high: PyTree[Float[Array, "..."]]


def records(key: Key[Array, ""], rows: int) -> Int[Array, "{rows}"]:
    """`rows` records drawn with replacement from as many."""
    row_index = _uniform_int(jax.random.uniform(key, (rows,)), rows)
    return jnp.zeros((rows,), jnp.int32).at[row_index].add(1)


def clustered(
    key: Key[Array, ""],
    offset: Int[Array, "N"],
    count: Int[Array, "N"],
    *,
    rows: int,
    longest: int,
    within_clients: bool | Bool[Array, ""] = False,
) -> Int[Array, "{rows}"]:
    """N clients drawn with replacement, then within each as many patients as it has.

    Every draw of a client draws its patients anew. The resamples show how a figure
    would vary with other clients of the same kind; with few clients the interval is too
    narrow. `within_clients` takes every client once and shows how the figure would vary
    with other patients of these same clients.

    Args:
        key: key of this resample.
        offset: first patient of every client.
        count: patients of every client, at least 1.
        rows: number of all patients.
        longest: largest count.
        within_clients: whether every client is taken once instead of drawn.

    Returns:
        How often every patient counts. If patients have several records, each record
        counts as often as its patient: `clustered(...)[patient]`.

    Source: Davison and Hinkley, "Bootstrap methods and their application", Cambridge
    University Press 1997, doi:10.1017/CBO9780511802843, section 3.8.
    """
    num_clients = count.shape[0]
    # One call draws all numbers: threefry is expensive to compile, not to run.
    u = jax.random.uniform(key, (num_clients, 1 + longest))
    all_clients = jnp.arange(num_clients, dtype=jnp.int32)
    client_index = jnp.where(
        within_clients, all_clients, _uniform_int(u[:, 0], num_clients)
    )
    size = count[client_index][:, None]
    row_index = offset[client_index][:, None] + _uniform_int(u[:, 1:], size)
    row_index = jnp.where(jnp.arange(longest) < size, row_index, rows)
    return jnp.zeros((rows,), jnp.int32).at[row_index].add(1, mode="drop")


def _uniform_int(u: Float[Array, "..."], upper: int | Array) -> Int[Array, "..."]:
    """A whole number in [0, upper) from a uniform number in [0, 1)."""
    size = jnp.asarray(upper, jnp.int32)
    number = (u * size.astype(u.dtype)).astype(jnp.int32)
    return jnp.minimum(number, size - 1)  # the product may round up


def resample_statistic(
    statistic: Callable[[Int[Array, "E"]], PyTree[Num[Array, "..."]]],
    draw: Draw,
    key: Key[Array, ""],
    numbers: Int[Array, "R"],
) -> PyTree[Num[Array, "R ..."]]:
    """A statistic of some resamples, vmapped; number 0 is the records themselves.

    Args:
        statistic: weights -> figures.
        draw: key -> weights: `functools.partial(records, rows=...)`, or `clustered`.
        key: key of all resamples; resample r draws with `fold_in(key, r)`.
        numbers: the numbers r of the resamples.
    """

    def per_resample(number: Array) -> PyTree[Num[Array, "..."]]:
        weight = draw(jax.random.fold_in(key, number))
        return statistic(jnp.where(number == 0, jnp.ones_like(weight), weight))

    return jax.vmap(per_resample)(numbers)


def bounds(values: PyTree[Float[Array, "R ..."]], level: float = 0.95) -> Interval:
    """Quantiles (1 -+ level) / 2 over the resamples in which a figure is known.

    A bound is NaN if the figure is known in fewer than half of the resamples.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", Chapman and Hall
    1993, doi:10.1201/9780429246593, section 13.3.
    """
    tails = [(1 - level) / 2, (1 + level) / 2]
    quantiles = jax.tree.map(lambda leaf: _quantiles(leaf, tails), values)
    return Interval(
        *(jax.tree.map(lambda leaf, i=i: leaf[i], quantiles) for i in (0, 1))
    )


def reach(distances: PyTree[Float[Array, "R ..."]], level: float = 0.95) -> PyTree:
    """The distance c within which a share `level` of the resamples lies.

    The figure is a seminorm q(v) of an estimate v (a range, a sum of absolute values).
    With `distances` = q(v* - v) over resamples v*,

        [max(q(v) - c, 0), q(v) + c]

    covers q of the truth at the level, since |q(v) - q(truth)| <= q(v - truth) whatever
    the truth is, 0 included. The interval contains the estimate and is wider than
    needed. For the range of group means it is Tukey's simultaneous band of all pairwise
    differences, applied to the largest one. NaN as in `bounds`.

    Sources: Tukey, "The problem of multiple comparisons", 1953, in volume VIII of The
    Collected Works of John W. Tukey, Chapman and Hall 1994, and by resampling Romano
    and Wolf, "Exact and approximate stepdown methods for multiple hypothesis testing",
    Journal of the American Statistical Association 2005,
    doi:10.1198/016214504000000539.
    """
    return jax.tree.map(lambda leaf: _quantiles(leaf, [level])[0], distances)


def _quantiles(leaf: Float[Array, "R ..."], tails: list[float]) -> Float[Array, "..."]:
    is_frequent = 2 * jnp.sum(~jnp.isnan(leaf), axis=0) >= leaf.shape[0]
    quantiles = jnp.nanquantile(leaf, jnp.asarray(tails, leaf.dtype), axis=0)
    return jnp.where(is_frequent, quantiles, jnp.nan)


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
        key: key of all resamples.
        resamples: number of resamples.
        level: nominal coverage.
        chunk: resamples that are vmapped; it bounds the memory and changes nothing
            else.
    """
    # Whole chunks, so that the statistic is compiled once; the surplus is dropped.
    chunks = -(-resamples // chunk)
    numbers = 1 + jnp.arange(chunks * chunk).reshape(chunks, chunk)
    values = jax.lax.map(
        lambda chunk_numbers: resample_statistic(statistic, draw, key, chunk_numbers),
        numbers,
    )
    return bounds(
        jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:resamples], values
        ),
        level,
    )
