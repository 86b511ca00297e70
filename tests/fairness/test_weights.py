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

from fairjax.core import require, simplex
from fairjax.core.types import Cells, Cohort, Scores
from fairjax.fairness import compose, domains, groups, weights
from tests.fairness.rules import NEUTRAL, RULES, TIERS, K, T, cohort, scores

ROUNDS = 3
rules = st.sampled_from(sorted(RULES))
counts = arrays(np.int32, K, elements=st.integers(1, 2**20))
losses = arrays(np.float32, K, elements=st.floats(0, 2.0**99, width=32))
common = arrays(np.float32, K, elements=st.floats(2.0**-6, 2.0**4, width=32))
subsets = arrays(bool, K)
dtypes = st.sampled_from([jnp.float32, jnp.bfloat16])


@functools.cache
def jitted(rule):
    """The weights of every round, from a fresh state, with the same losses."""

    def run(count, loss, valid, client, tier, counts):
        state, each = rule.init({}, counts, T), []
        for _ in range(ROUNDS):
            got, state = rule.weigh(
                state, Cohort(client, tier, valid), scores(count, loss)
            )
            each.append(got)
        return jnp.stack(each)

    return jax.jit(run)


def weigh(name, count, loss=None, valid=None, *, order=None, table=RULES):
    """[ROUNDS, K] weights as a NumPy array; client k of the federation has count[k]."""
    loss = np.ones(K, np.float32) if loss is None else loss
    valid = np.ones(K, bool) if valid is None else valid
    order = np.arange(K) if order is None else np.asarray(order)
    count, loss = np.asarray(count, np.int32), np.asarray(loss)
    args = count[order], loss[order], np.asarray(valid)[order], order, TIERS[order]
    got = jitted(table[name])(*map(jnp.asarray, args), jnp.asarray(count))
    return np.asarray(got.astype(jnp.float32))


# ------------------------------------------------------------------ what all rules obey


@given(rules, counts, losses, subsets, dtypes)
def test_weights_are_a_point_on_the_simplex_of_valid_clients(
    rule, count, loss, valid, dtype
):
    """Whatever the counts and losses, 0 and 1e29 included; nobody valid: all 0."""
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
def test_ties_are_shared_alike(rule, count, valid):
    """Clients with the same loss, tier and records weigh the same."""
    count, loss = np.where(TIERS == 1, 7, count), np.where(TIERS == 1, 1.5, 1.0)
    got = weigh(rule, count, np.float32(loss), valid | (TIERS == 1))
    np.testing.assert_allclose(got[:, 2], got[:, 4], rtol=1e-5)


@given(rules, counts, common, subsets, st.sampled_from([0.0, 1e30, math.nan, math.inf]))
def test_what_fills_a_padded_slot_does_not_matter(rule, count, loss, valid, junk):
    got = weigh(rule, count, np.where(valid, loss, np.float32(junk)), valid)
    np.testing.assert_array_equal(got, weigh(rule, count, loss, valid))


@pytest.mark.parametrize("junk", [math.nan, math.inf])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_client_whose_loss_is_no_number_does_not_spoil_the_others(rule, junk):
    loss = np.float32([1.0, 2.0, junk, 3.0, 4.0])
    without = np.arange(K) != 2
    got = weigh(rule, [3, 1, 4, 1, 5], loss)
    if RULES[rule].needs:
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
def test_what_is_carried_is_finite_at_the_largest_losses(rule):
    """Also where two losses that are finite have a sum that is not."""
    made, state = RULES[rule], RULES[rule].init({}, jnp.full(K, 3), T)
    for loss in ([3e38, 3e38, 1.0, 0.0, 3e38], [0.0] * 5, [3e38] * 5):
        given = scores(np.full(K, 3), jnp.asarray(loss, jnp.float32) / 3)
        got, state = made.weigh(state, cohort(), given)
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
def test_a_rule_says_whether_it_needs_losses(rule):
    made = RULES[rule]
    blind = Scores(jnp.ones(K, jnp.int32))
    state = made.init({}, jnp.ones(K, jnp.int32), T)
    if not made.needs:
        np.testing.assert_allclose(made.weigh(state, cohort(), blind)[0].sum(), 1)
    else:
        assert made.needs == {"loss"}
        with pytest.raises(AssertionError):
            made.weigh(state, cohort(), blind)


@pytest.mark.parametrize("rule", ["q_ffl_1", "gifair_tier", "afl", "agnostic_group"])
def test_rules_run_under_vmap(rule):
    """Several runs in one program, each with losses of its own."""
    losses = jnp.asarray([[1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]])
    state = RULES[rule].init({}, jnp.full(K, 3), T)

    def one(loss):
        return RULES[rule].weigh(state, cohort(), scores([3] * K, loss))[0]

    both = jax.jit(jax.vmap(one))(losses)
    alone = jax.jit(one)
    for got, loss in zip(both, losses, strict=True):
        np.testing.assert_allclose(got, alone(loss), rtol=1e-5)


