"""One round: equal to what it must be equal to, and blind to what must not matter."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.core import aggregate, client, layout, rng, round
from fairjax.core.rng import Role
from fairjax.core.types import ClientData, ClientView
from fairjax.evaluation import deployed
from fairjax.experiment.config import optimizers
from fairjax.fairness import weights
from fairjax.fairness.q_ffl import q_ffl
from fairjax.submodels.heterofl import heterofl
from tests import fakes

LAYOUTS = {
    "vmap": layout.vmapped(),
    "scan": layout.scanned(),
    "chunk": layout.chunked(3),
}


def jitted(spec, laid=LAYOUTS["vmap"]):
    return jax.jit(functools.partial(round.step, spec=spec, layout=laid))


def width(**more):
    """Three width tiers on the small MLP."""
    model = fakes.small_mlp()
    method = heterofl(model.axes, (0.25, 0.5, 1.0), scaler=False, masked_loss=False)
    return fakes.spec(model, method, **more)


def moved(new, old):
    return jax.tree.map(lambda n, o: np.asarray(n) - np.asarray(o), new, old)


# --------------------------------------------------------------------- FedAvg, by hand


def numpy_fedavg(params, x, y, offsets, counts, *, rounds, steps, rate):
    """FedAvg of a one-layer ReLU network in float64; full batches."""
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for _ in range(rounds):
        total = jax.tree.map(np.zeros_like, w)
        for o, n in zip(offsets, counts, strict=True):
            v = jax.tree.map(np.copy, w)
            for _ in range(steps):
                a = x[o : o + n] @ v["hidden0"]["kernel"] + v["hidden0"]["bias"]
                h = np.maximum(a, 0)
                z = h @ v["head"]["kernel"] + v["head"]["bias"]
                p = np.exp(z - z.max(1, keepdims=True))
                dz = (
                    p / p.sum(1, keepdims=True) - np.eye(z.shape[1])[y[o : o + n]]
                ) / n
                da = (dz @ v["head"]["kernel"].T) * (a > 0)
                grad = {
                    "head": {"kernel": h.T @ dz, "bias": dz.sum(0)},
                    "hidden0": {"kernel": x[o : o + n].T @ da, "bias": da.sum(0)},
                }
                v = jax.tree.map(lambda a, g: a - rate * g, v, grad)
            total = jax.tree.map(lambda t, a, n=n: t + a * n / sum(counts), total, v)
        w = total
    return w


@pytest.mark.parametrize("laid", LAYOUTS)
def test_all_masks_one_is_numpy_fedavg(laid):
    data = fakes.federation()
    spec = fakes.spec(fakes.small_mlp(hidden=(16,)), batch_size=32, epochs=2)
    state = first = fakes.start(spec, data)
    step = jitted(spec, LAYOUTS[laid])
    for _ in range(3):
        state, _ = step(state, data, fakes.cohort())
    expected = numpy_fedavg(
        first.params,
        np.asarray(data.x, np.float64),
        np.asarray(data.y),
        np.asarray(data.offset),
        np.asarray(data.count),
        rounds=3,
        steps=2,
        rate=0.1,
    )
    assert fakes.gap(state.params, jax.tree.map(jnp.float32, expected)) < 1e-5
    assert fakes.gap(state.params, first.params) > 1e-2


# ------------------------------------------------------------- vmapped == looped over


def looped(spec, state, data, cohort):
    """The round's clients one by one in Python; their changes, [K, ...] a leaf."""
    local, round_now = spec.local, state.round
    units_key = rng.fold_in(state.key, Role.UNITS, round_now)

    @jax.jit
    def alone(who, tier):
        member = ClientView(
            who, tier, jnp.asarray(True), data.count[who], data.labels[who]
        )
        return client.update(
            rng.fold_in(state.key, Role.LOCAL, round_now, who),
            state.params,
            None,
            local.method.submodel(units_key, round_now, state.params, member),
            ClientData(data.x, data.y, data.offset[who], data.count[who]),
            client=member,
            round=round_now,
            local=local,
        )[:2]

    pairs = [
        alone(who, tier) for who, tier in zip(cohort.client, cohort.tier, strict=True)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)


