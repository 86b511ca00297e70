"""Fairness against accuracy: who is better for all, who for the worst-served."""

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
    apart,
    blank,
    leader,
    png,
    span,
)
from fairjax.report.comparison import Comparison, Group, summarise
from fairjax.report.lettering import Names, literal
from fairjax.report.run import Run

LABELS = 12
"""Points that have room for a name: first the frontier, then by the worst hospital."""


def frontiers(comparison: Comparison, interval: str) -> list[Image]:
    """Mean over hospitals against the worst hospital, in accuracy and in AUROC."""
    drawn = (
        _frontier(comparison, interval, "accuracy", "accuracy", ACCURACY),
        _frontier(comparison, interval, "auroc", "AUROC", AUROC),
    )
    return [image for image in drawn if image is not None]


def best(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one matches in both and beats in one."""
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
    """The interval is the mean itself where there is none."""

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
    figure, axes = blank(title, HEIGHT + 0.6)
    runs = [run for group in comparison.groups for run in group.runs]
    at_one = max(run.one_record.hospital for run in runs)
    at_all = max(run.one_record.hospital / max(len(run.clients), 1) for run in runs)
    left, right = _reach([point.x for point in points], unit, at_all)
    low, high = _reach([point.y for point in points], unit, at_one)
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.set_xlabel(f"mean over hospitals: {unit.label}", fontsize=9, color=INK)
    axes.set_ylabel(f"worst hospital: {unit.label}", fontsize=9, color=INK)
    axes.grid(color=RULE, linewidth=0.6)
    means = [(point.x.mean, point.y.mean) for point in points]
    front = sorted(best(means), key=lambda i: means[i])
    at = unit.scale * np.array(means)
    axes.plot(*at[front].T, color=BLUE, linewidth=1)
    for i, (_, x, y) in enumerate(points):
        colour, face = (BLUE, BLUE) if i in front else (GREY, "white")
        thin = {"color": colour, "linewidth": 1, "alpha": 0.6}
        axes.plot(unit.scale * np.array(x[1:]), [at[i, 1]] * 2, **thin)
        axes.plot([at[i, 0]] * 2, unit.scale * np.array(y[1:]), **thin)
        axes.plot(*at[i], "o", color=colour, markerfacecolor=face, markersize=6)
    rest = sorted(set(range(len(points))) - {*front}, key=lambda i: means[i][::-1])
    named = [*front, *rest[::-1]][:LABELS]
    heights = apart([(at[i, 1] - low) / (high - low) for i in named], 0.075)
    for i, height in zip(named, heights, strict=True):
        axes.annotate(
            literal(names.short(points[i].name, 24)),
            at[i],
            (1.05, height),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=8.5,
            color=INK,
            arrowprops=leader(GREY),
        )
    caption = (
        "The full model on each hospital's own test records after the last round, the "
        "worst of those with at least min_test_records; every point a setting, bars "
        "the intervals over seeds. Filled and joined: no other setting is at least as "
        f"good in both and better in one.{names.key}"
    )
    told = "; ".join(
        f"{name}: mean {unit.show(x.mean)}, worst {unit.show(y.mean)}"
        for name, x, y in points
    )
    alt = f"{title} Worst hospital against mean over hospitals. {told}."
    return Image(f"frontier_{key}", caption, alt, png(figure))


def _points(comparison: Comparison, interval: str, key: str) -> list[_Point]:
    """One of every group whose hospitals have the figure."""

    def known_of(run: Run, large: bool) -> list[float]:
        rows = [row for row in run.clients if not (large and run.small(row))]
        return [row[key] for row in rows if row.get(key) is not None]

    def bar(
        group: Group, reduce: Callable[[list[float]], float], large: bool = False
    ) -> _Bar:
        each = [known_of(run, large) for run in group.runs]
        summary = summarise([reduce(known) for known in each if known], interval)
        mean, low, high, _ = summary
        assert mean is not None
        return _Bar(mean, mean if low is None else low, mean if high is None else high)

    known = [
        group
        for group in comparison.groups
        if any(known_of(run, large=True) for run in group.runs)
    ]
    return [
        _Point(group.name, bar(group, statistics.fmean), bar(group, min, large=True))
        for group in known
    ]


def _reach(bars: Sequence[_Bar], unit: Unit, record: float) -> tuple[float, float]:
    """What an axis must show of means and intervals."""
    low, high = min(bar.low for bar in bars), max(bar.high for bar in bars)
    return span(low, high, unit, record)
