"""Folds of a cohort's changes that a few liars among hospitals cannot move far.

All of them work under masks. By coordinate, one is decided by the hospitals that hold
it, so how many liars it withstands, its breakdown point, is a matter of how many those
are (`breakdown`). By distance, whole changes are chosen, and no coordinate has a
breakdown point of its own. A fold needs all changes at once; the norm bound does not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core import aggregate, require
from fairjax.core.types import Cohort, Member, Params, Protection, Sent
from fairjax.privacy import clip


class Stack(NamedTuple):
    """What the whole cohort sends, [K, ...] a leaf."""

    sent: Sent
    """With w = b = 1."""
    weight: Float[Array, "K"]
    """w, 0 where not valid."""
    base: Float[Array, "K"]
    """b, 0 where not valid."""
    valid: Bool[Array, "K"]


Fold = Callable[[Stack], tuple[Sent, Float[Array, "K"]]]
"""What the cohort sent -> (the sums, what share of every client's change is in them).
Their ratio num / den is what the fold finds for a coordinate."""


# ------------------------------------------------------------------- by coordinate

Estimate = Callable[[Float[Array, "K ..."], Int[Array, "..."]], Float[Array, "..."]]
"""(values in ascending order, those of who holds it first; how many hold it) -> one."""


def median() -> Fold:
    """The median over the M_j hospitals that hold a coordinate, each counted alike.

    Of an even number it is the mean of the two in the middle. Weights have no say: a
    weight that a hospital could raise would be its lever.

    Guarantees: fewer than M_j / 2 liars leave the result between honest values.

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", option I; over
    those who hold a coordinate, which is ours.
    """

    def estimate(values: Array, holders: Array) -> Array:
        low = _at(values, jnp.maximum(holders - 1, 0) // 2)
        high = _at(values, holders // 2)
        return (low + high) / 2

    return _by_coordinate(estimate)


def trimmed_mean(*, beta: float) -> Fold:
    """The mean without the floor(beta M_j) largest and smallest of M_j values.

    Every hospital that holds the coordinate counts alike. beta = 0 is the uniform mean.

    Args:
        beta: in [0, 1/2).

    Guarantees: up to floor(beta M_j) liars leave every value that is averaged between
        honest ones.

    Source: Yin et al. 2018, option II; over those who hold a coordinate, which is ours.
    """
    require.in_range("robust.trimmed_mean.beta", beta, 0, 0.5, open_high=True)

    def estimate(values: Array, holders: Array) -> Array:
        cut = cut_of(beta, holders)
        rank = jnp.arange(values.shape[0]).reshape(-1, *([1] * holders.ndim))
        inside = (rank >= cut) & (rank < holders - cut)
        total = jnp.sum(jnp.where(inside, values, 0), axis=0)
        return total / jnp.maximum(holders - 2 * cut, 1).astype(values.dtype)

    return _by_coordinate(estimate)


def cut_of(beta: float, holders: Int[Array, "..."]) -> Int[Array, "..."]:
    """floor(beta M), also where the product falls short by rounding (0.29 * 100).

    Never all: where beta rounds to 1/2 the middle is left.
    """
    # beta and the product are each off by half a unit in the last place at most.
    ahead = 1 + 2 * float(jnp.finfo(jnp.float32).eps)
    cut = jnp.floor(beta * holders.astype(jnp.float32) * ahead).astype(jnp.int32)
    return jnp.minimum(cut, jnp.maximum(holders - 1, 0) // 2)


def _at(values: Float[Array, "K ..."], rank: Int[Array, "..."]) -> Float[Array, "..."]:
    rank = jnp.broadcast_to(rank, values.shape[1:])
    return jnp.take_along_axis(values, rank[None], axis=0)[0]


def _by_coordinate(estimate: Estimate) -> Fold:
    def one(num: Array, den: Array, valid: Array) -> tuple[Array, Array]:
        holds = (den > 0) & valid.reshape(-1, *([1] * (den.ndim - 1)))
        holders = jnp.sum(holds, axis=0, dtype=jnp.int32)
        ascending = jnp.sort(jnp.where(holds, num, jnp.inf), axis=0)
        found = jnp.where(holders > 0, estimate(ascending, holders), 0)
        held = holders.astype(den.dtype)
        return found * held.astype(num.dtype), held

    def fold(stack: Stack) -> tuple[Sent, Array]:
        sums = _leafwise(lambda num, den: one(num, den, stack.valid), stack.sent)
        return sums, stack.valid.astype(jnp.float32)

    return fold


def _leafwise(f: Callable[[Array, Array], tuple[Array, Array]], sent: Sent) -> Sent:
    """`f` of every leaf's (num, den), those of tiers' copies too."""
    nums, treedef = jax.tree.flatten(sent.num)
    pairs = [f(*pair) for pair in zip(nums, jax.tree.leaves(sent.den), strict=True)]
    num, den = (treedef.unflatten(part) for part in zip(*pairs, strict=True))
    return Sent(num, den, {path: f(*pair) for path, pair in sent.tiers.items()})


# ------------------------------------------------------------------------- by hospital


def krum(*, hostile: int) -> Fold:
    """Only the change that lies closest to its n - f - 2 nearest ones.

        score_k = sum of the n - f - 2 smallest |d_k - d_j|^2,  j != k
        |d_k - d_j|^2 = mean over common coordinates of (d_kj - d_jj)^2

    with n the valid clients. The distance is that on what both hold, as a mean, so that
    a small sub-model is not close for being small; clients with nothing in common are
    infinitely far. What the chosen one does not hold keeps its value.

    Args:
        hostile: f, how many liars a cohort may have.

    Weights have no say: the chosen change is taken as it is.

    Edge cases: with fewer than 2 f + 3 valid clients there is no guarantee, and the
        round changes nothing.

    Source: Blanchard et al. 2017, "Machine learning with adversaries"; the distance
    under masks is ours.
    """
    require.in_range("robust.hostile", hostile, 0)

    def fold(stack: Stack) -> tuple[Sent, Array]:
        chosen = _closest(stack, hostile, jnp.ones((), jnp.int32)).astype(jnp.float32)
        return _summed(stack.sent, chosen, chosen), chosen

    return fold


def multi_krum(*, hostile: int) -> Fold:
    """The weighted mean of the n - f - 2 changes with the lowest scores of `krum`.

    Args:
        hostile: f, how many liars a cohort may have.

    Edge cases: as of `krum`. A chosen client of weight 0 does not enter.

    Source: Blanchard et al. 2017, who define both; there the mean is of m changes, all
    alike. That m is n - f - 2, and the weights, are ours.
    """
    require.in_range("robust.hostile", hostile, 0)

    def fold(stack: Stack) -> tuple[Sent, Array]:
        number = jnp.sum(stack.valid, dtype=jnp.int32) - hostile - 2
        chosen = _closest(stack, hostile, number)
        weight, base = (
            jnp.where(chosen, part, 0) for part in (stack.weight, stack.base)
        )
        entered = (weight > 0).astype(jnp.float32)
        return _summed(stack.sent, weight, base), entered

    return fold


def _closest(stack: Stack, hostile: int, number: Int[Array, ""]) -> Bool[Array, "K"]:
    """The clients with the lowest scores, so many; nobody where too few are valid."""
    valid = jnp.sum(stack.valid, dtype=jnp.int32)
    apart = jnp.sort(distances(stack.sent, stack.valid), axis=1)
    near = jnp.arange(apart.shape[1]) < valid - hostile - 2
    score = jnp.sum(jnp.where(near, apart, 0), axis=1)
    score = jnp.where(stack.valid, score, jnp.inf)
    rank = jnp.argsort(jnp.argsort(score, stable=True))
    enough = valid >= 2 * hostile + 3
    return (rank < number) & jnp.isfinite(score) & enough


def _summed(sent: Sent, weight: Float[Array, "K"], base: Float[Array, "K"]) -> Sent:
    return _leafwise(lambda num, den: (_over(weight, num), _over(base, den)), sent)


def _over(weight: Float[Array, "K"], stack: Float[Array, "K ..."]) -> Array:
    return jnp.tensordot(weight.astype(stack.dtype), stack, 1)


def distances(sent: Sent, valid: Bool[Array, "K"]) -> Float[Array, "K K"]:
    """Mean squared difference of any two clients over the coordinates both hold.

    Infinite to oneself, to a client that is not valid, and where nothing is common.
    """
    nums = [*jax.tree.leaves(sent.num), *(num for num, _ in sent.tiers.values())]
    dens = [*jax.tree.leaves(sent.den), *(den for _, den in sent.tiers.values())]

    def row(k: Array) -> Array:
        square, number = 0.0, 0.0
        for num, den in zip(nums, dens, strict=True):
            both = (den * den[k]).astype(num.dtype)
            rest = tuple(range(1, num.ndim))
            square += jnp.sum(both * jnp.square(num - num[k]), axis=rest)
            # A mask may have fewer entries than its parameter.
            number += jnp.sum(both, axis=rest) * (num[k].size // den[k].size)
        known = valid & valid[k] & (jnp.arange(len(valid)) != k) & (number > 0)
        return jnp.where(known, square / jnp.maximum(number, 1), jnp.inf)

    return jax.lax.map(row, jnp.arange(len(valid)))


# -------------------------------------------------------------------------- protections


def folded(inner: Protection, fold: Fold) -> Protection:
    """A protection whose uploads are folded in place of added up.

    Args:
        inner: what stands before the fold; its uploads are `Sent`, on their own.
        fold: of the uploads.
    """

    def protect(
        key: Key[Array, ""],
        state: PyTree,
        cohort: Cohort,
        member: Member,
        sent: Sent,
        weight: Float[Array, ""],
        base: Float[Array, ""],
    ) -> Stack:
        one = jnp.ones_like(weight)
        sent = inner.protect(key, state, cohort, member, sent, one, one)
        return Stack(sent, weight, base, member.valid)

    def release(
        key: Key[Array, ""],
        state: PyTree,
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: tuple[Sent, Array],
        public: Sent | None,
    ) -> tuple[Sent, PyTree]:
        return inner.release(key, state, cohort, valid, sums[0], public)

    def entered(state: PyTree, cohort: Cohort, valid: Array, sums: Any) -> Array:
        return sums[1]

    return inner._replace(protect=protect, release=release, fold=fold, entered=entered)


_PACE = 0.5
"""Share of the newest median in the running one, of its logarithm."""


class _Bounds(NamedTuple):
    inner: Any
    median: Float[Array, "T"]
    """Running median of the norms of every tier; 0 before its first client."""


def bounded(inner: Protection, *, factor: float, tiers: int) -> Protection:
    """Changes scaled down to a multiple of what is usual in their tier.

        u_k = m_k d_k min(1, factor tau_t / |m_k d_k|),   t the tier of k
        log tau_t <- (log tau_t + log median of |m_k d_k| over tier t) / 2

    By tier, since a smaller sub-model has a smaller norm. The running median is that of
    earlier rounds, so that no round needs all changes at once; where there is none yet
    tau is 0: the first changes of a tier are measured and do not enter.

    Args:
        inner: what stands behind the bound.
        factor: above 0.
        tiers: T.

    Guarantees: a client moves a sum by at most its weight times factor tau_t. Liars
        move tau_t itself only where they are half of a tier's clients.

    Source: norm clipping as a defence, Sun et al. 2019, "Can you really backdoor
    federated learning?"; the running median by tier is ours.
    """
    require.positive("robust.norm_bound", factor)

    def protect(
        key: Key[Array, ""],
        state: _Bounds,
        cohort: Cohort,
        member: Member,
        sent: Sent,
        weight: Float[Array, ""],
        base: Float[Array, ""],
    ) -> tuple[Any, Float[Array, "K"]]:
        change, norm = clip.to_norm(
            aggregate.change(sent), factor * state.median[member.tier]
        )
        sent = aggregate.changed(sent, change)
        addend = inner.protect(key, state.inner, cohort, member, sent, weight, base)
        # Every client's own place, so that the sum holds all norms.
        mine = cohort.valid & (cohort.client == member.client)
        return addend, jnp.where(mine, norm, 0)

    def release(
        key: Key[Array, ""],
        state: _Bounds,
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: tuple[Any, Float[Array, "K"]],
        public: Sent | None,
    ) -> tuple[Sent, _Bounds]:
        released, after = inner.release(
            key, state.inner, cohort, valid, sums[0], public
        )
        tier = jnp.arange(tiers, dtype=jnp.int32)
        mine = valid & (cohort.tier == tier[:, None])
        usual = jnp.nanmedian(jnp.where(mine, sums[1], jnp.nan), axis=1)
        known = jnp.isfinite(usual) & (usual > 0)
        usual = jnp.where(known, usual, 1)
        mixed = usual**_PACE * state.median ** (1 - _PACE)
        new = jnp.where(state.median > 0, mixed, usual)
        return released, _Bounds(after, jnp.where(known, new, state.median))

    def entered(state: _Bounds, cohort: Cohort, valid: Array, sums: Any) -> Array:
        bound, norm = factor * state.median[cohort.tier], sums[1]
        share = jnp.where(norm > bound, bound / jnp.where(norm > 0, norm, 1), 1)
        before = valid.astype(share.dtype)
        if inner.entered is not None:
            before = inner.entered(state.inner, cohort, valid, sums[0])
        return before * share

    fold = None
    if inner.fold is not None:
        of_inner = inner.fold
        fold = lambda stack: (of_inner(stack[0]), jnp.sum(stack[1], axis=0))  # noqa: E731

    def init() -> _Bounds:
        return _Bounds(inner.init(), jnp.zeros(tiers, jnp.float32))

    return inner._replace(
        protect=protect, release=release, init=init, fold=fold, entered=entered
    )


# --------------------------------------------------------------------- breakdown points


class Ring(NamedTuple):
    """Coordinates that the same tiers hold."""

    tiers: tuple[int, ...]
    parameters: int
    hospitals: int
    """The fewest that hold one of them."""


def rings(params: Params, holders: PyTree[Int[np.ndarray, "T ..."]]) -> list[Ring]:
    """The coverage rings of a population, that of the most tiers first.

    Args:
        params: the plain model.
        holders: how many hospitals of every tier hold a coordinate, [T, ...] a leaf;
            all but the tiers broadcasts to the parameter.
    """
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(holders), strict=True)
    for leaf, held in leaves:
        flat = np.broadcast_to(held, (len(held), *leaf.shape)).reshape(len(held), -1)
        total = flat.sum(axis=0)
        place = np.arange(len(held))
        patterns = np.where(flat > 0, 1, 0).T @ (1 << place)
        for pattern in np.unique(patterns):
            tiers = tuple(int(tier) for tier in place if pattern >> tier & 1)
            mine = total[patterns == pattern]
            size, fewest = found.get(tiers, (0, int(mine[0])))
            found[tiers] = size + len(mine), min(fewest, int(mine.min()))
    order = sorted(found, key=lambda tiers: (-len(tiers), tiers))
    return [Ring(tiers, *found[tiers]) for tiers in order]


def breakdown(fold: str, holders: int, *, beta: float) -> int:
    """How many liars among the holders of a coordinate a fold withstands.

        mean 0;   median floor((M - 1) / 2);   trimmed mean floor(beta M);
        Krum and Multi-Krum 0

    Krum speaks of whole changes and of f liars in the whole cohort: one that lies near
    the others may be far from them in a coordinate, the more so in one that few hold.

    Args:
        fold: one of `FOLDS`.
        holders: M, clients of a round that hold it.
        beta: of the trimmed mean.
    """
    if fold == "median":
        return max(holders - 1, 0) // 2
    if fold == "trimmed_mean":
        return int(cut_of(beta, jnp.asarray(holders)))
    return 0


FOLDS = ("mean", "median", "trimmed_mean", "krum", "multi_krum")
BY_COORDINATE = ("median", "trimmed_mean")
"""Folds with a breakdown point per coordinate."""
BY_DISTANCE = ("krum", "multi_krum")
