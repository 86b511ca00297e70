"""Fairness rules that weigh: what all have in common, then each equation."""

import functools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from fairjax import checks
from fairjax.fairness import weights
from fairjax.types import Cohort, Scores

K = 5
RULES = {
    "size": weights.size(),
    "uniform": weights.uniform(),
    "q_ffl_0": weights.q_ffl(q=0.0),
    "q_ffl_1": weights.q_ffl(q=1.0),
    "q_ffl_9": weights.q_ffl(q=9.0),
}
rules = st.sampled_from(sorted(RULES))
q_rules = st.sampled_from([0, 1, 9])
counts = arrays(np.int32, K, elements=st.integers(1, 2**31 - 1))
losses = arrays(np.float32, K, elements=st.floats(0, 2.0**99, width=32))
common = arrays(np.float32, K, elements=st.floats(2.0**-6, 2.0**4, width=32))
subsets = arrays(bool, K)


@functools.partial(jax.jit, static_argnums=0)
def jitted(rule, count, loss, valid):
    cohort = Cohort(jnp.arange(K), jnp.zeros(K, jnp.int32), valid)
    got, state = RULES[rule].weigh((), cohort, Scores(count, loss))
    assert state == ()
    return got


def weigh(rule, count, loss=None, valid=None):
    """The weights of a cohort as a NumPy array."""
    loss = np.ones(K, np.float32) if loss is None else loss
    valid = np.ones(K, bool) if valid is None else valid
    args = jnp.asarray(count, jnp.int32), jnp.asarray(loss, jnp.float32)
    return np.asarray(jitted(rule, *args, jnp.asarray(valid)))


# ------------------------------------------------------------------ what all rules obey


@given(rules, counts, losses, subsets)
def test_weights_are_a_point_on_the_simplex_of_valid_clients(rule, count, loss, valid):
    """Whatever the counts and losses, 0 and 1e29 included; nobody valid: all 0."""
    got = weigh(rule, count, loss, valid)
    assert np.all(got >= 0)
    assert np.all(got[~valid] == 0)
    np.testing.assert_allclose(got.sum(), 1 if valid.any() else 0, rtol=1e-5)


@given(rules, counts, losses, subsets, st.permutations(range(K)))
def test_weights_follow_a_permutation_of_the_cohort(rule, count, loss, valid, order):
    order = np.array(order)
    got = weigh(rule, count[order], loss[order], valid[order])
    expected = weigh(rule, count, loss, valid)[order]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-30)


@given(rules, counts, common, subsets, st.sampled_from([0.0, 1e30, math.nan, math.inf]))
def test_what_fills_a_padded_slot_does_not_matter(rule, count, loss, valid, junk):
    got = weigh(rule, np.where(valid, count, 0), np.where(valid, loss, junk), valid)
    np.testing.assert_array_equal(got, weigh(rule, count, loss, valid))


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_says_whether_it_needs_losses(rule):
    cohort = Cohort(jnp.arange(K), jnp.arange(K), jnp.ones(K, bool))
    blind = Scores(jnp.ones(K, jnp.int32))
    if RULES[rule].needs == "nothing":
        assert RULES[rule].weigh((), cohort, blind)[0].sum() == 1
    else:
        assert RULES[rule].needs == "loss"
        assert rule.startswith("q_ffl")


# --------------------------------------------------------------------- size and uniform


@given(counts, subsets.filter(np.any))
def test_size_is_the_share_of_records(count, valid):
    expected = np.where(valid, count, 0) / np.sum(count[valid].astype(float))
    np.testing.assert_allclose(weigh("size", count, valid=valid), expected, rtol=1e-5)


@given(counts, losses, subsets.filter(np.any))
def test_uniform_counts_every_hospital_once(count, loss, valid):
    expected = valid / valid.sum()
    np.testing.assert_allclose(weigh("uniform", count, loss, valid), expected)


