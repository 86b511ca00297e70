"""Amounts side by side: what tiers pay, what hospitals hold."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from fairjax.report import formats
from fairjax.report.canvas import (
    BLUE,
    GREEN,
    HEIGHT,
    INK,
    ORANGE,
    PINK,
    RULE,
    SKY,
    VERMILION,
    Image,
    blank,
    png,
    tier_colour,
)
from fairjax.report.lettering import Names, literal
from fairjax.report.run import Run

_COSTS = {
    "parameters": "parameters",
    "flops_train": "training FLOPs",
    "activation_floats": "activation floats",
    "optimizer_floats": "optimiser floats",
    "bytes_down": "bytes down",
    "bytes_up": "bytes up",
}
_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION)
LEGEND = 6
"""Rows of a legend that leave the axes their room."""


def costs(run: Run) -> Image | None:
    """A row per kind of cost, a bar per tier; None while no cost is known."""
    known = {
        name: [tier.get(key) or 0 for tier in run.tiers]
        for key, name in _COSTS.items()
        if any(tier.get(key) for tier in run.tiers)
    }
    if not known:
        return None
    title = "What does a hospital of each tier pay?"
    count = len(run.tiers)
    figure, axes = blank(title, max(HEIGHT, 1.1 + len(known) * (0.16 + 0.1 * count)))
    thick = 0.8 / count
    for t in range(count):
        shares = [100 * values[t] / max(values) for values in known.values()]
        places = np.arange(len(known)) - 0.4 + (t + 0.5) * thick
        axes.barh(
            places,
            shares,
            height=0.86 * thick,
            color=tier_colour(run, run.tiers[t]["tier"]),
            label=f"tier {run.tiers[t]['tier']}",
        )
    axes.set_yticks(range(len(known)), labels=list(known), fontsize=8.5)
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlim(0, 101)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("share of what the dearest tier pays (%)", fontsize=9, color=INK)
    _legend(axes)
    caption = (
        "One hospital: FLOPs of one record, bytes of one round. The table has the "
        "numbers."
    )
    told = ", ".join(
        f"{name} {' / '.join(formats.percent(v / max(values)) for v in values)}"
        for name, values in known.items()
    )
    alt = f"{title} Share of the dearest tier's cost, smallest tier first: {told}."
    return Image("costs", caption, alt, png(figure))


def records(run: Run) -> Image | None:
    """A bar per hospital, divided by class, or by split where classes are unknown."""
    hospitals = run.hospitals
    if not hospitals:
        return None
    what, by = "records", "split"
    if hospitals[0].get("classes"):
        what, by = "training records", "class"
    parts = _parts(hospitals)
    names = list(dict.fromkeys(name for part in parts for name in part))
    named = Names(str(row["client"]) for row in hospitals)
    classes = Names(names, by)
    title = "What does each hospital hold?"
    figure, axes = blank(title, max(HEIGHT, 1.3 + 0.19 * len(hospitals)))
    left = np.zeros(len(hospitals))
    for i, name in enumerate(names):
        amounts = np.array([part.get(name) or 0 for part in parts])
        axes.barh(
            range(len(hospitals)),
            amounts,
            left=left,
            height=0.72,
            color=_colour(i, len(names)),
            edgecolor="white",
            linewidth=0.5,
            label=literal(classes.short(name, 16)),
        )
        left += amounts
    labels = [
        literal(f"{named.short(str(row['client']), 22)}, tier {row.get('tier')}")
        for row in hospitals
    ]
    axes.set_yticks(range(len(hospitals)), labels=labels, fontsize=8)
    axes.set_ylim(len(hospitals) - 0.4, -0.6)
    axes.set_xlabel(what, fontsize=9, color=INK)
    caption = f"{what.capitalize()} of every hospital by {by}."
    if not _legend(axes):
        caption += " From left to right, dark to light, as the table has them."
    caption += named.key + classes.key
    totals = ", ".join(
        f"{row['client']} {formats.count(total)}"
        for row, total in zip(hospitals, left, strict=True)
    )
    alt = f"{title} Stacked bars of {what} by {by}: {totals}."
    return Image("records", caption, alt, png(figure))


def _parts(hospitals: list[Any]) -> list[dict[str, Any]]:
    if hospitals[0].get("classes"):
        return [dict(row["classes"]) for row in hospitals]
    splits = ("train", "val", "test")
    return [{name: row.get(name) for name in splits} for row in hospitals]


def _colour(number: int, count: int) -> Any:
    if count <= len(_COLOURS):
        return _COLOURS[number]
    return matplotlib.colormaps["cividis"](number / (count - 1))


def _legend(axes: Axes) -> bool:
    """Above the axes, row by row, as many entries in each as fit; False if too many."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), max(1, 54 // (max(map(len, labels)) + 4)))
    if len(labels) > LEGEND * columns:
        return False
    # matplotlib fills columns first.
    order = [i for c in range(columns) for i in range(c, len(labels), columns)]
    axes.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncol=columns,
        fontsize=8,
        frameon=False,
        handlelength=1,
        columnspacing=1.2,
        borderpad=0.2,
    )
    return True
