"""Aggregators of a cohort's changes that a few Byzantine clients cannot move far.

All of them work under masks. A coordinate-wise aggregator decides each coordinate by
the clients that hold it, so how many Byzantine clients it withstands there (its
breakdown point, see `fairjax.robust.breakdown`) depends on their number. An aggregator
by distance chooses whole changes, and no coordinate has a breakdown point of its own.
An aggregator needs all changes at once; `fairjax.robust.norm_bound` does not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core import require
from fairjax.core.protocols import Protection
from fairjax.core.types import ClientView, Cohort, Upload

AGGREGATORS = ("mean", "median", "trimmed_mean", "krum", "multi_krum")
BY_COORDINATE = ("median", "trimmed_mean")
"""Aggregators with a breakdown point per coordinate."""
BY_DISTANCE = ("krum", "multi_krum")
"""Aggregators that choose whole changes."""
UNWEIGHTED = (*BY_COORDINATE, "krum")
"""Aggregators that count every client once, whatever its weight."""


class Stack(NamedTuple):
    """What the whole cohort sends, [K, ...] a leaf."""

    uploads: Upload
    """The changes with w = b = 1."""
    weight: Float[Array, "K"]
    """w, 0 where not valid."""
    denominator_weight: Float[Array, "K"]
    """b, 0 where not valid."""
    valid: Bool[Array, "K"]


Aggregator = Callable[[Stack], tuple[Upload, Float[Array, "K"]]]
"""The cohort's uploads -> (the sums, the share of every client's change in them). The
ratio num / den of the sums is the aggregate of a coordinate."""


# ------------------------------------------------------------------------ by coordinate

Estimate = Callable[[Float[Array, "K ..."], Int[Array, "..."]], Float[Array, "..."]]
"""(values in ascending order, those of holders first; how many hold it) -> estimate."""


def median() -> Aggregator:
    """The median over the M_j clients that hold a coordinate, all counted equally.

    For an even number it is the mean of the two values in the middle. Weights are
    ignored: a client that could raise its weight would have a lever.

    Guarantees: fewer than M_j / 2 Byzantine clients leave the result between honest
        values.

    Source: Yin et al., "Byzantine-robust distributed learning: towards optimal
    statistical rates", ICML 2018, arXiv:1803.01498, option I. Restricting it to the
    holders of a coordinate is ours.
    """

    def estimate(values: Array, holders: Array) -> Array:
        low = _order_statistic(values, jnp.maximum(holders - 1, 0) // 2)
        high = _order_statistic(values, holders // 2)
        return (low + high) / 2

    return _coordinatewise(estimate)


def trimmed_mean(*, beta: float) -> Aggregator:
    """The mean without the floor(beta M_j) largest and smallest of M_j values.

    All clients that hold the coordinate count equally. beta = 0 is the uniform mean.

    Args:
        beta: the share that is cut at each end, in [0, 1/2).

    Raises:
        InputError: beta is outside [0, 1/2).

    Guarantees: up to floor(beta M_j) Byzantine clients leave every value that is
        averaged between honest ones.

    Source: Yin et al. 2018 (see `median`), option II. Restricting it to the holders of
    a coordinate is ours.
    """
    require.in_range("beta", beta, 0, 0.5, open_high=True)

    def estimate(values: Array, holders: Array) -> Array:
        num_trimmed = trim_count(beta, holders)
        rank = jnp.arange(values.shape[0]).reshape(-1, *([1] * holders.ndim))
        in_range = (rank >= num_trimmed) & (rank < holders - num_trimmed)
        total = jnp.sum(jnp.where(in_range, values, 0), axis=0)
        return total / jnp.maximum(holders - 2 * num_trimmed, 1).astype(values.dtype)

    return _coordinatewise(estimate)


def trim_count(beta: float, holders: Int[Array, "..."]) -> Int[Array, "..."]:
    """floor(beta M), also if the product falls short by rounding (0.29 * 100).

    Some values are always left: if beta rounds to 1/2, the middle ones are.
    """
    # beta and the product are each off by at most half a unit in the last place.
    slack = 1 + 2 * float(jnp.finfo(jnp.float32).eps)
    num_trimmed = jnp.floor(beta * holders.astype(jnp.float32) * slack).astype(
        jnp.int32
    )
    return jnp.minimum(num_trimmed, jnp.maximum(holders - 1, 0) // 2)


def _order_statistic(
    values: Float[Array, "K ..."], rank: Int[Array, "..."]
) -> Float[Array, "..."]:
    rank = jnp.broadcast_to(rank, values.shape[1:])
    return jnp.take_along_axis(values, rank[None], axis=0)[0]


def _coordinatewise(estimate: Estimate) -> Aggregator:
    def per_leaf(num: Array, den: Array, valid: Array) -> tuple[Array, Array]:
        is_holder = (den > 0) & valid.reshape(-1, *([1] * (den.ndim - 1)))
        holders = jnp.sum(is_holder, axis=0, dtype=jnp.int32)
        sorted_values = jnp.sort(jnp.where(is_holder, num, jnp.inf), axis=0)
        estimates = jnp.where(holders > 0, estimate(sorted_values, holders), 0)
        denominator = holders.astype(den.dtype)
        return estimates * denominator.astype(num.dtype), denominator

    def aggregator(stack: Stack) -> tuple[Upload, Array]:
        sums = _leafwise(
            lambda num, den: per_leaf(num, den, stack.valid), stack.uploads
        )
        return sums, stack.valid.astype(jnp.float32)

    return aggregator


def _leafwise(
    f: Callable[[Array, Array], tuple[Array, Array]], upload: Upload
) -> Upload:
    """`f` of every leaf's (num, den), tiers' copies included."""
    nums, treedef = jax.tree.flatten(upload.num)
    pairs = [f(*pair) for pair in zip(nums, jax.tree.leaves(upload.den), strict=True)]
    num, den = (treedef.unflatten(leaves) for leaves in zip(*pairs, strict=True))
    return Upload(num, den, {path: f(*pair) for path, pair in upload.tiers.items()})


# ------------------------------------------------------------------------- by distance


def krum(*, num_byzantine: int) -> Aggregator:
    """The one change that lies closest to its n - f - 2 nearest changes.

        score_k = sum of the n - f - 2 smallest |d_k - d_j|^2,  j != k
        |d_k - d_j|^2 = mean over common coordinates of (d_kj - d_jj)^2

    with n the number of valid clients. The distance is a mean over the coordinates that
    both clients hold, so that a small sub-model is not close for being small. Clients
    without common coordinates are infinitely far apart. Coordinates that the chosen
    client does not hold keep their values. Weights are ignored: the chosen change is
    taken as it is.

    Args:
        num_byzantine: f, how many Byzantine clients a cohort may have.

    Raises:
        InputError: f is negative.

    Edge cases: with fewer than 2 f + 3 valid clients there is no guarantee, and the
        round changes nothing.

    Source: Blanchard et al., "Machine learning with adversaries: Byzantine tolerant
    gradient descent", NeurIPS 2017, arXiv:1703.02757. The distance under masks is ours.
    """
    require.in_range("num_byzantine", num_byzantine, 0)

    def aggregator(stack: Stack) -> tuple[Upload, Array]:
        selection = _select_closest(
            stack, num_byzantine, jnp.ones((), jnp.int32)
        ).astype(jnp.float32)
        return _weighted_sums(stack.uploads, selection, selection), selection

    return aggregator


def multi_krum(*, num_byzantine: int) -> Aggregator:
    """The weighted mean of the n - f - 2 changes with the lowest scores of `krum`.

    Args:
        num_byzantine: f, how many Byzantine clients a cohort may have.

    Raises:
        InputError: f is negative.

    Edge cases: as of `krum`. A chosen client of weight 0 does not enter.

    Source: Blanchard et al. 2017 (see `krum`). Its Multi-Krum averages m changes
    uniformly; the choice m = n - f - 2 and the weights are ours.
    """
    require.in_range("num_byzantine", num_byzantine, 0)

    def aggregator(stack: Stack) -> tuple[Upload, Array]:
        num_selected = jnp.sum(stack.valid, dtype=jnp.int32) - num_byzantine - 2
        selection = _select_closest(stack, num_byzantine, num_selected)
        weight, denominator_weight = (
            jnp.where(selection, values, 0)
            for values in (stack.weight, stack.denominator_weight)
        )
        accepted = (weight > 0).astype(jnp.float32)
        return _weighted_sums(stack.uploads, weight, denominator_weight), accepted

    return aggregator


def _select_closest(
    stack: Stack, num_byzantine: int, num_selected: Int[Array, ""]
) -> Bool[Array, "K"]:
    """The `num_selected` clients with the lowest scores; none if too few are valid."""
    num_valid = jnp.sum(stack.valid, dtype=jnp.int32)
    sorted_distances = jnp.sort(distances(stack.uploads, stack.valid), axis=1)
    is_near = jnp.arange(sorted_distances.shape[1]) < num_valid - num_byzantine - 2
    score = jnp.sum(jnp.where(is_near, sorted_distances, 0), axis=1)
    score = jnp.where(stack.valid, score, jnp.inf)
    rank = jnp.argsort(jnp.argsort(score, stable=True))
    has_enough = num_valid >= 2 * num_byzantine + 3
    return (rank < num_selected) & jnp.isfinite(score) & has_enough


def _weighted_sums(
    upload: Upload, weight: Float[Array, "K"], denominator_weight: Float[Array, "K"]
) -> Upload:
    return _leafwise(
        lambda num, den: (
            _weighted_leaf(weight, num),
            _weighted_leaf(denominator_weight, den),
        ),
        upload,
    )


def _weighted_leaf(weight: Float[Array, "K"], stack: Float[Array, "K ..."]) -> Array:
    return jnp.tensordot(weight.astype(stack.dtype), stack, 1)


def distances(uploads: Upload, valid: Bool[Array, "K"]) -> Float[Array, "K K"]:
    """Mean squared difference of every two clients over the coordinates both hold.

    It is infinite on the diagonal, for a client that is not valid, and for two clients
    without common coordinates.
    """
    nums = [*jax.tree.leaves(uploads.num), *(num for num, _ in uploads.tiers.values())]
    dens = [*jax.tree.leaves(uploads.den), *(den for _, den in uploads.tiers.values())]

    def row(k: Array) -> Array:
        square, num_common = 0.0, 0.0
        for num, den in zip(nums, dens, strict=True):
            common = (den * den[k]).astype(num.dtype)
            axes = tuple(range(1, num.ndim))
            square += jnp.sum(common * jnp.square(num - num[k]), axis=axes)
            # A mask may have fewer entries than its parameter.
            num_common += jnp.sum(common, axis=axes) * (num[k].size // den[k].size)
        is_comparable = (
            valid & valid[k] & (jnp.arange(len(valid)) != k) & (num_common > 0)
        )
        return jnp.where(is_comparable, square / jnp.maximum(num_common, 1), jnp.inf)

    return jax.lax.map(row, jnp.arange(len(valid)))


# --------------------------------------------------------------------------- protection


def with_aggregator(inner: Protection, aggregator: Aggregator) -> Protection:
    """A protection that aggregates uploads robustly instead of summing them.

    Args:
        inner: the protection before the aggregator; its `protect` returns an `Upload`.
        aggregator: what combines the uploads.
    """

    def protect(
        key: Key[Array, ""],
        state: PyTree,
        cohort: Cohort,
        client: ClientView,
        upload: Upload,
        weight: Float[Array, ""],
        denominator_weight: Float[Array, ""],
    ) -> Stack:
        unit_weight = jnp.ones_like(weight)
        upload = inner.protect(
            key, state, cohort, client, upload, unit_weight, unit_weight
        )
        return Stack(upload, weight, denominator_weight, client.valid)

    def release(
        key: Key[Array, ""],
        state: PyTree,
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: tuple[Upload, Array],
        public_sums: Upload | None,
    ) -> tuple[Upload, PyTree]:
        return inner.release(key, state, cohort, valid, sums[0], public_sums)

    def accepted(state: PyTree, cohort: Cohort, valid: Array, sums: Any) -> Array:
        return sums[1]

    return inner._replace(
        protect=protect, release=release, fold=aggregator, accepted=accepted
    )
