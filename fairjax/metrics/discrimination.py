"""How well scores separate the classes: over all thresholds, at one, by class."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.metrics.segments import Weight, mean, rank_classes, record_weights, total


def auroc(
    scores: Float[Array, "E"],
    positive: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Area under the ROC curve of every segment, ties counted half.

        AUROC = (1 / (n+ n-)) sum_{i in +} sum_{j in -} ([s_i > s_j] + [s_i = s_j] / 2),

    by one sort: O(E log E), with exact counts.

    Args:
        scores: higher means positive.
        positive: whether the true class is the positive one.
        segment: which segment a record belongs to, in [0, segments).
        segments: number of segments.
        weight: how often a record counts.

    Returns:
        One area per segment; NaN if a segment lacks positives or negatives, or has a
        score that is NaN.
    """
    ranks, plus, minus = rank_classes(scores, positive, segment, weight)
    n_plus, n_minus = (total(n, ranks.segment, segments) for n in (plus, minus))
    lower, ties = (n.astype(scores.dtype) for n in ranks.sums_below(minus))
    segment_minus = jnp.maximum(n_minus, 1)[ranks.segment].astype(scores.dtype)
    wins = (lower + 0.5 * ties) / segment_minus
    area = total(wins * plus.astype(scores.dtype), ranks.segment, segments)
    area = area / jnp.maximum(n_plus, 1).astype(scores.dtype)
    is_estimable = (
        (n_plus > 0) & (n_minus > 0) & _no_nan(scores, segment, segments, weight)
    )
    return jnp.where(is_estimable, area, jnp.nan)


def auprc(
    scores: Float[Array, "E"],
    positive: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Average precision of every segment: the stepwise area under precision-recall.

        AP = sum_k (recall_k - recall_{k-1}) precision_k
           = (1 / n+) sum_{i in +} (positives with s >= s_i) / (records with s >= s_i),

    k over the distinct scores in descending order, so that tied records enter together.
    Arguments and result are as of `auroc`.

    Args:
        scores: higher means positive.
        positive: whether the true class is the positive one.
        segment: which segment a record belongs to, in [0, segments).
        segments: number of segments.
        weight: how often a record counts.
    """
    ranks, plus, minus = rank_classes(scores, positive, segment, weight)
    counts = plus + minus
    n_plus, n_all = (total(n, ranks.segment, segments) for n in (plus, counts))
    above_plus = n_plus[ranks.segment] - ranks.sums_below(plus)[0]
    above_all = n_all[ranks.segment] - ranks.sums_below(counts)[0]
    precision = above_plus.astype(scores.dtype) / jnp.maximum(above_all, 1).astype(
        scores.dtype
    )
    area = total(precision * plus.astype(scores.dtype), ranks.segment, segments)
    area = area / jnp.maximum(n_plus, 1).astype(scores.dtype)
    has_both_classes = (n_plus > 0) & (n_all > n_plus)
    is_estimable = has_both_classes & _no_nan(scores, segment, segments, weight)
    return jnp.where(is_estimable, area, jnp.nan)


def _no_nan(scores: Array, segment: Array, segments: int, weight: Weight) -> Array:
    """Whether no score of a segment is NaN."""
    nan_counts = jnp.where(jnp.isnan(scores), record_weights(weight, scores), 0)
    return total(nan_counts, segment, segments) == 0


Area = Callable[..., Float[Array, "segments"]]
"""`auroc` or `auprc`."""


def macro(
    area: Area,
    logits: Float[Array, "E C"],
    y: Int[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """The area of class 1, or with more classes the mean of one class against the rest.

    The mean is over the classes for which the segment has an area.

    Args:
        area: `auroc` or `auprc`.
        logits: logits of every record.
        y: the true class.
        segment: which segment a record belongs to, in [0, segments).
        segments: number of segments.
        weight: how often a record counts.
    """
    classes = logits.shape[1]
    if classes == 2:
        # The logit margin orders as the probability does and never saturates.
        margin = logits[:, 1] - logits[:, 0]
        return area(margin, y == 1, segment, segments, weight=weight)
    log_p = jax.nn.log_softmax(logits)
    positive = jnp.arange(classes)[:, None] == y
    areas = jax.vmap(lambda s, p: area(s, p, segment, segments, weight=weight))(
        log_p.T, positive
    )
    return jnp.nanmean(areas, axis=0)


def balanced_accuracy(
    correct: Bool[Array, "E"],
    y: Int[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    classes: int,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Mean recall of every segment over the classes that it has.

        (1 / |C_s|) sum_{c in C_s} (records of class c predicted correctly) / n_sc

    Args:
        correct: whether the predicted class is the true one.
        y: the true class.
        segment: which segment a record belongs to, in [0, segments).
        segments: number of segments.
        classes: C.
        weight: how often a record counts.

    Returns:
        One mean per segment; NaN for a segment without records.
    """
    cell = jnp.where(segment < 0, -1, segment * classes + y.astype(jnp.int32))
    recall = mean(correct, cell, segments * classes, weight=weight)
    return jnp.nanmean(recall.reshape(segments, classes), axis=1)


# ------------------------------------------------------------------------ one threshold


def sensitivity(
    predicted: Bool[Array, "E"],
    positive: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Share of positives predicted positive, TP / (TP + FN); NaN without positives."""
    return mean(predicted, segment, segments, where=positive, weight=weight)


def specificity(
    predicted: Bool[Array, "E"],
    positive: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Share of negatives predicted negative, TN / (TN + FP); NaN without negatives."""
    return mean(~predicted, segment, segments, where=~positive, weight=weight)


def youden(scores: Float[Array, "E"], positive: Bool[Array, "E"]) -> Float[Array, ""]:
    """The threshold t of "positive if score >= t" with the largest Youden index.

        J(t) = sensitivity(t) + specificity(t) - 1

    The candidates are the observed scores; among equally good ones the lowest is
    chosen, which misses the fewest positives. Choose it on validation records: a
    threshold that is chosen on the evaluated records makes results too good. NaN with
    one class, or with a score that is NaN.

    Source: Youden, "Index for rating diagnostic tests", Cancer 1950,
    doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3.
    """
    segment = jnp.zeros(scores.shape, jnp.int32)
    ranks, plus, minus = rank_classes(scores, positive, segment, None)
    rates = [
        1
        - ranks.sums_below(n)[0].astype(scores.dtype) / jnp.sum(n).astype(scores.dtype)
        for n in (plus, minus)
    ]
    best = scores[ranks.index][jnp.argmax(rates[0] - rates[1])]
    is_estimable = jnp.any(positive) & jnp.any(~positive) & ~jnp.any(jnp.isnan(scores))
    return jnp.where(is_estimable, best, jnp.nan)
