"""Which round's model is handed out: chosen on the validation split alone."""

from collections.abc import Iterable, Mapping
from typing import Any

CRITERIA = {"balanced_accuracy": 1, "accuracy": 1, "auroc": 1, "loss": -1}
"""Figures of the validation split, and whether more of them is better."""
AUTO = "auto"


def resolve(asked: str, classes: int) -> tuple[str, str]:
    """The criterion that a config stands for, and why.

    Of two classes AUROC, which no threshold and no share of the ill moves; of more
    balanced accuracy, which counts every class alike.

    Args:
        asked: one of `CRITERIA`, or `AUTO`.
        classes: of the data.
    """
    if asked != AUTO:
        return asked, "asked for"
    return ("auroc" if classes == 2 else "balanced_accuracy"), f"{classes} classes"


def best(rows: Iterable[Mapping[str, Any]], criterion: str) -> int | None:
    """The round with the best "val/<criterion>".

    Of equal ones it is that with the lower validation loss, and of these the later one,
    which has seen more. A round without a finite validation loss is never the best:
    its model gives no probabilities. A round whose criterion is null (AUROC of one
    class) is best only where no round has one, and then by its loss. This is a total
    order of rounds, so that the best of all is the best of the best so far and a new
    one: a continued run selects as one that never stopped.

    Args:
        rows: of metrics.jsonl.
        criterion: one of `CRITERIA`.

    Returns:
        Its number; None when no round can be selected.
    """
    sign = CRITERIA[criterion]
    known = []
    for row in rows:
        loss, value = row.get("val/loss"), row.get(f"val/{criterion}")
        if loss is not None:
            rank = (False, 0.0) if value is None else (True, sign * value)
            known.append((*rank, -loss, row["round"]))
    return max(known)[-1] if known else None
