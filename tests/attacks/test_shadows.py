"""Shadow federations: which records they have, and that each is a run of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fairjax.attacks import shadows
from fairjax.core import layout, round
from fairjax.core.types import ClientView
from tests import fakes

TRAIN = fakes.federation(counts=(10, 7, 23, 5))
TEST = fakes.federation(counts=(4, 3, 6, 0), seed=1)
POOL = shadows.pool_candidates(TRAIN, TEST)
COUNTS = np.asarray(TRAIN.count)


def test_candidates_are_all_records_in_place_with_who_was_trained_on():
    assert len(POOL.owner) == 45 + 13
    assert POOL.member.sum() == 45
    np.testing.assert_array_equal(POOL.data.count, [14, 10, 29, 5])
    for k in range(4):
        at = slice(POOL.data.offset[k], POOL.data.offset[k] + POOL.data.count[k])
        assert set(POOL.owner[at]) == {k}
        for part, inside in ((TRAIN, True), (TEST, False)):
            rows = np.asarray(part.x)[int(part.offset[k]) :][: int(part.count[k])]
            mine = POOL.data.x[at][POOL.member[at] == inside]
            np.testing.assert_array_equal(mine, rows)


@jax.jit
def split(seed):
    return shadows.split(jax.random.key(seed), POOL, COUNTS)


@given(seed=st.integers(0, 2**16))
def test_a_shadow_has_as_many_records_of_each_hospital_all_of_its_own(seed):
    part, inside = split(seed)
    inside = np.asarray(inside)
    np.testing.assert_array_equal(part.count, TRAIN.count)
    np.testing.assert_array_equal(part.offset, TRAIN.offset)
    for k in range(4):
        at = slice(int(part.offset[k]), int(part.offset[k] + part.count[k]))
        drawn = np.asarray(part.x)[at]
        held = POOL.data.x[(POOL.owner == k) & inside]
        assert sorted(map(tuple, drawn)) == sorted(map(tuple, held))
        labels = np.bincount(np.asarray(part.y)[at], minlength=fakes.CLASSES)
        np.testing.assert_array_equal(part.labels[k], labels)


def test_every_candidate_is_in_as_often_as_its_hospital_has_room():
    inside = jax.vmap(lambda seed: split(seed)[1])(jnp.arange(400))
    share = np.asarray(inside).mean(0)
    room = (COUNTS / POOL.data.count)[POOL.owner]
    np.testing.assert_allclose(share, room, atol=0.12)
    assert np.all(share[POOL.owner == 3] == 1)


# --------------------------------------------------------------------------- training

SPEC = fakes.spec(epochs=1)
LAYOUT = layout.vmapped()
TIERS = jnp.zeros(4, jnp.int32)
ROUNDS = 2


def begin(key):
    return round.init(key, TRAIN.x[:1], counts=TRAIN.count, tiers=1, spec=SPEC)


def members():
    one = jnp.zeros(1, jnp.int32)
    return ClientView(one, one, one == 0, TRAIN.count[:1], TRAIN.labels[:1])


def everybody(state):
    return fakes.cohort(tiers=(0,) * 4)


def test_a_shadow_is_the_run_that_its_key_gives():
    """Three in chunks of two, against a loop of jitted rounds."""
    drawn = jax.random.split(jax.random.key(5), 3)
    logits, inside = jax.jit(
        lambda keys: shadows.train(
            keys,
            POOL,
            COUNTS,
            TIERS,
            members(),
            init_state=begin,
            draw=everybody,
            spec=SPEC,
            layout=LAYOUT,
            rounds=ROUNDS,
            chunk=2,
        )
    )(drawn)
    step = jax.jit(functools.partial(round.step, spec=SPEC, layout=LAYOUT))
    for at in (0, 2):
        lot, own = jax.random.split(drawn[at])
        part, expected = shadows.split(lot, POOL, COUNTS)
        state = begin(own)
        for _ in range(ROUNDS):
            state, _ = step(state, part, everybody(state))
        answers = SPEC.local.model.apply(state.params, jnp.asarray(POOL.data.x))
        np.testing.assert_array_equal(inside[at], expected)
        np.testing.assert_allclose(logits[at], answers.logits, rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits[0], logits[1])
