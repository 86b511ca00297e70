"""Spread over clients, by hand."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fairjax.metrics import clients

NAN = math.nan
share = st.just(0.0) | st.floats(1e-3, 1)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([0.1, 0.5, 0.9, 0.3], 0.25, 0.9),
        ([0.1, 0.5, 0.9, 0.3], 0.26, 0.7),  # ceil: two of four
        ([0.1, NAN, 0.9, NAN], 0.5, 0.9),
        ([NAN, NAN], 0.1, NAN),
    ],
)
def test_best_is_the_mean_of_the_highest(values, share, expected):
    np.testing.assert_allclose(clients.best(np.array(values), share), expected)


def test_deviation_divides_by_the_number_of_clients():
    assert clients.std(np.array([1, NAN, 3])) == 1
    assert math.isnan(clients.std(np.array([NAN])))


def test_the_lowest():
    assert clients.minimum(np.array([0.5, NAN, 0.25])) == 0.25
    assert math.isnan(clients.minimum(np.array([NAN])))


@pytest.mark.parametrize(
    ("values", "gini"),
    [
        ([0.7, 0.7, 0.7], 0),
        ([0, 0, 0.7, 0], 3 / 4),
        ([1, NAN, 3, 2], 2 * (1 + 4 + 9) / (3 * 6) - 4 / 3),
        ([0, 0], NAN),
        ([NAN], NAN),
        ([], NAN),
    ],
)
def test_gini_by_hand(values, gini):
    got = clients.gini(np.array(values, float))
    np.testing.assert_allclose(got, gini, atol=1e-12)


@given(st.lists(share, min_size=1, max_size=8), st.floats(0.01, 100))
def test_gini_is_half_the_mean_difference_over_the_mean(values, unit):
    values = np.array(values)
    if values.any():
        apart = np.abs(values[:, None] - values)
        expected = apart.mean() / (2 * values.mean())
        np.testing.assert_allclose(clients.gini(unit * values), expected, atol=1e-12)
    else:
        assert math.isnan(clients.gini(values))


@pytest.mark.parametrize(
    ("means", "gap"),
    [
        ([0.5, 0.75], -0.25),
        ([NAN, 0.5, NAN, 0.25], 0.25),
        ([0.5], 0),
        ([NAN], NAN),
        ([0.5, NAN], NAN),  # one of two tiers is unknown
    ],
)
def test_tier_gap_by_hand(means, gap):
    np.testing.assert_allclose(clients.tier_gap(means), gap)


def test_which_clients_have_enough_records():
    count, tiers = np.array([10, 9, 4, 6]), np.array([0, 1, 3, 3])
    hospitals, of_tiers = clients.has_enough_records(count, tiers, 4, 10)
    assert hospitals.tolist() == [True, False, False, False]
    assert of_tiers.tolist() == [True, False, False, True]
