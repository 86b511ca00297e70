"""studies/byzantine/run.py: every program can run, and the page says what came out."""

import json

import pytest

from fairjax.experiment.config import validate
from fairjax.robust import faults
from studies.byzantine import run as byzantine
from studies.byzantine.run import AGGREGATORS, BEGIN, NOBODY, RESULTS, SETTINGS, Job


def row(job, share, accuracy, entered=1.0):
    made = {"share": share, "auroc": [accuracy], "accuracy": [accuracy]}
    return job._asdict() | made | {"honest_entered": entered, "hostile_entered": 0.0}


def made_up():
    """Accuracy 0.9 without Byzantine clients, and less the more there are."""
    return [
        row(job, share, 0.9 - share / 10, 0.75)
        for data in SETTINGS
        for job in byzantine.jobs(data)
        for share in ((0.0,) if job.attack == NOBODY else SETTINGS[data].shares)
    ]


@pytest.mark.parametrize("data", SETTINGS)
@pytest.mark.parametrize("fold", AGGREGATORS)
def test_every_fold_is_a_config_that_passes_its_checks(data, fold):
    for method in SETTINGS[data].methods:
        config = byzantine.config_of(Job(data, method, fold, NOBODY))
        validate.check(config)
        cohort = config.clients_per_round or config.data.partition.num_clients
        assert cohort >= 2 * SETTINGS[data].num_byzantine + 3


def test_every_attack_is_made_of_faults():
    assert {name for attack in byzantine.ATTACKS.values() for name in attack} <= set(
        faults.FAULTS
    )


def test_a_table_is_of_whole_federations():
    rows = made_up()
    text = byzantine.table(rows)
    assert text.count("| median | 0.900 | 25% |") == 3
    assert "0.89 0.88 0.87 0.86" in text
    most = [each for each in rows if each["data"] != "blood"]
    assert byzantine.table(most).count("| median |") == 2


def test_the_page_says_what_came_out():
    results = json.loads(RESULTS.read_text())
    page = (RESULTS.parent / "README.md").read_text()
    assert f"{BEGIN}\n\n{byzantine.table(results['runs'])}\n" in page
    assert results["attacks"] == byzantine.ATTACKS


def test_two_of_twenty_without_numbers_cost_less_than_a_point():
    """In every round of a run: against the run in which everybody is sound."""
    results = json.loads(RESULTS.read_text())
    by = {tuple(r[n] for n in (*Job._fields, "share")): r for r in results["runs"]}
    calm = by["heart", "fedavg", "mean", NOBODY, 0.0]
    two = by["heart", "fedavg", "mean", "nan", 0.1]
    assert byzantine.mean(calm) - byzantine.mean(two) < 0.01
    assert two["hostile_entered"] == 0
    assert two["honest_entered"] == 1
