"""All figures of a classifier over any segments, in one call."""

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
    """The figures of every segment; NaN where one cannot be estimated."""

    accuracy: Float[Array, "segments"]
    """Accuracy of the most probable class. Like every figure that rests on a decision
    it is NaN if a logit is not finite."""
    balanced_accuracy: Float[Array, "segments"]
    """Mean recall over the classes that the records have."""
    loss: Float[Array, "segments"]
    """Mean cross-entropy in nats."""
    auroc: Float[Array, "segments"]
    """For more than two classes: mean of one-versus-rest over estimable classes."""
    auprc: Float[Array, "segments"]
    """The same mean of average precisions."""
    sensitivity: Float[Array, "segments"]
    """At the threshold; for two classes only."""
    specificity: Float[Array, "segments"]
    """At the threshold; for two classes only."""
    brier: Float[Array, "segments"]
    ece: Float[Array, "segments"]
    calibration_slope: Float[Array, "segments"]
    """For two classes only."""
    calibration_intercept: Float[Array, "segments"]
    """For two classes only."""


def margin(logits: Float[Array, "E 2"]) -> Float[Array, "E"]:
    """The logit of the positive class's probability."""
    return logits[:, 1] - logits[:, 0]


def predict_positive(
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
        logits: logits of every record.
        y: the true class; with two classes 1 is the positive one.
        segment: which segment a record belongs to, in [0, segments); a record of
            another segment counts nowhere.
        segments: number of segments.
        threshold: threshold on the positive class's probability, chosen on other
            records, see `youden`; NaN: no sensitivity and no specificity.
        weight: how often a record counts.
    """

    def average(values: Array) -> Array:
        return mean(values, segment, segments, weight=weight)

    classes = logits.shape[1]
    is_finite = finite(logits, segment, segments, weight=weight)
    correct = jnp.argmax(logits, axis=1) == y
    p = jax.nn.softmax(logits)
    unknown = jnp.full((segments,), jnp.nan, logits.dtype)
    sensitivities, specificities = unknown, unknown
    line = calibration.Line(unknown, unknown)
    if classes == 2:
        predictions, positive = predict_positive(logits, threshold), y == 1
        sensitivities, specificities = (
            jnp.where(
                is_finite & ~jnp.isnan(threshold),
                rate(predictions, positive, segment, segments, weight=weight),
                jnp.nan,
            )
            for rate in (sensitivity, specificity)
        )
        line = calibration.line(
            margin(logits), positive, segment, segments, weight=weight
        )
    balanced = balanced_accuracy(
        correct, y, segment, segments, classes=classes, weight=weight
    )
    return Quality(
        accuracy=jnp.where(is_finite, average(correct), jnp.nan),
        balanced_accuracy=jnp.where(is_finite, balanced, jnp.nan),
        loss=average(losses.cross_entropy(logits, y)),
        auroc=macro(auroc, logits, y, segment, segments, weight=weight),
        auprc=macro(auprc, logits, y, segment, segments, weight=weight),
        sensitivity=sensitivities,
        specificity=specificities,
        brier=calibration.brier(p, y, segment, segments, weight=weight),
        ece=calibration.ece(
            *calibration.confidence(p, y), segment, segments, weight=weight
        ),
        calibration_slope=line.slope,
        calibration_intercept=line.intercept,
    )
