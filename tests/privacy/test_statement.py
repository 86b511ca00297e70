"""The words that go with an epsilon."""

import math

import pytest

from fairjax.privacy import statement
from fairjax.privacy.statement import GuaranteeFacts

FACTS = GuaranteeFacts(
    "client_dp", "client", 2.0, 1e-5, 1e-14, 100, 1.0, "poisson", "zero_out"
)


def said(**changes):
    return statement.statement(FACTS._replace(**changes))


@pytest.mark.parametrize(
    ("mechanism", "unit", "whom", "covers"),
    [
        ("client_dp", "client", "one hospital with all", "models of all rounds"),
        ("record_dp", "record", "one training record", "all that hospitals send"),
        ("record_dp", "patient", "one patient with all", "all that hospitals send"),
        ("local_dp", "client", "one hospital with all", "all that hospitals send"),
    ],
)
def test_it_is_said_of_whom_an_epsilon_is_and_of_what(mechanism, unit, whom, covers):
    words = said(mechanism=mechanism, unit=unit)
    assert whom in words["of"]
    assert covers in words["covers"]
    assert words["notes"] == []
    assert "Mironov 2012" in words["floats"]
    assert "9.4 standard deviations; 1e-14 of delta" in words["floats"]


@pytest.mark.parametrize("mechanism", ["client_dp", "record_dp", "local_dp"])
def test_what_an_epsilon_does_not_cover_is_named(mechanism):
    words = said(mechanism=mechanism, unit="client")["does_not_cover"]
    excluded = "; ".join(words)
    for what in ("metrics", "selected round", "sweep", "another run", "seed"):
        assert what in excluded
    # Others do not draw their cohorts in secret.
    assert ("who came in a round" in excluded) == (mechanism == "client_dp")


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"epsilon": math.inf, "noise_multiplier": 0.0}, "there is no noise"),
        ({"epsilon": math.inf, "tail": 1.0}, "No epsilon can be stated at delta 1e-05"),
        ({"tail": 2e-7}, "2.0% of delta is for noise"),
        ({"delta": 2e-3}, "delta 0.002 is above a tenth of 1 / 100"),
        ({"sampling": "fixed", "neighbours": "replace_one"}, "by two clips"),
        (
            {"shared_patients": 7, "clients_per_patient": 3, "unit": "patient"},
            "7 patients are at several",
        ),
    ],
)
def test_what_is_easily_mistaken_is_noted_where_it_holds(changes, note):
    (only,) = statement.notes(FACTS._replace(**changes))
    assert note in only
    assert not statement.notes(FACTS)


def test_a_run_that_starts_from_another_one_s_model_says_what_that_spent():
    spent = {"mechanism": "record_dp", "epsilon": 3.0}
    note = statement.origin("runs/a", spent, same_data=True)
    assert "runs/a, which spent epsilon 3 under record_dp" in note
    assert "of the same records both epsilons and both deltas add up" in note
    open_ = statement.origin("runs/b", {"mechanism": "none"}, same_data=False)
    assert "trained without privacy" in open_
    unknown = statement.origin("runs/c", spent | {"epsilon": None}, same_data=False)
    assert "spent an epsilon" in unknown
