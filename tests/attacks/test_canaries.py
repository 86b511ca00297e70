"""Canaries and their runs; see `tests/privacy/test_claims.py` for whole audits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.attacks import canaries, canary_runs, observables
from fairjax.attacks.canaries import Target
from fairjax.core import layout
from fairjax.core.protocols import Population
from fairjax.privacy import client_level
from fairjax.privacy.records import DPSGD
from tests import fakes

DATA = fakes.federation()
MODEL = fakes.small_mlp(hidden=(8,))
WHO = 1
"""A client of seven records."""
ROWS = slice(10, 17)
ONE = Target(WHO, np.array([10]), False)
SOME = Target(WHO, np.array([11, 14]), False)
ALL = Target(WHO, np.arange(10, 17), True)


def apart(pair):
    """The rows in which two federations differ."""
    a, b = (np.asarray(each.x) for each in pair)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    differs = ~same.all(1) | (np.asarray(pair[0].y) != np.asarray(pair[1].y))
    return np.flatnonzero(differs).tolist()


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("canary", canaries.CANARIES)
def test_neighbours_differ_in_the_place_alone(canary, replaced):
    for place in (ONE, SOME, ALL):
        pair = canaries.neighbours(
            canary, DATA, place, fakes.CLASSES, replace_one=replaced
        )
        assert set(apart(pair)) <= set(place.rows.tolist())
        with_it, without = pair
        for each in pair:
            counted = np.zeros_like(each.labels)
            for k, (o, n) in enumerate(zip(each.offset, each.count, strict=True)):
                counted[k] = np.bincount(each.y[o : o + n], minlength=fakes.CLASSES)
            np.testing.assert_array_equal(each.labels, counted)
        if replaced or not place.is_client:
            np.testing.assert_array_equal(with_it.count, without.count)
        if replaced:
            assert apart(pair)
            assert np.isfinite(without.x[place.rows]).all()
        elif place.is_client:
            assert without.count[WHO] == 0 < with_it.count[WHO]
        else:
            assert np.isnan(without.x[place.rows]).all()


def test_canaries_are_what_they_are_called():
    def made(canary, place=ONE, replaced=False):
        return canaries.neighbours(
            canary, DATA, place, fakes.CLASSES, replace_one=replaced
        )[0]

    loud = made("loud")
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(loud.x).all(1)), [10])
    np.testing.assert_allclose(loud.x[10], canaries.LOUD_SCALE * DATA.x[10], rtol=1e-6)
    assert int(loud.y[10]) == (int(DATA.y[10]) + 1) % fakes.CLASSES
    np.testing.assert_array_equal(made("loud", ALL).count, [0, 7, 0, 0])
    opposite = canaries.neighbours("loud", DATA, ALL, fakes.CLASSES, replace_one=True)
    np.testing.assert_array_equal(opposite[0].x[ROWS], -opposite[1].x[ROWS])
    spike = made("spike")
    assert np.isfinite(spike.x).all()
    assert spike.x[10].max() > 3e38
    assert not spike.x[10, 1:].any()
    overflow = np.asarray(made("overflow").x[10], np.float64)
    assert np.isfinite(overflow).all()
    assert np.abs(overflow).min() ** 2.0 > canaries.FLOAT_MAX
    own = made("class", ALL)
    last = np.asarray(own.y) == fakes.CLASSES - 1
    np.testing.assert_array_equal(np.flatnonzero(last), ALL.rows)


# ------------------------------------------------------------------------- in the round

RUNS, ROUNDS = 6, 2


def spec_of(mechanism):
    spec = fakes.spec(MODEL, optimizer=optax.sgd(0.05), epochs=1)
    if mechanism == "record":
        dp = DPSGD(0.5, 0.0, batch_size=4, slots=7, microbatch=7)
        return dataclasses.replace(spec, local=spec.local._replace(dp=dp))
    population = Population(jnp.zeros(4, jnp.int32), jnp.ones(4), 1.0)
    protection = client_level.central(population, clip=(0.01,), noise_multiplier=0.0)
    return dataclasses.replace(spec, protection=protection)


@pytest.mark.parametrize("mechanism", ["record", "hospital"])
def test_without_noise_the_model_goes_where_the_canary_pulls(mechanism, monkeypatch):
    monkeypatch.setattr(observables, "MAX_COORDINATES", 0)
    spec, member = spec_of(mechanism), fakes.member(WHO, 0, DATA)
    place, cohort = ALL, fakes.cohort(tiers=(0,) * 4)
    direction = canary_runs.client_direction(member, spec=spec)
    if mechanism == "record":
        place, cohort = ONE, fakes.cohort((WHO,), (0,))
        direction = canary_runs.record_direction(place, member, spec=spec)
    pair = canaries.neighbours("loud", DATA, place, fakes.CLASSES, replace_one=False)
    pair = [jax.tree.map(jnp.asarray, each) for each in pair]

    @jax.jit
    def run(data):
        return canary_runs.run_features(
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
    # The first feature of a round is the norm of the model's change.
    moves = inside[:, 0] + inside[:, features]
    assert np.all(moves > 0.5 * ROUNDS * (0.01 / 4 if mechanism == "hospital" else 0))
    np.testing.assert_allclose(inside[:, -1], moves, rtol=0.05)
    assert np.all(outside[:, -1] == 0)
