"""The reliability diagram: observed frequency against predicted probability."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fairjax.report import formats
from fairjax.report.canvas import BLUE, GREY, INK, VERMILION, Image, blank_figure, png
from fairjax.report.run import Run

_STYLES = ((BLUE, "o", "-"), (VERMILION, "s", (0, (4, 2))))
"""Colour, marker and line style of the last and of the selected round."""


def diagram(run: Run) -> Image | None:
    """The bins of the last and of the selected round; None if no bin is known."""
    candidates = [
        (name, [row for row in figures.get("calibration") or () if _is_estimated(row)])
        for name, figures in run.final_rounds
    ]
    curves = [(name, rows) for name, rows in candidates if rows]
    if not curves:
        return None
    title = "Do predicted probabilities come true?"
    figure, axes = blank_figure(title, 3.9)
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    max_count = max(row["n"] for _, rows in curves for row in rows)
    for (name, rows), (colour, marker, dash) in zip(curves, _STYLES, strict=False):
        x = [100 * row["predicted"] for row in rows]
        y = [100 * row["observed"] for row in rows]
        area = [12 + 70 * row["n"] / max_count for row in rows]
        axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.2, label=name)
        axes.scatter(x, y, s=area, color=colour, marker=marker, alpha=0.75, zorder=3)
    axes.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
    axes.set_xlabel("predicted probability (%)", fontsize=9, color=INK)
    axes.set_ylabel("observed frequency (%)", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", handlelength=2.6)
    name, rows = curves[0]
    n = sum(row["n"] for row in rows)
    gaps = [abs(row["predicted"] - row["observed"]) for row in rows]
    alt = (
        f"{title} Observed frequency against predicted probability in {len(rows)} "
        f"bins of {formats.count(n)} test records, {name}: "
        f"largest difference {formats.percent(float(np.max(gaps, initial=0)))}."
    )
    positive = run.final_rounds[0][1].get("positive")
    outcome = "the predicted class" if positive is None else f'the class "{positive}"'
    caption = (
        "Full model on the test records of all hospitals, in bins by the predicted "
        f"probability of {outcome}; the larger a mark, the more records. On the dotted "
        "line predicted probabilities equal observed frequencies."
    )
    return Image("calibration", caption, alt, png(figure))


def _is_estimated(row: Mapping[str, Any]) -> bool:
    """Whether a bin has records and finite frequencies."""
    return bool(row["n"]) and None not in (row["predicted"], row["observed"])
