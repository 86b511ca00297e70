"""Sums, means and ranks inside segments: hospitals, tiers, patient groups, or all.

In this package `segment [E]` says which of `segments` S a record belongs to; a record
of no segment, -1 by convention, counts nowhere. `weight [E]` is how often a record
counts, as a bootstrap draws it; None: once. Counts are whole, so that ties are exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

Weight = Int[Array, "E"] | None


def once(weight: Weight, like: Shaped[Array, "E"]) -> Int[Array, "E"]:
    """The weights, or one for every record."""
    return jnp.ones(like.shape, jnp.int32) if weight is None else weight


def total(
    values: Shaped[Array, "E *more"], segment: Int[Array, "E"], segments: int
) -> Shaped[Array, "segments *more"]:
    """Sum of every segment."""
    return jax.ops.segment_sum(values, segment, segments)


def mean(
    values: Shaped[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    where: Bool[Array, "E"] | None = None,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Mean of every segment over its records in `where`; NaN where there are none.

    Of truth values it is the share of them.
    """
    times = once(weight, values)
    if where is not None:
        times = jnp.where(where, times, 0)
    if values.dtype == bool:
        values = values.astype(jnp.result_type(float))
    count = total(times, segment, segments)
    # Zero the value of what does not count: 0 * NaN is NaN.
    kept = jnp.where(times > 0, values, jnp.zeros_like(values))
    summed = total(kept * times.astype(values.dtype), segment, segments)
    known = summed / jnp.maximum(count, 1).astype(values.dtype)
    return jnp.where(count > 0, known, jnp.nan)


def finite(
    logits: Float[Array, "E C"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Bool[Array, "segments"]:
    """Whether all logits of a segment are finite; others answer with no class.

    The largest of logits with a NaN is, to `argmax`, the NaN: a share of right answers
    would be that of some class among the records.
    """
    broken = ~jnp.all(jnp.isfinite(logits), axis=1)
    times = jnp.where(broken, once(weight, broken), 0)
    return total(times, segment, segments) == 0


class Ranks(NamedTuple):
    """Records in the order of their segment, then of their score, lowest first."""

    index: Int[Array, "E"]
    """Which record has this place."""
    segment: Int[Array, "E"]
    start: Int[Array, "E"]
    """First place of the segment."""
    first: Int[Array, "E"]
    """First place with the same score."""
    past: Int[Array, "E"]
    """One beyond the last place with the same score."""

    def below(self, values: Int[Array, "E"]) -> tuple[Int[Array, "E"], Int[Array, "E"]]:
        """Sums over the lower scores of the segment, and over equal ones.

        Args:
            values: by place.
        """
        before = jnp.concatenate([jnp.zeros((1,), values.dtype), jnp.cumsum(values)])
        lower = before[self.first]
        return lower - before[self.start], before[self.past] - lower


def rank(scores: Float[Array, "E"], segment: Int[Array, "E"]) -> Ranks:
    """Sorts once; what is then summed over ranks may differ from resample to resample.

    A score that is not a number ties with nothing and comes last.
    """
    rows = scores.shape[0]
    place = jnp.arange(rows, dtype=jnp.int32)
    segment, scores, index = jax.lax.sort(
        (segment.astype(jnp.int32), scores, place), num_keys=2
    )
    begins = jnp.concatenate([jnp.ones((1,), bool), segment[1:] != segment[:-1]])[:rows]
    changes = jnp.concatenate([jnp.ones((1,), bool), scores[1:] != scores[:-1]])[:rows]
    changes = changes | begins
    later = jnp.where(changes, place, rows)
    past = jnp.concatenate([later[1:], jnp.full((1,), rows, jnp.int32)])[:rows]
    return Ranks(
        index,
        segment,
        jax.lax.cummax(jnp.where(begins, place, 0)),
        jax.lax.cummax(jnp.where(changes, place, 0)),
        jax.lax.cummin(past, reverse=True),
    )


def counted(
    scores: Float[Array, "E"],
    positive: Bool[Array, "E"],
    segment: Int[Array, "E"],
    weight: Weight,
) -> tuple[Ranks, Int[Array, "E"], Int[Array, "E"]]:
    """Ranks, and by place how many positives and negatives there are."""
    ranks = rank(scores, segment)
    everyone = once(weight, positive)[ranks.index]
    plus = jnp.where(positive[ranks.index], everyone, 0)
    return ranks, plus, everyone - plus
