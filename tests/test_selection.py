"""Which round is selected, from rows alone."""

import pytest

from fairjax import selection

ROWS = [
    {"round": 1, "eval/accuracy": 1.0},
    {"round": 2, "val/accuracy": 0.7, "val/loss": 0.9, "val/auroc": None},
    {"round": 3},
    {"round": 4, "val/accuracy": 0.9, "val/loss": 0.5, "val/auroc": None},
    {"round": 6, "val/accuracy": 0.9, "val/loss": 0.4, "val/auroc": 0.1},
    {"round": 8, "val/accuracy": 0.8, "val/loss": None, "val/auroc": None},
]


@pytest.mark.parametrize(
    ("criterion", "best"),
    [
        ("accuracy", 4),  # the first of two equal ones
        ("loss", 6),  # the lowest; null is not
        ("auroc", 6),  # the only one that is known
        ("balanced_accuracy", None),
    ],
)
def test_the_best_round(criterion, best):
    assert selection.best(ROWS, criterion) == best


def test_rounds_to_come_take_nothing_back():
    """What was the best so far stays so, unless a later round is better."""
    chosen = [selection.best(ROWS[:n], "accuracy") for n in range(len(ROWS) + 1)]
    assert chosen == [None, None, 2, 2, 4, 4, 4]