def network(name):
    if name == "mlp":
        return width(), fakes.federation()
    model = fakes.small_cnn()
    method = heterofl(model.axes, (0.25, 0.5, 1.0), scaler=True, masked_loss=True)
    return fakes.spec(model, method), fakes.federation((8, 8, 1))


@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_every_layout_is_the_loop_over_clients(name):
    spec, data = network(name)
    state, cohort = fakes.start(spec, data), fakes.cohort()
    deltas, covers = looped(spec, state, data, cohort)
    share = data.count / data.count.sum()
    num, den = jax.tree.map(
        lambda leaf: jnp.sum(leaf, axis=0),
        jax.vmap(aggregate.weighted_update)(deltas, covers, share),
    )
    expected = jax.tree.map(jnp.add, state.params, aggregate.masked_mean(num, den))
    for laid in LAYOUTS.values():
        new, _ = jitted(spec, laid)(state, data, cohort)
        assert fakes.gap(new.params, expected) < 1e-6


@pytest.mark.parametrize("laid", LAYOUTS)
def test_one_layout_gives_the_same_bits_twice(laid):
    spec, data = width(), fakes.federation()
    state, step = fakes.start(spec, data), jitted(spec, LAYOUTS[laid])
    once, again = (step(state, data, fakes.cohort())[0].params for _ in range(2))
    assert fakes.equal(once, again)


# ----------------------------------------------------------------- who is in the cohort


@pytest.fixture(scope="module")
def scene():
    spec, data = width(), fakes.federation()
    return spec, data, fakes.start(spec, data), jitted(spec)


@pytest.mark.parametrize("gone", range(4))
def test_a_padded_slot_is_a_client_that_was_never_asked(scene, gone):
    spec, data, state, step = scene
    valid = [k != gone for k in range(4)]
    padded, info = step(state, data, fakes.cohort(valid=valid))
    rest = [k for k in range(4) if k != gone]
    without, _ = jitted(spec)(
        state, data, fakes.cohort(rest, [(0, 1, 2, 1)[k] for k in rest])
    )
    assert fakes.gap(padded.params, without.params) < 1e-6
    assert float(info.weights[gone]) == 0
    assert not bool(info.valid[gone])


def test_what_fills_a_padded_slot_does_not_matter(scene):
    _, data, state, step = scene
    valid = [True, True, True, False]
    one, _ = step(state, data, fakes.cohort((0, 1, 2, 3), (0, 1, 2, 0), valid))
    other, _ = step(state, data, fakes.cohort((0, 1, 2, 2), (0, 1, 2, 2), valid))
    assert fakes.equal(one.params, other.params)


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)])
def test_the_order_of_the_cohort_is_float_order(scene, order):
    _, data, state, step = scene
    one, info = step(state, data, fakes.cohort())
    tiers = [(0, 1, 2, 1)[k] for k in order]
    other, shuffled = step(state, data, fakes.cohort(order, tiers))
    assert fakes.gap(one.params, other.params) < 1e-6
    np.testing.assert_allclose(
        info.weights[jnp.asarray(order)], shuffled.weights, rtol=1e-6
    )


def test_a_cohort_of_nobody_changes_nothing(scene):
    _, data, state, step = scene
    new, info = step(state, data, fakes.cohort(valid=[False] * 4))
    assert fakes.equal(new.params, state.params)
    assert int(new.round) == 1
    assert float(info.coverage) == 0
    assert np.isnan(float(info.loss))


def test_a_client_without_records_leaves_no_trace(scene):
    _, data, state, step = scene
    empty = dataclasses.replace(data, count=data.count.at[1].set(0))
    with_empty, info = step(state, empty, fakes.cohort())
    padded, _ = step(state, data, fakes.cohort(valid=[True, False, True, True]))
    assert fakes.equal(with_empty.params, padded.params)
    assert np.isfinite(float(info.loss))


