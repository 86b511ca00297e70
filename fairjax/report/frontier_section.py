"""The figures of the section "Fairness and accuracy" of a page about many runs."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fairjax.report.canvas import (
    ACCURACY,
    AUROC,
    BLUE,
    GREY,
    HEIGHT,
    INK,
    RULE,
    Image,
    Unit,
    axis_limits,
    blank_figure,
    label_heights,
    leader,
    png,
)
from fairjax.report.comparison import Comparison, Group, summarise
from fairjax.report.lettering import Names, literal
from fairjax.report.run import Run

MAX_LABELS = 12
"""The most points that are named: the frontier first, then by the worst hospital."""


def frontiers(comparison: Comparison, interval: str) -> list[Image]:
    """The worst hospital against the mean over hospitals, in accuracy and in AUROC.

    Args:
        comparison: see `comparison.read_runs`.
        interval: one of `comparison.INTERVALS`.
    """
    images = (
        _frontier(comparison, interval, "accuracy", "accuracy", ACCURACY),
        _frontier(comparison, interval, "auroc", "AUROC", AUROC),
    )
    return [image for image in images if image is not None]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point dominates.

    A point dominates another if it is at least as large in both coordinates and larger
    in one.
    """
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]


class _Point(NamedTuple):
    name: str
    x: "_Bar"
    y: "_Bar"


class _Bar(NamedTuple):
    """A mean and its interval, which is the mean itself where none is known."""

    mean: float
    low: float
    high: float


def _frontier(
    comparison: Comparison, interval: str, key: str, word: str, unit: Unit
) -> Image | None:
    points = _points(comparison, interval, key)
    if not points:
        return None
    names = Names((point.name for point in points), "setting")
    title = f"How do mean and worst {word} trade off?"
    figure, axes = blank_figure(title, HEIGHT + 0.6)
    runs = [run for group in comparison.groups for run in group.runs]
    worst_resolution = max(run.resolution.client for run in runs)
    mean_resolution = max(
        run.resolution.client / max(len(run.clients), 1) for run in runs
    )
    left, right = _bar_limits([point.x for point in points], unit, mean_resolution)
    low, high = _bar_limits([point.y for point in points], unit, worst_resolution)
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.set_xlabel(f"mean over hospitals: {unit.label}", fontsize=9, color=INK)
    axes.set_ylabel(f"worst hospital: {unit.label}", fontsize=9, color=INK)
    axes.grid(color=RULE, linewidth=0.6)
    means = [(point.x.mean, point.y.mean) for point in points]
    front = sorted(pareto_front(means), key=lambda i: means[i])
    coordinates = unit.scale * np.array(means)
    axes.plot(*coordinates[front].T, color=BLUE, linewidth=1)
    for i, (_, x, y) in enumerate(points):
        colour, face = (BLUE, BLUE) if i in front else (GREY, "white")
        bar_style = {"color": colour, "linewidth": 1, "alpha": 0.6}
        axes.plot(unit.scale * np.array(x[1:]), [coordinates[i, 1]] * 2, **bar_style)
        axes.plot([coordinates[i, 0]] * 2, unit.scale * np.array(y[1:]), **bar_style)
        axes.plot(
            *coordinates[i], "o", color=colour, markerfacecolor=face, markersize=6
        )
    dominated = sorted(set(range(len(points))) - {*front}, key=lambda i: means[i][::-1])
    label_index = [*front, *dominated[::-1]][:MAX_LABELS]
    heights = label_heights(
        [(coordinates[i, 1] - low) / (high - low) for i in label_index], 0.075
    )
    for i, height in zip(label_index, heights, strict=True):
        axes.annotate(
            literal(names.short(points[i].name, 24)),
            coordinates[i],
            (1.05, height),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=8.5,
            color=INK,
            arrowprops=leader(GREY),
        )
    caption = (
        "The full model on each hospital's own test records after the last round; the "
        "worst hospital is of those with at least min_test_records. Every point is a "
        "setting, and bars are the intervals over seeds. For the filled points on the "
        "line, no other setting is at least as good in both and better in one."
        f"{names.key}"
    )
    points_text = "; ".join(
        f"{name}: mean {unit.show(x.mean)}, worst {unit.show(y.mean)}"
        for name, x, y in points
    )
    alt = f"{title} Worst hospital against mean over hospitals. {points_text}."
    return Image(f"frontier_{key}", caption, alt, png(figure))


def _points(comparison: Comparison, interval: str, key: str) -> list[_Point]:
    """A point for every group in which some hospital has the figure."""

    def client_values(run: Run, large: bool) -> list[float]:
        rows = [row for row in run.clients if not (large and run.is_small(row))]
        return [row[key] for row in rows if row.get(key) is not None]

    def bar(
        group: Group, reduce: Callable[[list[float]], float], large: bool = False
    ) -> _Bar:
        values_by_run = [client_values(run, large) for run in group.runs]
        summary = summarise(
            [reduce(values) for values in values_by_run if values], interval
        )
        mean, low, high, _ = summary
        assert mean is not None
        return _Bar(mean, mean if low is None else low, mean if high is None else high)

    groups = [
        group
        for group in comparison.groups
        if any(client_values(run, large=True) for run in group.runs)
    ]
    return [
        _Point(group.name, bar(group, statistics.fmean), bar(group, min, large=True))
        for group in groups
    ]


def _bar_limits(
    bars: Sequence[_Bar], unit: Unit, resolution: float
) -> tuple[float, float]:
    """The limits of an axis that shows all means and intervals."""
    low, high = min(bar.low for bar in bars), max(bar.high for bar in bars)
    return axis_limits(low, high, unit, resolution)
