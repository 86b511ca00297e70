"""Calibration: whether predicted probabilities match observed frequencies."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.metrics.segments import (
    Weight,
    mean,
    rank,
    rank_classes,
    record_weights,
    total,
)

BINS = 15
STEP_TOLERANCE, ACCEPT_TOLERANCE = 1e-4, 1e-3
"""Newton's method stops at a step shorter than STEP_TOLERANCE, in standardised logits;
its error is then about the square of that. If the steps run out, the last one must be
shorter than ACCEPT_TOLERANCE."""


def brier(
    probabilities: Float[Array, "E C"],
    y: Int[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Brier score of every segment; NaN for a segment without records.

        two classes:  (1 / n) sum_i (p_i1 - [y_i = 1])^2,        in [0, 1]
        more:         (1 / n) sum_i sum_c (p_ic - [y_i = c])^2,  in [0, 2]

    With two classes the score is that of the positive class alone, half of the sum over
    both, as is usual.

    Args:
        probabilities: predicted probability of every class.
        y: the true class.
        segment: which segment a record belongs to, in [0, segments).
        segments: number of segments.
        weight: how often a record counts.

    Source: Brier, "Verification of forecasts expressed in terms of probability",
    Monthly Weather Review 1950,
    doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    classes = probabilities.shape[1]
    true = (y[:, None] == jnp.arange(classes)).astype(probabilities.dtype)
    square = (probabilities - true) ** 2
    error = square[:, 1] if classes == 2 else jnp.sum(square, axis=1)
    return mean(error, segment, segments, weight=weight)


def confidence(
    probabilities: Float[Array, "E C"], y: Int[Array, "E"]
) -> tuple[Float[Array, "E"], Bool[Array, "E"]]:
    """The probability whose calibration is measured, and whether it came true.

    With two classes it is that of the positive class, as in clinical prediction (Van
    Calster et al., "Calibration: the Achilles heel of predictive analytics", BMC
    Medicine 2019, doi:10.1186/s12916-019-1466-7). With more it is that of the predicted
    class (Guo et al., "On calibration of modern neural networks", ICML 2017,
    arXiv:1706.04599).
    """
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], y == 1
    return jnp.max(probabilities, axis=1), jnp.argmax(probabilities, axis=1) == y


class Reliability(NamedTuple):
    """A calibration plot: predicted and observed frequencies, bin by bin."""

    predicted: Float[Array, "segments bins"]
    """Mean probability; NaN in an empty bin."""
    observed: Float[Array, "segments bins"]
    """Share that came true; NaN in an empty bin."""
    count: Int[Array, "segments bins"]
    """Records."""


def reliability(
    probability: Float[Array, "E"],
    outcome: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    bins: int = BINS,
    weight: Weight = None,
) -> Reliability:
    """The calibration plot of every segment, with bins of equal mass.

    A record's bin is floor(bins * share of the segment's records below it), so that
    tied probabilities share a bin and the order of records plays no part. Ties may make
    a bin larger or empty.

    Args:
        probability: see `confidence`.
        outcome: whether it came true.
        segment: which segment a record belongs to, in [0, segments).
        segments: number of segments.
        bins: number of bins.
        weight: how often a record counts.
    """
    ranks = rank(probability, segment)
    times = record_weights(weight, probability)[ranks.index]
    segment_size = jnp.maximum(total(times, ranks.segment, segments), 1)[ranks.segment]
    bin_of = ranks.sums_below(times)[0] * bins // segment_size
    cell = jnp.where(ranks.segment < 0, -1, ranks.segment * bins + bin_of)
    p, outcomes = probability[ranks.index], outcome[ranks.index]

    def per_bin(values: Array) -> Array:
        return mean(values, cell, segments * bins, weight=times).reshape(segments, bins)

    count = total(times, cell, segments * bins).reshape(segments, bins)
    return Reliability(per_bin(p), per_bin(outcomes), count)


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
        segments: number of segments.
        bins: number of bins, see `reliability`.
        weight: how often a record counts.

    Returns:
        One error per segment; NaN for a segment without records or with a probability
        that is NaN.

    Source: Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities
    using Bayesian binning", AAAI 2015, doi:10.1609/aaai.v29i1.9602; bins of equal mass:
    Nixon et al., "Measuring calibration in deep learning", CVPR workshops 2019,
    arXiv:1904.01685.
    """
    plot = reliability(
        probability, outcome, segment, segments, bins=bins, weight=weight
    )
    return jnp.sum(jnp.abs(bin_errors(plot)), axis=1)


