"""Records by cohort: the round equals one on all records; no block is made twice."""

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
    length = feed.max_records(HOST.count, 3)
    block = feed.cohort_records(HOST, cohort, length)
    assert block.x.shape[0] == length == 40
    assert block.offset.shape == HOST.offset.shape
    step = jax.jit(functools.partial(round.step, spec=spec, layout=layout.scanned()))
    (block_state, info), (full_state, full_info) = (
        step(state, d, cohort) for d in (block, HOST)
    )
    assert fakes.equal((block_state.params, info), (full_state.params, full_info))


def test_a_block_holds_the_valid_clients_records_and_nobody_elses():
    cohort = fakes.cohort((3, 1, 2), (0, 0, 0), (True, True, False))
    block = feed.cohort_records(HOST, cohort, 12)
    for k in (1, 3):
        source = slice(HOST.offset[k], HOST.offset[k] + HOST.count[k])
        target = slice(block.offset[k], block.offset[k] + block.count[k])
        np.testing.assert_array_equal(block.x[target], HOST.x[source])
        np.testing.assert_array_equal(block.y[target], HOST.y[source])
        np.testing.assert_array_equal(block.patient[target], HOST.patient[source])
    nobody = fakes.cohort((0,), (0,), (False,))
    assert feed.cohort_records(HOST, nobody, 5).x.shape[0] == 5


def test_the_next_round_is_made_while_this_one_is_in_use():
    rounds, requested = [], threading.Event()

    def make(finished):
        rounds.append(finished)
        if finished == 1:
            requested.set()
        return jnp.asarray(finished)

    records = feed.Prefetcher(make, num_rounds=3)
    assert records(0) == 0
    assert requested.wait(5)
    assert [int(records(n)) for n in (1, 2)] == [1, 2]
    assert rounds == [0, 1, 2]


def test_a_round_out_of_turn_is_made_anew():
    """After a restore, the next round may have any number."""
    records = feed.Prefetcher(jnp.asarray, num_rounds=9)
    assert [int(records(n)) for n in (0, 5, 6)] == [0, 5, 6]
