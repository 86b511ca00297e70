"""Rules that read losses under client_dp: what they see, and what a client moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairjax.core import layout, round, trees
from fairjax.core.protocols import Population
from fairjax.core.rule import CohortStats, FederationFacts, Rule
from fairjax.core.types import ClientView, Cohort, Upload
from fairjax.fairness import compose, weights
from fairjax.fairness.afl import afl
from fairjax.fairness.agnostic import agnostic
from fairjax.fairness.gifair import gifair
from fairjax.fairness.ordered_weights import cvar, ordered
from fairjax.fairness.q_ffl import q_ffl
from fairjax.fairness.tier_rules import tier_afl, tier_term
from fairjax.fairness.tilted import term
from fairjax.privacy import client_level
from fairjax.privacy.means import TierLossRelease
from tests import fakes

N, T, D = 8, 3, 6
CLIPS = (0.5, 1.0, 2.0)
BOUND = 1.5
RECORDS = np.array([30, 20, 10], np.int32)
KEY = jax.random.key(3)

SHOWN = {
    "q_ffl": lambda on: q_ffl(q=2.0 * on),
    "term": lambda on: term(t=2.0 * on),
    "cvar": lambda on: cvar(alpha=1 - 0.7 * on),
    "ordered": lambda on: ordered(power=1 - 0.5 * on),
    "gifair": lambda on: gifair(c=0.9 * on, groups="client"),
    "gifair_tier": lambda on: gifair(c=0.9 * on, groups="tier"),
    "afl": lambda on: afl(rate=0.5 * on),
    "agnostic": lambda on: agnostic(rate=0.5 * on, domain="tier"),
    "agnostic_client": lambda on: agnostic(rate=0.5 * on, domain="client"),
    "tier_term": lambda on: tier_term(t=2.0 * on),
    "tier_afl": lambda on: tier_afl(rate=0.5 * on),
}
"""Rule over tiers -> the rule at its neutral setting (0) or at another one (1)."""


def means(noise=0.0, expected=100.0, records=RECORDS):
    expected = jnp.broadcast_to(jnp.asarray(expected, jnp.float32), (T,))
    return TierLossRelease(BOUND, noise, expected, jnp.asarray(records))


def drawn(weighing, case, shown):
    """(released means, the clipped sum before its noise) of a federation."""
    loss, tier, weight, updates, held, valid, masses = case
    population = Population(tier, weight, 1.0)
    protection = client_level.central(
        population, clip=CLIPS, noise_multiplier=0.0, loss_release=shown
    )
    ids, ones = jnp.arange(N, dtype=jnp.int32), jnp.ones(N, jnp.int32)
    cohort = Cohort(ids, tier, valid)
    state, scores = protection.init(), CohortStats(ones, loss)
    given_weights, _, seen = weighing(protection, state, cohort, scores, masses)
    members = ClientView(ids, tier, valid, ones, jnp.ones((N, 2), jnp.int32))

    def one(member, update, mask, weight):
        # As in the round: a client that does not count sends nothing.
        update = jnp.where(member.valid, update * mask, 0)
        message = Upload({"a": update}, {"a": mask}, {})
        return protection.protect(KEY, state, cohort, member, message, weight, weight)

    change, _ = trees.sum_first(jax.vmap(one)(members, updates, held, given_weights))
    return seen, change[0]["a"]


def shown_tiers(protection, state, cohort, scores, masses):
    """The protection's weights. The rule reports what it sees; its weights are any."""
    rule = Rule(lambda masses, cohort, scores: (masses, scores.loss))
    return protection.weights(KEY, state, rule, masses, cohort, scores)


def shown_hospitals(protection, state, cohort, scores, masses):
    """Wrong weights: a tilt that is normalised over the cohort, of mean 1."""
    tilted, _ = term(t=3.0).weights((), cohort, scores)
    return N * tilted, tilted, scores.loss


released = jax.jit(functools.partial(drawn, shown_tiers, shown=means()))
raw = jax.jit(functools.partial(drawn, shown_hospitals, shown=means()))

LOSSES = st.one_of(
    st.floats(0, 5, width=32),
    st.sampled_from([np.inf, -np.inf, np.nan, BOUND, 0.0, 1e30]),
)