def bin_errors(plot: Reliability) -> Float[Array, "*more bins"]:
    """(n_b / n) (mean probability in b - share that came true in b), bin by bin.

    The ECE is the sum of their absolute values. An empty bin has 0; if all bins are
    empty, all are NaN.
    """
    gap = jnp.where(plot.count > 0, plot.predicted - plot.observed, 0)
    n = jnp.sum(plot.count, axis=-1, keepdims=True)
    share = plot.count.astype(gap.dtype) / jnp.maximum(n, 1).astype(gap.dtype)
    return jnp.where(n > 0, share * gap, jnp.nan)


class Line(NamedTuple):
    """logit P(y = 1) = intercept + slope * logit(p); ideally slope 1, intercept 0."""

    slope: Float[Array, "segments"]
    """Below 1: predictions are too extreme."""
    intercept: Float[Array, "segments"]
    """Intercept of the same fit, not of one whose slope is fixed at 1."""


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

    Newton's method starts at the origin, in standardised logits, and runs until the
    steps of all segments are short.

    Args:
        logit: logit of the predicted probability of the positive class.
        positive: whether the true class is the positive one.
        segment: which segment a record belongs to, in [0, segments).
        segments: number of segments.
        weight: how often a record counts.
        steps: most Newton steps; enough unless the classes hardly overlap.

    Returns:
        The line of every segment. It is NaN if the likelihood has no maximum (one
        class; classes that a threshold separates, or that touch at one logit alone), if
        the maximum was not reached, and if a logit is not finite.

    Sources: Cox, "Two further applications of a model for binary regression",
    Biometrika 1958, doi:10.1093/biomet/45.3-4.562; for the classes without a maximum
    Albert and Anderson, "On the existence of maximum likelihood estimates in logistic
    regression models", Biometrika 1984, doi:10.1093/biomet/71.1.1.
    """
    ranks, plus, minus = rank_classes(logit, positive, segment, weight)
    # Some positive must lie above some negative, and some below.
    overlap = jnp.ones((segments,), bool)
    for class_counts, rival_counts in ((plus, minus), (minus, plus)):
        above = jnp.where(ranks.sums_below(rival_counts)[0] > 0, class_counts, 0)
        overlap &= total(above, ranks.segment, segments) > 0
    times = record_weights(weight, logit)
    finite = jnp.isfinite(logit)
    overlap &= total(jnp.where(finite, 0, times), segment, segments) == 0

    logit = jnp.where(finite, logit, jnp.zeros_like(logit))
    center = mean(logit, segment, segments, weight=weight)
    variance = mean((logit - center[segment]) ** 2, segment, segments, weight=weight)
    center = jnp.where(overlap, center, 0)
    scale = jnp.sqrt(jnp.where(overlap, variance, 1))
    z = (logit - center[segment]) / scale[segment]
    y = positive.astype(logit.dtype)

    def should_continue(carry: tuple[Array, ...]) -> Bool[Array, ""]:
        step, _, _, step_size = carry
        return (step < steps) & jnp.any(overlap & (step_size >= STEP_TOLERANCE))

    def newton(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        step, slope, intercept, _ = carry
        p = jax.nn.sigmoid(intercept[segment] + slope[segment] * z)
        curve = p * (1 - p)
        terms = [curve, curve * z, curve * z * z, y - p, (y - p) * z]
        weighted_terms = jnp.stack(terms, axis=1) * times.astype(logit.dtype)[:, None]
        h0, h1, h2, g0, g1 = total(weighted_terms, segment, segments).T
        determinant = h0 * h2 - h1 * h1
        divisor = jnp.where(overlap & (determinant > 0), determinant, 1)
        d0, d1 = (h2 * g0 - h1 * g1) / divisor, (h0 * g1 - h1 * g0) / divisor
        # The likelihood is flat if all records are predicted with certainty: there is
        # no maximum either.
        step_size = jnp.where(determinant > 0, jnp.abs(d0) + jnp.abs(d1), jnp.inf)
        return step + 1, slope + d1, intercept + d0, step_size

    zero = jnp.zeros((segments,), logit.dtype)
    start = jnp.int32(0), zero, zero, zero + jnp.inf
    _, slope, intercept, step_size = jax.lax.while_loop(should_continue, newton, start)
    is_converged = overlap & (step_size < ACCEPT_TOLERANCE)
    slope = jnp.where(is_converged, slope / scale, jnp.nan)
    return Line(slope, jnp.where(is_converged, intercept - slope * center, jnp.nan))
