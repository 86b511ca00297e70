"""Every rule that weights by losses against its equation."""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, FederationFacts
from fairjax.core.types import Cohort, GroupStats
from fairjax.fairness.afl import afl
from fairjax.fairness.agnostic import agnostic
from fairjax.fairness.fairfed import fairfed
from fairjax.fairness.gifair import gifair
from fairjax.fairness.ordered_weights import cvar, ordered
from fairjax.fairness.q_ffl import q_ffl
from fairjax.fairness.tier_rules import tier_afl, tier_equal, tier_gap, tier_term
from fairjax.fairness.tilted import term
from tests.fairness.rules import (
    TIERS,
    K,
    T,
    cohort,
    common,
    counts,
    once,
    scores,
    subsets,
    weigh,
)

# ----------------------------------------------------------------------- q-FFL and TERM


@given(st.sampled_from([1, 9]), counts, common, subsets.filter(np.any))
def test_q_ffl_is_its_equation_in_float64(q, count, loss, valid):
    raw = valid * count.astype(float) * loss.astype(float) ** q
    got = weigh(f"q_ffl_{q}", count, loss, valid)[0]
    np.testing.assert_allclose(got, raw / raw.sum(), rtol=2e-5)


@given(counts, common, subsets.filter(np.any))
def test_term_is_its_equation_in_float64(count, loss, valid):
    raw = valid * count * np.exp(2.0 * loss.astype(float))
    got = weigh("term", count, loss, valid)[0]
    np.testing.assert_allclose(got, raw / raw.sum(), rtol=1e-4, atol=1e-12)


def test_terms_weights_are_the_gradient_of_the_tilted_loss():
    count, t = np.array([1.0, 2, 3, 4, 5]), 1.5
    tilted = lambda loss: jnp.log(jnp.sum(count / 15 * jnp.exp(t * loss))) / t  # noqa: E731
    loss = jnp.asarray([0.3, 0.1, 2.0, 1.0, 0.7])
    got, _ = once(term(t=t), count, loss)
    np.testing.assert_allclose(got, jax.grad(tilted)(loss), rtol=1e-5)


@given(st.sampled_from([1, 9]), counts, common, st.floats(1.01, 100))
def test_a_larger_loss_weighs_more_and_takes_from_the_others(q, count, loss, factor):
    before = weigh(f"q_ffl_{q}", count, loss)[0]
    after = weigh(f"q_ffl_{q}", count, loss * np.float32([factor, 1, 1, 1, 1]))[0]
    assert after[0] >= before[0] * (1 - 1e-5)
    assert np.all(after[1:] <= before[1:] * (1 + 1e-5))
    if 1e-3 < before[0] < 0.99:
        assert after[0] > before[0]


@pytest.mark.parametrize(
    "rule",
    [
        q_ffl(q=1e4),
        term(t=1e7),
        cvar(alpha=1e-7),
        ordered(power=1e-7),
    ],
)
def test_the_limit_is_the_worst_client_alone(rule):
    """However small the client is, and on whichever side of 1 the losses are."""
    count = [10**6, 10**6, 1, 10**6, 10**6]
    for scale in (1e-3, 1.0, 1e6):
        loss = scale * np.array([0.5, 0.9, 1.0, 0.1, 2.0])
        got, _ = once(rule, count, loss, np.arange(K) < 4)
        np.testing.assert_allclose(got, [0, 0, 1, 0, 0], atol=1e-5)


def test_clients_that_fit_perfectly_fall_back_to_their_sizes():
    """A loss of 0 is floored, so that the cohort still counts."""
    got = weigh("q_ffl_9", [1, 2, 3, 4, 10], np.zeros(K, np.float32))[0]
    np.testing.assert_allclose(got, np.array([1, 2, 3, 4, 10]) / 20, rtol=1e-5)


@pytest.mark.parametrize("q", [-1.0, -1e-9, math.nan, math.inf])
def test_q_must_be_a_number_from_zero_up(q):
    with pytest.raises(require.InputError, match=r"^q: expected .* >= 0"):
        q_ffl(q=q)


