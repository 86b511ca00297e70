"""The curve: what is searched, how it is chosen, and that the README says it."""

import json

import numpy as np
import pytest

from fairjax.experiment.config import validate
from studies.privacy_curve import run as curve
from studies.privacy_curve.run import CLIPS, EPSILONS, RATES, SEEDS

PAGE = curve.RESULTS.parent / "README.md"


def test_every_epsilon_takes_the_pair_with_the_best_mean_over_seeds():
    found = np.full((len(SEEDS), len(EPSILONS), len(RATES), len(CLIPS)), 0.5)
    found[:, 0, 2, 1] = 0.6
    found[0, 0, 3, 3] = 0.75  # best of one seed, not of the mean
    found[:, -1, 0, 3] = 0.9
    pairs = curve.best_pairs(found)
    assert pairs[0] == (RATES[2], CLIPS[1])
    assert pairs[-1] == (RATES[0], CLIPS[3])
    assert len(pairs) == len(EPSILONS)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_every_epsilon_is_a_config_that_passes_its_checks(epsilon):
    config = curve.config_of(epsilon, 1, 0.3, 0.1)
    validate.check(config)
    assert config.privacy.epsilon == epsilon
    assert (config.privacy.noise_multiplier == 0.0) is (epsilon is None)


def fake(accuracies):
    rows = {name: {"accuracy": value} for name, value in accuracies.items()}
    return {"pooled": {"auroc": 0.8}, "hospitals": rows}


def test_what_is_lost_is_told_by_hospital_and_signed():
    free, private = fake({"a": 0.9, "b": 0.7}), fake({"a": 0.8, "b": 0.75})
    runs = [[private] * 3, [free] * 3]
    assert curve.gap(free) == pytest.approx(0.2)
    lost = curve.accuracy_losses(runs, 0)
    assert lost["a"]["mean"] == pytest.approx(10)
    assert lost["b"]["highest"] == pytest.approx(-5)


def test_no_hospital_spends_more_than_it_may():
    results = json.loads(curve.RESULTS.read_text())
    for epsilon, seeds in zip(results["epsilons"], results["runs"], strict=True):
        for run in seeds:
            spent = list(run["spent"].values())
            if epsilon is None:
                assert set(spent) == {None}
            else:
                assert 0.99 * epsilon < max(spent) <= epsilon


def test_the_readme_says_what_came_out():
    results = json.loads(curve.RESULTS.read_text())
    assert f"{curve.BEGIN}\n\n{curve.table(results)}\n" in PAGE.read_text()
