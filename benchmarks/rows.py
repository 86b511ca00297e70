"""Rows of benchmarks/<name>.jsonl, one per measured point, and their formats."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
"""At least `case`, `name`, `median_s`, `min_s`, `max_s`, `cpu_s_per_round` and
`peak_rss_mb`."""


def seconds(value: float) -> str:
    """A time in seconds or, below one second, in milliseconds."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1000 * value:.3g} ms"


def times(value: float) -> str:
    """A ratio with two decimals, or as a whole number from 10 on."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def pivot(
    rows: Sequence[Row], title: str, *, against: str, memory: bool = False
) -> str:
    """A Markdown table with a row per name and a column per case.

    Args:
        rows: see `Row`.
        title: the head of the first column.
        against: the name whose row has median wall seconds; all other rows have ratios
            of medians to it.
        memory: whether a column beside each case has the peak resident memory.
    """
    row_by_key = {(row["case"], row["name"]): row for row in rows}
    cases, names = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "name")
    )
    head = "".join(f" {case} | MB |" if memory else f" {case} |" for case in cases)
    lines = [f"| {title} |{head}"]
    lines.append("|---|" + "--:|" * len(cases) * (1 + memory))
    for name in names:
        cells = []
        for case in cases:
            row, base = row_by_key.get((case, name)), row_by_key[case, against]
            if row is None:
                cells += ["", ""] if memory else [""]
                continue
            text = seconds(row["median_s"])
            if name != against:
                text = f"x {times(row['median_s'] / base['median_s'])}"
            cells += [text, f"{row['peak_rss_mb']:,.0f}"] if memory else [text]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