@st.composite
def neighbours(draw):
    """(a federation, its neighbour, the tiers of the client that differs)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    loss = np.array(draw(st.lists(LOSSES, min_size=N, max_size=N)), np.float32)
    scale = 10.0 ** rng.uniform(-3, 2, (N, 1))
    case = [
        loss,
        rng.integers(0, T, N).astype(np.int32),
        rng.uniform(0, 3, N).astype(np.float32),
        (scale * rng.normal(size=(N, D))).astype(np.float32),
        (rng.random((N, D)) < draw(st.sampled_from([0.2, 1.0]))).astype(np.float32),
        rng.random(N) < 0.8,
        rng.dirichlet(np.full(T, 0.5)).astype(np.float32),
    ]
    who = draw(st.integers(0, N - 1))
    case[5][who] = True
    other = [part.copy() for part in case]
    tiers = [int(case[1][who])]
    if draw(st.booleans()):
        other[5][who] = False
    else:
        other[0][who] = draw(LOSSES)
        other[1][who] = draw(st.integers(0, T - 1))
        other[3][who] = -case[3][who]
        tiers.append(int(other[1][who]))
    return case, other, tiers


def moved(run, case, other):
    (seen, change), (seen_of_other, change_of_other) = run(case), run(other)
    return np.subtract(seen, seen_of_other), np.subtract(change, change_of_other)


@given(neighbours())
def test_one_hospital_moves_losses_by_half_their_bound_and_the_sum_by_its_clip(pair):
    """Another client in its place moves them by twice that, at any weights."""
    case, other, tiers = pair
    losses, change = moved(released, case, other)
    # The means are over so many clients that none is cut at 0 or at the bound.
    assert np.linalg.norm(100 * losses) <= len(tiers) * BOUND / 2 * (1 + 1e-3)
    bound = sum(CLIPS[tier] for tier in tiers)
    assert np.linalg.norm(change) <= bound * (1 + 1e-4) + 1e-5


def test_weights_that_see_who_came_move_the_sum_by_more_than_any_clip():
    """The measurement of the test above detects wrong weights."""
    loss = np.zeros(N, np.float32)
    loss[0] = 5.0
    updates = np.zeros((N, D), np.float32)
    updates[:, 0] = 1.0
    everybody = np.ones(N, bool)
    tier, ones = np.ones(N, np.int32), np.ones(N, np.float32)
    masses = np.ones(T, np.float32) / T
    case = [loss, tier, ones, updates, np.ones((N, D), np.float32), everybody, masses]
    other = [*case]
    other[5] = np.arange(N) > 0
    _, change = moved(raw, case, other)
    assert np.linalg.norm(change) > 5 * CLIPS[1]
    _, change = moved(released, case, other)
    assert np.linalg.norm(change) <= CLIPS[1] * (1 + 1e-4)


# ----------------------------------------------------------------------- what is seen


def test_means_are_those_of_bounded_losses_over_who_is_expected():
    loss = jnp.asarray([0.5, 1.0, np.nan, np.inf, 0.25, 9.0], jnp.float32)
    tier = jnp.asarray([0, 0, 1, 1, 2, 2], jnp.int32)
    valid = jnp.asarray([True, True, True, True, True, False])
    shown = means(expected=2.0)
    sums = jnp.sum(jax.vmap(shown.centred_loss)(tier, valid, loss), axis=0)
    # An absent client counts as half the bound: 0.25 and 0.75 in a tier of two.
    np.testing.assert_allclose(shown.release(KEY, sums), [0.75, BOUND, 0.5], rtol=1e-6)


def test_noise_is_in_half_bounds_and_stays_within_what_is_possible():
    shown = means(noise=3.0, expected=50.0)
    keys = jax.random.split(KEY, 1000)
    seen = np.asarray(jax.vmap(lambda key: shown.release(key, jnp.zeros(T)))(keys))
    assert np.std(seen) == pytest.approx(3 * BOUND / 2 / 50, rel=0.08)
    assert np.mean(seen) == pytest.approx(BOUND / 2, rel=0.01)
    few = means(noise=3.0, expected=0.1)
    seen = np.asarray(jax.vmap(lambda key: few.release(key, jnp.zeros(T)))(keys))
    assert (seen.min(), seen.max()) == (0, BOUND)


@pytest.mark.parametrize("name", SHOWN)
def test_a_rule_weighs_tiers_and_is_fedavg_at_its_neutral_setting(name):
    worst_last = jnp.asarray([0.2, 0.4, 0.9])
    for on in (0, 1):
        rule = compose.tier_rule(SHOWN[name](on), tuple(RECORDS.tolist()))
        assert not rule.full_participation
        state = rule.init({}, FederationFacts(jnp.ones(N, jnp.int32), T))
        for _ in range(2):
            factors, state = means().factors(rule, state, worst_last)
            factors = np.asarray(factors)
            total = np.sum(factors * RECORDS / RECORDS.sum())
            assert total == pytest.approx(1, rel=1e-5)
            if not on:
                np.testing.assert_allclose(factors, 1, rtol=1e-5)
        if on:
            assert factors[2] > 1.05
            assert factors[0] < 0.95


@given(seed=st.integers(0, 2**16), cap=st.sampled_from([1.0, 1.5, 4.0]))
def test_no_noise_makes_a_factor_larger_than_the_cap(seed, cap):
    capped = compose.with_cap(term(t=50.0), cap)
    shown = means(noise=10.0, expected=1.0)
    seen = shown.release(jax.random.key(seed), jnp.zeros(T))
    factors, _ = shown.factors(capped, (), seen)
    assert np.all(factors >= 0)
    assert np.all(factors <= cap * (1 + 1e-5))


def test_a_tier_without_hospitals_gets_nothing_and_takes_nothing():
    shown = means(expected=(2.0, 0.0, 2.0), records=np.array([30, 0, 10], np.int32))
    for rule in (term(t=1.0), tier_term(t=1.0)):
        rule = compose.tier_rule(rule, (30, 0, 10))
        state = rule.init({}, FederationFacts(jnp.ones(N, jnp.int32), T))
        factors, _ = shown.factors(rule, state, jnp.asarray([0.5, BOUND / 2, 0.5]))
        np.testing.assert_allclose(factors, [1, 0, 1], rtol=1e-6)


# ------------------------------------------------------------------------ in the round


OF_TIERS = np.array([10, 7 + 5, 23], np.int32)
"""Records of `fakes.COUNTS` by tier."""


def spec_of(rule, shown):
    share = np.asarray(fakes.COUNTS, np.float32) / np.mean(fakes.COUNTS)
    public = Population(jnp.asarray([0, 1, 2, 1]), jnp.asarray(share, jnp.float32), 1.0)
    protection = client_level.central(
        public, clip=(1e6,) * T, noise_multiplier=0.0, loss_release=shown
    )
    return fakes.spec(rule=rule, protection=protection, epochs=1)


def moves(rule=None, shown=None, who=(True,) * 4):
    """(change of a leaf, report) of a round with these clients."""
    data = fakes.federation()
    spec = spec_of(weights.size() if rule is None else rule, shown)
    state = fakes.start(spec, data)
    cohort = fakes.cohort(valid=who)
    new, info = round.step(state, data, cohort, spec=spec, layout=layout.vmapped())
    change = trees.subtract(new.params, state.params)
    return change["hidden0"]["kernel"], info


def test_the_round_moves_by_factors_of_tiers_from_losses_at_the_incoming_model():
    shown = means(expected=(1.0, 2.0, 1.0), records=OF_TIERS)
    alone = jax.jit(lambda who: moves(who=who))
    single = [np.asarray(alone(row)[0]) for row in np.eye(4, dtype=bool)]
    whole, plain = alone(np.ones(4, bool))
    neutral, info = jax.jit(lambda: moves(term(t=0.0), shown))()
    np.testing.assert_allclose(neutral, whole, atol=1e-6)
    np.testing.assert_allclose(info.weights, plain.weights, rtol=1e-6)

    # By hand: the mean of the clients' losses, and each change by its own factor.
    bounded = np.minimum(np.asarray(info.incoming_losses), BOUND)
    seen = np.array([bounded[0], (bounded[1] + bounded[3]) / 2, bounded[2]])
    tilt = OF_TIERS * np.exp(2 * seen)
    factor = (tilt / tilt.sum() / (OF_TIERS / OF_TIERS.sum()))[[0, 1, 2, 1]]
    share = np.asarray(fakes.COUNTS) * factor
    moved_by, info = jax.jit(lambda: moves(term(t=2.0), shown))()
    np.testing.assert_allclose(info.weights, share / np.sum(share), rtol=1e-4)
    expected = sum(f * change for f, change in zip(factor, single, strict=True))
    np.testing.assert_allclose(moved_by, expected, atol=1e-6)
    assert np.abs(expected - np.asarray(whole)).max() > 1e-3


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.5, 4.0])
@pytest.mark.parametrize(
    ("rate", "first", "second"), [(0.1, 0.8, 1.2), (0.5, 0.5, 0.4)]
)
def test_no_second_release_of_a_sample_adds_more_than_its_noise(
    alpha, rate, first, second
):
    """The docstring's bound under "replace_one": reached, and never exceeded.

    A client's second addend may be anything of norm `second`, chosen for every value
    that the first release takes.
    """
    grid, step = np.linspace(-8, 8, 241, retstep=True)

    def law(mean):
        return np.exp(-((grid - mean) ** 2) / 2) / np.sqrt(2 * np.pi)

    def divergence(p, q):
        return np.maximum(p - alpha * q, 0).sum(-1) * step

    def mixture(one, two):
        absent = law(0)[:, None] * law(0)
        return (1 - rate) * absent + rate * law(one)[:, None] * law(two)

    sizes = second * np.array([-1, 0, 0.5, 1])
    worst = 0.0
    for other in (-first, 0, first):
        by_choice = [
            divergence(mixture(first, v), mixture(other, w))
            for v in sizes
            for w in sizes
        ]
        worst = max(worst, np.max(by_choice, axis=0).sum() * step)
    both = np.hypot(first, second)
    pair = [(1 - rate) * law(0) + rate * law(sign * both) for sign in (1, -1)]
    assert worst == pytest.approx(float(divergence(*pair)), abs=2e-4)