# --------------------------------------------------------------------- size and uniform


def once(rule, count, loss=None, valid=None, tier=TIERS, state=(), **more):
    """The weights of one round from a given state, and the state after it."""
    loss = np.ones(K, np.float32) if loss is None else loss
    known = scores(np.asarray(count), np.float32(loss))._replace(**more)
    got, after = rule.weigh(state, cohort(valid, tier=tier), known)
    return np.asarray(got), after


@given(counts, subsets.filter(np.any))
def test_size_is_the_share_of_records(count, valid):
    expected = np.where(valid, count, 0) / np.sum(count[valid].astype(float))
    np.testing.assert_allclose(
        weigh("size", count, valid=valid)[0], expected, rtol=1e-5
    )


@given(counts, losses, subsets.filter(np.any))
def test_uniform_counts_every_hospital_once(count, loss, valid):
    got = weigh("uniform", count, loss, valid)[0]
    np.testing.assert_allclose(got, valid / valid.sum())


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


def test_term_weighs_as_the_gradient_of_the_tilted_loss():
    count, t = np.array([1.0, 2, 3, 4, 5]), 1.5
    tilted = lambda loss: jnp.log(jnp.sum(count / 15 * jnp.exp(t * loss))) / t  # noqa: E731
    loss = jnp.asarray([0.3, 0.1, 2.0, 1.0, 0.7])
    got, _ = once(weights.term(t=t), count, loss)
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
        weights.q_ffl(q=1e4),
        weights.term(t=1e7),
        weights.cvar(alpha=1e-7),
        weights.ordered(power=1e-7),
    ],
)
def test_the_limit_is_the_worst_client_alone(rule):
    """However small it is, and whatever side of 1 the losses are on."""
    count = [10**6, 10**6, 1, 10**6, 10**6]
    for scale in (1e-3, 1.0, 1e6):
        loss = scale * np.array([0.5, 0.9, 1.0, 0.1, 2.0])
        got, _ = once(rule, count, loss, np.arange(K) < 4)
        np.testing.assert_allclose(got, [0, 0, 1, 0, 0], atol=1e-5)


def test_clients_that_fit_perfectly_fall_back_to_their_sizes():
    """A loss of 0 is floored, so that the cohort is not thrown away."""
    got = weigh("q_ffl_9", [1, 2, 3, 4, 10], np.zeros(K, np.float32))[0]
    np.testing.assert_allclose(got, np.array([1, 2, 3, 4, 10]) / 20, rtol=1e-5)


@pytest.mark.parametrize("q", [-1.0, -1e-9, math.nan, math.inf])
def test_q_must_be_a_number_from_zero_up(q):
    with pytest.raises(require.InputError, match=r"fairness\.q_ffl\.q: .* >= 0"):
        weights.q_ffl(q=q)


# ------------------------------------------------------------------------ by loss rank


@given(counts, common, st.floats(0.05, 1.0))
def test_cvar_maximises_over_its_set(count, loss, alpha):
    """Weights in {w : sum w = 1, w <= p / alpha}, greedily filled from the worst."""
    share, left = count / count.sum(), 1.0
    expected = np.zeros(K)
    for k in np.argsort(-loss, kind="stable"):
        expected[k] = min(share[k] / alpha, left)
        left -= expected[k]
    got, _ = once(weights.cvar(alpha=alpha), count, loss)
    assert np.all(got <= share / alpha * (1 + 1e-4) + 1e-6)
    # Ties may be shared otherwise; what is maximised is the same.
    np.testing.assert_allclose(got @ loss, expected @ loss, rtol=1e-4)


def test_ordered_weights_by_hand():
    """power 1/2: sqrt of the cumulated shares 0.1, 0.3, 0.6, 1 from the worst."""
    rule = weights.ordered(power=0.5)
    got, _ = once(rule, [3, 1, 4, 2, 9], [2, 4, 1, 3, 9], np.arange(K) < 4)
    root = np.sqrt([0, 0.1, 0.3, 0.6, 1])
    expected = [root[3] - root[2], root[1], root[4] - root[3], root[2] - root[1], 0]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@given(counts, common)
def test_gifair_is_the_gradient_of_its_objective(count, loss):
    """Of sum p F + lambda sum over pairs |F_i - F_j|, lambda = c min p / (K - 1)."""
    share = count / count.sum()
    strength = 0.9 * share.min() / (K - 1)
    sign = np.sign(loss[:, None] - loss).sum(1)
    got, _ = once(weights.gifair(c=0.9, groups="client"), count, loss)
    np.testing.assert_allclose(got, share + strength * sign, rtol=1e-4, atol=1e-7)


