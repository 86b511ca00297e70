"""No rule takes mass from a domain that was absent, or forgets one it has not seen."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from fairjax.core.rule import CohortStats, FederationFacts
from fairjax.core.types import Cohort, GroupStats
from fairjax.fairness.afl import afl
from fairjax.fairness.agnostic import agnostic
from fairjax.fairness.fairfed import fairfed
from fairjax.fairness.fedce import fedce
from fairjax.fairness.tier_rules import tier_afl, tier_gap

N, ROUNDS = 10, 200
COUNT = np.array([20, 5, 30, 20, 40, 10, 20, 15, 20, 60], np.float32)
DOMAIN = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 2], np.int32)
"""Every client's tier, which is also its client group and its patients' group."""
DOMAIN_OPTIONS = {
    "tier": {},
    "client": {},
    "client_group": {"client_groups": tuple(DOMAIN.tolist())},
    "group": {},
}
RULES = {
    **{
        f"agnostic_{name}": agnostic(rate=0.5, domain=name, **more)
        for name, more in DOMAIN_OPTIONS.items()
    },
    "tier_afl": tier_afl(rate=0.1),
    "tier_gap": tier_gap(rate=2.0),
}
"""All rules that climb and take any cohort. (`afl` needs full participation.)"""


def stats(loss) -> CohortStats:
    """Patients of group 2 have an unknown group; the accuracy is 1 / (1 + loss)."""
    place = jnp.asarray(DOMAIN)[:, None, None] == jnp.arange(3)[:, None]
    count = jnp.where(place, jnp.asarray(COUNT)[:, None, None], 0)
    loss = loss[:, None, None]
    return CohortStats(
        jnp.asarray(COUNT, jnp.int32),
        loss[:, 0, 0],
        GroupStats(count, count * loss, count / (1 + loss)),
    )


def present_cohort(valid) -> Cohort:
    return Cohort(jnp.arange(N), jnp.asarray(DOMAIN), valid)


@functools.cache
def long_run(name):
    """(losses, log presence, K, seed) -> weights of all N after `ROUNDS` cohorts."""
    rule = RULES[name]

    def run(loss, presence, size, seed):
        def once(state, key):
            order = jnp.argsort(-presence - jax.random.gumbel(key, (N,)))
            valid = jnp.argsort(order) < size
            return rule.weights(state, present_cohort(valid), stats(loss))[1], None

        keys = jax.random.split(jax.random.key(seed), ROUNDS)
        start = rule.init({}, FederationFacts(jnp.asarray(COUNT, jnp.int32), 3, 2))
        state, _ = jax.lax.scan(once, start, keys)
        return rule.weights(state, present_cohort(jnp.ones(N, bool)), stats(loss))[0]

    return jax.jit(jax.vmap(run, in_axes=(None, None, 0, 0)))


SIZES = jnp.arange(1, N + 1)
LOG_PRESENCE = jnp.log(jnp.asarray([0.1, 0.1, *[1.0] * 8], jnp.float32))
"""Log-odds of being in a cohort: clients of domain 0 seldom are."""


@pytest.mark.parametrize("name", RULES)
def test_with_equal_losses_nobody_gains_or_loses_in_any_cohorts(name):
    loss = jnp.full(N, 0.6)
    got = long_run(name)(loss, LOG_PRESENCE, SIZES, SIZES)
    share = np.tile(COUNT / COUNT.sum(), (N, 1))
    np.testing.assert_allclose(got, share, rtol=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_the_domain_that_is_served_worst_gains_however_seldom_it_is_present(name):
    """Another domain is present often and served nearly as badly.

    In cohorts of one client no domains are compared.
    """
    loss = jnp.asarray([1.2, 1.2, 1.0, 1.0, 1.0, *[0.1] * 5])
    got = np.asarray(long_run(name)(loss, LOG_PRESENCE, SIZES, SIZES))[:, :2].sum(1)
    share = COUNT[:2].sum() / COUNT.sum()
    assert np.all(got >= share * (1 - 1e-4))
    assert np.all(got[1:] > 1.2 * share)


@functools.cache
def stepping(name):
    rule = RULES[name]
    return jax.jit(
        lambda state, valid, loss: rule.weights(
            state, present_cohort(valid), stats(loss)
        )
    )


cohorts = st.lists(arrays(bool, N), min_size=2, max_size=6)
losses = arrays(np.float32, N, elements=st.floats(0, 4, width=32))


@given(st.sampled_from(sorted(RULES)), cohorts, losses)
def test_masses_of_absent_domains_stay(name, visits, loss):
    rule, step = RULES[name], stepping(name)
    state = rule.init({}, FederationFacts(jnp.asarray(COUNT, jnp.int32), 3, 2))
    for valid in visits:
        before, (_, state) = state, step(state, valid, loss)
    domain_of = np.arange(N) if name == "agnostic_client" else DOMAIN
    absent = np.setdiff1d(domain_of, domain_of[valid])

    def masses(scale):
        multiplier = (
            np.float64(scale) if name == "tier_afl" else np.exp(np.float64(scale))
        )
        return state.records * multiplier / np.sum(state.records * multiplier)

    if np.any(valid):
        masses_of_absent = masses(before.scale)[absent], masses(state.scale)[absent]
        np.testing.assert_allclose(*masses_of_absent, rtol=1e-4, atol=1e-7)


def test_if_all_are_present_the_step_is_the_published_one_to_the_bit():
    rule, rng = agnostic(rate=0.5, domain="client"), np.random.default_rng(0)
    step = jax.jit(
        lambda state, loss: rule.weights(state, present_cohort(True), stats(loss))[1]
    )
    state = rule.init({}, FederationFacts(jnp.asarray(COUNT, jnp.int32), 3, 2))
    scale = np.zeros(N, np.float32)
    for _ in range(5):
        # These losses make sums over records exact.
        loss = rng.integers(0, 32, N).astype(np.float32) / 8
        state = step(state, loss)
        scale += np.float32(0.5) * loss
        scale -= scale.max()
        np.testing.assert_array_equal(state.scale, scale)


# ------------------------------------ rules for full participation and absent clients


def test_afl_gives_no_client_the_mass_of_absent_ones():
    """The only client in the cohort has no mass."""
    rule = afl(rate=0.5)
    state = jnp.asarray([0.0, 0.6, 0.4, *[0.0] * 7])
    got, state = rule.weights(
        state, present_cohort(jnp.arange(N) == 0), stats(jnp.ones(N))
    )
    np.testing.assert_allclose(got[0], 1)
    np.testing.assert_allclose(state, [0, 0.6, 0.4, *[0.0] * 7], atol=1e-7)


def test_fairfed_leaves_an_absent_client_its_share_of_all():
    """One of three present clients falls to 0, which raises the sum of the three."""
    rule = fairfed(beta=2.0)
    right = jnp.asarray([0.9, 0.5, 0.5, 0.5, *[0.0] * 6])[:, None, None]
    scores = stats(jnp.ones(N))
    assert scores.group_stats is not None
    # No client has positives: accuracies are compared.
    scores = scores._replace(
        group_stats=scores.group_stats._replace(
            correct=scores.group_stats.count * right
        )
    )
    before = rule.init({}, FederationFacts(jnp.asarray(COUNT, jnp.int32), 1))
    _, after = rule.weights(before, present_cohort(jnp.arange(N) < 3), scores)
    assert after[0] == 0
    np.testing.assert_allclose((after / after.sum())[3:], before[3:], rtol=1e-5)


def test_fedce_takes_means_over_the_rounds_of_a_client():
    """All clients are alike; the first missed four rounds of six."""
    rule = fedce(mode="plus")
    changes = {"a": jnp.concatenate([jnp.eye(N), jnp.ones((N, 1))], axis=1)}
    scores = CohortStats(
        jnp.full(N, 10),
        delta=changes,
        cover=jax.tree.map(jnp.ones_like, changes),
        errors=lambda _: jnp.ones(N),
    )
    state, got = rule.init({}, FederationFacts(jnp.full(N, 10), 1)), jnp.zeros(N)
    for number in range(6):
        valid = jnp.ones(N, bool).at[0].set(number in (0, 5))
        got, state = rule.weights(state, present_cohort(valid), scores)
    np.testing.assert_allclose(got, 1 / N, rtol=0.05)
