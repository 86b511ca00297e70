"""Lines over rounds, each named at its end."""

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
    apart,
    blank,
    leader,
    png,
    span,
    tier_colour,
)
from fairjax.report.lettering import Names, literal
from fairjax.report.run import Run

_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
"""Of the hospitals of one tier, which share its colour."""


class Curve(NamedTuple):
    """A line and its name."""

    label: str
    colour: Any
    x: np.ndarray
    y: np.ndarray
    dash: Any = "-"


def curve(run: Run, key: str, label: str, colour: Any) -> Curve:
    """A metric over rounds."""
    return Curve(label, colour, *run.series(key))


def by_tier(run: Run, key: str) -> list[Curve]:
    """A metric of every tier; `key` holds {} for its number."""
    numbers = [tier["tier"] for tier in run.tiers]
    return [
        curve(run, key.format(t), f"tier {t}", tier_colour(run, t)) for t in numbers
    ]


def names(run: Run) -> Names:
    """How hospitals are called in the figures of a run."""
    return Names(str(row["client"]) for row in run.clients)


def only_large(run: Run) -> str:
    """Which hospitals a figure leaves out; "" if none."""
    if not any(map(run.small, run.clients)):
        return ""
    return f" Hospitals with fewer than {run.least} test records are left out."


def by_hospital(run: Run, key: str) -> list[Curve]:
    """A key of clients.jsonl of every hospital, in its tier's colour."""
    curves, seen = [], dict.fromkeys((row["tier"] for row in run.clients), 0)
    named = names(run)
    for row in run.clients:
        dash = _DASHES[seen[row["tier"]] % len(_DASHES)]
        seen[row["tier"]] += 1
        label = named.short(str(row["client"]), 14)
        values = run.series_of(row["client"], key)
        curves.append(Curve(label, tier_colour(run, row["tier"]), *values, dash))
    return curves


def spread(run: Run) -> Image | None:
    """The quartiles and extremes of accuracy over hospitals."""
    known: dict[int, list[float]] = {}
    for row in run.history:
        if row.get("accuracy") is not None and not run.small(row):
            known.setdefault(row["round"], []).append(row["accuracy"])
    if not known:
        return None
    rounds = np.array(list(known))
    names = ("best", "upper quartile", "median", "lower quartile", "worst")
    colours = (GREY, BLUE, INK, BLUE, VERMILION)
    levels = np.array([np.quantile(a, [1, 0.75, 0.5, 0.25, 0]) for a in known.values()])
    return lines(
        "each_hospital",
        "How far apart are the hospitals as training goes on?",
        "Full model on each hospital's own test records. Dark: the middle half of the "
        f"hospitals; light: all of them.{only_large(run)}",
        ACCURACY,
        [
            Curve(name, colour, rounds, level)
            for name, colour, level in zip(names, colours, levels.T, strict=True)
        ],
        between=((0, 4), (1, 3)),
        record=run.one_record.hospital,
    )


def lines(
    name: str,
    title: str,
    caption: str,
    unit: Unit,
    curves: list[Curve],
    limits: tuple[float, float] | None = None,
    between: Sequence[tuple[int, int]] = (),
    record: float = 0.0,
) -> Image | None:
    """Curves over rounds; None when nothing is known.

    Args:
        name: of the file.
        title: a question, short enough for one line.
        caption: what is drawn, in words.
        unit: what the curves measure.
        curves: those without a value are left out.
        limits: (lowest, highest) value to show; None: those of the curves.
        between: pairs of curves, on the same rounds, with the area between them shaded.
        record: what one test record moves them by, see `canvas.span`.
    """
    shaded = [(curves[i], curves[j]) for i, j in between]
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return None
    figure, axes = blank(title, HEIGHT)
    values = np.concatenate([curve.y for curve in curves])
    low, high = limits or (values.min(), values.max())
    low, high = span(low, high, unit, record)
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
    for first, second in shaded:
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
    heights = apart([(end - low) / (high - low) for end in ends], 0.085)
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
