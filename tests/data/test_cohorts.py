"""Cohorts: which clients a round has, and the slots they fill."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given

from fairjax.data import cohorts

seeds = st.integers(0, 2**31 - 1)

draw = jax.jit(cohorts.sample, static_argnames="size")


@given(seeds, st.integers(0, 1000), st.sampled_from([(1, 1), (7, 3), (7, 7), (50, 49)]))
def test_a_cohort_has_no_duplicates_and_ascends(seed, finished, sizes):
    clients, size = sizes
    tiers = jnp.arange(clients, dtype=jnp.int32) % 3
    cohort = draw(jax.random.key(seed), jnp.asarray(finished), tiers, size=size)
    assert cohort.client.shape == (size,)
    assert np.all(np.diff(cohort.client) > 0)
    assert 0 <= cohort.client[0] <= cohort.client[-1] < clients
    np.testing.assert_array_equal(cohort.tier, tiers[cohort.client])
    assert np.all(cohort.valid)


def test_everybody_comes_when_the_cohort_is_full():
    cohort = cohorts.sample(jax.random.key(0), jnp.asarray(3), jnp.zeros(9, int), 9)
    np.testing.assert_array_equal(cohort.client, np.arange(9))


def test_a_cohort_depends_on_key_and_round_alone():
    take = functools.partial(cohorts.sample, tiers=jnp.zeros(40, int), size=10)
    key, finished = jax.random.key(1), jnp.asarray(5)
    first = take(key, finished)
    other_tiers = cohorts.sample(key, finished, jnp.ones(40, int), 10)
    jitted = draw(key, finished, jnp.zeros(40, int), size=10)
    for repeat in (take(key, finished), other_tiers, jitted):
        np.testing.assert_array_equal(first.client, repeat.client)
    for different in (take(key, jnp.asarray(6)), take(jax.random.key(2), finished)):
        assert np.any(first.client != different.client)


def test_every_client_is_drawn_as_often():
    take = functools.partial(
        cohorts.sample, jax.random.key(0), tiers=jnp.zeros(10, int), size=3
    )
    draws = jax.vmap(lambda finished: take(finished).client)(jnp.arange(1000))
    np.testing.assert_allclose(np.bincount(draws.ravel()) / 1000, 0.3, atol=0.06)


TIERS = np.array([0, 2, 0, 1, 0, 2, 0, 0, 1])


@given(seeds, st.integers(1, 9))
def test_padded_slots_hold_the_same_clients_in_runs_of_a_tier(seed, size):
    slots = cohorts.slots(TIERS, 3, size, "padded")
    key, finished = jax.random.key(seed), jnp.asarray(2)
    mixed = cohorts.sample(key, finished, TIERS, size)
    ordered = cohorts.sample(key, finished, TIERS, size, slots=slots)
    valid = np.asarray(ordered.valid)
    assert ordered.client.shape == (sum(slots),)
    assert ordered.tier.tolist() == np.repeat(np.arange(3), slots).tolist()
    assert sorted(ordered.client[valid].tolist()) == mixed.client.tolist()
    np.testing.assert_array_equal(ordered.tier[valid], TIERS[ordered.client[valid]])


def test_a_cohort_by_tier_has_a_slot_for_the_richest_tier():
    tiers = np.repeat(np.arange(4), 2)
    assert cohorts.slots(tiers, 4, 3, "stratified") == (0, 1, 1, 1)
    assert cohorts.slots(np.repeat([0, 1, 2], [21, 6, 3]), 3, 4, "stratified") == (
        2,
        1,
        1,
    )


@given(seeds, st.integers(1, 9))
def test_stratified_slots_are_always_filled_by_their_tier(seed, size):
    slots = cohorts.slots(TIERS, 3, size, "stratified")
    cohort = cohorts.sample(
        jax.random.key(seed),
        jnp.asarray(2),
        TIERS,
        size,
        slots=slots,
        scheme="stratified",
    )
    assert np.all(cohort.valid)
    assert len(set(cohort.client.tolist())) == size
    assert np.bincount(cohort.tier, minlength=3).tolist() == list(slots)
    np.testing.assert_array_equal(cohort.tier, TIERS[cohort.client])
    assert np.all(np.abs(np.array(slots) - size * np.array([5, 2, 2]) / 9) < 1)
