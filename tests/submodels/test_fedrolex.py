"""The window of every round, against a loop over the paper's formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import layout, round
from fairjax.submodels.fedrolex import fedrolex
from fairjax.submodels.heterofl import heterofl
from tests import fakes

BUDGET = (0.3, 0.5, 1.0)
SIZES = {"hidden0": (5, 8, 16), "hidden1": (3, 4, 8)}
MODEL = fakes.small_mlp()
PLAIN = {"scaler": False, "masked_loss": False}


def windows(overlap=None, rounds=range(35)):
    """{axis: 0/1 units [rounds, tier, units]}."""
    method = fedrolex(MODEL.axes, BUDGET, overlap=overlap, **PLAIN)

    someone = fakes.member()

    def one(number, tier):
        member = someone._replace(tier=tier)
        return method.submodel(jax.random.key(0), number, None, member).forward.axes

    every = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    kept = jax.jit(every)(jnp.asarray(rounds, jnp.int32), jnp.arange(3))
    return {name: np.asarray(mask) for name, mask in kept.items()}


# By hand: max(1, round((1 - overlap) * w)) of w = 5, 8, 16 and 3, 4, 8.
PACES = {
    None: {"hidden0": (1, 1, 1), "hidden1": (1, 1, 1)},
    0.75: {"hidden0": (1, 2, 4), "hidden1": (1, 1, 2)},
    0.0: {"hidden0": (5, 8, 16), "hidden1": (3, 4, 8)},
    1.0: {"hidden0": (1, 1, 1), "hidden1": (1, 1, 1)},
}


@pytest.mark.parametrize("overlap", PACES)
def test_the_window_of_every_round(overlap):
    got = windows(overlap)
    for name, paces in PACES[overlap].items():
        for tier, pace in enumerate(paces):
            units = got[name].shape[2]
            for number in range(35):
                window = {(pace * number + i) % units for i in range(SIZES[name][tier])}
                kept = set(np.flatnonzero(got[name][number, tier]).tolist())
                assert kept == window


def test_a_late_round_does_not_overflow():
    late = 2**31 - 1
    got = windows(0.0, [late])["hidden0"][0, 0]
    expected = sorted((5 * late + i) % 16 for i in range(5))
    assert np.flatnonzero(got).tolist() == expected


def test_a_cycle_covers_every_unit_equally_often():
    for name, kept in windows(rounds=range(3, 19)).items():
        cycle = kept[: kept.shape[2]]
        assert np.all(cycle.sum(axis=0) == np.array(SIZES[name])[:, None])


def test_tiers_nest():
    kept = windows()["hidden0"]
    assert np.all(kept[:, 0] <= kept[:, 1])


def test_round_0_is_heterofl_bit_for_bit():
    data = fakes.federation()
    options = {"scaler": True, "masked_loss": True}

    def ends(method):
        spec = fakes.spec(MODEL, method, epochs=1)
        start = fakes.start(spec, data, params=fakes.drawn(MODEL, data.x[:1]))
        step = functools.partial(round.step, spec=spec, layout=layout.vmapped())
        step = jax.jit(step)
        first, _ = step(start, data, fakes.cohort())
        second, _ = step(first, data, fakes.cohort())
        return first.params, second.params

    rolling = ends(fedrolex(MODEL.axes, BUDGET, **options))
    static = ends(heterofl(MODEL.axes, BUDGET, **options))
    assert fakes.equal(rolling[0], static[0])
    assert not fakes.equal(rolling[1], static[1])
