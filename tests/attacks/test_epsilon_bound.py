"""The lower bound on epsilon: its arithmetic, and mechanisms whose epsilon is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fairjax.attacks import epsilon_bound
from fairjax.core import require
from fairjax.privacy import accounting
from fairjax.privacy.accounting import Mechanism

DELTA = 1e-5


@given(number=st.integers(1, 300), share=st.floats(0, 1), level=st.floats(0.6, 0.999))
def test_upper_is_the_largest_probability_that_the_count_leaves_possible(
    number, share, level
):
    count = round(share * number)
    got = float(epsilon_bound.upper_bound(np.asarray(count), number, level))
    if count == number:
        assert got == 1
    else:
        assert binom.cdf(count, number, got) == pytest.approx(1 - level, rel=1e-6)


def test_a_perfect_attack_shows_the_ceiling_and_a_useless_one_nothing():
    apart = epsilon_bound.bound(np.arange(200.0) + 1000, np.arange(200.0), delta=DELTA)
    assert apart.epsilon == pytest.approx(epsilon_bound.ceiling(100, delta=DELTA))
    assert apart.epsilon == apart.ceiling == pytest.approx(3.281, abs=1e-3)
    assert (apart.false_positives, apart.false_negatives) == (0, 0)
    same = np.random.default_rng(0).normal(size=(2, 200))
    assert epsilon_bound.bound(*same, delta=DELTA).epsilon == 0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_the_bound_of_a_gaussian_is_below_its_epsilon_and_not_far(sigma):
    rng = np.random.default_rng(1)
    runs = 20_000
    inside, outside = rng.normal(1, sigma, runs), rng.normal(0, sigma, runs)
    claimed = accounting.epsilon(Mechanism(sigma), 1, delta=1e-2)
    found = epsilon_bound.bound(inside, outside, delta=1e-2).epsilon
    assert 0.3 * claimed < found <= claimed
    # The mechanism has a quarter of the noise that is accounted for.
    loud = epsilon_bound.bound(4 * inside, outside, delta=1e-2)
    assert loud.epsilon > claimed


def test_of_many_statistics_the_best_is_chosen_by_runs_that_do_not_judge_it():
    rng = np.random.default_rng(2)
    # One number in sixty tells by its square, which no direction of the means shows.
    made = rng.normal(size=(2, 600, 60))
    made[0, :, 7] *= 30
    inside, outside = (np.concatenate([m, m**2], axis=1) for m in made)
    found = epsilon_bound.bound(*epsilon_bound.statistics(inside, outside), delta=DELTA)
    assert found.epsilon > 1
    # A direction in more dimensions than runs separates the runs of its fit.
    noise = rng.normal(size=(2, 60, 200))
    wide = epsilon_bound.statistics(*noise)
    assert epsilon_bound.bound(*wide, delta=DELTA).epsilon == 0
    third = 60 // 3
    fitted = noise[0, :third].mean(0) - noise[1, :third].mean(0)
    flattered = [each[:third] @ fitted for each in noise]
    assert epsilon_bound.bound(*flattered, delta=DELTA).epsilon > 0.5


def test_a_number_that_never_varies_and_differs_tells_everything():
    rng = np.random.default_rng(3)
    inside, outside = 1e6 * rng.normal(size=(2, 90, 5))
    inside[:, 2], outside[:, 2] = 3.0, 4.0
    found = epsilon_bound.bound(*epsilon_bound.statistics(inside, outside), delta=DELTA)
    assert found.epsilon == found.ceiling


def test_scores_that_no_audit_can_use_are_refused():
    ones = np.ones(4)
    for pair in ((ones[:1], ones[:1]), (ones, ones[:3]), (ones, ones * np.nan)):
        with pytest.raises(require.InputError):
            epsilon_bound.bound(*pair, delta=DELTA)
