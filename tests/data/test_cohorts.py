"""Hospitals are dealt to tiers, and drawn for a round."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given

from fairjax.data import federation, partition

seeds = st.integers(0, 2**31 - 1)

# -------------------------------------------------------------------------------- tiers

ratios = st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any)


def tiers_of(counts, share=(1, 1, 1), assign="random", seed=0, labels=None):
    counts = np.asarray(counts)
    labels = np.stack([counts, counts], 1) if labels is None else np.asarray(labels)
    return federation.assign_tiers(
        counts, labels, share=tuple(map(float, share)), assign=assign, seed=seed
    )


@given(st.integers(1, 40), ratios, st.sampled_from(["random", "by_size"]))
def test_tiers_have_the_sizes_of_their_shares(clients, share, assign):
    tiers = tiers_of(np.arange(clients), share, assign)
    assert tiers.shape == (clients,)
    sizes = np.bincount(tiers, minlength=len(share))
    wanted = partition.largest_remainder(np.asarray(share, float), clients)
    used = np.asarray(share) > 0
    if wanted[used].min() > 0:
        np.testing.assert_array_equal(sizes, wanted)
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
        # With one for every tier nothing is moved: whole quotas stay, ties are poor.
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
    drawn = {tuple(tiers_of([7] * 30, assign=assign, seed=s % 3)) for s in range(6)}
    assert len(drawn) == 3


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_tiers_follow_sizes_as_closely_as_asked_for(rho):
    """Of 3 equal tiers cut from a score that has Pearson's rho with that of sizes."""
    counts = np.random.default_rng(0).permutation(300)
    found = []
    for seed in range(20):
        tiers = federation.assign_tiers(
            counts,
            np.ones((300, 2), int),
            share=(1.0, 1.0, 1.0),
            assign="by_size",
            seed=seed,
            correlation=rho,
        )
        found.append(federation.by_size(tiers, counts))
    expected = {0.0: 0.0, 0.5: 0.45, 1.0: 0.943}[rho]
    assert abs(np.mean(found) - expected) < 0.04
    assert federation.by_size(np.zeros(3, int), np.arange(3)) is None


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=2)


@given(pairs)
def test_whether_tiers_follow_sizes_is_spearmans_correlation(pairs):
    tiers, counts = np.transpose(pairs)
    got = federation.by_size(tiers, counts)
    if len(set(tiers)) < 2 or len(set(counts)) < 2:
        assert got is None
    else:
        expected = scipy.stats.spearmanr(tiers, counts).statistic
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_random_tiers_do_not_follow_the_number_of_records():
    drawn = [tiers_of(np.arange(30), seed=s) for s in range(200)]
    np.testing.assert_allclose(np.mean(drawn, axis=0), 1, atol=0.25)


# ------------------------------------------------------------------------------ cohorts

draw = jax.jit(federation.sample, static_argnames="size")


@given(seeds, st.integers(0, 1000), st.sampled_from([(1, 1), (7, 3), (7, 7), (50, 49)]))
def test_a_cohort_has_no_duplicates_and_ascends(seed, at, sizes):
    clients, size = sizes
    tiers = jnp.arange(clients, dtype=jnp.int32) % 3
    cohort = draw(jax.random.key(seed), jnp.asarray(at), tiers, size=size)
    assert cohort.client.shape == (size,)
    assert np.all(np.diff(cohort.client) > 0)
    assert 0 <= cohort.client[0] <= cohort.client[-1] < clients
    np.testing.assert_array_equal(cohort.tier, tiers[cohort.client])
    assert np.all(cohort.valid)


def test_everybody_comes_when_the_cohort_is_full():
    cohort = federation.sample(jax.random.key(0), jnp.asarray(3), jnp.zeros(9, int), 9)
    np.testing.assert_array_equal(cohort.client, np.arange(9))


def test_a_cohort_depends_on_key_and_round_alone():
    take = functools.partial(federation.sample, tiers=jnp.zeros(40, int), size=10)
    key, at = jax.random.key(1), jnp.asarray(5)
    first = take(key, at)
    other = federation.sample(key, at, jnp.ones(40, int), 10)
    jitted = draw(key, at, jnp.zeros(40, int), size=10)
    for again in (take(key, at), other, jitted):
        np.testing.assert_array_equal(first.client, again.client)
    for changed in (take(key, jnp.asarray(6)), take(jax.random.key(2), at)):
        assert np.any(first.client != changed.client)


def test_every_client_is_drawn_as_often():
    take = functools.partial(
        federation.sample, jax.random.key(0), tiers=jnp.zeros(10, int), size=3
    )
    drawn = jax.vmap(lambda at: take(at).client)(jnp.arange(1000))
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / 1000, 0.3, atol=0.06)


TIERS = np.array([0, 2, 0, 1, 0, 2, 0, 0, 1])


@given(seeds, st.integers(1, 9))
def test_padded_slots_hold_the_same_clients_in_runs_of_a_tier(seed, size):
    slots = federation.slots(TIERS, 3, size, "padded")
    key, at = jax.random.key(seed), jnp.asarray(2)
    mixed = federation.sample(key, at, TIERS, size)
    laid = federation.sample(key, at, TIERS, size, slots=slots)
    valid = np.asarray(laid.valid)
    assert laid.client.shape == (sum(slots),)
    assert laid.tier.tolist() == np.repeat(np.arange(3), slots).tolist()
    assert sorted(laid.client[valid].tolist()) == mixed.client.tolist()
    np.testing.assert_array_equal(laid.tier[valid], TIERS[laid.client[valid]])


def test_a_cohort_by_tier_has_a_slot_for_the_richest_tier():
    tiers = np.repeat(np.arange(4), 2)
    assert federation.slots(tiers, 4, 3, "stratified") == (0, 1, 1, 1)
    assert federation.slots(np.repeat([0, 1, 2], [21, 6, 3]), 3, 4, "stratified") == (
        2,
        1,
        1,
    )


@given(seeds, st.integers(1, 9))
def test_stratified_slots_are_always_filled_by_their_tier(seed, size):
    slots = federation.slots(TIERS, 3, size, "stratified")
    cohort = federation.sample(
        jax.random.key(seed),
        jnp.asarray(2),
        TIERS,
        size,
        slots=slots,
        law="stratified",
    )
    assert np.all(cohort.valid)
    assert len(set(cohort.client.tolist())) == size
    assert np.bincount(cohort.tier, minlength=3).tolist() == list(slots)
    np.testing.assert_array_equal(cohort.tier, TIERS[cohort.client])
    assert np.all(np.abs(np.array(slots) - size * np.array([5, 2, 2]) / 9) < 1)
