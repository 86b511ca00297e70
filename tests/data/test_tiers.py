"""Tiers of clients: their sizes, and which clients are in them."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given

from fairjax.data import partition
from fairjax.data.tiers import assign_tiers, tier_size_correlation

seeds = st.integers(0, 2**31 - 1)
ratios = st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any)


def tiers_of(counts, share=(1, 1, 1), assign="random", seed=0, labels=None):
    counts = np.asarray(counts)
    labels = np.stack([counts, counts], 1) if labels is None else np.asarray(labels)
    return assign_tiers(
        counts,
        labels,
        proportions=tuple(map(float, share)),
        assignment=assign,
        seed=seed,
    )


@given(st.integers(1, 40), ratios, st.sampled_from(["random", "by_size"]))
def test_tiers_have_the_sizes_of_their_shares(clients, share, assign):
    tiers = tiers_of(np.arange(clients), share, assign)
    assert tiers.shape == (clients,)
    sizes = np.bincount(tiers, minlength=len(share))
    expected = partition.largest_remainder(np.asarray(share, float), clients)
    used = np.asarray(share) > 0
    if expected[used].min() > 0:
        np.testing.assert_array_equal(sizes, expected)
    assert np.sum(sizes > 0) == min(used.sum(), clients)
    assert not np.any(sizes[~used])


@given(st.integers(1, 40), ratios)
def test_somebody_is_in_the_richest_tier_that_has_a_share(clients, share):
    tiers = tiers_of(np.arange(clients), share)
    assert tiers.max() == np.flatnonzero(share)[-1]


@pytest.mark.parametrize(
    ("clients", "share", "sizes"),
    [
        (1, (1, 1, 1, 1), [0, 0, 0, 1]),
        (1, (7, 2, 1), [0, 0, 1]),
        (2, (7, 2, 1), [1, 0, 1]),
        (3, (100, 1, 1, 1), [1, 0, 1, 1]),
        (5, (1,) * 12, [0] * 7 + [1] * 5),
        (2, (1, 1, 0), [1, 1, 0]),
        (1, (1, 1, 0), [0, 1, 0]),
        # Every tier has a client, so none is moved: ties go to the smaller tiers.
        (4, (1, 1, 1, 1), [1, 1, 1, 1]),
        (4, (2, 1, 1), [2, 1, 1]),
        (16, (2, 1, 1), [8, 4, 4]),
        (30, (7, 2, 1), [21, 6, 3]),
        (30, (4, 3, 3), [12, 9, 9]),
        (50, (1,) * 5, [10] * 5),
        (10, (1, 1, 1, 1), [3, 3, 2, 2]),
        (4, (7, 2, 1), [2, 1, 1]),
    ],
)
def test_few_hospitals_are_rich_and_many_are_as_their_shares(clients, share, sizes):
    got = np.bincount(tiers_of(np.arange(clients), share), minlength=len(share))
    np.testing.assert_array_equal(got, sizes)


def test_a_small_share_gets_one_from_the_largest_tier():
    sizes = np.bincount(tiers_of(np.arange(10), (1, 100, 1)))
    np.testing.assert_array_equal(sizes, [1, 8, 1])


@given(st.lists(st.integers(1, 9), min_size=3, max_size=20), seeds)
def test_by_size_the_fewest_records_are_in_the_smallest_tier(counts, seed):
    tiers = tiers_of(counts, assign="by_size", seed=seed)
    poor, middle, rich = (np.asarray(counts)[tiers == t] for t in range(3))
    assert poor.max() <= middle.min()
    assert middle.max() <= rich.min()


def test_by_label_the_smallest_share_of_the_last_class_is_in_the_smallest_tier():
    labels = [[1, 9], [90, 10], [5, 5], [0, 0], [70, 30], [2, 8]]
    tiers = tiers_of([10, 100, 10, 0, 100, 10], assign="by_label", labels=labels)
    np.testing.assert_array_equal(tiers, [2, 0, 1, 0, 1, 2])


@pytest.mark.parametrize("assign", ["random", "by_size", "by_label"])
def test_the_seed_decides_who_is_poor_among_equals(assign):
    draws = {tuple(tiers_of([7] * 30, assign=assign, seed=s % 3)) for s in range(6)}
    assert len(draws) == 3


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_tiers_follow_sizes_as_closely_as_asked_for(rho):
    """Three equal tiers are cut from a score that correlates by rho with sizes.

    0.45 and 0.943 are Spearman's correlations for rho 0.5 and 1.
    """
    counts = np.random.default_rng(0).permutation(300)
    correlations = []
    for seed in range(20):
        tiers = assign_tiers(
            counts,
            np.ones((300, 2), int),
            proportions=(1.0, 1.0, 1.0),
            assignment="by_size",
            seed=seed,
            correlation=rho,
        )
        correlations.append(tier_size_correlation(tiers, counts))
    expected = {0.0: 0.0, 0.5: 0.45, 1.0: 0.943}[rho]
    assert abs(np.mean(correlations) - expected) < 0.04
    assert tier_size_correlation(np.zeros(3, int), np.arange(3)) is None


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=2)


@given(pairs)
def test_whether_tiers_follow_sizes_is_spearmans_correlation(pairs):
    tiers, counts = np.transpose(pairs)
    got = tier_size_correlation(tiers, counts)
    if len(set(tiers)) < 2 or len(set(counts)) < 2:
        assert got is None
    else:
        expected = scipy.stats.spearmanr(tiers, counts).statistic
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_random_tiers_do_not_follow_the_number_of_records():
    draws = [tiers_of(np.arange(30), seed=s) for s in range(200)]
    np.testing.assert_allclose(np.mean(draws, axis=0), 1, atol=0.25)