def test_weights_and_loss_are_those_of_the_cohort(scene):
    _, data, state, step = scene
    _, info = step(state, data, fakes.cohort())
    np.testing.assert_allclose(info.weights, np.array(fakes.COUNTS) / 45, rtol=1e-6)
    np.testing.assert_allclose(
        info.loss, np.sum(info.weights * info.clients.loss), rtol=1e-6
    )


# -------------------------------------------------------------------------- coordinates


@pytest.mark.parametrize("server", [optax.sgd(1.0), optax.adam(0.1), optax.yogi(0.1)])
def test_what_nobody_covers_keeps_its_value_and_its_moments(server):
    """A round for everybody, then one without the widest tier."""
    data = fakes.federation()
    spec = width(server=fakes.relaxed(server))
    step, state = jitted(spec), fakes.start(spec, data)
    before, _ = step(state, data, fakes.cohort())
    after, info = step(before, data, fakes.cohort((0, 1, 2, 3), (0, 1, 1, 0)))
    half = {"hidden0": 8, "hidden1": 4}
    for tree in ("params", "server"):
        for path, old in jax.tree.leaves_with_path(getattr(before, tree)):
            new = functools.reduce(
                lambda node, key: (
                    node[key.key]
                    if hasattr(key, "key")
                    else getattr(node, key.name)
                    if hasattr(key, "name")
                    else node[key.idx]
                ),
                path,
                getattr(after, tree),
            )
            where = jax.tree_util.keystr(path)
            for name, size in half.items():
                if name in where:
                    assert np.array_equal(new[..., size:], old[..., size:]), where
                    assert not np.array_equal(new[..., :size], old[..., :size]), where
    assert 0 < float(info.coverage) < 1


def test_the_lone_holder_of_a_coordinate_moves_it_by_its_whole_change():
    data = fakes.federation()
    spec = width()
    state, cohort = fakes.start(spec, data), fakes.cohort()
    deltas, _ = looped(spec, state, data, cohort)
    new, _ = jitted(spec)(state, data, cohort)
    change = moved(new.params, state.params)["hidden0"]["kernel"][:, 8:]
    np.testing.assert_allclose(change, deltas["hidden0"]["kernel"][2][:, 8:], atol=1e-6)


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi"])
def test_a_server_optimiser_steps_along_the_mean_change(name):
    servers = {
        "momentum": optax.sgd(0.5, momentum=0.9),
        "adam": optax.adam(0.1, b2=0.99, eps=1e-3),
        "yogi": optax.yogi(0.1, b2=0.99, eps=1e-3),
    }
    server, data = fakes.relaxed(servers[name]), fakes.federation()
    spec, plain = fakes.spec(server=server), fakes.spec()
    state = fakes.start(spec, data)
    params, moments = state.params, server.init(state.params)
    step, mean_step = jitted(spec), jitted(plain)
    for number in range(2):
        at_params = dataclasses.replace(
            fakes.start(plain, data, params=params), round=jnp.asarray(number)
        )
        averaged, _ = mean_step(at_params, data, fakes.cohort())
        gradient = jax.tree.map(jnp.subtract, params, averaged.params)
        updates, moments = server.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        state, _ = step(state, data, fakes.cohort())
        assert fakes.gap(state.params, params) < 1e-5


# ---------------------------------------------------------------------- guard, schedule