# ------------------------------------------------------------------------- by loss rank


@given(counts, common, st.floats(0.05, 1.0))
def test_cvar_maximises_over_its_set(count, loss, alpha):
    """Weights in {w : sum w = 1, w <= p / alpha}, greedily filled from the worst."""
    share, left = count / count.sum(), 1.0
    expected = np.zeros(K)
    for k in np.argsort(-loss, kind="stable"):
        expected[k] = min(share[k] / alpha, left)
        left -= expected[k]
    got, _ = once(cvar(alpha=alpha), count, loss)
    assert np.all(got <= share / alpha * (1 + 1e-4) + 1e-6)
    # Ties may be shared differently; the objective is the same.
    np.testing.assert_allclose(got @ loss, expected @ loss, rtol=1e-4)


def test_ordered_weights_by_hand():
    """Power 1/2: square roots of the cumulated shares 0.1, 0.3, 0.6, 1, worst first."""
    rule = ordered(power=0.5)
    got, _ = once(rule, [3, 1, 4, 2, 9], [2, 4, 1, 3, 9], np.arange(K) < 4)
    root = np.sqrt([0, 0.1, 0.3, 0.6, 1])
    expected = [root[3] - root[2], root[1], root[4] - root[3], root[2] - root[1], 0]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@given(counts, common)
def test_gifair_is_the_gradient_of_its_objective(count, loss):
    """sum p F + lambda sum over pairs |F_i - F_j|, lambda = c min p / (K - 1)."""
    share = count / count.sum()
    strength = 0.9 * share.min() / (K - 1)
    sign = np.sign(loss[:, None] - loss).sum(1)
    got, _ = once(gifair(c=0.9, groups="client"), count, loss)
    np.testing.assert_allclose(got, share + strength * sign, rtol=1e-4, atol=1e-7)


def test_gifair_by_tier_by_hand():
    """Tier means 2.5, 6, 9: ranks -2, 0, 2; lambda = 0.5 min p |A| / 2 = 0.5 * 0.05."""
    count, loss = [1, 2, 3, 1, 3], [3, 2, 7, 9, 5]
    got, _ = once(gifair(c=0.5, groups="tier"), count, loss)
    # p |A| = (2, 4, 6, 1, 6) / 10, so lambda = 0.5 * 0.1 / 2.
    expected = np.array([1, 2, 3, 1, 3]) / 10 + 0.025 * np.array([-1, -1, 0, 2, 0])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# ------------------------------------------------------------------------------- ascent


