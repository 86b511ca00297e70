"""Poisson samples in static shapes: their law, their slots, their overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from fairjax.data.cohorts import poisson as poisson_cohort
from fairjax.privacy import poisson

TIERS = np.array([0, 2, 1, 0, 1, 0, 0, 2])


@pytest.mark.parametrize(("members", "rate"), [(100, 0.1), (1000, 0.02), (8, 0.5)])
def test_room_is_the_smallest_that_almost_never_overflows(members, rate):
    slots, overflow = poisson.capacity(members, rate)
    assert overflow == pytest.approx(binom.sf(slots, members, rate))
    assert overflow <= poisson.OVERFLOW
    assert slots == members or binom.sf(slots - 1, members, rate) > poisson.OVERFLOW


def test_everybody_fits_for_certain():
    assert poisson.capacity(7, 1.0) == (7, 0.0)
    assert poisson.capacity(3, 0.5) == (3, 0.0)


def test_the_threshold_never_draws_more_often_than_asked():
    for rate in (1e-9, 0.1, 1 / 3, 0.9999, 1.0):
        assert poisson.threshold(rate) / 2**32 <= rate
        assert poisson.threshold(rate) / 2**32 == pytest.approx(rate, abs=2**-31)


def draws(member, rate, slots, number=4000):
    keys = jax.random.split(jax.random.key(0), number)
    below = poisson.threshold(rate)
    one = lambda key: poisson.draw(key, jnp.asarray(member), below, slots)  # noqa: E731
    index, filled = jax.jit(jax.vmap(one))(keys)
    drawn = np.zeros((number, len(member) + 1), int)
    rows = np.arange(number)[:, None]
    np.add.at(drawn, (rows, np.where(filled, index, len(member))), 1)
    return drawn[:, :-1], np.asarray(index), np.asarray(filled)


def test_members_are_drawn_alike_and_apart():
    member = np.array([True, False, True, True, True, False])
    drawn, index, filled = draws(member, 0.3, 6)
    assert drawn.max() == 1
    assert not drawn[:, ~member].any()
    mean = drawn[:, member].mean(0)
    np.testing.assert_allclose(mean, 0.3, atol=4 * np.sqrt(0.21 / 4000))
    correlation = np.corrcoef(drawn[:, member].T) - np.eye(4)
    assert np.abs(correlation).max() < 4 / np.sqrt(4000)
    # The count is binomial: a fixed size would have no spread.
    assert drawn.sum(1).var() == pytest.approx(4 * 0.21, rel=0.1)
    # Filled slots come first, ascending.
    assert np.all(np.diff(filled.astype(int), axis=1) <= 0)
    rising = np.diff(np.where(filled, index, 99), axis=1) > 0
    assert np.all(rising | ~filled[:, 1:])


def test_an_overflow_keeps_a_uniform_choice():
    drawn, _, filled = draws(np.ones(6, bool), 1.0, 2)
    assert filled.all()
    np.testing.assert_allclose(drawn.mean(0), 1 / 3, atol=0.03)


def test_more_slots_than_members_are_padding():
    drawn, _, filled = draws(np.ones(2, bool), 1.0, 5, number=3)
    assert drawn.tolist() == [[1, 1]] * 3
    assert filled.sum(1).tolist() == [2] * 3


@pytest.mark.parametrize("slots", [8, (4, 2, 2)])
def test_a_poisson_cohort(slots):
    one = lambda n: poisson_cohort(jax.random.key(1), n, TIERS, 0.25, slots)  # noqa: E731
    cohorts = jax.jit(jax.vmap(one))(jnp.arange(2000))
    seen = np.zeros((2000, 9), int)
    at = np.where(cohorts.valid, cohorts.client, 8)
    np.add.at(seen, (np.arange(2000)[:, None], at), 1)
    seen = seen[:, :8]
    assert seen.max() == 1
    np.testing.assert_allclose(seen.mean(0), 0.25, atol=4 * np.sqrt(0.1875 / 2000))
    tier, valid = np.asarray(cohorts.tier), np.asarray(cohorts.valid)
    assert np.all(tier[valid] == TIERS[np.asarray(cohorts.client)[valid]])
    if isinstance(slots, tuple):
        assert np.all(tier == np.repeat([0, 1, 2], slots))
    # A round's cohort depends on the key and the round alone.
    again = one(jnp.asarray(7))
    assert np.array_equal(again.client, cohorts.client[7])
