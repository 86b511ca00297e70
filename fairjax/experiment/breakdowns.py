"""The test split, cut into the segments that a summary breaks its figures down by.

A view assigns every test record to a segment: all records together, one patient
attribute, client by client, or tier by tier.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from fairjax.data.table import Attribute
from fairjax.experiment.config import build
from fairjax.metrics import groups

TWO_CLASS_METRICS = (
    "sensitivity",
    "specificity",
    "calibration_slope",
    "calibration_intercept",
)
"""Metrics that only two classes have."""
BOTH_CLASS_METRICS = ("auroc", "auprc", *TWO_CLASS_METRICS)
"""Metrics that need records of both classes."""


class SegmentStats(NamedTuple):
    """Counts of one segment that decide which metrics can be estimated on it."""

    n: int
    """Records."""
    positives: int | None
    """Records of the positive class; None with more than two classes."""
    present: int
    """Classes that have records."""
    small: bool
    """Whether it is a patient group below the minimum size."""


class SegmentedRecords(NamedTuple):
    """The labels of the test split and its views."""

    y: Int[np.ndarray, "E"]
    views: Int[np.ndarray, "V E"]
    """The segment of every record; -1 for none. All records are the first view, then
    come the attributes, then clients, then tiers."""
    segment_stats: list[list[SegmentStats]]
    """For every view, the counts of its segments."""

    @property
    def attribute_views(self) -> range:
        """The views of `attributes`; view 0 is all records."""
        return range(1, self.client_view)

    @property
    def client_view(self) -> int:
        """The view whose segments are clients."""
        return len(self.views) - 2

    @property
    def tier_view(self) -> int:
        """The view whose segments are tiers."""
        return len(self.views) - 1


def attributes(run: build.Run) -> tuple[Attribute, ...]:
    """The attributes of patients, and last the groups of clients where there are any.

    The client group is evaluated as an attribute of the client's patients.
    """
    client_group = Attribute("client_group", run.client_groups)
    return run.splits.groups + (client_group,) * bool(run.client_groups)


def segment_records(run: build.Run, tiers: Int[np.ndarray, "N"]) -> SegmentedRecords:
    """The views of the test split.

    Args:
        run: the run.
        tiers: of all clients, in the round of the model.
    """
    test, classes = run.splits.test, len(run.splits.classes)
    y = np.asarray(test.y)
    owner = np.repeat(np.arange(len(tiers)), np.asarray(test.count))

    def column_stats(column: np.ndarray, segments: int) -> list[SegmentStats]:
        return [_segment_stats(y[column == s], classes) for s in range(segments)]

    views, segment_stats = [np.zeros_like(owner)], [[_segment_stats(y, classes)]]
    columns = [*np.asarray(test.group).T]
    if run.client_groups:
        columns.append(np.asarray(run.group_of, np.int32)[owner])
    for attribute, column in zip(attributes(run), columns, strict=True):
        size = len(attribute.values)
        positive = jnp.asarray(y == 1) if classes == 2 else None
        large = np.asarray(
            groups.mask_small_groups(jnp.asarray(column), size, positive)
        )
        views.append(large)
        segment_stats.append(
            [
                stats._replace(small=not np.any(large == s))
                for s, stats in enumerate(column_stats(column, size))
            ]
        )
    views += [owner, tiers[owner]]
    segment_stats += [
        column_stats(owner, len(tiers)),
        column_stats(tiers[owner], len(run.budget)),
    ]
    return SegmentedRecords(y, np.stack(views).astype(np.int32), segment_stats)


def _segment_stats(
    y: Int[np.ndarray, "n"], classes: int, small: bool = False
) -> SegmentStats:
    positives = int(np.sum(y == 1)) if classes == 2 else None
    return SegmentStats(len(y), positives, len(np.unique(y)), small)


def missing_reason(name: str, stats: SegmentStats, threshold: float) -> str:
    """Why a metric of a segment cannot be estimated.

    Args:
        name: of the metric.
        stats: of the segment.
        threshold: on the positive class's probability; NaN: there is none.
    """
    if not stats.n:
        return "no records"
    if stats.small:
        return "patient group too small"
    if stats.positives is None and name in TWO_CLASS_METRICS:
        return "more than two classes"
    if name in ("sensitivity", "specificity") and np.isnan(threshold):
        return "no threshold"
    if stats.present < 2 and name in BOTH_CLASS_METRICS:
        return "one class"
    if name.startswith("calibration_"):
        return "classes do not overlap"
    return "scores are not finite"
