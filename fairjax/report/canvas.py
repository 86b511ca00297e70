"""What all figures share: colours, units, an empty canvas and conversion to PNG.

Tiers lie on one sequential scale, light for the smallest and dark for the largest. All
other colours are those of Okabe and Ito, which colour-blind readers can tell apart, or
the colour map cividis where more colours are needed.
"""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fairjax.report import formats
from fairjax.report.run import Run

INK, GREY, RULE = "#1a1a1a", "#595959", "#d9d9d9"
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
ORANGE, SKY, PINK = "#E69F00", "#56B4E9", "#CC79A7"
WIDTH, HEIGHT = 4.8, 2.9
"""Inches. At this size the text stays readable on a telephone."""
DPI = 150


class Image(NamedTuple):
    """A drawn figure: name of its file, caption, alternative text and bytes."""

    name: str
    caption: str
    alt: str
    png: bytes


class Unit(NamedTuple):
    """The unit of an axis: its label, the scale of values, and how to write one."""

    label: str
    scale: float
    show: Callable[[formats.Number], str]
    maximum: float = 1.0
    """The largest possible value; the smallest is 0."""
    min_span: float = 0.1
    """The least span of an axis; smaller differences are not worth a figure."""


ACCURACY = Unit("accuracy (%)", 100, formats.percent)
AUROC = Unit("area under the ROC curve", 1, formats.decimal)


def tier_colour(run: Run, tier: int) -> tuple[float, float, float, float]:
    """Light for tier 0, dark for the largest tier of the run."""
    top = max(len(run.tiers) - 1, 1)
    return matplotlib.colormaps["plasma"](0.72 * (1 - min(tier, top) / top))


MIN_STEPS = 10
"""An axis spans at least so many times what one test record can move a value by."""


def axis_limits(
    low: float, high: float, unit: Unit, resolution: float = 0.0
) -> tuple[float, float]:
    """The limits of an axis for values in [low, high], in the units of its labels.

    The limits include a margin but exclude impossible values. So that noise does not
    look like a trend, the axis spans at least `unit.min_span` and `MIN_STEPS` times
    `resolution`, or else all possible values.

    Args:
        low: the lowest value.
        high: the highest value.
        unit: the unit of both values.
        resolution: the change of a value by one test record.
    """
    width = min(max(high - low, unit.min_span, MIN_STEPS * resolution), unit.maximum)
    middle, margin = (low + high) / 2, 0.06 * width
    bottom, top = middle - width / 2 - margin, middle + width / 2 + margin
    # Limits beyond the possible values are moved, not cut, to keep the span.
    if top > unit.maximum + margin / 2:
        bottom, top = (
            bottom - (top - unit.maximum - margin / 2),
            unit.maximum + margin / 2,
        )
    if bottom < -margin / 2:
        bottom, top = (
            -margin / 2,
            min(top - bottom - margin / 2, unit.maximum + margin / 2),
        )
    return unit.scale * bottom, unit.scale * top


def label_heights(heights: list[float], gap: float) -> list[float]:
    """Moves heights in [0, 1] to be at least `gap` apart, in the same order.

    The moved heights minimise the squared distance to the originals before they are
    clipped to [0, 1]. `gap` is reduced where it leaves too little room for all heights.
    """
    gap = min(gap, 1 / len(heights))
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    # Isotonic regression by pooling adjacent violators.
    pools: list[list[float]] = []
    for target in np.asarray(heights)[order] - steps:
        pools.append([target])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    positions = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    positions = np.clip(positions, 0, 1 - steps[-1]) + steps
    result = np.empty_like(positions)
    result[order] = positions
    return result.tolist()


def leader(colour: Any) -> dict[str, Any]:
    """The style of a dotted line from a point to the left end of its name."""
    # A line to the middle of the name would cross other names.
    return {
        "arrowstyle": "-",
        "color": colour,
        "linestyle": ":",
        "relpos": (0, 0.5),
        "shrinkA": 1,
    }


def blank_figure(title: str, height: float) -> tuple[Figure, Axes]:
    """A figure with one empty pair of axes; `title` must fit one line of `WIDTH`."""
    # Unlike pyplot, a Figure object needs no display and no global state.
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        title,
        x=0.012,
        horizontalalignment="left",
        fontsize=10.5,
        fontweight="bold",
        color=INK,
    )
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8.5, colors=GREY, labelcolor=INK, length=3)
    axes.ticklabel_format(useOffset=False, style="plain")
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    # The version of matplotlib is omitted so that equal runs give equal bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
