"""What all rules that give weights have in common; size, uniform, cap and warm-up."""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from fairjax.core import simplex
from fairjax.core.rule import CohortStats, FederationFacts
from fairjax.fairness import compose
from fairjax.fairness.afl import afl
from fairjax.fairness.tilted import term
from tests.fairness.rules import (
    NEUTRAL,
    ROUNDS,
    RULES,
    TIERS,
    K,
    T,
    cohort,
    common,
    counts,
    dtypes,
    losses,
    once,
    scores,
    subsets,
    weigh,
)

rules = st.sampled_from(sorted(RULES))


# --------------------------------------------------------------- the contract of a rule


@given(rules, counts, losses, subsets, dtypes)
def test_weights_are_a_point_on_the_simplex_of_valid_clients(
    rule, count, loss, valid, dtype
):
    """For all counts and losses, 0 and 1e29 included; without valid clients all 0."""
    got = weigh(rule, count, loss.astype(dtype), valid)
    assert np.all(got >= 0)
    assert np.all(got[:, ~valid] == 0)
    np.testing.assert_allclose(got.sum(1), 1 if valid.any() else 0, rtol=1e-4)


@given(rules, counts, common, subsets, st.permutations(range(K)), dtypes)
def test_weights_follow_a_permutation_of_the_cohort(
    rule, count, loss, valid, order, dtype
):
    loss = loss.astype(dtype)
    got = weigh(rule, count, loss, valid, order=order)
    expected = weigh(rule, count, loss, valid)[:, np.array(order)]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@given(rules, counts, subsets)
def test_tied_clients_share_equally(rule, count, valid):
    """Clients with the same loss, tier and records weigh the same."""
    count, loss = np.where(TIERS == 1, 7, count), np.where(TIERS == 1, 1.5, 1.0)
    got = weigh(rule, count, np.float32(loss), valid | (TIERS == 1))
    np.testing.assert_allclose(got[:, 2], got[:, 4], rtol=1e-5)


@given(rules, counts, common, subsets, st.sampled_from([0.0, 1e30, math.nan, math.inf]))
def test_the_content_of_a_padded_slot_does_not_matter(rule, count, loss, valid, junk):
    got = weigh(rule, count, np.where(valid, loss, np.float32(junk)), valid)
    np.testing.assert_array_equal(got, weigh(rule, count, loss, valid))


@pytest.mark.parametrize("junk", [math.nan, math.inf])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_client_whose_loss_is_not_finite_does_not_change_the_others(rule, junk):
    loss = np.float32([1.0, 2.0, junk, 3.0, 4.0])
    without = np.arange(K) != 2
    got = weigh(rule, [3, 1, 4, 1, 5], loss)
    if RULES[rule].reads:
        expected = weigh(rule, [3, 1, 4, 1, 5], np.where(without, loss, 1), without)
        if rule == "waiting":
            got, expected = got[1:], expected[1:]
        np.testing.assert_array_equal(got, expected)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_weights_are_finite_at_extreme_losses(rule, dtype):
    for loss in ([0, 0, 0, 0, 0], [1e30, 0, 1, 1e-30, 1e30], [1e30] * 5, [1e-38] * 5):
        got = weigh(rule, [1, 10**6, 3, 4, 5], jnp.asarray(loss, dtype))
        np.testing.assert_allclose(got.sum(1), 1, rtol=1e-4)
        assert np.all(got >= 0)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_state_is_finite_at_the_largest_losses(rule):
    """Also if the sum of two finite losses is infinite."""
    made, state = (
        RULES[rule],
        RULES[rule].init({}, FederationFacts(jnp.full(K, 3), T, 2)),
    )
    for loss in ([3e38, 3e38, 1.0, 0.0, 3e38], [0.0] * 5, [3e38] * 5):
        given = scores(np.full(K, 3), jnp.asarray(loss, jnp.float32) / 3)
        got, state = made.weights(state, cohort(), given)
        np.testing.assert_allclose(got.sum(), 1, rtol=1e-4)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_one_client_has_all_the_weight(rule):
    for who in range(K):
        alone = np.arange(K) == who
        got = weigh(rule, [5, 1, 2, 3, 4], np.float32([2, 3, 1, 9, 1]), alone)
        np.testing.assert_allclose(got, np.tile(alone, (ROUNDS, 1)), rtol=1e-6)


