"""Which round is the best: chosen on the validation split alone."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairjax.metrics import divergence

CRITERIA = {"balanced_accuracy": 1, "accuracy": 1, "auroc": 1, "loss": -1}
"""{figure of the validation split: 1 if more is better, else -1}."""
AUTO = "auto"

Row = Mapping[str, Any]
"""A row of metrics.jsonl."""


def resolve(criterion: str, classes: int) -> tuple[str, str]:
    """(the criterion that a config stands for, why).

    `AUTO` is AUROC for two classes, since it depends on no threshold and no prevalence,
    and balanced accuracy for more, since it weights every class equally.

    Args:
        criterion: one of `CRITERIA`, or `AUTO`.
        classes: number of classes.
    """
    if criterion != AUTO:
        return criterion, "asked for"
    return ("auroc" if classes == 2 else "balanced_accuracy"), f"{classes} classes"


def best(rows: Iterable[Row], criterion: str) -> int | None:
    """The round with the best "val/<criterion>".

    Among equal rounds the lower validation loss wins, and then the later round, which
    has trained longer. A round that was not evaluated, or that shows divergence, is
    never the best. A round whose criterion is null (AUROC of one class) is the best
    only if no round has the criterion, and then by its loss. This order of rounds is
    total, so the best of all rounds is the best of the best so far and the newest: a
    continued run selects the same round as one that never stopped.

    Args:
        rows: of metrics.jsonl.
        criterion: one of `CRITERIA`.

    Returns:
        The number of the round; None if no round can be selected.
    """
    sign = CRITERIA[criterion]

    def rank(row: Row) -> tuple[bool, float, float, int]:
        value = row.get(f"val/{criterion}")
        figure = 0.0 if value is None else sign * value
        return value is not None, figure, -row["val/loss"], row["round"]

    return max(map(rank, _selectable_rows(rows)), default=(None,))[-1]


def effective_criterion(rows: Iterable[Row], criterion: str) -> str | None:
    """What `best` ranks by: the criterion, or "loss" if no round has it.

    Args:
        rows: of metrics.jsonl.
        criterion: one of `CRITERIA`.

    Returns:
        None if no round can be selected.
    """
    has_criterion = [
        row.get(f"val/{criterion}") is not None for row in _selectable_rows(rows)
    ]
    if not has_criterion:
        return None
    return criterion if any(has_criterion) else "loss"


def _selectable_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """The rounds that can be selected."""
    for row in rows:
        if row.get("val/loss") is not None and divergence.symptom(row, "val") is None:
            yield row
