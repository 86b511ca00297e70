"""How well scores tell the classes apart: with every threshold, with one, by class."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.metrics.segments import Weight, counted, mean, once, total


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
        positive: the true class.
        segment: which segment a record belongs to, in [0, segments).
        segments: how many there are.
        weight: how often a record counts.

    Returns:
        One area per segment; NaN where a segment lacks positives or negatives, or holds
        a score that is not a number.
    """
    ranks, plus, minus = counted(scores, positive, segment, weight)
    n_plus, n_minus = (total(n, ranks.segment, segments) for n in (plus, minus))
    below, tied = (n.astype(scores.dtype) for n in ranks.below(minus))
    minus_here = jnp.maximum(n_minus, 1)[ranks.segment].astype(scores.dtype)
    wins = (below + 0.5 * tied) / minus_here
    area = total(wins * plus.astype(scores.dtype), ranks.segment, segments)
    area = area / jnp.maximum(n_plus, 1).astype(scores.dtype)
    known = (n_plus > 0) & (n_minus > 0) & _numbers(scores, segment, segments, weight)
    return jnp.where(known, area, jnp.nan)


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

    k over the distinct scores from above, so that tied records enter together.

    Args, Returns: as `auroc`.
    """
    ranks, plus, minus = counted(scores, positive, segment, weight)
    everyone = plus + minus
    n_plus, n_all = (total(n, ranks.segment, segments) for n in (plus, everyone))
    above_plus = n_plus[ranks.segment] - ranks.below(plus)[0]
    above_all = n_all[ranks.segment] - ranks.below(everyone)[0]
    precision = above_plus.astype(scores.dtype) / jnp.maximum(above_all, 1).astype(
        scores.dtype
    )
    area = total(precision * plus.astype(scores.dtype), ranks.segment, segments)
    area = area / jnp.maximum(n_plus, 1).astype(scores.dtype)
    both = (n_plus > 0) & (n_all > n_plus)
    known = both & _numbers(scores, segment, segments, weight)
    return jnp.where(known, area, jnp.nan)


def _numbers(scores: Array, segment: Array, segments: int, weight: Weight) -> Array:
    """Whether all scores of a segment are numbers."""
    unknown = jnp.where(jnp.isnan(scores), once(weight, scores), 0)
    return total(unknown, segment, segments) == 0


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
    """An area of class 1, or for more than two classes of one class against the rest.

    Those are averaged over the classes for which the segment has an area.
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
    right: Bool[Array, "E"],
    y: Int[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    classes: int,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Mean recall of every segment over the classes that it has.

        (1 / |C_s|) sum_{c in C_s} (records of class c answered rightly) / n_sc

    Args:
        right: whether the answer is the true class.
        y: the true class.
        segment: which segment a record belongs to, in [0, segments).
        segments: how many there are.
        classes: C.
        weight: how often a record counts.

    Returns:
        One mean per segment; NaN for a segment without records.
    """
    cell = jnp.where(segment < 0, -1, segment * classes + y.astype(jnp.int32))
    recall = mean(right, cell, segments * classes, weight=weight)
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
    """Share of the positives that are predicted so, TP / (TP + FN); NaN without any."""
    return mean(predicted, segment, segments, where=positive, weight=weight)


def specificity(
    predicted: Bool[Array, "E"],
    positive: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    weight: Weight = None,
) -> Float[Array, "segments"]:
    """Share of the negatives that are predicted so, TN / (TN + FP); NaN without any."""
    return mean(~predicted, segment, segments, where=~positive, weight=weight)


def youden(scores: Float[Array, "E"], positive: Bool[Array, "E"]) -> Float[Array, ""]:
    """The threshold t of "positive if score >= t" with the largest Youden index.

        J(t) = sensitivity(t) + specificity(t) - 1

    Among the observed scores; of equally good ones the lowest, which misses the fewest
    positives. To be chosen on validation records: on the records that are then judged
    it flatters. NaN with one class, or with a score that is not a number. Source:
    Youden 1950, Cancer 3(1), 32-35.
    """
    one = jnp.zeros(scores.shape, jnp.int32)
    ranks, plus, minus = counted(scores, positive, one, None)
    rate = [
        1 - ranks.below(n)[0].astype(scores.dtype) / jnp.sum(n).astype(scores.dtype)
        for n in (plus, minus)
    ]
    best = scores[ranks.index][jnp.argmax(rate[0] - rate[1])]
    known = jnp.any(positive) & jnp.any(~positive) & ~jnp.any(jnp.isnan(scores))
    return jnp.where(known, best, jnp.nan)
