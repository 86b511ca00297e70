"""Faults: whom they strike and when, and what becomes of the round."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import COUNTS

from fairjax.core import client, layout, rng, round, simplex, trees
from fairjax.core.rng import Role
from fairjax.core.types import Scores
from fairjax.fairness import directions, personal, weights
from fairjax.fairness.compose import compose
from fairjax.robust import faults
from fairjax.robust.faults import Deadline, Fault
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.feddyn import feddyn
from tests import fakes

DATA = fakes.federation()
HOST = jax.tree.map(np.asarray, DATA)
LATE = Deadline(0.0, 0.0)
"""Nobody is in time."""
ALL, ONE = np.ones(4, bool), np.arange(4) == 2


@functools.cache
def program(names, whom, strength, memory=False):
    """A round with faults, compiled; whom: indices."""
    struck = np.isin(np.arange(4), whom)
    found = [Fault(name, struck, 1.0, strength) for name in names]
    model = fakes.small_mlp(hidden=(4,))
    method = fedavg(model.axes)
    if memory:
        method = method._replace(objective=client.mean_cross_entropy())
        method = feddyn(method, alpha=0.1)
    spec = fakes.spec(
        model,
        method,
        epochs=1,
        server=method.server(optax.sgd(1.0), 1.0),
        sending=faults.sending(found, LATE),
    )
    state = fakes.start(spec, DATA)
    step = jax.jit(functools.partial(round.step, spec=spec, layout=layout.vmapped()))
    return state, *step(state, DATA, fakes.cohort())


def delta(*given, **more):
    start, state, info = program(*given, **more)
    return jax.tree.map(lambda a, b: b - a, start.params, state.params), state, info


EVERYBODY = (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("name", "strength", "factor"),
    [("sign_flip", 1.0, -1), ("sign_flip", 10.0, -10), ("scaling", 3.0, 3)],
)
def test_all_changes_times_a_factor_are_the_mean_times_it(name, strength, factor):
    plain, *_ = delta((), (), 1.0)
    struck, *_ = delta((name,), EVERYBODY, strength)
    expected = jax.tree.map(lambda leaf: factor * leaf, plain)
    assert fakes.gap(struck, expected) < 1e-5


def test_a_free_rider_sends_nothing_and_counts():
    got, _, info = delta(("free_rider",), EVERYBODY, 1.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got))
    assert info.valid.all()


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_the_guard_leaves_out_who_sends_no_numbers_and_says_who(name):
    got, state, info = delta((name,), (2,), 1.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(got))
    assert info.valid.tolist() == [True, True, False, True]
    assert info.weights[2] == 0
    assert state.attendance.came.tolist() == [1, 1, 1, 1]
    assert state.attendance.entered.tolist() == [1, 1, 0, 1]
    absent, *_ = delta(("drop_after",), (2,), 1.0)
    assert fakes.equal(got, absent)


def test_noise_has_the_norm_that_is_asked_for():
    local = {"a": jnp.full((20, 30), 2.0), "b": jnp.ones(7)}
    cover = {"a": jnp.asarray([[1.0]] * 10 + [[0.0]] * 10), "b": jnp.ones(1)}
    change = {"a": local["a"] * cover["a"], "b": local["b"]}
    sent = faults._noise(jax.random.key(0), change, cover, 3.0)
    length = [
        np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))
        for tree in (sent, change)
    ]
    np.testing.assert_allclose(length[0], 3 * length[1], rtol=1e-5)
    assert not np.any(sent["a"][10:])
    assert abs(np.mean(np.sign(sent["a"][:10]))) < 0.3


@pytest.mark.parametrize(
    ("name", "moves"),
    [("drop_during", False), ("drop_after", True), ("straggler", True)],
)
def test_what_does_not_arrive_leaves_a_trace_at_the_client_alone(name, moves):
    _, whole, _ = program((), (), 1.0, memory=True)
    start, state, info = program((name,), (2,), 1.0, memory=True)
    assert info.valid.tolist() == [True, True, False, True]
    own, plain, before = (
        jax.tree.map(lambda leaf: leaf[2], each.memory)
        for each in (state, whole, start)
    )
    assert fakes.equal(own, plain if moves else before)
    assert not fakes.equal(plain, before)
    steps = [int(program((), (), 1.0)[2].clients.steps[2]), int(info.clients.steps[2])]
    assert steps == ([6, 6] if moves else [6, 3])


def test_what_a_hospital_keeps_is_as_it_was_trained():
    """A head and a personal model: faults of uploads do not reach them."""
    model = fakes.small_mlp(hidden=(4,))
    rule = compose(
        [
            ("private_head", personal.private_head()),
            ("ditto", personal.ditto(strength=1.0)),
        ]
    )
    method = personal.keep(fedavg(model.axes), rule)

    def after(*names):
        struck = [Fault(name, np.arange(4) == k, 1.0) for k, name in enumerate(names)]
        spec = fakes.spec(
            model, method, rule=rule, epochs=1, sending=faults.sending(struck, LATE)
        )
        start = fakes.start(spec, DATA)
        step = functools.partial(round.step, spec=spec, layout=layout.vmapped())
        state, info = jax.jit(step)(start, DATA, fakes.cohort())
        own = [(each.private["client"], each.personal) for each in (start, state)]
        return *own, info.valid

    before, plain, _ = after()
    _, own, valid = after("sign_flip", "nan", "drop_after", "drop_during")
    assert valid.tolist() == [True, False, False, False]
    for k, expected in enumerate((plain, plain, plain, before)):
        for tree, at in zip(own, expected, strict=True):
            assert fakes.gap(trees.pick(tree, k), trees.pick(at, k)) < 1e-6
    assert all(fakes.gap(a, b) > 1e-3 for a, b in zip(before, plain, strict=True))


def test_several_faults_strike_in_their_order():
    twice, *_ = delta(("sign_flip", "scaling"), EVERYBODY, 2.0)
    plain, *_ = delta((), (), 1.0)
    assert fakes.gap(twice, jax.tree.map(lambda leaf: -4 * leaf, plain)) < 1e-5


def test_without_faults_nothing_is_in_the_way():
    assert faults.sending([], LATE) is None
    absent = [Fault("drop_before", ALL, 1.0), Fault("label_flip", ALL, 1.0)]
    assert faults.sending(absent, LATE) is None
    rule = weights.size()
    assert faults.claiming(rule, absent) is rule


# --------------------------------------------------------------------- whom, and when


def test_a_smaller_share_is_part_of_a_larger_one():
    for seed in range(5):
        order = [faults.hospitals(share / 20, 20, seed) for share in range(21)]
        assert [struck.sum() for struck in order] == list(range(21))
        assert all(np.all(a <= b) for a, b in itertools.pairwise(order))
    assert not np.array_equal(*(faults.hospitals(0.5, 20, seed) for seed in (0, 1)))


def test_hospitals_stay_away_as_often_as_asked_for():
    fault = Fault("drop_before", np.arange(4) < 3, 0.3)
    cohort = fakes.cohort(valid=(True, False, True, True))

    def came(number):
        key = rng.at(jax.random.key(0), Role.FAULT, number)
        return faults.present(key, [fault], cohort).valid

    came = np.asarray(jax.vmap(came)(jnp.arange(2000)))
    assert came.mean(0)[[1, 3]].tolist() == [0, 1]
    assert np.all(np.abs(came.mean(0)[[0, 2]] - 0.7) < 5 * np.sqrt(0.21 / 2000))
    both = np.corrcoef(came[:, 0], came[:, 2])[0, 1]
    assert abs(both) < 5 / np.sqrt(2000)


def test_stragglers_are_late_by_the_law_of_their_times():
    """P(exp(s z) > m) = 1 - Phi(log m / s); 0.2090 at m = 1.5, s = 0.5."""
    fault = Fault("straggler", ALL, 1.0)
    send = faults.sending([fault], Deadline(1.5, 0.5))
    _, _, info = program((), (), 1.0)
    one = jax.tree.map(lambda leaf: leaf[0], info.clients)
    change, cover = {"a": jnp.ones(2)}, {"a": jnp.ones(2)}

    def late(number):
        key = rng.at(jax.random.key(0), Role.FAULT, number)
        return ~send(key, fakes.member(), change, cover, one)[2]

    share = np.mean(jax.vmap(late)(jnp.arange(4000)))
    assert abs(share - 0.2090) < 5 * np.sqrt(0.2090 * 0.791 / 4000)


# ---------------------------------------------------------------------------- claims


def test_a_claimed_count_or_loss_moves_weights_alone():
    cohort = fakes.cohort((3, 2, 0, 1))
    count = jnp.asarray(COUNTS, jnp.int32)[cohort.client]
    cells = round.client.Cells(*jnp.ones((3, 4, 1, 3)))
    scores = Scores(count, jnp.asarray([1.0, 2.0, 3.0, 4.0]), cells)
    claims = [Fault("inflated_count", ONE, 1.0, 10.0)]
    rule = faults.claiming(weights.size(), claims)
    weight, _ = rule.weigh((), cohort, scores)
    claimed = np.asarray(count) * np.array([1, 10, 1, 1])
    np.testing.assert_allclose(weight, claimed / claimed.sum(), rtol=1e-6)
    bare = faults.claiming(weights.size()._replace(weigh=None), claims)
    np.testing.assert_allclose(bare.weigh((), cohort, scores)[0], weight, rtol=1e-6)
    loud = faults.claiming(
        weights.q_ffl(q=1.0), [Fault("inflated_loss", ONE, 1.0, 5.0)]
    )
    mass = np.asarray(count) * np.array([1, 10, 3, 4.0])
    np.testing.assert_allclose(
        loud.weigh((), cohort, scores)[0], mass / mass.sum(), rtol=1e-5
    )
    assert simplex.alike(scores, cohort.valid).tolist() == [0.25] * 4


@pytest.mark.parametrize(
    "rule",
    [
        directions.q_fedavg(q=1.0, learning_rate=0.1),
        directions.fedfv(alpha=0.0, tau=0),
    ],
)
def test_a_claimed_loss_moves_directions_too(rule):
    """As that loss would if it were true."""
    cohort = fakes.cohort((3, 2, 0, 1))
    rng = np.random.default_rng(0)
    change = {"a": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)}
    loss = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    scores = Scores(
        jnp.ones(4, jnp.int32),
        loss,
        round.client.Cells(*jnp.ones((3, 4, 1, 3))),
        rate=jnp.ones(()),
        delta=change,
        cover={"a": jnp.ones((4, 1))},
        incoming={"a": jnp.ones(5)},
    )
    liar = faults.claiming(rule, [Fault("inflated_loss", ONE, 1.0, 5.0)])
    claimed = scores._replace(loss=loss * jnp.asarray([1.0, 5, 1, 1]))
    for one, seen, alike in ((liar, scores, True), (rule, scores, False)):
        weight, _ = one.weigh((), cohort, seen)
        got = one.combine((), cohort, seen, weight)[:2]
        weight, _ = rule.weigh((), cohort, claimed)
        expected = rule.combine((), cohort, claimed, weight)[:2]
        assert (fakes.gap(got, expected) < 1e-6) == alike


# ---------------------------------------------------------------------------- records


def test_flipped_labels_are_mirrored_at_the_struck_alone():
    got = faults.corrupted(HOST, [Fault("label_flip", ONE, 1.0)], seed=0)
    mine = np.repeat(ONE, COUNTS)
    np.testing.assert_array_equal(got.y[mine], 2 - HOST.y[mine])
    np.testing.assert_array_equal(got.y[~mine], HOST.y[~mine])
    np.testing.assert_array_equal(got.labels[2], HOST.labels[2][::-1])
    np.testing.assert_array_equal(got.labels[~ONE], HOST.labels[~ONE])
    np.testing.assert_array_equal(got.labels[2], np.bincount(got.y[mine], minlength=3))


def test_corrupted_inputs_are_the_hospitals_own_values_in_disorder():
    got = faults.corrupted(HOST, [Fault("corrupted", ONE, 1.0)], seed=0)
    mine = np.repeat(ONE, COUNTS)
    np.testing.assert_array_equal(got.x[~mine], HOST.x[~mine])
    np.testing.assert_array_equal(
        np.sort(got.x[mine], axis=0), np.sort(HOST.x[mine], axis=0)
    )
    moved = np.any(got.x[mine] != HOST.x[mine], axis=1)
    assert moved.mean() > 0.9
    rows = {row.tobytes() for row in HOST.x}
    assert not any(row.tobytes() in rows for row in got.x[mine])
    np.testing.assert_array_equal(got.y, HOST.y)
    assert faults.corrupted(HOST, [], seed=0) is HOST


def test_an_impostor_says_that_it_is_of_the_richest_tier():
    tiers = np.array([0, 1, 0, 2])
    fault = Fault("impostor", ONE, 1.0)
    assert faults.claimed_tiers(tiers, [fault], 2).tolist() == [0, 1, 2, 2]
    assert faults.claimed_tiers(tiers, [], 2) is tiers
