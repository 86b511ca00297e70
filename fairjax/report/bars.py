"""Bar charts: the costs of tiers and the records of hospitals."""

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
    blank_figure,
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
MAX_LEGEND_ROWS = 6
"""The most rows of a legend; more would leave the axes too little room."""


def costs(run: Run) -> Image | None:
    """A group of bars per kind of cost, a bar per tier; None while no cost is known."""
    costs_by_name = {
        name: [tier.get(key) or 0 for tier in run.tiers]
        for key, name in _COSTS.items()
        if any(tier.get(key) for tier in run.tiers)
    }
    if not costs_by_name:
        return None
    title = "What does a hospital of each tier pay?"
    count = len(run.tiers)
    figure, axes = blank_figure(
        title, max(HEIGHT, 1.1 + len(costs_by_name) * (0.16 + 0.1 * count))
    )
    bar_height = 0.8 / count
    for t in range(count):
        shares = [100 * values[t] / max(values) for values in costs_by_name.values()]
        positions = np.arange(len(costs_by_name)) - 0.4 + (t + 0.5) * bar_height
        axes.barh(
            positions,
            shares,
            height=0.86 * bar_height,
            color=tier_colour(run, run.tiers[t]["tier"]),
            label=f"tier {run.tiers[t]['tier']}",
        )
    axes.set_yticks(range(len(costs_by_name)), labels=list(costs_by_name), fontsize=8.5)
    axes.set_ylim(len(costs_by_name) - 0.5, -0.5)
    axes.set_xlim(0, 101)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("share of what the dearest tier pays (%)", fontsize=9, color=INK)
    _legend(axes)
    caption = (
        "One hospital: FLOPs of one record, bytes of one round. The table has the "
        "numbers."
    )
    shares_text = ", ".join(
        f"{name} {' / '.join(formats.percent(v / max(values)) for v in values)}"
        for name, values in costs_by_name.items()
    )
    alt = (
        f"{title} Share of the dearest tier's cost, smallest tier first: {shares_text}."
    )
    return Image("costs", caption, alt, png(figure))


def records(run: Run) -> Image | None:
    """A bar per hospital, stacked by class, or by split where classes are unknown."""
    clients = run.client_counts
    if not clients:
        return None
    noun, category = "records", "split"
    if clients[0].get("classes"):
        noun, category = "training records", "class"
    counts_by_client = _category_counts(clients)
    names = list(dict.fromkeys(name for counts in counts_by_client for name in counts))
    client_names = Names(str(row["client"]) for row in clients)
    classes = Names(names, category)
    title = "What does each hospital hold?"
    figure, axes = blank_figure(title, max(HEIGHT, 1.3 + 0.19 * len(clients)))
    left = np.zeros(len(clients))
    for i, name in enumerate(names):
        amounts = np.array([counts.get(name) or 0 for counts in counts_by_client])
        axes.barh(
            range(len(clients)),
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
        literal(f"{client_names.short(str(row['client']), 22)}, tier {row.get('tier')}")
        for row in clients
    ]
    axes.set_yticks(range(len(clients)), labels=labels, fontsize=8)
    axes.set_ylim(len(clients) - 0.4, -0.6)
    axes.set_xlabel(noun, fontsize=9, color=INK)
    caption = f"{noun.capitalize()} of every hospital by {category}."
    if not _legend(axes):
        caption += " From left to right, dark to light, in the order of the table."
    caption += client_names.key + classes.key
    totals = ", ".join(
        f"{row['client']} {formats.count(total)}"
        for row, total in zip(clients, left, strict=True)
    )
    alt = f"{title} Stacked bars of {noun} by {category}: {totals}."
    return Image("records", caption, alt, png(figure))


def _category_counts(clients: list[Any]) -> list[dict[str, Any]]:
    """Records of every hospital by class, or by split where classes are unknown."""
    if clients[0].get("classes"):
        return [dict(row["classes"]) for row in clients]
    splits = ("train", "val", "test")
    return [{name: row.get(name) for name in splits} for row in clients]


def _colour(number: int, count: int) -> Any:
    if count <= len(_COLOURS):
        return _COLOURS[number]
    return matplotlib.colormaps["cividis"](number / (count - 1))


def _legend(axes: Axes) -> bool:
    """Draws the legend above the axes, row by row; False if it has too many entries."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), max(1, 54 // (max(map(len, labels)) + 4)))
    if len(labels) > MAX_LEGEND_ROWS * columns:
        return False
    # Matplotlib fills a legend column by column.
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
