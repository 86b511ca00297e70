"""Whether a predicted probability is the share in which it comes true."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.metrics.segments import Weight, counted, mean, once, rank, total

BINS = 15
SETTLED, REACHED = 1e-4, 1e-3
"""Newton's steps end with one shorter than the first, in standardised logits: its error
is about the square of that. Where their number is up, it must be below the second."""


def brier(
    probabilities: Float[Array, "E C"],
    y: Int[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Brier score of every segment; NaN for one without records.

        two classes:  (1 / n) sum_i (p_i1 - [y_i = 1])^2,        in [0, 1]
        more:         (1 / n) sum_i sum_c (p_ic - [y_i = c])^2,  in [0, 2]

    Two classes take the positive one alone, half of the sum over both, as is usual.
    Source: Brier 1950, Monthly Weather Review 78(1), 1-3.
    """
    classes = probabilities.shape[1]
    true = (y[:, None] == jnp.arange(classes)).astype(probabilities.dtype)
    square = (probabilities - true) ** 2
    error = square[:, 1] if classes == 2 else jnp.sum(square, axis=1)
    return mean(error, segment, segments, weight=weight)


def confidence(
    probabilities: Float[Array, "E C"], y: Int[Array, "E"]
) -> tuple[Float[Array, "E"], Bool[Array, "E"]]:
    """The probability whose calibration is judged, and whether it came true.

    Two classes: that of the positive class, as in clinical prediction (Van Calster et
    al. 2019, BMC Medicine 17, 230); more: that of the answer (Guo et al. 2017, ICML).
    """
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], y == 1
    return jnp.max(probabilities, axis=1), jnp.argmax(probabilities, axis=1) == y


class Reliability(NamedTuple):
    """A calibration plot: what was predicted and what came, bin by bin."""

    predicted: Float[Array, "segments bins"]
    """Mean probability; NaN in an empty bin."""
    observed: Float[Array, "segments bins"]
    """Share that came true; NaN in an empty bin."""
    count: Int[Array, "segments bins"]


def reliability(
    probability: Float[Array, "E"],
    outcome: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    bins: int = BINS,
    weight: Weight = None,
) -> Reliability:
    """Bins of equal mass in every segment.

    A record's bin is floor(bins * share of the segment's records below it), so that
    tied probabilities share a bin and the order of records plays no part; a bin may be
    larger or empty for it.
    """
    ranks = rank(probability, segment)
    times = once(weight, probability)[ranks.index]
    here = jnp.maximum(total(times, ranks.segment, segments), 1)[ranks.segment]
    bin_of = ranks.below(times)[0] * bins // here
    cell = jnp.where(ranks.segment < 0, -1, ranks.segment * bins + bin_of)
    p, came = probability[ranks.index], outcome[ranks.index]

    def per_bin(values: Array) -> Array:
        return mean(values, cell, segments * bins, weight=times).reshape(segments, bins)

    count = total(times, cell, segments * bins).reshape(segments, bins)
    return Reliability(per_bin(p), per_bin(came), count)


