"""Faults: which clients they strike and when, and how they change the round."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.core import layout, objectives, rng, round, simplex, trees
from fairjax.core.rng import Role
from fairjax.core.rule import CohortStats
from fairjax.core.types import GroupStats
from fairjax.fairness import personal, weights
from fairjax.fairness.compose import compose
from fairjax.fairness.fedfv import fedfv
from fairjax.fairness.q_fedavg import q_fedavg
from fairjax.fairness.q_ffl import q_ffl
from fairjax.robust import faults
from fairjax.robust.faults import Deadline, Fault
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.feddyn import feddyn
from tests import fakes
from tests.fakes import COUNTS

DATA = fakes.federation()
HOST = jax.tree.map(np.asarray, DATA)
LATE = Deadline(0.0, 0.0)
"""A deadline that every straggler misses."""
ALL, ONE = np.ones(4, bool), np.arange(4) == 2


@functools.cache
def program(names, clients, strength, memory=False):
    """A compiled round with faults at these clients."""
    is_faulty = np.isin(np.arange(4), clients)
    injected = [Fault(name, is_faulty, 1.0, strength) for name in names]
    model = fakes.small_mlp(hidden=(4,))
    method = fedavg(model.axes)
    if memory:
        method = method._replace(objective=objectives.mean_cross_entropy())
        method = feddyn(method, alpha=0.1)
    spec = fakes.spec(
        model,
        method,
        epochs=1,
        server=method.server.optimizer(optax.sgd(1.0), 1.0),
        transmission=faults.upload_faults(injected, LATE),
    )
    state = fakes.start(spec, DATA)
    step = jax.jit(functools.partial(round.step, spec=spec, layout=layout.vmapped()))
    return state, *step(state, DATA, fakes.cohort())


def delta(*args, **settings):
    start, state, info = program(*args, **settings)
    return jax.tree.map(lambda a, b: b - a, start.params, state.params), state, info


ALL_CLIENTS = (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("name", "strength", "factor"),
    [("sign_flip", 1.0, -1), ("sign_flip", 10.0, -10), ("scaling", 3.0, 3)],
)
def test_all_changes_times_a_factor_are_the_mean_times_it(name, strength, factor):
    plain, *_ = delta((), (), 1.0)
    faulty, *_ = delta((name,), ALL_CLIENTS, strength)
    expected = jax.tree.map(lambda leaf: factor * leaf, plain)
    assert fakes.gap(faulty, expected) < 1e-5


def test_a_free_rider_sends_nothing_and_counts():
    got, _, info = delta(("free_rider",), ALL_CLIENTS, 1.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got))
    assert info.valid.all()


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_the_guard_leaves_out_and_names_a_client_that_sends_no_numbers(name):
    got, state, info = delta((name,), (2,), 1.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(got))
    assert info.valid.tolist() == [True, True, False, True]
    assert info.weights[2] == 0
    assert state.participation.selected.tolist() == [1, 1, 1, 1]
    assert state.participation.accepted.tolist() == [1, 1, 0, 1]
    absent, *_ = delta(("drop_after",), (2,), 1.0)
    assert fakes.equal(got, absent)


def test_noise_has_the_configured_norm():
    local = {"a": jnp.full((20, 30), 2.0), "b": jnp.ones(7)}
    cover = {"a": jnp.asarray([[1.0]] * 10 + [[0.0]] * 10), "b": jnp.ones(1)}
    change = {"a": local["a"] * cover["a"], "b": local["b"]}
    sent = faults._gaussian_noise(jax.random.key(0), change, cover, 3.0)
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
def test_a_change_that_does_not_arrive_leaves_a_trace_at_the_client_alone(name, moves):
    _, fault_free, _ = program((), (), 1.0, memory=True)
    start, state, info = program((name,), (2,), 1.0, memory=True)
    assert info.valid.tolist() == [True, True, False, True]
    after, plain, before = (
        jax.tree.map(lambda leaf: leaf[2], each.memory)
        for each in (state, fault_free, start)
    )
    assert fakes.equal(after, plain if moves else before)
    assert not fakes.equal(plain, before)
    steps = [int(program((), (), 1.0)[2].clients.steps[2]), int(info.clients.steps[2])]
    assert steps == ([6, 6] if moves else [6, 3])


def test_local_leaves_and_personal_models_are_as_they_were_trained():
    """Upload faults do not reach a private head or a personal model."""
    model = fakes.small_mlp(hidden=(4,))
    rule = compose(
        [
            ("private_head", personal.private_head()),
            ("ditto", personal.ditto(strength=1.0)),
        ]
    )
    method = personal.with_local_leaves(fedavg(model.axes), rule)

    def after(*names):
        injected = [Fault(name, np.arange(4) == k, 1.0) for k, name in enumerate(names)]
        spec = fakes.spec(
            model,
            method,
            rule=rule,
            epochs=1,
            transmission=faults.upload_faults(injected, LATE),
        )
        start = fakes.start(spec, DATA)
        step = functools.partial(round.step, spec=spec, layout=layout.vmapped())
        state, info = jax.jit(step)(start, DATA, fakes.cohort())
        trees_before_and_after = [
            (each.leaf_copies["client"], each.personal) for each in (start, state)
        ]
        return *trees_before_and_after, info.valid

    before, plain, _ = after()
    _, faulty, valid = after("sign_flip", "nan", "drop_after", "drop_during")
    assert valid.tolist() == [True, False, False, False]
    for k, expected in enumerate((plain, plain, plain, before)):
        for tree, expected_tree in zip(faulty, expected, strict=True):
            got, wanted = trees.pick(tree, k), trees.pick(expected_tree, k)
            assert fakes.gap(got, wanted) < 1e-6
    assert all(fakes.gap(a, b) > 1e-3 for a, b in zip(before, plain, strict=True))


def test_several_faults_strike_in_their_order():
    twice, *_ = delta(("sign_flip", "scaling"), ALL_CLIENTS, 2.0)
    plain, *_ = delta((), (), 1.0)
    assert fakes.gap(twice, jax.tree.map(lambda leaf: -4 * leaf, plain)) < 1e-5


def test_without_faults_nothing_changes():
    assert faults.upload_faults([], LATE) is None
    absent = [Fault("drop_before", ALL, 1.0), Fault("label_flip", ALL, 1.0)]
    assert faults.upload_faults(absent, LATE) is None
    rule = weights.size()
    assert faults.with_false_claims(rule, absent) is rule


# ----------------------------------------------------- which clients, and how often


def test_a_smaller_share_is_part_of_a_larger_one():
    for seed in range(5):
        order = [faults.faulty_clients(share / 20, 20, seed) for share in range(21)]
        assert [is_faulty.sum() for is_faulty in order] == list(range(21))
        assert all(np.all(a <= b) for a, b in itertools.pairwise(order))
    assert not np.array_equal(
        *(faults.faulty_clients(0.5, 20, seed) for seed in (0, 1))
    )


def test_clients_drop_out_with_the_given_probability():
    fault = Fault("drop_before", np.arange(4) < 3, 0.3)
    cohort = fakes.cohort(valid=(True, False, True, True))

    def is_present(number):
        key = rng.fold_in(jax.random.key(0), Role.FAULT, number)
        return faults.drop_absent(key, [fault], cohort).valid

    present = np.asarray(jax.vmap(is_present)(jnp.arange(2000)))
    assert present.mean(0)[[1, 3]].tolist() == [0, 1]
    assert np.all(np.abs(present.mean(0)[[0, 2]] - 0.7) < 5 * np.sqrt(0.21 / 2000))
    correlation = np.corrcoef(present[:, 0], present[:, 2])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(2000)


def test_stragglers_are_late_by_the_law_of_their_times():
    """P(exp(s z) > m) = 1 - Phi(log m / s); 0.2090 at m = 1.5, s = 0.5."""
    fault = Fault("straggler", ALL, 1.0)
    send = faults.upload_faults([fault], Deadline(1.5, 0.5))
    _, _, info = program((), (), 1.0)
    one = jax.tree.map(lambda leaf: leaf[0], info.clients)
    change, cover = {"a": jnp.ones(2)}, {"a": jnp.ones(2)}

    def late(number):
        key = rng.fold_in(jax.random.key(0), Role.FAULT, number)
        return ~send(key, fakes.member(), change, cover, one)[2]

    share = np.mean(jax.vmap(late)(jnp.arange(4000)))
    assert abs(share - 0.2090) < 5 * np.sqrt(0.2090 * 0.791 / 4000)


# ---------------------------------------------------------------------------- claims


def test_a_claimed_count_or_loss_moves_weights_alone():
    cohort = fakes.cohort((3, 2, 0, 1))
    count = jnp.asarray(COUNTS, jnp.int32)[cohort.client]
    cells = GroupStats(*jnp.ones((3, 4, 1, 3)))
    scores = CohortStats(count, jnp.asarray([1.0, 2.0, 3.0, 4.0]), cells)
    claims = [Fault("inflated_count", ONE, 1.0, 10.0)]
    rule = faults.with_false_claims(weights.size(), claims)
    weight, _ = rule.weights((), cohort, scores)
    claimed = np.asarray(count) * np.array([1, 10, 1, 1])
    np.testing.assert_allclose(weight, claimed / claimed.sum(), rtol=1e-6)
    bare = faults.with_false_claims(weights.size()._replace(weights=None), claims)
    np.testing.assert_allclose(bare.weights((), cohort, scores)[0], weight, rtol=1e-6)
    by_loss = faults.with_false_claims(
        q_ffl(q=1.0), [Fault("inflated_loss", ONE, 1.0, 5.0)]
    )
    mass = np.asarray(count) * np.array([1, 10, 3, 4.0])
    np.testing.assert_allclose(
        by_loss.weights((), cohort, scores)[0], mass / mass.sum(), rtol=1e-5
    )
    assert simplex.uniform_weights(scores, cohort.valid).tolist() == [0.25] * 4


@pytest.mark.parametrize(
    "rule",
    [
        q_fedavg(q=1.0, learning_rate=0.1),
        fedfv(alpha=0.0, tau=0),
    ],
)
def test_a_claimed_loss_moves_directions_too(rule):
    """A claimed loss acts as a true one would."""
    cohort = fakes.cohort((3, 2, 0, 1))
    rng = np.random.default_rng(0)
    change = {"a": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)}
    loss = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    scores = CohortStats(
        jnp.ones(4, jnp.int32),
        loss,
        GroupStats(*jnp.ones((3, 4, 1, 3))),
        lr_scale=jnp.ones(()),
        delta=change,
        cover={"a": jnp.ones((4, 1))},
        incoming={"a": jnp.ones(5)},
    )
    deceived = faults.with_false_claims(rule, [Fault("inflated_loss", ONE, 1.0, 5.0)])
    claimed = scores._replace(loss=loss * jnp.asarray([1.0, 5, 1, 1]))
    for candidate, is_equal in ((deceived, True), (rule, False)):
        weight, _ = candidate.weights((), cohort, scores)
        got = candidate.combine((), cohort, scores, weight)[:2]
        weight, _ = rule.weights((), cohort, claimed)
        expected = rule.combine((), cohort, claimed, weight)[:2]
        assert (fakes.gap(got, expected) < 1e-6) == is_equal


# ---------------------------------------------------------------------------- records


def test_flipped_labels_are_mirrored_at_faulty_clients_alone():
    got = faults.corrupt_records(HOST, [Fault("label_flip", ONE, 1.0)], seed=0)
    is_faulty = np.repeat(ONE, COUNTS)
    np.testing.assert_array_equal(got.y[is_faulty], 2 - HOST.y[is_faulty])
    np.testing.assert_array_equal(got.y[~is_faulty], HOST.y[~is_faulty])
    np.testing.assert_array_equal(got.labels[2], HOST.labels[2][::-1])
    np.testing.assert_array_equal(got.labels[~ONE], HOST.labels[~ONE])
    np.testing.assert_array_equal(
        got.labels[2], np.bincount(got.y[is_faulty], minlength=3)
    )


def test_corrupted_inputs_are_permuted_values_of_the_same_client():
    got = faults.corrupt_records(HOST, [Fault("corrupted", ONE, 1.0)], seed=0)
    is_faulty = np.repeat(ONE, COUNTS)
    np.testing.assert_array_equal(got.x[~is_faulty], HOST.x[~is_faulty])
    np.testing.assert_array_equal(
        np.sort(got.x[is_faulty], axis=0), np.sort(HOST.x[is_faulty], axis=0)
    )
    moved = np.any(got.x[is_faulty] != HOST.x[is_faulty], axis=1)
    assert moved.mean() > 0.9
    rows = {row.tobytes() for row in HOST.x}
    assert not any(row.tobytes() in rows for row in got.x[is_faulty])
    np.testing.assert_array_equal(got.y, HOST.y)
    assert faults.corrupt_records(HOST, [], seed=0) is HOST


def test_an_impostor_claims_the_richest_tier():
    tiers = np.array([0, 1, 0, 2])
    fault = Fault("impostor", ONE, 1.0)
    assert faults.claimed_tiers(tiers, [fault], 2).tolist() == [0, 1, 2, 2]
    assert faults.claimed_tiers(tiers, [], 2) is tiers