# -------------------------------------------------------------------------------- q-FFL


@given(q_rules, counts, common, subsets.filter(np.any))
def test_q_ffl_is_its_equation_in_float64(q, count, loss, valid):
    raw = valid * count.astype(float) * loss.astype(float) ** q
    got = weigh(f"q_ffl_{q}", count, loss, valid)
    np.testing.assert_allclose(got, raw / raw.sum(), rtol=2e-5)


@given(counts, losses, subsets)
def test_q_zero_is_fedavg_to_the_last_bit(count, loss, valid):
    np.testing.assert_array_equal(
        weigh("q_ffl_0", count, loss, valid), weigh("size", count, loss, valid)
    )


@given(st.sampled_from([1, 9]), counts, common, st.floats(1.01, 100))
def test_a_larger_loss_weighs_more_and_takes_from_the_others(q, count, loss, factor):
    before = weigh(f"q_ffl_{q}", count, loss)
    after = weigh(f"q_ffl_{q}", count, loss * np.float32([factor, 1, 1, 1, 1]))
    assert after[0] >= before[0] * (1 - 1e-5)
    assert np.all(after[1:] <= before[1:] * (1 + 1e-5))
    if 1e-3 < before[0] < 0.99:
        assert after[0] > before[0]


def test_a_huge_q_leaves_the_worst_client_alone():
    """However small it is, and whatever side of 1 the losses are on."""
    cohort = Cohort(jnp.arange(K), jnp.arange(K), jnp.asarray([True] * 4 + [False]))
    count = jnp.asarray([10**6, 10**6, 1, 10**6, 10**6])
    for scale in (1e-3, 1.0, 1e6):
        loss = scale * jnp.asarray([0.5, 0.9, 1.0, 0.1, 2.0])
        got, _ = weights.q_ffl(q=1e4).weigh((), cohort, Scores(count, loss))
        np.testing.assert_array_equal(got, [0, 0, 1, 0, 0])


def test_clients_that_fit_perfectly_fall_back_to_their_sizes():
    """A loss of 0 is floored, so that the cohort is not thrown away."""
    got = weigh("q_ffl_9", [1, 2, 3, 4, 10], np.zeros(K))
    np.testing.assert_allclose(got, np.array([1, 2, 3, 4, 10]) / 20, rtol=1e-5)


@pytest.mark.parametrize("junk", [math.nan, math.inf])
@pytest.mark.parametrize("rule", ["q_ffl_1", "q_ffl_9"])
def test_a_client_whose_loss_is_no_number_does_not_spoil_the_others(rule, junk):
    loss = np.array([1.0, 2.0, junk, 3.0, 4.0])
    without = np.arange(K) != 2
    got = weigh(rule, [3, 1, 4, 1, 5], loss)
    expected = weigh(rule, [3, 1, 4, 1, 5], np.where(without, loss, 1), without)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("q", [-1.0, -1e-9, math.nan, math.inf])
def test_q_must_be_a_number_from_zero_up(q):
    with pytest.raises(checks.InputError, match=r"fairness\.q_ffl\.q: .* >= 0"):
        weights.q_ffl(q=q)


# --------------------------------------------------------------------------- over_valid

over_valid = jax.jit(weights.over_valid)


@given(counts, subsets)
def test_over_valid_is_the_rule_on_those_who_are_left(count, valid):
    got = over_valid(weigh("size", count), valid)
    expected = weigh("size", count, valid=valid)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_over_valid_drops_what_an_invalid_client_has():
    """Not jitted: XLA turns 0 * NaN into a select, which would hide a product."""
    weight = jnp.asarray([0.25, math.nan, 0.25, 0.5])
    valid = jnp.asarray([True, False, True, False])
    np.testing.assert_array_equal(weights.over_valid(weight, valid), [0.5, 0, 0.5, 0])
    np.testing.assert_array_equal(weights.over_valid(weight, valid & False), [0] * 4)