def ece(
    probability: Float[Array, "E"],
    outcome: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    bins: int = BINS,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Expected calibration error of every segment over bins of equal mass.

        ECE = sum_b (n_b / n) |mean probability in b - share that came true in b|

    Args:
        probability: see `confidence`.
        outcome: whether it came true.
        segment: which segment a record belongs to, in [0, segments).
        segments: how many there are.
        bins: see `reliability`.
        weight: how often a record counts.

    Returns:
        One error per segment; NaN for one without records or with a probability that is
        not a number. Source: Naeini et al. 2015, AAAI; bins of equal mass: Nixon et al.
        2019, CVPR workshops.
    """
    plot = reliability(
        probability, outcome, segment, segments, bins=bins, weight=weight
    )
    return jnp.sum(jnp.abs(misses(plot)), axis=1)


def misses(plot: Reliability) -> Float[Array, "*more bins"]:
    """(n_b / n) (mean probability in b - share that came true in b), bin by bin.

    The ECE is the sum of their absolute values. 0 for an empty bin; NaN where all are.
    """
    gap = jnp.where(plot.count > 0, plot.predicted - plot.observed, 0)
    n = jnp.sum(plot.count, axis=-1, keepdims=True)
    share = plot.count.astype(gap.dtype) / jnp.maximum(n, 1).astype(gap.dtype)
    return jnp.where(n > 0, share * gap, jnp.nan)


class Line(NamedTuple):
    """logit P(y = 1) = intercept + slope * logit(p); perfect: slope 1, intercept 0."""

    slope: Float[Array, "segments"]
    """Below 1: predictions are too extreme."""
    intercept: Float[Array, "segments"]
    """Of the same fit, not with the slope held at 1."""


def line(
    logit: Float[Array, "E"],
    positive: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
    steps: int = 25,
) -> Line:
    """Cox's calibration line: the logistic regression of the class on the logit.

    Newton's method from the origin, in standardised logits, until all segments' steps
    are short.

    Args:
        logit: of the predicted probability of the positive class.
        positive: the true class.
        segment: which segment a record belongs to, in [0, segments).
        segments: how many there are.
        weight: how often a record counts.
        steps: of Newton at most; more than enough unless the classes hardly overlap.

    Returns:
        NaN where the likelihood has no maximum (one class; classes that a threshold
        separates, or that touch at one logit alone: Albert & Anderson 1984, Biometrika
        71, 1-10) or it was not reached, and with a logit that is not finite. Source:
        Cox 1958, Biometrika 45, 562-565.
    """
    ranks, plus, minus = counted(logit, positive, segment, weight)
    # Some positive lies above some negative, and some below.
    overlap = jnp.ones((segments,), bool)
    for ones, others in ((plus, minus), (minus, plus)):
        above = jnp.where(ranks.below(others)[0] > 0, ones, 0)
        overlap &= total(above, ranks.segment, segments) > 0
    times = once(weight, logit)
    finite = jnp.isfinite(logit)
    overlap &= total(jnp.where(finite, 0, times), segment, segments) == 0

    logit = jnp.where(finite, logit, jnp.zeros_like(logit))
    center = mean(logit, segment, segments, weight=weight)
    spread = mean((logit - center[segment]) ** 2, segment, segments, weight=weight)
    center = jnp.where(overlap, center, 0)
    scale = jnp.sqrt(jnp.where(overlap, spread, 1))
    z = (logit - center[segment]) / scale[segment]
    y = positive.astype(logit.dtype)

    def moves(at: tuple[Array, ...]) -> Bool[Array, ""]:
        step, _, _, moved = at
        return (step < steps) & jnp.any(overlap & (moved >= SETTLED))

    def newton(at: tuple[Array, ...]) -> tuple[Array, ...]:
        step, slope, intercept, _ = at
        p = jax.nn.sigmoid(intercept[segment] + slope[segment] * z)
        curve = p * (1 - p)
        terms = [curve, curve * z, curve * z * z, y - p, (y - p) * z]
        each = jnp.stack(terms, axis=1) * times.astype(logit.dtype)[:, None]
        h0, h1, h2, g0, g1 = total(each, segment, segments).T
        area = h0 * h2 - h1 * h1
        by = jnp.where(overlap & (area > 0), area, 1)
        d0, d1 = (h2 * g0 - h1 * g1) / by, (h0 * g1 - h1 * g0) / by
        # Flat where all of the records are answered with certainty: no maximum either.
        moved = jnp.where(area > 0, jnp.abs(d0) + jnp.abs(d1), jnp.inf)
        return step + 1, slope + d1, intercept + d0, moved

    zero = jnp.zeros((segments,), logit.dtype)
    start = jnp.int32(0), zero, zero, zero + jnp.inf
    _, slope, intercept, moved = jax.lax.while_loop(moves, newton, start)
    known = overlap & (moved < REACHED)
    slope = jnp.where(known, slope / scale, jnp.nan)
    return Line(slope, jnp.where(known, intercept - slope * center, jnp.nan))