@given(st.sampled_from(sorted(NEUTRAL)), counts, common, subsets.filter(np.any), dtypes)
def test_every_rule_is_fedavg_at_its_neutral_setting(rule, count, loss, valid, dtype):
    got = weigh(rule, count, loss.astype(dtype), valid, table=NEUTRAL)
    expected = weigh("size", count, loss, valid)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_declares_whether_it_reads_losses(rule):
    made = RULES[rule]
    without_losses = CohortStats(jnp.ones(K, jnp.int32))
    state = made.init({}, FederationFacts(jnp.ones(K, jnp.int32), T, 2))
    if not made.reads:
        np.testing.assert_allclose(
            made.weights(state, cohort(), without_losses)[0].sum(), 1
        )
    else:
        assert made.reads - {"labels"} == {"losses"}
        with pytest.raises(AssertionError):
            made.weights(state, cohort(), without_losses)


@pytest.mark.parametrize("rule", ["q_ffl_1", "gifair_tier", "afl", "agnostic_group"])
def test_rules_run_under_vmap(rule):
    """Several runs in one program, each with its own losses."""
    losses = jnp.asarray([[1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]])
    state = RULES[rule].init({}, FederationFacts(jnp.full(K, 3), T, 2))

    def one(loss):
        return RULES[rule].weights(state, cohort(), scores([3] * K, loss))[0]

    both = jax.jit(jax.vmap(one))(losses)
    alone = jax.jit(one)
    for got, loss in zip(both, losses, strict=True):
        np.testing.assert_allclose(got, alone(loss), rtol=1e-5)


# --------------------------------------------------------------------- size and uniform


@given(counts, subsets.filter(np.any))
def test_size_is_the_share_of_records(count, valid):
    expected = np.where(valid, count, 0) / np.sum(count[valid].astype(float))
    np.testing.assert_allclose(
        weigh("size", count, valid=valid)[0], expected, rtol=1e-5
    )


@given(counts, losses, subsets.filter(np.any))
def test_uniform_counts_every_client_once(count, loss, valid):
    got = weigh("uniform", count, loss, valid)[0]
    np.testing.assert_allclose(got, valid / valid.sum())


# ---------------------------------------------------------------------- cap and warm-up


@given(counts, common, st.floats(1.0, 4.0))
def test_a_cap_holds_and_moves_as_little_as_it_must(count, loss, cap):
    free, _ = once(term(t=9.0), count, loss)
    got, _ = once(compose.with_cap(term(t=9.0), cap), count, loss)
    share = count / count.sum()
    assert np.all(got <= cap * share * (1 + 1e-4) + 1e-6)
    np.testing.assert_allclose(got.sum(), 1, rtol=1e-4)
    if np.all(free < cap * share):
        np.testing.assert_allclose(got, free, atol=1e-6)


def test_warm_up_weights_by_records_and_keeps_the_state():
    rule, count = compose.with_warmup(afl(rate=0.1), 2), [1, 2, 3, 4, 5]
    state = rule.init({}, FederationFacts(jnp.asarray(count), T))
    loss = [1.0, 2.0, 0.0, 0.5, 1.0]
    plain = afl(rate=0.1)
    inner, expected = plain.init({}, FederationFacts(jnp.asarray(count), T)), []
    for _ in range(2):
        got, inner = once(plain, count, loss, state=inner)
        expected.append(got)
    got = []
    for _ in range(4):
        each, state = once(rule, count, loss, state=state)
        got.append(each)
    by_records = np.array(count) / 15
    np.testing.assert_allclose(got[:2], [by_records] * 2, rtol=1e-6)
    np.testing.assert_allclose(got[2:], expected, rtol=1e-6)


# -------------------------------------------------------------------------- renormalise


renormalise = jax.jit(simplex.renormalise)


@given(counts, subsets)
def test_renormalised_weights_are_the_rules_on_the_remaining_clients(count, valid):
    got = renormalise(weigh("size", count)[0], valid)
    expected = weigh("size", count, valid=valid)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_renormalise_drops_the_weight_of_an_invalid_client():
    """Without jit: XLA turns 0 * NaN into a select, which would hide a product."""
    weight = jnp.asarray([0.25, math.nan, 0.25, 0.5])
    valid = jnp.asarray([True, False, True, False])
    np.testing.assert_array_equal(simplex.renormalise(weight, valid), [0.5, 0, 0.5, 0])
    np.testing.assert_array_equal(simplex.renormalise(weight, valid & False), [0] * 4)
