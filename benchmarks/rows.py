"""Rows of figures: one measured thing each, as they lie in benchmarks/<name>.jsonl."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
"""At least `case`, `name`, `median_s`, `min_s`, `max_s`, `cpu_s_per_round` and
`peak_rss_mb`."""


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1000 * value:.3g} ms"


def times(value: float) -> str:
    """A ratio to hundredths, or to whole numbers from 10."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def pivot(
    rows: Sequence[Row], title: str, *, against: str, memory: bool = False
) -> str:
    """Names down, cases across, as a Markdown table.

    The row of `against` has medians on the clock; all others are ratios of medians to
    it. With `memory` the largest resident memory is beside each.
    """
    found = {(row["case"], row["name"]): row for row in rows}
    cases, names = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "name")
    )
    head = "".join(f" {case} | MB |" if memory else f" {case} |" for case in cases)
    lines = [f"| {title} |{head}"]
    lines.append("|---|" + "--:|" * len(cases) * (1 + memory))
    for name in names:
        cells = []
        for case in cases:
            row, base = found.get((case, name)), found[case, against]
            if row is None:
                cells += ["", ""] if memory else [""]
                continue
            shown = seconds(row["median_s"])
            if name != against:
                shown = f"x {times(row['median_s'] / base['median_s'])}"
            cells += [shown, f"{row['peak_rss_mb']:,.0f}"] if memory else [shown]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
