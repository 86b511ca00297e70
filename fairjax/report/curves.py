"""Line charts over rounds, with a name at the end of each line."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from fairjax.report.canvas import (
    ACCURACY,
    BLUE,
    GREY,
    HEIGHT,
    INK,
    RULE,
    VERMILION,
    Image,
    Unit,
    axis_limits,
    blank_figure,
    label_heights,
    leader,
    png,
    tier_colour,
)
from fairjax.report.lettering import Names, literal
from fairjax.report.run import Run

_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
"""Line styles that distinguish the hospitals of one tier, which share its colour."""


class Curve(NamedTuple):
    """A line with its name and style."""

    label: str
    colour: Any
    x: np.ndarray
    y: np.ndarray
    dash: Any = "-"


def curve(run: Run, key: str, label: str, colour: Any) -> Curve:
    """The curve of a metric over rounds."""
    return Curve(label, colour, *run.series(key))


def by_tier(run: Run, key: str) -> list[Curve]:
    """The curve of every tier; "{}" in `key` stands for the tier's number."""
    numbers = [tier["tier"] for tier in run.tiers]
    return [
        curve(run, key.format(t), f"tier {t}", tier_colour(run, t)) for t in numbers
    ]


def names(run: Run) -> Names:
    """The names of hospitals in the figures of a run."""
    return Names(str(row["client"]) for row in run.clients)


def exclusion_note(run: Run) -> str:
    """A sentence on the hospitals that a figure leaves out; "" if there are none."""
    if not any(map(run.is_small, run.clients)):
        return ""
    return (
        f" Hospitals with fewer than {run.min_test_records} test records are left out."
    )


def by_client(run: Run, key: str) -> list[Curve]:
    """The curve of every hospital in its tier's colour; `key` is of clients.jsonl."""
    curves, tier_counts = [], dict.fromkeys((row["tier"] for row in run.clients), 0)
    client_names = names(run)
    for row in run.clients:
        dash = _DASHES[tier_counts[row["tier"]] % len(_DASHES)]
        tier_counts[row["tier"]] += 1
        label = client_names.short(str(row["client"]), 14)
        values = run.series_of(row["client"], key)
        curves.append(Curve(label, tier_colour(run, row["tier"]), *values, dash))
    return curves


def quartiles(run: Run) -> Image | None:
    """Quartiles and extremes of accuracy over hospitals; None if no round has any."""
    by_round: dict[int, list[float]] = {}
    for row in run.history:
        if row.get("accuracy") is not None and not run.is_small(row):
            by_round.setdefault(row["round"], []).append(row["accuracy"])
    if not by_round:
        return None
    rounds = np.array(list(by_round))
    names = ("best", "upper quartile", "median", "lower quartile", "worst")
    colours = (GREY, BLUE, INK, BLUE, VERMILION)
    levels = np.array(
        [np.quantile(a, [1, 0.75, 0.5, 0.25, 0]) for a in by_round.values()]
    )
    return lines(
        "each_hospital",
        "How far apart are the hospitals as training goes on?",
        "Full model on each hospital's own test records. Dark: the middle half of the "
        f"hospitals; light: all of them.{exclusion_note(run)}",
        ACCURACY,
        [
            Curve(name, colour, rounds, level)
            for name, colour, level in zip(names, colours, levels.T, strict=True)
        ],
        bands=((0, 4), (1, 3)),
        resolution=run.resolution.client,
    )


def lines(
    name: str,
    title: str,
    caption: str,
    unit: Unit,
    curves: list[Curve],
    limits: tuple[float, float] | None = None,
    bands: Sequence[tuple[int, int]] = (),
    resolution: float = 0.0,
) -> Image | None:
    """Draws curves over rounds; None if no curve has a value.

    Args:
        name: the name of the image file, without its suffix.
        title: a question, short enough for one line.
        caption: what the figure shows, in words.
        unit: the unit of the values.
        curves: the curves; those without a value are left out.
        limits: (lowest, highest) value to show; None takes those of the curves.
        bands: pairs of indices of curves on the same rounds; the area between the two
            curves is shaded.
        resolution: the change of a value by one test record, see `canvas.axis_limits`.
    """
    band_edges = [(curves[i], curves[j]) for i, j in bands]
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return None
    figure, axes = blank_figure(title, HEIGHT)
    values = np.concatenate([curve.y for curve in curves])
    low, high = limits or (values.min(), values.max())
    low, high = axis_limits(low, high, unit, resolution)
    axes.set_ylim(low, high)
    if high >= 1e5:  # digits in full would leave the axes no room
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.set_ylabel(unit.label, fontsize=9, color=INK)
    axes.set_xlabel("round", fontsize=9, color=INK)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    rounds = np.unique(np.concatenate([curve.x for curve in curves]))
    if len(rounds) == 1:
        axes.set_xticks(rounds)
    else:
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10])
        )
    for first, second in band_edges:
        axes.fill_between(
            first.x,
            unit.scale * first.y,
            unit.scale * second.y,
            color=BLUE,
            alpha=0.12,
            linewidth=0,
        )
    for curve in curves:
        axes.plot(
            curve.x,
            unit.scale * curve.y,
            color=curve.colour,
            linestyle=curve.dash,
            linewidth=1.7,
            marker="o" if len(curve.x) <= 12 else None,
            markersize=4,
        )
    ends = [unit.scale * curve.y[-1] for curve in curves]
    heights = label_heights([(end - low) / (high - low) for end in ends], 0.085)
    for curve, end, height in zip(curves, ends, heights, strict=True):
        axes.annotate(
            literal(f"{curve.label} {unit.show(curve.y[-1])}"),
            (curve.x[-1], end),
            (1.06, height),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=8.5,
            color=INK,
            arrowprops=leader(curve.colour),
        )
    ends_text = ", ".join(f"{c.label} {unit.show(c.y[-1])}" for c in curves)
    alt = f"{title} Line chart of {unit.label} over rounds; at the end: {ends_text}."
    return Image(name, caption, alt, png(figure))