def test_gifair_by_tier_by_hand():
    """Tier means 2.5, 6, 9: ranks -2, 0, 2; lambda = 0.5 min p |A| / 2 = 0.5 * 0.05."""
    count, loss = [1, 2, 3, 1, 3], [3, 2, 7, 9, 5]
    got, _ = once(weights.gifair(c=0.5, groups="tier"), count, loss)
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
    """Optimality: x sums to 1 in its box, and one tau separates free from bound."""
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
    rule, count = weights.afl(rate=0.1), [1, 1, 1, 1, 4]
    state = rule.init({}, jnp.asarray(count), T)
    loss = [1.0, 2.0, 0.0, 0.5, 1.0]
    first, state = once(rule, count, loss, state=state)
    np.testing.assert_allclose(first, np.array(count) / 8, rtol=1e-6)
    second, state = once(rule, count, loss, state=state)
    # (0.225, 0.325, 0.125, 0.175, 0.6) minus 0.45 / 5 each.
    np.testing.assert_allclose(second, [0.135, 0.235, 0.035, 0.085, 0.51], rtol=1e-5)
    third, _ = once(rule, count, loss, state=state)
    # 0.235 0.435 0.035 0.135 0.61: 0.45 too much; 0.035 falls out.
    raw = np.array([0.235, 0.435, 0.035, 0.135, 0.61])
    expected = np.maximum(raw - (raw.sum() - 0.035 - 1) / 4, 0)
    expected[2] = 0
    np.testing.assert_allclose(third, expected, rtol=1e-4)


def test_agnostic_is_exponentiated_gradient_on_its_domains():
    rule, count = domains.agnostic(rate=0.5, domain="tier"), np.array([1, 2, 3, 4, 5])
    state = rule.init({}, jnp.asarray(count), T)
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
    """All patients of group 1 are at client 3; 4 has unknown ones, a domain too."""
    rule = domains.agnostic(rate=1.0, domain="group", groups=2)
    count = np.zeros((K, 3, 2))
    count[[0, 1, 2], 0, 0], count[3, 1, 1], count[4, 2, 0] = 10, 10, 10
    loss = count * np.array([1.0, 3.0, 2.0])[:, None]
    made = Cells(*map(jnp.float32, (count, loss, count)))
    known = Scores(jnp.full(K, 10), jnp.ones(K), made)
    _, state = rule.weigh(rule.init({}, jnp.full(K, 10), T), cohort(), known)
    got, _ = rule.weigh(state, cohort(), known)
    expected = np.exp([1, 1, 1, 3, 2])
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "made",
    [
        lambda **of: domains.agnostic(rate=0.5, **of),
        lambda **of: weights.gifair(c=0.9, groups=of.pop("domain"), **of),
    ],
)
def test_groups_of_hospitals_are_tiers_by_another_name(made):
    """For a cohort in any order, whatever the clients' own tiers."""
    order, count = [3, 0, 4, 2, 1], [5, 1, 3, 2, 4]
    tiers = np.array([0, 0, 1, 1, 2], np.int32)
    rules = (
        made(domain="tier"),
        made(domain="hospital_group", hospitals=tuple(tiers.tolist())),
    )
    got = []
    for rule, tier in zip(rules, (tiers[order], np.zeros(K, np.int32)), strict=True):
        state = rule.init({}, jnp.ones(K, int), T)
        here = cohort(client=order, tier=tier)
        for loss in ([1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]):
            weight, state = rule.weigh(state, here, scores(count, np.float32(loss)))
        got.append(weight)
    np.testing.assert_allclose(*got, rtol=1e-6)
    assert np.ptp(np.asarray(got[0])) > 0.05


# -------------------------------------------------------------------------------- tiers


def by_tier(got):
    return np.array([got[TIERS == t].sum() for t in range(T)])


