"""Which round is selected, from rows alone."""

import itertools

import numpy as np
import pytest

from fairjax.experiment import model_selection
from studies import experiment
from studies.byzantine import run as byzantine
from studies.contests.settings import CONTESTS
from studies.endurance import run as endurance
from studies.fairness_rules import run as frontier
from studies.inversion import parts as inversion_parts
from studies.privacy_curve import run as curve
from studies.trend import run as trend

ROWS = [
    {"round": 1, "eval/accuracy": 1.0},
    {"round": 2, "val/accuracy": 0.7, "val/loss": 0.9, "val/auroc": None},
    {"round": 3},
    {"round": 4, "val/accuracy": 0.9, "val/loss": 0.5, "val/auroc": None},
    {"round": 6, "val/accuracy": 0.9, "val/loss": 0.4, "val/auroc": 0.1},
    {"round": 7, "val/accuracy": 0.9, "val/loss": 0.4, "val/auroc": None},
    {"round": 8, "val/accuracy": 1.0, "val/loss": None, "val/auroc": 1.0},
]


@pytest.mark.parametrize(
    ("criterion", "best"),
    [
        ("accuracy", 7),  # three are equal, two have the lower loss: the later one
        ("loss", 7),  # the lowest; null does not count
        ("auroc", 6),  # the only known one
        ("balanced_accuracy", 7),  # known in no round: ranked by loss
    ],
)
def test_the_best_round(criterion, best):
    assert model_selection.best(ROWS, criterion) == best
    by = "loss" if criterion == "balanced_accuracy" else criterion
    assert model_selection.effective_criterion(ROWS, criterion) == by


def test_without_validation_no_round_is_the_best():
    assert model_selection.best(ROWS[:1], "accuracy") is None


@pytest.mark.parametrize("criterion", model_selection.CRITERIA)
def test_a_run_that_keeps_the_best_so_far_ends_with_the_best_of_all(criterion):
    """Ties and nulls of every kind, in random order."""
    figures = [None, 0.25, 0.5]
    kinds = list(itertools.product(figures, figures))
    rng = np.random.default_rng(0)
    for _ in range(50):
        order = rng.integers(len(kinds), size=8)
        rows = [
            {"round": n, "val/loss": kinds[i][0], f"val/{criterion}": kinds[i][1]}
            for n, i in enumerate(order)
        ]
        leading = []
        for row in rows:
            if model_selection.best([*leading, row], criterion) == row["round"]:
                leading = [row]
        number = leading[0]["round"] if leading else None
        assert number == model_selection.best(rows, criterion)


def test_the_default_follows_the_task():
    assert model_selection.resolve("auto", 2) == ("auroc", "2 classes")
    assert model_selection.resolve("auto", 8) == ("balanced_accuracy", "8 classes")
    assert model_selection.resolve("loss", 2) == ("loss", "asked for")


def test_experiments_name_their_criterion():
    """Published results depend on no default."""
    configs = [contest.config() for contest in CONTESTS.values()]
    configs += [frontier.config_of(data, frontier.FIRST, 0) for data in frontier.DATA]
    configs += [curve.config_of(1.0, 0), endurance.config_of(1)]
    configs += [setting.config() for setting in byzantine.SETTINGS.values()]
    configs += [
        inversion_parts.config_of(part) for part in inversion_parts.PARTS.values()
    ]
    configs += [trend.config_of("full", 0)]
    assert {config.selection_metric for config in configs} == {experiment.SELECT}
