"""Which round's model is handed out: chosen on the validation split alone."""

from collections.abc import Iterable, Mapping
from typing import Any

CRITERIA = {"balanced_accuracy": 1, "accuracy": 1, "auroc": 1, "loss": -1}
"""Figures of the validation split, and whether more of them is better."""


def best(rows: Iterable[Mapping[str, Any]], criterion: str) -> int | None:
    """The round with the best "val/<criterion>"; of equal ones the first.

    It follows from the rows alone, so that a continued run selects as one that never
    stopped. A figure that is null, or a round without one, is never the best; None
    when no round has one.

    Args:
        rows: of metrics.jsonl, in order.
        criterion: one of `CRITERIA`.
    """
    sign = CRITERIA[criterion]
    known = [
        (sign * row[f"val/{criterion}"], -row["round"])
        for row in rows
        if row.get(f"val/{criterion}") is not None
    ]
    return -max(known)[1] if known else None