def test_tier_term_tilts_between_and_averages_inside():
    count, loss = np.array([1, 2, 3, 4, 5]), np.array([1.0, 2.0, 0.5, 0.2, 0.1])
    got, _ = once(domains.tier_term(t=2.0), count, loss, state=jnp.zeros(T))
    mass = np.array([3, 8, 4]) * np.exp(2 * np.array([5 / 3, 2 / 8, 0.2]))
    np.testing.assert_allclose(by_tier(got), mass / mass.sum(), rtol=1e-5)
    np.testing.assert_allclose(got[1] / got[0], 2, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_tier_equal_levels_the_tiers_that_are_present(strength):
    rule, count = domains.tier_equal(strength=strength), np.array([1, 2, 3, 4, 5])
    got, _ = once(rule, count, valid=TIERS < 2, state=jnp.zeros(T))
    mass = np.array([3.0, 8.0, 0]) ** (1 - strength) * [1, 1, 0]
    np.testing.assert_allclose(by_tier(got), mass / mass.sum(), rtol=1e-5)


def test_tier_gap_raises_who_is_behind_until_it_is_not():
    rule, count = domains.tier_gap(rate=2.0), np.array([2, 2, 2, 4, 2])
    loss = np.array([1.0, 1.0, 0.25, 0.0, 0.25])
    accuracy = np.array([0.5, 0.8, 1.0])
    first, state = once(rule, count, loss, state=rule.init({}, jnp.asarray(count), T))
    raw = np.exp(2 * (1 - accuracy))
    np.testing.assert_allclose(by_tier(first), raw / raw.sum(), rtol=1e-5)
    second, state = once(rule, count, loss, state=state)
    np.testing.assert_allclose(by_tier(second), raw**2 / (raw**2).sum(), rtol=1e-5)
    level, _ = once(rule, count, np.ones(K), state=state)
    np.testing.assert_allclose(level, second, rtol=1e-5)


def test_tier_afl_by_hand():
    rule, count = domains.tier_afl(rate=0.1), np.array([1, 1, 3, 2, 3])
    loss = np.array([2.0, 2.0, 1.0, 0.0, 1.0])
    first, state = once(rule, count, loss, state=rule.init({}, jnp.asarray(count), T))
    np.testing.assert_allclose(by_tier(first), [0.2, 0.6, 0.2], rtol=1e-6)
    second, _ = once(rule, count, loss, state=state)
    np.testing.assert_allclose(by_tier(second), [0.3, 0.6, 0.1], rtol=1e-5)


# ------------------------------------------------------------------------------- groups


def test_fairfed_by_hand():
    """Sensitivity gaps 0.5, 0 and none (no positives in group 1): accuracy then."""
    count = np.zeros((3, 3, 2))
    right = np.zeros((3, 3, 2))
    count[0, :2, 1], right[0, :2, 1] = [10, 10], [10, 5]
    count[1, :2, 1], right[1, :2, 1] = [10, 10], [5, 5]
    count[2, 0], right[2, 0] = [10, 10], [10, 5]
    cells = Cells(*map(jnp.float32, (count, count, right)))
    known = Scores(jnp.full(3, 20), jnp.ones(3), cells)
    who = Cohort(jnp.arange(3), jnp.zeros(3, jnp.int32), jnp.ones(3, bool))
    rule = groups.fairfed(beta=0.5)
    state = rule.init({}, jnp.full(3, 20), 1)
    # Together: 20 of 30 in group 0, 10 of 20 in group 1; accuracy 40 / 60.
    gap, accuracy = 20 / 30 - 10 / 20, 40 / 60
    away = np.array([abs(gap - 0.5), abs(gap), abs(accuracy - 0.75)])
    v = np.full(3, 1 / 3)
    for _ in range(2):
        got, state = rule.weigh(state, who, known)
        v = np.maximum(v - 0.5 * (away - away.mean()), 0)
        np.testing.assert_allclose(got, v / v.sum(), rtol=1e-4)


# ------------------------------------------------------------------------ cap, warm-up


@given(counts, common, st.floats(1.0, 4.0))
def test_a_cap_holds_and_moves_as_little_as_it_must(count, loss, cap):
    free, _ = once(weights.term(t=9.0), count, loss)
    got, _ = once(compose.capped(weights.term(t=9.0), cap), count, loss)
    share = count / count.sum()
    assert np.all(got <= cap * share * (1 + 1e-4) + 1e-6)
    np.testing.assert_allclose(got.sum(), 1, rtol=1e-4)
    if np.all(free < cap * share):
        np.testing.assert_allclose(got, free, atol=1e-6)


def test_warm_up_weighs_by_records_and_holds_the_state():
    rule, count = compose.after(weights.afl(rate=0.1), 2), [1, 2, 3, 4, 5]
    state = rule.init({}, jnp.asarray(count), T)
    loss = [1.0, 2.0, 0.0, 0.5, 1.0]
    plain = weights.afl(rate=0.1)
    inner, expected = plain.init({}, jnp.asarray(count), T), []
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


# --------------------------------------------------------------------------- over_valid

over_valid = jax.jit(simplex.over_valid)


@given(counts, subsets)
def test_over_valid_is_the_rule_on_those_who_are_left(count, valid):
    got = over_valid(weigh("size", count)[0], valid)
    expected = weigh("size", count, valid=valid)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_over_valid_drops_what_an_invalid_client_has():
    """Not jitted: XLA turns 0 * NaN into a select, which would hide a product."""
    weight = jnp.asarray([0.25, math.nan, 0.25, 0.5])
    valid = jnp.asarray([True, False, True, False])
    np.testing.assert_array_equal(simplex.over_valid(weight, valid), [0.5, 0, 0.5, 0])
    np.testing.assert_array_equal(simplex.over_valid(weight, valid & False), [0] * 4)
