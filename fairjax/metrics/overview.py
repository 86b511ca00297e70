"""Everything that a reader asks of a classifier, over any segments, in one call."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.core import losses
from fairjax.metrics import calibration
from fairjax.metrics.discrimination import (
    auprc,
    auroc,
    balanced_accuracy,
    macro,
    sensitivity,
    specificity,
)
from fairjax.metrics.segments import Weight, finite, mean


class Quality(NamedTuple):
    """Of every segment; NaN where it cannot be estimated."""

    accuracy: Float[Array, "segments"]
    """Of the most probable class; as all that rests on a decision, NaN with a logit
    that is not finite."""
    balanced_accuracy: Float[Array, "segments"]
    """Mean recall over the classes that the records have."""
    loss: Float[Array, "segments"]
    """Mean cross-entropy in nats."""
    auroc: Float[Array, "segments"]
    """For more than two classes: mean of one-versus-rest over estimable classes."""
    auprc: Float[Array, "segments"]
    """The same of average precisions."""
    sensitivity: Float[Array, "segments"]
    """At the threshold; of two classes only."""
    specificity: Float[Array, "segments"]
    """At the threshold; of two classes only."""
    brier: Float[Array, "segments"]
    ece: Float[Array, "segments"]
    calibration_slope: Float[Array, "segments"]
    """Of two classes only."""
    calibration_intercept: Float[Array, "segments"]
    """Of two classes only."""


def margin(logits: Float[Array, "E 2"]) -> Float[Array, "E"]:
    """The logit of the positive class's probability."""
    return logits[:, 1] - logits[:, 0]


def predicted(
    logits: Float[Array, "E 2"], threshold: Float[Array, ""]
) -> Bool[Array, "E"]:
    """Whether the positive class's probability reaches the threshold."""
    return jax.nn.sigmoid(margin(logits)) >= threshold


def quality(
    logits: Float[Array, "E C"],
    y: Int[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    threshold: Float[Array, ""],
    weight: Weight = None,
) -> Quality:
    """All figures of every segment.

    Args:
        logits: of every record.
        y: the true class; of two classes 1 is the positive one.
        segment: which segment a record belongs to, in [0, segments); else nowhere.
        segments: how many there are.
        threshold: on the positive class's probability, chosen elsewhere, see `youden`;
            NaN: no sensitivity and no specificity.
        weight: how often a record counts.
    """

    def average(values: Array) -> Array:
        return mean(values, segment, segments, weight=weight)

    classes = logits.shape[1]
    known = finite(logits, segment, segments, weight=weight)
    right = jnp.argmax(logits, axis=1) == y
    p = jax.nn.softmax(logits)
    unknown = jnp.full((segments,), jnp.nan, logits.dtype)
    of_positives, of_negatives = unknown, unknown
    line = calibration.Line(unknown, unknown)
    if classes == 2:
        chosen, positive = predicted(logits, threshold), y == 1
        of_positives, of_negatives = (
            jnp.where(
                known & ~jnp.isnan(threshold),
                rate(chosen, positive, segment, segments, weight=weight),
                jnp.nan,
            )
            for rate in (sensitivity, specificity)
        )
        line = calibration.line(
            margin(logits), positive, segment, segments, weight=weight
        )
    balanced = balanced_accuracy(
        right, y, segment, segments, classes=classes, weight=weight
    )
    return Quality(
        accuracy=jnp.where(known, average(right), jnp.nan),
        balanced_accuracy=jnp.where(known, balanced, jnp.nan),
        loss=average(losses.cross_entropy(logits, y)),
        auroc=macro(auroc, logits, y, segment, segments, weight=weight),
        auprc=macro(auprc, logits, y, segment, segments, weight=weight),
        sensitivity=of_positives,
        specificity=of_negatives,
        brier=calibration.brier(p, y, segment, segments, weight=weight),
        ece=calibration.ece(
            *calibration.confidence(p, y), segment, segments, weight=weight
        ),
        calibration_slope=line.slope,
        calibration_intercept=line.intercept,
    )
