"""Cohorts on four devices: what one device computes, and the same bits every time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import layout, round, trees
from fairjax.experiment.compilation import compile_round
from fairjax.experiment.config import build
from fairjax.experiment.io import distributed
from fairjax.experiment.resume import initial_state
from fairjax.submodels.heterofl import heterofl
from tests import fakes
from tests.core.test_client import in_float64
from tests.core.test_layout import SLOTS, loop, one
from tests.trained import small

DEVICES = 4
COUNTS = (10, 7, 23, 5, 9)
MESH = layout.make_mesh(DEVICES)
INNER = {
    "vmap": layout.vmapped(),
    "scan": layout.scanned(),
    "chunk2": layout.chunked(2),
}


def dealt(program):
    return jax.jit(layout.on_devices(program, MESH))


# --------------------------------------------------------------------------- the layout

LAYOUTS = {name: layout.sharded(inner) for name, inner in INNER.items()}
LAYOUTS["sliced"] = layout.sliced(LAYOUTS["vmap"], (2, 0, 4, 1))


@pytest.mark.parametrize("name", LAYOUTS)
def test_sums_and_rows_are_those_of_the_loop(name):
    """Seven slots on four devices; whole numbers, so that every order is exact."""
    total = dealt(lambda slots: LAYOUTS[name].total(one, slots))
    assert fakes.equal(total(SLOTS), loop())
    stack = dealt(lambda slots: LAYOUTS[name].stack(lambda *s: one(*s)[1], slots))
    assert fakes.equal(stack(SLOTS), loop()[1])


@pytest.mark.parametrize("clients", [1, 3, 4, 5])
def test_every_number_of_slots_fits(clients):
    slots = {"x": jnp.arange(1.0, clients + 1)}

    def itself(slot, tier):
        return (slot["x"], jnp.uint32(1)), slot["x"]

    (sums, count), each = dealt(lambda s: LAYOUTS["vmap"].total(itself, s))(slots)
    assert float(sums) == clients * (clients + 1) / 2
    assert int(count) == clients
    assert each.tolist() == slots["x"].tolist()


def test_sums_are_added_in_the_order_of_the_devices():
    """In float32 1e8 + 1 is 1e8: any other order of these has another sum."""
    slots = jnp.asarray([1e8, 1.0, -1e8, 1.0])
    sums, _ = dealt(lambda s: LAYOUTS["vmap"].total(lambda x, _: (x, x), s))(slots)
    assert float(sums) == 1.0


def test_sums_on_devices_are_differentiated_like_others():
    slots = jnp.arange(5.0)

    def loss(laid, rate):
        return laid.total(lambda slot, _: (jnp.sin(rate * slot), slot), slots)[0] ** 2

    alone = jax.grad(functools.partial(loss, INNER["scan"]))(0.3)
    program = layout.on_devices(functools.partial(loss, LAYOUTS["scan"]), MESH)
    np.testing.assert_allclose(jax.jit(jax.grad(program))(0.3), alone, rtol=1e-6)


# ---------------------------------------------------------------------------- the round


def test_the_round_is_that_of_one_device():
    with in_float64():
        model, data = fakes.small_mlp(), fakes.federation(counts=COUNTS, dtype="f8")
        spec = fakes.spec(
            model,
            heterofl(model.axes, (0.25, 0.5, 1.0), scaler=True, masked_loss=True),
            counts=COUNTS,
        )
        params = fakes.drawn(model, data.x[:1], "f8")
        state = fakes.start(spec, data, params=params)
        cohort = fakes.cohort((0, 3, 1, 4, 2), (0, 0, 1, 1, 2))
        ends = []
        for laid, mesh in [(INNER["vmap"], None), (LAYOUTS["vmap"], MESH)]:
            step = functools.partial(round.step, spec=spec, layout=laid)
            ends.append(jax.jit(layout.on_devices(step, mesh))(state, data, cohort))
        (alone, told), (together, said) = ends
        assert alone.params["head"]["bias"].dtype == np.float64
        assert fakes.gap(alone.params, together.params) < 1e-10
        assert fakes.gap(told.clients.loss, said.clients.loss) < 1e-10
        assert fakes.equal(told.valid, said.valid)


# ------------------------------------------------------------------------------ the run

FIELDS = {
    "data__partition__num_clients": 6,
    "clients_per_round": 5,
    "model__mlp__hidden": (8,),
    "tiers__proportions": (1.0, 1.0),
}
CASES = {
    "losses, every change at once, a memory, sliced": {
        "fairness__rule": "q_fedavg",
        "submodel__name": "dynamicfl",
        "tiers__branches": (0, 2),
        "tiers__budget": (1.0, 1.0),
        "execution__form": "sliced",
    },
    "clipped, noised, summed in secret": {
        "privacy__mechanism": "client_dp",
        "privacy__noise_multiplier": 0.5,
        "privacy__accountant": "rdp",
        "privacy__secure_sum": "masked",
        "fairness__denominator": "fixed",
        "submodel__heterofl__masked_loss": False,
        "execution__batching": "scan",
        "tiers__budget": (0.5, 1.0),
    },
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "losses, every change at once, a memory, sliced", marks=pytest.mark.slow
        ),
        "clipped, noised, summed in secret",
    ],
)
def test_two_rounds_are_those_of_one_device(name):
    ends = []
    for devices in (1, DEVICES):
        run = build.run(small(**FIELDS, **CASES[name], execution__devices=devices))
        assert run.choices["execution.devices"] == f"{devices}: asked for"
        state = distributed.replicate(initial_state(run), run.mesh)
        step, _ = compile_round(run, state)
        made = [state]
        for _ in range(2):
            state, (_, info) = step(state)
            made.append(state)
        ends.append((made, info))
    (alone, told), (together, said) = ends
    for ours, theirs in zip(alone, together, strict=True):
        assert fakes.gap(*(trees.unwrap_keys(state) for state in (ours, theirs))) < 1e-6
    assert fakes.gap(alone[0].params, alone[2].params) > 1e-3
    np.testing.assert_allclose(told.weights, said.weights, rtol=1e-5)
    assert fakes.equal(told.valid, said.valid)
    # Every device holds the same bits, and again the same.
    again, _ = step(together[1])
    both = (jax.tree.leaves(trees.unwrap_keys(each)) for each in (state, again))
    for leaf, other in zip(*both, strict=True):
        assert leaf.is_fully_replicated
        parts = [np.asarray(part.data) for part in leaf.addressable_shards]
        assert all(np.array_equal(part, other) for part in parts)
