"""Records by cohort: the same round as with all of them, and none made twice."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.core import layout, round
from fairjax.data import feed
from tests import fakes

HOST = jax.tree.map(np.asarray, fakes.federation())
HOST = dataclasses.replace(HOST, patient=np.arange(len(HOST.y)))


def test_a_round_on_the_cohorts_records_is_the_round_on_all():
    spec = fakes.spec()
    state = fakes.start(spec, fakes.federation())
    cohort = fakes.cohort((2, 0, 0), (1, 0, 0), (True, True, False))
    length = feed.rows(HOST.count, 3)
    part = feed.block(HOST, cohort, length)
    assert part.x.shape[0] == length == 40
    assert part.offset.shape == HOST.offset.shape
    step = jax.jit(functools.partial(round.step, spec=spec, layout=layout.scanned()))
    (ours, info), (theirs, told) = (step(state, d, cohort) for d in (part, HOST))
    assert fakes.equal((ours.params, info), (theirs.params, told))


def test_a_block_holds_the_valid_clients_records_and_nobody_elses():
    cohort = fakes.cohort((3, 1, 2), (0, 0, 0), (True, True, False))
    part = feed.block(HOST, cohort, 12)
    for k in (1, 3):
        own = slice(HOST.offset[k], HOST.offset[k] + HOST.count[k])
        mine = slice(part.offset[k], part.offset[k] + part.count[k])
        np.testing.assert_array_equal(part.x[mine], HOST.x[own])
        np.testing.assert_array_equal(part.y[mine], HOST.y[own])
        np.testing.assert_array_equal(part.patient[mine], HOST.patient[own])
    nobody = fakes.cohort((0,), (0,), (False,))
    assert feed.block(HOST, nobody, 5).x.shape[0] == 5


def test_the_next_round_is_made_while_this_one_is_in_use():
    made, asked = [], threading.Event()

    def make(finished):
        made.append(finished)
        if finished == 1:
            asked.set()
        return jnp.asarray(finished)

    records = feed.Feed(make, last=3)
    assert records(0) == 0
    assert asked.wait(5)
    assert [int(records(n)) for n in (1, 2)] == [1, 2]
    assert made == [0, 1, 2]


def test_a_round_out_of_turn_is_made_anew():
    """After a restore the next round is any."""
    records = feed.Feed(jnp.asarray, last=9)
    assert [int(records(n)) for n in (0, 5, 6)] == [0, 5, 6]