def test_a_client_whose_change_is_not_finite_is_left_out(scene):
    spec, data, state, step = scene
    poisoned = dataclasses.replace(data, x=data.x.at[12, 0].set(jnp.nan))
    guarded, info = step(state, poisoned, fakes.cohort())
    without, _ = step(state, data, fakes.cohort(valid=[True, False, True, True]))
    assert fakes.gap(guarded.params, without.params) < 1e-6
    assert info.valid.tolist() == [True, False, True, True]
    np.testing.assert_allclose(info.weights, np.array([10, 0, 23, 5]) / 38, rtol=1e-6)
    open_spec = dataclasses.replace(spec, finite_guard=False)
    broken, _ = jitted(open_spec)(state, poisoned, fakes.cohort())
    assert not np.all(np.isfinite(broken.params["head"]["bias"]))


def test_where_all_are_left_out_the_loss_is_not_known(scene):
    _, data, state, step = scene
    poisoned = dataclasses.replace(data, x=data.x * jnp.nan)
    same, info = step(state, poisoned, fakes.cohort())
    assert fakes.equal(same.params, state.params)
    assert not np.any(info.valid)
    assert np.isnan(float(info.loss))


def test_a_loss_that_nobody_was_asked_for_is_not_known():
    """A rule sees no loss of a client that a method leaves out; 0 is the best one."""
    model = fakes.small_mlp()
    method = fakes.fedavg(model.axes)._replace(accepts=lambda who: who.tier > 0)
    spec, data = fakes.spec(model, method, rule=q_ffl(q=1)), fakes.federation()
    _, info = jitted(spec)(fakes.start(spec, data), data, fakes.cohort())
    assert np.isnan(info.incoming_losses).tolist() == [True, False, False, False]
    nobody = fakes.cohort(tiers=(0, 0, 0, 0))
    _, info = jitted(spec)(fakes.start(spec, data), data, nobody)
    assert np.isnan(float(info.loss))


def test_a_client_whose_change_is_longer_than_any_of_training_is_left_out(scene):
    """A finite change whose square is none would spoil every rule that looks at it."""
    _, data, state, step = scene
    vast = dataclasses.replace(data, x=data.x.at[10:17].multiply(1e16))
    guarded, info = step(state, vast, fakes.cohort())
    without, _ = step(state, data, fakes.cohort(valid=[True, False, True, True]))
    assert fakes.gap(guarded.params, without.params) < 1e-6
    assert info.valid.tolist() == [True, False, True, True]


def test_a_schedule_scales_the_local_rate_by_rounds_finished():
    data = fakes.federation()
    halved = fakes.spec(schedule=lambda finished: jnp.where(finished == 0, 1.0, 0.5))
    state = fakes.start(halved, data)
    first, _ = jitted(halved)(state, data, fakes.cohort())
    same, _ = jitted(fakes.spec())(state, data, fakes.cohort())
    assert fakes.gap(first.params, same.params) < 1e-7
    second, _ = jitted(halved)(first, data, fakes.cohort())
    slower = fakes.spec(optimizer=optax.sgd(0.05))
    expected, _ = jitted(slower)(first, data, fakes.cohort())
    assert fakes.gap(second.params, expected.params) < 1e-6


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_a_schedule_scales_the_servers_updates_and_leaves_its_state(name):
    servers = {"sgd": 1.0, "momentum": 0.5, "adam": 0.1}
    server = fakes.relaxed(optimizers.SERVERS[name](servers[name]))
    data = fakes.federation()
    plain = fakes.spec(server=server)
    halved = dataclasses.replace(
        plain, server_schedule=lambda finished: 0.5 ** finished.astype(jnp.float32)
    )
    step, slower = jitted(plain), jitted(halved)
    state = fakes.start(plain, data)
    for number in range(3):
        whole, _ = step(state, data, fakes.cohort())
        part, _ = slower(state, data, fakes.cohort())
        # 0.5^0 is traced, and exactly 1: the run as it is without.
        assert fakes.equal(whole.server, part.server)
        assert fakes.equal(whole.params, part.params) == (number == 0)
        expected = jax.tree.map(
            lambda new, old, f=0.5**number: old + f * (new - old),
            whole.params,
            state.params,
        )
        assert fakes.gap(part.params, expected) < 1e-6
        state = part


