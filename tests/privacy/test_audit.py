"""The audit: its arithmetic, and what its canaries are; see `test_claims` for runs."""

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fairjax.attacks import canaries, epsilon
from fairjax.attacks.canaries import Place
from fairjax.core import layout, require
from fairjax.core.types import Population
from fairjax.privacy import accounting, client_level
from fairjax.privacy.accounting import Mechanism
from fairjax.privacy.records import Records

DELTA = 1e-5


@given(number=st.integers(1, 300), share=st.floats(0, 1), level=st.floats(0.6, 0.999))
def test_upper_is_the_largest_probability_that_the_count_leaves_possible(
    number, share, level
):
    count = round(share * number)
    got = float(epsilon.upper(np.asarray(count), number, level))
    if count == number:
        assert got == 1
    else:
        assert binom.cdf(count, number, got) == pytest.approx(1 - level, rel=1e-6)


def test_a_perfect_attack_shows_the_ceiling_and_a_useless_one_nothing():
    apart = epsilon.bound(np.arange(200.0) + 1000, np.arange(200.0), delta=DELTA)
    assert apart.epsilon == pytest.approx(epsilon.ceiling(100, delta=DELTA))
    assert apart.epsilon == apart.ceiling == pytest.approx(3.281, abs=1e-3)
    assert (apart.false_positives, apart.false_negatives) == (0, 0)
    same = np.random.default_rng(0).normal(size=(2, 200))
    assert epsilon.bound(*same, delta=DELTA).epsilon == 0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_the_bound_of_a_gaussian_is_below_its_epsilon_and_not_far(sigma):
    rng = np.random.default_rng(1)
    runs = 20_000
    inside, outside = rng.normal(1, sigma, runs), rng.normal(0, sigma, runs)
    claimed = accounting.epsilon(Mechanism(sigma), 1, delta=1e-2)
    found = epsilon.bound(inside, outside, delta=1e-2).epsilon
    assert 0.3 * claimed < found <= claimed
    # A quarter of the noise that is accounted for.
    loud = epsilon.bound(4 * inside, outside, delta=1e-2)
    assert loud.epsilon > claimed


def test_of_many_statistics_the_best_is_chosen_by_runs_that_do_not_judge_it():
    rng = np.random.default_rng(2)
    # One number in sixty tells, and it is in no direction of the means: its square.
    made = rng.normal(size=(2, 600, 60))
    made[0, :, 7] *= 30
    inside, outside = (np.concatenate([m, m**2], axis=1) for m in made)
    found = epsilon.bound(*epsilon.statistics(inside, outside), delta=DELTA)
    assert found.epsilon > 1
    # A direction in as many dimensions as runs parts those that it was fitted to.
    noise = rng.normal(size=(2, 60, 200))
    wide = epsilon.statistics(*noise)
    assert epsilon.bound(*wide, delta=DELTA).epsilon == 0
    third = 60 // 3
    fitted = noise[0, :third].mean(0) - noise[1, :third].mean(0)
    flattered = [each[:third] @ fitted for each in noise]
    assert epsilon.bound(*flattered, delta=DELTA).epsilon > 0.5


def test_a_number_that_never_varies_and_differs_tells_everything():
    rng = np.random.default_rng(3)
    inside, outside = 1e6 * rng.normal(size=(2, 90, 5))
    inside[:, 2], outside[:, 2] = 3.0, 4.0
    found = epsilon.bound(*epsilon.statistics(inside, outside), delta=DELTA)
    assert found.epsilon == found.ceiling


def test_scores_that_no_audit_can_use_are_refused():
    ones = np.ones(4)
    for pair in ((ones[:1], ones[:1]), (ones, ones[:3]), (ones, ones * np.nan)):
        with pytest.raises(require.InputError):
            epsilon.bound(*pair, delta=DELTA)


# ---------------------------------------------------------------------------- canaries

DATA = fakes.federation()
MODEL = fakes.small_mlp(hidden=(8,))
WHO = 1
"""Of seven records."""
ROWS = slice(10, 17)
ONE = Place(WHO, np.array([10]), False)
SOME = Place(WHO, np.array([11, 14]), False)
ALL = Place(WHO, np.arange(10, 17), True)


