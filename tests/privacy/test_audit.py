"""The audit: its arithmetic, and that it misses the noise where there is none."""

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fairjax import checks, layout
from fairjax.attacks import canaries
from fairjax.privacy import accounting, audit, hospitals
from fairjax.privacy.accounting import Mechanism
from fairjax.privacy.records import Records
from fairjax.types import Population

DELTA = 1e-5


@given(number=st.integers(1, 300), share=st.floats(0, 1), level=st.floats(0.6, 0.999))
def test_upper_is_the_largest_probability_that_the_count_leaves_possible(
    number, share, level
):
    count = round(share * number)
    got = float(audit.upper(np.asarray(count), number, level))
    if count == number:
        assert got == 1
    else:
        assert binom.cdf(count, number, got) == pytest.approx(1 - level, rel=1e-6)


def test_a_perfect_attack_shows_the_ceiling_and_a_useless_one_nothing():
    apart = audit.bound(np.arange(200.0) + 1000, np.arange(200.0), delta=DELTA)
    assert apart.epsilon == pytest.approx(audit.ceiling(100, delta=DELTA))
    assert apart.epsilon == apart.ceiling == pytest.approx(3.281, abs=1e-3)
    assert (apart.false_positives, apart.false_negatives) == (0, 0)
    same = np.random.default_rng(0).normal(size=(2, 200))
    assert audit.bound(*same, delta=DELTA).epsilon == 0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_the_bound_of_a_gaussian_is_below_its_epsilon_and_not_far(sigma):
    rng = np.random.default_rng(1)
    runs = 20_000
    inside, outside = rng.normal(1, sigma, runs), rng.normal(0, sigma, runs)
    claimed = accounting.epsilon(Mechanism(sigma), 1, delta=1e-2)
    found = audit.bound(inside, outside, delta=1e-2).epsilon
    assert 0.3 * claimed < found <= claimed
    # A quarter of the noise that is accounted for.
    loud = audit.bound(4 * inside, outside, delta=1e-2)
    assert loud.epsilon > claimed


def test_scores_that_no_audit_can_use_are_refused():
    ones = np.ones(4)
    for pair in ((ones[:1], ones[:1]), (ones, ones[:3]), (ones, ones * np.nan)):
        with pytest.raises(checks.InputError):
            audit.bound(*pair, delta=DELTA)


# ------------------------------------------------------------------------- in the round

RUNS, ROUNDS = 80, 2
DATA = fakes.federation()
MODEL = fakes.small_mlp(hidden=(8,))
WHO = 1
"""Of seven records."""


def spec_of(mechanism, noise):
    spec = fakes.spec(MODEL, optimizer=optax.sgd(0.05), epochs=1)
    if mechanism == "record":
        dp = Records(0.5, noise, batch_size=4, slots=7, microbatch=7)
        return dataclasses.replace(spec, local=spec.local._replace(dp=dp))
    population = Population(jnp.zeros(4, jnp.int32), jnp.ones(4), 1.0)
    protection = hospitals.central(population, clip=(0.01,), noise_multiplier=noise)
    return dataclasses.replace(spec, protection=protection)


@functools.cache
def runner(mechanism):
    """(keys, noise multiplier, with or without the canary) -> scores."""
    start, member = (
        fakes.start(spec_of(mechanism, 1.0), DATA),
        fakes.member(WHO, 0, DATA),
    )
    row = int(DATA.offset[WHO])
    cohort = fakes.cohort(tiers=(0,) * 4)
    if mechanism == "record":
        pair = canaries.record(DATA, row, fakes.CLASSES)
        cohort = fakes.cohort((WHO,), (0,))
    else:
        pair = canaries.hospital(DATA, WHO, fakes.CLASSES)

    @jax.jit
    def run(drawn, noise, data):
        spec = spec_of(mechanism, noise)
        if mechanism == "record":
            direction = canaries.of_record(pair[0], row, member, spec=spec)
        else:
            direction = canaries.of_hospital(pair[0], member, spec=spec)
        return canaries.scores(
            drawn,
            start,
            data,
            direction,
            lambda state: cohort,
            spec=spec,
            layout=layout.vmapped(),
            rounds=ROUNDS,
            chunk=RUNS,
        )

    return lambda drawn, noise, inside: run(drawn, noise, pair[not inside])


def shown(mechanism, noise):
    """What runs with and without the canary show."""
    drawn = jax.random.split(jax.random.key(0), (2, RUNS))
    run, noise = runner(mechanism), jnp.float32(noise)
    made = [np.asarray(run(drawn[kind], noise, kind == 1)) for kind in (1, 0)]
    return audit.bound(*made, delta=DELTA)


CLAIMS = {
    # Two steps a round, of a record that is in each with probability 4 / 7.
    "record": Mechanism(6.0, rate=4 / 7, releases=2),
    "hospital": Mechanism(6.0),
}


@pytest.mark.parametrize("mechanism", CLAIMS)
def test_without_its_noise_a_mechanism_is_found_out(mechanism):
    claimed = accounting.epsilon(CLAIMS[mechanism], ROUNDS, delta=DELTA)
    assert claimed < audit.ceiling(RUNS // 2, delta=DELTA)
    noise = CLAIMS[mechanism].noise_multiplier
    right = shown(mechanism, noise)
    assert right.epsilon <= claimed
    assert shown(mechanism, 0.0).epsilon > claimed


def test_canaries_are_alone_and_differ_by_one_place():
    row = int(DATA.offset[WHO])
    with_it, without = canaries.record(DATA, row, fakes.CLASSES)
    finite = np.isfinite(np.asarray(with_it.x)).all(1)
    np.testing.assert_array_equal(np.flatnonzero(finite), [row])
    assert not np.isfinite(np.asarray(without.x)).any()
    np.testing.assert_array_equal(with_it.count, DATA.count)
    np.testing.assert_allclose(with_it.x[row], canaries.LOUD * DATA.x[row], rtol=1e-6)
    assert int(with_it.y[row]) == (int(DATA.y[row]) + 1) % fakes.CLASSES
    with_it, without = canaries.hospital(DATA, WHO, fakes.CLASSES)
    np.testing.assert_array_equal(with_it.count, [0, 7, 0, 0])
    assert not np.asarray(without.count).any()
    np.testing.assert_array_equal(with_it.x, without.x)