def test_what_nobody_covers_keeps_its_value_under_a_servers_schedule():
    spec = width(server_schedule=lambda finished: jnp.asarray(0.5))
    data = fakes.federation()
    state = fakes.start(spec, data)
    new, _ = jitted(spec)(state, data, fakes.cohort(tiers=(0, 0, 0, 0)))
    change = moved(new.params, state.params)["hidden0"]["kernel"]
    assert np.all(change[:, 4:] == 0)
    assert np.all(np.any(change[:, :4] != 0, 0))


def test_a_run_starts_from_the_parameters_it_is_given():
    data = fakes.federation()
    spec = fakes.spec()
    given = jax.tree.map(lambda leaf: leaf + 1, fakes.start(spec, data).params)
    assert fakes.equal(fakes.start(spec, data, params=given).params, given)


# ----------------------------------------------------------- a pure, traceable function


def test_three_cohorts_and_tier_mixes_are_traced_once():
    spec, data = width(), fakes.federation()
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, cohort):
        return round.step(state, data, cohort, spec=spec, layout=LAYOUTS["vmap"])[0]

    state = fakes.start(spec, data)
    mixes = [((0, 1), (0, 1)), ((2, 3), (2, 2)), ((3, 0), (1, 0))]
    for clients, tiers in mixes:
        state = step(state, fakes.cohort(clients, tiers))
    assert int(state.round) == 3


def test_users_jit_vmap_and_differentiate_the_round():
    data = fakes.federation()
    state = fakes.start(fakes.spec(), data)

    def after(rate):
        spec = fakes.spec(optimizer=optax.sgd(rate))
        return round.step(
            state, data, fakes.cohort(), spec=spec, layout=LAYOUTS["vmap"]
        )[0].params

    def loss(rate):
        logits = fakes.small_mlp().apply(after(rate), data.x).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.y).mean()

    rates = jnp.asarray([0.0, 0.05, 0.1])
    swept = jax.jit(jax.vmap(after))(rates)
    alone = jax.jit(after)(rates[2])
    assert fakes.gap(jax.tree.map(lambda leaf: leaf[2], swept), alone) < 1e-6
    assert fakes.equal(jax.tree.map(lambda leaf: leaf[0], swept), state.params)
    slope = jax.jit(jax.grad(loss))(rates[1])
    both = jax.jit(jax.vmap(loss))(rates[1] + jnp.asarray([-1e-3, 1e-3]))
    np.testing.assert_allclose(slope, (both[1] - both[0]) / 2e-3, rtol=2e-2)


# --------------------------------------------------------------------------- evaluation


def test_the_widest_tier_is_the_full_model():
    spec, data = width(), fakes.federation()
    state = fakes.start(spec, data)
    members = ClientView(
        jnp.arange(3), jnp.arange(3), jnp.ones(3, bool), data.count[:3], data.labels[:3]
    )
    full, own = jax.jit(functools.partial(deployed.evaluate, spec=spec))(
        state, data, data, jnp.arange(4) % 3, members
    )
    widest = jax.tree.map(lambda leaf: leaf[2], own)
    assert fakes.gap(widest, full) < 1e-6
    assert float(own.pooled.loss[0]) != float(full.pooled.loss)
    narrow = spec.local.model.resize(spec.local.method.size(0))
    small = jax.tree.map(
        lambda shape, leaf: leaf[tuple(slice(n) for n in shape.shape)],
        jax.eval_shape(narrow.init, jax.random.key(0), data.x[:1]),
        state.params,
    )
    logits = narrow.apply(small, data.x).logits
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, data.y).mean()
    np.testing.assert_allclose(own.pooled.loss[0], loss, rtol=1e-5)


def test_the_rule_decides_the_weights():
    data = fakes.federation()
    spec = fakes.spec(rule=weights.uniform())
    _, info = jitted(spec)(fakes.start(spec, data), data, fakes.cohort())
    np.testing.assert_allclose(info.weights, 0.25)