def apart(pair):
    """The rows in which two federations differ, whose numbers are equal."""
    a, b = (np.asarray(each.x) for each in pair)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    differs = ~same.all(1) | (np.asarray(pair[0].y) != np.asarray(pair[1].y))
    return np.flatnonzero(differs).tolist()


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("canary", canaries.CANARIES)
def test_neighbours_differ_in_the_place_alone(canary, replaced):
    for place in (ONE, SOME, ALL):
        pair = canaries.neighbours(
            canary, DATA, place, fakes.CLASSES, replaced=replaced
        )
        assert set(apart(pair)) <= set(place.rows.tolist())
        with_it, without = pair
        for each in pair:
            counted = np.zeros_like(each.labels)
            for k, (o, n) in enumerate(zip(each.offset, each.count, strict=True)):
                counted[k] = np.bincount(each.y[o : o + n], minlength=fakes.CLASSES)
            np.testing.assert_array_equal(each.labels, counted)
        if replaced or not place.whole:
            np.testing.assert_array_equal(with_it.count, without.count)
        if replaced:
            assert apart(pair)
            assert np.isfinite(without.x[place.rows]).all()
        elif place.whole:
            assert without.count[WHO] == 0 < with_it.count[WHO]
        else:
            assert np.isnan(without.x[place.rows]).all()


def test_canaries_are_what_they_are_called():
    def made(canary, place=ONE, replaced=False):
        return canaries.neighbours(
            canary, DATA, place, fakes.CLASSES, replaced=replaced
        )[0]

    loud = made("loud")
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(loud.x).all(1)), [10])
    np.testing.assert_allclose(loud.x[10], canaries.LOUD * DATA.x[10], rtol=1e-6)
    assert int(loud.y[10]) == (int(DATA.y[10]) + 1) % fakes.CLASSES
    np.testing.assert_array_equal(made("loud", ALL).count, [0, 7, 0, 0])
    opposite = canaries.neighbours("loud", DATA, ALL, fakes.CLASSES, replaced=True)
    np.testing.assert_array_equal(opposite[0].x[ROWS], -opposite[1].x[ROWS])
    spike = made("spike")
    assert np.isfinite(spike.x).all()
    assert spike.x[10].max() > 3e38
    assert not spike.x[10, 1:].any()
    overflow = np.asarray(made("overflow").x[10], np.float64)
    assert np.isfinite(overflow).all()
    assert np.abs(overflow).min() ** 2.0 > canaries.LARGEST
    own = made("class", ALL)
    last = np.asarray(own.y) == fakes.CLASSES - 1
    np.testing.assert_array_equal(np.flatnonzero(last), ALL.rows)


# ------------------------------------------------------------------------- in the round

RUNS, ROUNDS = 6, 2


def spec_of(mechanism):
    spec = fakes.spec(MODEL, optimizer=optax.sgd(0.05), epochs=1)
    if mechanism == "record":
        dp = Records(0.5, 0.0, batch_size=4, slots=7, microbatch=7)
        return dataclasses.replace(spec, local=spec.local._replace(dp=dp))
    population = Population(jnp.zeros(4, jnp.int32), jnp.ones(4), 1.0)
    protection = client_level.central(population, clip=(0.01,), noise_multiplier=0.0)
    return dataclasses.replace(spec, protection=protection)


@pytest.mark.parametrize("mechanism", ["record", "hospital"])
def test_without_noise_the_model_goes_where_the_canary_pulls(mechanism, monkeypatch):
    monkeypatch.setattr(canaries, "FEW", 0)
    spec, member = spec_of(mechanism), fakes.member(WHO, 0, DATA)
    place, cohort = ALL, fakes.cohort(tiers=(0,) * 4)
    direction = canaries.of_hospital(member, spec=spec)
    if mechanism == "record":
        place, cohort = ONE, fakes.cohort((WHO,), (0,))
        direction = canaries.of_records(place, member, spec=spec)
    pair = canaries.neighbours("loud", DATA, place, fakes.CLASSES, replaced=False)
    pair = [jax.tree.map(jnp.asarray, each) for each in pair]

    @jax.jit
    def run(data):
        return canaries.observed(
            jax.random.split(jax.random.key(0), RUNS),
            fakes.start(spec, DATA),
            data,
            pair[0],
            direction,
            lambda state: cohort,
            spec=spec,
            layout=layout.vmapped(),
            rounds=ROUNDS,
            chunk=RUNS,
            server=mechanism == "record",
        )

    inside, outside = (np.asarray(run(data)) for data in pair)
    features = (inside.shape[1] - 1) // ROUNDS
    # The first of a round's is the norm of the model's move.
    moves = inside[:, 0] + inside[:, features]
    assert np.all(moves > 0.5 * ROUNDS * (0.01 / 4 if mechanism == "hospital" else 0))
    np.testing.assert_allclose(inside[:, -1], moves, rtol=0.05)
    assert np.all(outside[:, -1] == 0)
