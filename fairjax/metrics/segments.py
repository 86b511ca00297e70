"""Sums, means and ranks inside segments: clients, tiers, patient groups, or all.

In this package `segment [E]` is the index of a record's segment, and `segments` is the
number of segments. A record without a segment, -1 by convention, counts nowhere.
`weight [E]` is how often a record counts, as a bootstrap draws it; None: once. Counts
are whole numbers, so that ties are exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

Weight = Int[Array, "E"] | None


def record_weights(weight: Weight, template: Shaped[Array, "E"]) -> Int[Array, "E"]:
    """The weights, or one for every record."""
    return jnp.ones(template.shape, jnp.int32) if weight is None else weight


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
    """Mean of every segment over its records in `where`; NaN for an empty segment.

    The mean of truth values is the share of true ones.

    Args:
        values: numbers or truth values.
        segment: which segment a record belongs to, in [0, segments).
        segments: number of segments.
        where: the records that count; None: all.
        weight: how often a record counts.
    """
    times = record_weights(weight, values)
    if where is not None:
        times = jnp.where(where, times, 0)
    if values.dtype == bool:
        values = values.astype(jnp.result_type(float))
    count = total(times, segment, segments)
    # Values that do not count become 0 first: 0 * NaN is NaN.
    masked_values = jnp.where(times > 0, values, jnp.zeros_like(values))
    weighted_sum = total(masked_values * times.astype(values.dtype), segment, segments)
    average = weighted_sum / jnp.maximum(count, 1).astype(values.dtype)
    return jnp.where(count > 0, average, jnp.nan)


def finite(
    logits: Float[Array, "E C"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Bool[Array, "segments"]:
    """Whether all logits of a segment are finite; otherwise no class is predicted.

    `argmax` takes a NaN for the largest logit: an accuracy would be the share of some
    class among the records.

    Args:
        logits: logits of every record.
        segment: which segment a record belongs to, in [0, segments).
        segments: number of segments.
        weight: how often a record counts.
    """
    is_broken = ~jnp.all(jnp.isfinite(logits), axis=1)
    times = jnp.where(is_broken, record_weights(weight, is_broken), 0)
    return total(times, segment, segments) == 0


class Ranks(NamedTuple):
    """Records in the order of their segment, then of their score, lowest first."""

    index: Int[Array, "E"]
    """The record at each place."""
    segment: Int[Array, "E"]
    """Its segment."""
    start: Int[Array, "E"]
    """First place of the segment."""
    first: Int[Array, "E"]
    """First place with the same score."""
    stop: Int[Array, "E"]
    """One beyond the last place with the same score."""

    def sums_below(
        self, values: Int[Array, "E"]
    ) -> tuple[Int[Array, "E"], Int[Array, "E"]]:
        """Sums over the lower scores of the segment, and over equal ones.

        Args:
            values: values in the order of places.
        """
        cumulative = jnp.concatenate(
            [jnp.zeros((1,), values.dtype), jnp.cumsum(values)]
        )
        lower = cumulative[self.first]
        return lower - cumulative[self.start], cumulative[self.stop] - lower


def rank(scores: Float[Array, "E"], segment: Int[Array, "E"]) -> Ranks:
    """The ranks of scores: one sort serves the sums of all resamples.

    A score that is NaN ties with nothing and comes last.
    """
    rows = scores.shape[0]
    place = jnp.arange(rows, dtype=jnp.int32)
    segment, scores, index = jax.lax.sort(
        (segment.astype(jnp.int32), scores, place), num_keys=2
    )
    is_segment_start = jnp.concatenate(
        [jnp.ones((1,), bool), segment[1:] != segment[:-1]]
    )[:rows]
    is_new_score = jnp.concatenate([jnp.ones((1,), bool), scores[1:] != scores[:-1]])[
        :rows
    ]
    is_new_score = is_new_score | is_segment_start
    next_start = jnp.where(is_new_score, place, rows)
    stop = jnp.concatenate([next_start[1:], jnp.full((1,), rows, jnp.int32)])[:rows]
    return Ranks(
        index,
        segment,
        jax.lax.cummax(jnp.where(is_segment_start, place, 0)),
        jax.lax.cummax(jnp.where(is_new_score, place, 0)),
        jax.lax.cummin(stop, reverse=True),
    )


def rank_classes(
    scores: Float[Array, "E"],
    positive: Bool[Array, "E"],
    segment: Int[Array, "E"],
    weight: Weight,
) -> tuple[Ranks, Int[Array, "E"], Int[Array, "E"]]:
    """Ranks, and in their order how often a record counts as positive and negative."""
    ranks = rank(scores, segment)
    counts = record_weights(weight, positive)[ranks.index]
    plus = jnp.where(positive[ranks.index], counts, 0)
    return ranks, plus, counts - plus