@given(
    arrays(np.float64, K, elements=st.floats(-3, 3)),
    arrays(np.float64, K, elements=st.floats(0, 0.2)),
    arrays(np.float64, K, elements=st.floats(0.2, 1.5)),
)
def test_the_projection_is_the_solution_of_its_quadratic_programme(point, low, high):
    """Optimality: x lies in its box and sums to 1; tau separates free from bound."""
    got = np.asarray(simplex.project(*map(jnp.asarray, (point, low, high))))
    np.testing.assert_allclose(got.sum(), 1, rtol=1e-5)
    assert np.all((low - 1e-6 <= got) & (got <= high + 1e-6))
    tau = got - point
    free = (got > low + 1e-5) & (got < high - 1e-5)
    if free.any():
        middle = tau[free].mean()
        np.testing.assert_allclose(tau[free], middle, atol=1e-4)
        assert np.all(tau[got <= low + 1e-5] >= middle - 1e-4)
        assert np.all(tau[got >= high - 1e-5] <= middle + 1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_projection_against_a_solver(seed):
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    point = rng.normal(size=7)
    found = minimize(
        lambda x: np.sum((x - point) ** 2),
        np.full(7, 1 / 7),
        jac=lambda x: 2 * (x - point),
        bounds=[(0, 1)] * 7,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    got = simplex.project(jnp.asarray(point), jnp.zeros(7), jnp.ones(7))
    np.testing.assert_allclose(got, found.x, atol=1e-6)


def test_afl_weighs_by_lambda_and_then_climbs():
    rule, count = afl(rate=0.1), [1, 1, 1, 1, 4]
    state = rule.init({}, FederationFacts(jnp.asarray(count), T))
    loss = [1.0, 2.0, 0.0, 0.5, 1.0]
    first, state = once(rule, count, loss, state=state)
    np.testing.assert_allclose(first, np.array(count) / 8, rtol=1e-6)
    second, state = once(rule, count, loss, state=state)
    # (0.225, 0.325, 0.125, 0.175, 0.6) minus 0.45 / 5 each.
    np.testing.assert_allclose(second, [0.135, 0.235, 0.035, 0.085, 0.51], rtol=1e-5)
    third, _ = once(rule, count, loss, state=state)
    # 0.235 0.435 0.035 0.135 0.61 sum to 0.45 too much; 0.035 becomes 0.
    raw = np.array([0.235, 0.435, 0.035, 0.135, 0.61])
    expected = np.maximum(raw - (raw.sum() - 0.035 - 1) / 4, 0)
    expected[2] = 0
    np.testing.assert_allclose(third, expected, rtol=1e-4)


def test_agnostic_is_exponentiated_gradient_on_its_domains():
    rule, count = agnostic(rate=0.5, domain="tier"), np.array([1, 2, 3, 4, 5])
    state = rule.init({}, FederationFacts(jnp.asarray(count), T))
    loss = np.array([1.0, 2.0, 0.5, 3.0, 0.1])
    lam = np.array([3, 8, 4]) / 15
    mean = [(1 + 4) / 3, (1.5 + 0.5) / 8, 3]
    for _ in range(3):
        got, state = once(rule, count, loss, state=state)
        expected = lam[TIERS] * count / np.array([3, 8, 4])[TIERS]
        np.testing.assert_allclose(got, expected, rtol=1e-4)
        lam = lam * np.exp(0.5 * np.array(mean))
        lam /= lam.sum()


def test_agnostic_by_patient_group_weighs_clients_by_their_patients():
    """Client 3 has all patients of group 1; the unknown ones of 4 are a domain too."""
    rule = agnostic(rate=1.0, domain="group")
    count = np.zeros((K, 3, 2))
    count[[0, 1, 2], 0, 0], count[3, 1, 1], count[4, 2, 0] = 10, 10, 10
    loss = count * np.array([1.0, 3.0, 2.0])[:, None]
    group_stats = GroupStats(*map(jnp.float32, (count, loss, count)))
    known = CohortStats(jnp.full(K, 10), jnp.ones(K), group_stats)
    _, state = rule.weights(
        rule.init({}, FederationFacts(jnp.full(K, 10), T, 2)), cohort(), known
    )
    got, _ = rule.weights(state, cohort(), known)
    expected = np.exp([1, 1, 1, 3, 2])
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "make_rule",
    [
        lambda **of: agnostic(rate=0.5, **of),
        lambda **of: gifair(c=0.9, groups=of.pop("domain"), **of),
    ],
)
def test_client_groups_are_tiers_by_another_name(make_rule):
    """For a cohort in any order and with any tiers."""
    order, count = [3, 0, 4, 2, 1], [5, 1, 3, 2, 4]
    tiers = np.array([0, 0, 1, 1, 2], np.int32)
    rules = (
        make_rule(domain="tier"),
        make_rule(domain="client_group", client_groups=tuple(tiers.tolist())),
    )
    got = []
    for rule, tier in zip(rules, (tiers[order], np.zeros(K, np.int32)), strict=True):
        state = rule.init({}, FederationFacts(jnp.ones(K, int), T))
        turned = cohort(client=order, tier=tier)
        for loss in ([1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]):
            weight, state = rule.weights(state, turned, scores(count, np.float32(loss)))
        got.append(weight)
    np.testing.assert_allclose(*got, rtol=1e-6)
    assert np.ptp(np.asarray(got[0])) > 0.05


# -------------------------------------------------------------------------------- tiers


def by_tier(got):
    return np.array([got[TIERS == t].sum() for t in range(T)])


def test_tier_term_tilts_between_and_averages_inside():
    count, loss = np.array([1, 2, 3, 4, 5]), np.array([1.0, 2.0, 0.5, 0.2, 0.1])
    got, _ = once(tier_term(t=2.0), count, loss, state=jnp.zeros(T))
    mass = np.array([3, 8, 4]) * np.exp(2 * np.array([5 / 3, 2 / 8, 0.2]))
    np.testing.assert_allclose(by_tier(got), mass / mass.sum(), rtol=1e-5)
    np.testing.assert_allclose(got[1] / got[0], 2, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_tier_equal_levels_the_tiers_that_are_present(strength):
    rule, count = tier_equal(strength=strength), np.array([1, 2, 3, 4, 5])
    got, _ = once(rule, count, valid=TIERS < 2, state=jnp.zeros(T))
    mass = np.array([3.0, 8.0, 0]) ** (1 - strength) * [1, 1, 0]
    np.testing.assert_allclose(by_tier(got), mass / mass.sum(), rtol=1e-5)


def test_tier_gap_raises_a_tier_as_long_as_it_is_behind():
    rule, count = tier_gap(rate=2.0), np.array([2, 2, 2, 4, 2])
    loss = np.array([1.0, 1.0, 0.25, 0.0, 0.25])
    accuracy = np.array([0.5, 0.8, 1.0])
    first, state = once(
        rule, count, loss, state=rule.init({}, FederationFacts(jnp.asarray(count), T))
    )
    raw = np.exp(2 * (1 - accuracy))
    np.testing.assert_allclose(by_tier(first), raw / raw.sum(), rtol=1e-5)
    second, state = once(rule, count, loss, state=state)
    np.testing.assert_allclose(by_tier(second), raw**2 / (raw**2).sum(), rtol=1e-5)
    level, _ = once(rule, count, np.ones(K), state=state)
    np.testing.assert_allclose(level, second, rtol=1e-5)


def test_tier_afl_by_hand():
    rule, count = tier_afl(rate=0.1), np.array([1, 1, 3, 2, 3])
    loss = np.array([2.0, 2.0, 1.0, 0.0, 1.0])
    first, state = once(
        rule, count, loss, state=rule.init({}, FederationFacts(jnp.asarray(count), T))
    )
    np.testing.assert_allclose(by_tier(first), [0.2, 0.6, 0.2], rtol=1e-6)
    second, _ = once(rule, count, loss, state=state)
    np.testing.assert_allclose(by_tier(second), [0.3, 0.6, 0.1], rtol=1e-5)


# ----------------------------------------------------------------------- patient groups


def test_fairfed_by_hand():
    """Sensitivity gaps of 0.5 and 0; without positives in group 1 accuracy counts."""
    count = np.zeros((3, 3, 2))
    correct = np.zeros((3, 3, 2))
    count[0, :2, 1], correct[0, :2, 1] = [10, 10], [10, 5]
    count[1, :2, 1], correct[1, :2, 1] = [10, 10], [5, 5]
    count[2, 0], correct[2, 0] = [10, 10], [10, 5]
    cells = GroupStats(*map(jnp.float32, (count, count, correct)))
    known = CohortStats(jnp.full(3, 20), jnp.ones(3), cells)
    who = Cohort(jnp.arange(3), jnp.zeros(3, jnp.int32), jnp.ones(3, bool))
    rule = fairfed(beta=0.5)
    state = rule.init({}, FederationFacts(jnp.full(3, 20), 1))
    # All clients together: 20 of 30 in group 0, 10 of 20 in group 1; accuracy 40 / 60.
    gap, accuracy = 20 / 30 - 10 / 20, 40 / 60
    deviation = np.array([abs(gap - 0.5), abs(gap), abs(accuracy - 0.75)])
    v = np.full(3, 1 / 3)
    for _ in range(2):
        got, state = rule.weights(state, who, known)
        v = np.maximum(v - 0.5 * (deviation - deviation.mean()), 0)
        np.testing.assert_allclose(got, v / v.sum(), rtol=1e-4)
