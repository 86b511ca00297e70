"""ROC curves of membership attacks, on axes that show low false positive rates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogFormatterSciNotation

from fairjax.report import formats
from fairjax.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    RULE,
    SKY,
    VERMILION,
    Image,
    blank_figure,
    png,
)
from fairjax.report.lettering import literal
from fairjax.report.run import Row

_STYLES = tuple(
    (colour, dash)
    for dash in ("-", (0, (4, 1.5)))
    for colour in (BLUE, VERMILION, GREEN, ORANGE, PINK, SKY, INK)
)
"""Colours and line styles of the attacks, in order."""


def diagram(attacks: Sequence[Row]) -> Image | None:
    """ROC curves of the attacks on membership, both axes logarithmic.

    Args:
        attacks: rows of attack.json; those with a "roc" are drawn.

    Returns:
        The figure; None if no row has a curve.
    """
    rows = [row for row in attacks if row.get("roc")]
    if not rows:
        return None
    members, nonmembers = (max(row[kind] for row in rows) for kind in _KINDS)
    title = "Who is found when hardly anybody is accused?"
    figure, axes = blank_figure(title, 4.1)
    left, low = 0.5 / nonmembers, 0.5 / members
    ends = [min(left, low), 1]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    for row, (colour, dash) in zip(rows, _STYLES, strict=False):
        x, y = _rates(row)
        axes.step(
            np.maximum(x, left),
            np.where(y > 0, y, np.nan),
            where="post",
            color=colour,
            linestyle=dash,
            linewidth=1.4,
            label=literal(_name(row)),
        )
    axes.set(xscale="log", yscale="log", xlim=(left, 1.05), ylim=(low, 1.15))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_Percent())
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_xlabel("non-members accused", fontsize=9, color=INK)
    axes.set_ylabel("members found", fontsize=9, color=INK)
    axes.legend(
        frameon=False, fontsize=7, loc="lower right", handlelength=2.2, labelspacing=0.3
    )
    caption = (
        f"All hospitals: {formats.count(members)} training records and "
        f"{formats.count(nonmembers)} test records of the same hospitals. The dotted "
        "line is guessing. The left edge shows the share of members found while no "
        "non-member is accused; a score equal to the threshold accuses nobody. Near "
        "the left edge a step is one record; the table has intervals."
    )
    shares = ", ".join(
        f"{_name(row)} {formats.percent(row.get('tpr_at_1'))}" for row in rows
    )
    alt = (
        f"{title} Share of members found against share of non-members accused, both "
        f"axes logarithmic. At 1% accused: {shares}."
    )
    return Image("membership_roc", caption, alt, png(figure))


_KINDS = ("members", "nonmembers")


class _Percent(LogFormatterSciNotation):
    """Writes 0.001 as "0.1%"."""

    def __call__(self, x: float, pos: Any = None) -> str:
        return f"{100 * x:g}%"


def _rates(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(false, true) positive rates at the points of a row's curve."""
    false_positives, true_positives = np.asarray(row["roc"], float).T
    return false_positives / row["nonmembers"], true_positives / row["members"]


def _name(row: Row) -> str:
    return f"{row['variant']}, {row['observable']}".replace("_", " ")
