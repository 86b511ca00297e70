"""Gaps between patient groups against Fairlearn, and groups that are too small."""

import functools
import math

import fairlearn.metrics
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from fairjax.metrics import groups
from tests.metrics.records import E, positives, weights

G = 3
group_of = arrays(np.int32, E, elements=st.integers(-1, G - 1))


@functools.partial(jax.jit, static_argnames="minimum")
def gaps(predicted, positive, group, minimum, weight=None):
    group = groups.mask_small_groups(group, G, positive, minimum=minimum)
    return groups.gaps(groups.rates(predicted, positive, group, G, weight=weight))


rates = jax.jit(groups.rates, static_argnums=3)
large = jax.jit(groups.mask_small_groups, static_argnums=1, static_argnames="minimum")


def whole(positive, group, minimum=1):
    """The groups with enough of both classes."""
    return [
        g
        for g in range(G)
        if min(np.sum(positive[group == g]), np.sum(~positive[group == g])) >= minimum
    ]


@given(positives, positives, group_of, st.sampled_from([1, 3]))
def test_gaps_are_those_of_fairlearn(predicted, positive, group, minimum):
    """Over large enough groups, without records of unknown group."""
    got = gaps(predicted, positive, group, minimum)
    kept = whole(positive, group, minimum)
    if len(kept) < 2:
        assert all(math.isnan(gap) for gap in got)
        return
    rows = np.isin(group, kept)
    given = {"y_true": positive[rows], "y_pred": predicted[rows]}
    given["sensitive_features"] = group[rows]
    for name, gap in got._asdict().items():
        if name == "demographic_parity_ratio" and not predicted[rows].any():
            assert math.isnan(gap)
            continue
        expected = getattr(fairlearn.metrics, name)(**given)
        np.testing.assert_allclose(gap, expected, rtol=1e-6, atol=1e-7, err_msg=name)


@given(positives, positives, group_of, weights)
def test_gaps_by_weight(predicted, positive, group, weight):
    group = np.asarray(large(group, G, positive, minimum=1))
    again = [np.repeat(values, weight) for values in (predicted, positive, group)]
    weighted = rates(predicted, positive, group, G, weight=weight)
    repeated = rates(*again, G)
    for ours, theirs in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_small_group_counts_in_no_gap():
    """Nine negatives of group 2 are one too few, whatever its positives."""
    group = np.repeat(np.int32([0, 1, 2]), [20, 20, 29])
    positive = np.tile([True, False], 20)
    positive = np.concatenate([positive, np.arange(29) < 20])
    predicted = group == 2
    kept = np.asarray(large(group, G, positive))
    np.testing.assert_array_equal(kept, np.where(group == 2, -1, group))
    of_large = rates(predicted, positive, kept, G)
    assert np.isnan([rate[2] for rate in of_large]).all()
    assert groups.gaps(of_large).demographic_parity_difference == 0
    nine = large(group, G, positive, minimum=9)
    np.testing.assert_array_equal(nine, group)
    opened = groups.gaps(rates(predicted, positive, nine, G))
    assert opened.equal_opportunity_difference == 1


def test_with_many_classes_a_group_needs_twice_the_records():
    group = np.repeat(np.int32([0, 1, -1]), [20, 19, 30])
    kept = np.asarray(large(group, 2))
    np.testing.assert_array_equal(kept, np.where(group == 0, 0, -1))


def test_deviations_of_resamples_by_hand():
    """Ranges of errors, for the ratio of logarithms; none if a group is lost."""
    found = groups.Rates(*map(jnp.asarray, ([0.5, 0.25], [0.9, 0.6], [0.2, 0.2])))
    drawn = groups.Rates(
        jnp.asarray([[0.25, 0.25], [math.nan, 0.5], [0.5, 0.125]]),
        jnp.asarray([[0.8, 0.8], [0.9, 0.6], [0.9, math.nan]]),
        jnp.asarray([[0.7, 0.1], [0.2, 0.3], [0.2, 0.2]]),
    )
    got = groups.deviations(drawn, found)
    nan = math.nan
    for name, expected in {
        "demographic_parity_difference": [0.25, nan, 0.125],
        "demographic_parity_ratio": [math.log(2), nan, math.log(2)],
        "equal_opportunity_difference": [0.3, 0, nan],
        "equalized_odds_difference": [0.6, 0.1, nan],
    }.items():
        np.testing.assert_allclose(getattr(got, name), expected, atol=1e-6)
    known = groups.Rates(*(rate.at[0].set(nan) for rate in found))
    assert groups.deviations(drawn, known).equal_opportunity_difference.shape == (3,)


@pytest.mark.parametrize(
    ("values", "difference", "ratio"),
    [
        ([0.2, 0.5, 0.4], 0.3, 0.4),
        ([0.2, math.nan, 0.4], 0.2, 0.5),
        ([0.2, math.nan, math.nan], math.nan, math.nan),
        ([0.0, 0.0, 0.0], 0, math.nan),
        ([0.0, 0.5, 0.5], 0.5, 0),
    ],
)
def test_difference_and_ratio_by_hand(values, difference, ratio):
    values = jnp.asarray(values)
    np.testing.assert_allclose(groups.difference(values), difference, rtol=1e-6)
    np.testing.assert_allclose(groups.ratio(values), ratio, rtol=1e-6)
