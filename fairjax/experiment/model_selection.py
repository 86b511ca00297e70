"""Which round's model is handed out: chosen on the validation split alone."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairjax.metrics import divergence

CRITERIA = {"balanced_accuracy": 1, "accuracy": 1, "auroc": 1, "loss": -1}
"""Figures of the validation split, and whether more of them is better."""
AUTO = "auto"

Row = Mapping[str, Any]


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


def best(rows: Iterable[Row], criterion: str) -> int | None:
    """The round with the best "val/<criterion>".

    Of equal ones it is that with the lower validation loss, and of these the later one,
    which has seen more. A round that was not evaluated, or that shows divergence, is
    never the best. A round whose criterion is null (AUROC of one class) is best only
    where no round has one, and then by its loss. This is a total order of rounds, so
    that the best of all is the best of the best so far and a new one: a continued run
    selects as one that never stopped.

    Args:
        rows: of metrics.jsonl.
        criterion: one of `CRITERIA`.

    Returns:
        Its number; None when no round can be selected.
    """
    sign = CRITERIA[criterion]

    def rank(row: Row) -> tuple[bool, float, float, int]:
        value = row.get(f"val/{criterion}")
        figure = 0.0 if value is None else sign * value
        return value is not None, figure, -row["val/loss"], row["round"]

    return max(map(rank, _able(rows)), default=(None,))[-1]


def by(rows: Iterable[Row], criterion: str) -> str | None:
    """What `best` goes by: the criterion, "loss" where no round has it, None for none.

    Args:
        rows: of metrics.jsonl.
        criterion: one of `CRITERIA`.
    """
    known = [row.get(f"val/{criterion}") is not None for row in _able(rows)]
    if not known:
        return None
    return criterion if any(known) else "loss"


def _able(rows: Iterable[Row]) -> Iterator[Row]:
    """The rounds that can be selected."""
    for row in rows:
        if row.get("val/loss") is not None and divergence.sign(row, "val") is None:
            yield row
