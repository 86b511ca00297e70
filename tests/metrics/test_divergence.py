"""When a run counts as diverged, from rows alone."""

import math

import numpy as np
import pytest

from fairjax.experiment import model_selection
from fairjax.metrics import divergence

HUGE = 1.3e24


def row(number, *, loss=0.7, train=0.6, valid=3, not_finite=0, evaluated=True):
    made = {"round": number, "train/loss": train, "cohort/valid": valid}
    made |= {"cohort/not_finite": not_finite}
    made |= {"cohort/trained_tier_0": 1, "cohort/trained_tier_1": 2}
    if evaluated:
        made |= {"eval/loss": loss, "val/loss": loss, "val/auroc": 0.9}
    return made


SOUND, ABSURD, LOST = {}, {"loss": HUGE}, {"loss": None}
REFUSED = {"train": None, "valid": 0, "not_finite": 3}
BETWEEN = {"evaluated": False}


@pytest.mark.parametrize(
    ("kinds", "since"),
    [
        ([SOUND, SOUND], None),
        ([SOUND, LOST], 2),
        ([SOUND, ABSURD, ABSURD], 2),
        ([ABSURD, SOUND], None),  # it recovered
        ([ABSURD, SOUND, LOST], 3),
        # A round that was not evaluated and shows no symptom ends no divergence.
        ([SOUND, BETWEEN, ABSURD, BETWEEN, BETWEEN, LOST], 3),
        ([SOUND, BETWEEN, REFUSED], 3),
        ([SOUND, BETWEEN | REFUSED, BETWEEN | REFUSED, REFUSED], 2),
        # No client or no upload arrived: nothing is known, and nothing diverged.
        ([SOUND, {"train": None, "valid": 0}], None),
        # One of three clients is left out, and the others go on.
        ([SOUND, {"not_finite": 1, "valid": 2}], None),
        # Under record_dp one record of infinite loss moves nothing: the model decides.
        ([SOUND, {"train": None}], None),
        ([SOUND, BETWEEN | {"train": None}, SOUND], None),
        ([SOUND, BETWEEN | {"train": None}, LOST], 2),
        ([SOUND, BETWEEN | {"train": None}], 2),
        ([], None),
    ],
)
def test_since_when(kinds, since):
    rows = [row(n, **kind) for n, kind in enumerate(kinds, 1)]
    found = divergence.find_divergence(rows)
    assert (found and found["round"]) == since


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (ABSURD, "eval/loss is 1.3e+24 nats, beyond the 87.3 of any probability"),
        (LOST, "eval/loss is not finite"),
        (REFUSED, "no hospital's training ends with finite numbers"),
        (BETWEEN | {"train": None}, "train/loss is not finite"),
    ],
)
def test_why(kind, why):
    found = divergence.find_divergence([row(1, **kind)])
    assert found == {"round": 1, "why": why}
    assert divergence.describe(found) == f"diverged: since round 1 {why}"


def test_the_bound_is_the_smallest_probability_and_far_from_a_constant_prediction():
    assert np.exp(np.float32(-divergence.MAX_LOSS)) >= np.finfo(np.float32).tiny * 0.99
    assert divergence.MAX_LOSS > 10 * math.log(1000)
    assert divergence.symptom(row(1, loss=divergence.MAX_LOSS), "eval") is None


@pytest.mark.parametrize("kind", [ABSURD, LOST, REFUSED])
def test_a_round_that_shows_divergence_is_never_selected(kind):
    """It is not selected however well it ranks."""
    better = row(2, **kind) | {"val/auroc": 1.0}
    assert model_selection.best([row(1), better], "auroc") == 1
    assert model_selection.best([better], "auroc") is None
    assert model_selection.effective_criterion([better], "auroc") is None


def test_the_test_split_selects_nothing():
    lost = row(2) | {"eval/loss": None, "val/auroc": 1.0}
    assert model_selection.best([row(1), lost], "auroc") == 2
