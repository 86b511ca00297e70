"""What all figures share: colours, units, an empty canvas, the way to PNG.

Tiers lie on one sequential scale, light for the smallest and dark for the largest; all
other colours are Okabe and Ito's, which colour-blind readers tell apart, or where there
are not enough of them cividis, which looks alike to most.
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
"""Inches: small enough that the text stays readable on a telephone."""
DPI = 150


class Image(NamedTuple):
    """A drawn figure."""

    name: str
    caption: str
    alt: str
    png: bytes


class Unit(NamedTuple):
    """What an axis measures."""

    label: str
    scale: float
    show: Callable[[formats.Number], str]
    most: float = 1.0
    """The largest possible value; the smallest is 0."""
    least: float = 0.1
    """What an axis spans at least: less is no difference worth a figure."""


ACCURACY = Unit("accuracy (%)", 100, formats.percent)
AUROC = Unit("area under the ROC curve", 1, formats.decimal)


def tier_colour(run: Run, tier: int) -> tuple[float, float, float, float]:
    """Light for tier 0, dark for the largest tier of the run."""
    top = max(len(run.tiers) - 1, 1)
    return matplotlib.colormaps["plasma"](0.72 * (1 - min(tier, top) / top))


RECORDS = 10
"""Of the height of an axis one test record is a tenth at most."""


def span(
    low: float, high: float, unit: Unit, record: float = 0.0
) -> tuple[float, float]:
    """What an axis shows of values in [low, high]: some air, but nothing impossible.

    Noise must not look like news: it spans `unit.least` at least, and `RECORDS` times
    what one record moves, or all that is possible.

    Args:
        low: the lowest value.
        high: the highest.
        unit: of both.
        record: what one test record moves a value by.
    """
    width = min(max(high - low, unit.least, RECORDS * record), unit.most)
    middle, air = (low + high) / 2, 0.06 * width
    bottom, top = middle - width / 2 - air, middle + width / 2 + air
    # Moved, not cut: the span is as wide at the ends of what is possible.
    if top > unit.most + air / 2:
        bottom, top = bottom - (top - unit.most - air / 2), unit.most + air / 2
    if bottom < -air / 2:
        bottom, top = -air / 2, min(top - bottom - air / 2, unit.most + air / 2)
    return unit.scale * bottom, unit.scale * top


def apart(heights: list[float], gap: float) -> list[float]:
    """Heights in [0, 1], order kept, moved as little as sets them `gap` apart."""
    gap = min(gap, 1 / len(heights))
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    # Least squares under an order constraint: pool neighbours that would cross.
    pools: list[list[float]] = []
    for target in np.asarray(heights)[order] - steps:
        pools.append([target])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    moved = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    moved = np.clip(moved, 0, 1 - steps[-1]) + steps
    result = np.empty_like(moved)
    result[order] = moved
    return result.tolist()


def leader(colour: Any) -> dict[str, Any]:
    """The dotted line from a point to the left end of its name."""
    # It starts beside the name: one to the middle would cross other names.
    return {
        "arrowstyle": "-",
        "color": colour,
        "linestyle": ":",
        "relpos": (0, 0.5),
        "shrinkA": 1,
    }


def blank(title: str, height: float) -> tuple[Figure, Axes]:
    """A figure with one empty pair of axes; `title` must fit one line of `WIDTH`."""
    # Figure objects, not pyplot: nothing is kept between calls, no display is needed.
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
    # Without the version, equal runs give equal bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
