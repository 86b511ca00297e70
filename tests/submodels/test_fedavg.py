"""The baselines: one width for all, one for capable clients, or one per tier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import layout, require, round, scopes
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.heterofl import heterofl
from tests import fakes

BUDGET = (0.25, 0.5, 1.0)
MODEL = fakes.small_mlp()
DATA = fakes.federation()
ALL = fakes.cohort(tiers=(0, 1, 2, 1))


@functools.cache
def ready(mode, tier=0):
    """(state, jitted step) of a mode; None: HeteroFL, each tier's own width."""
    if mode is None:
        method = heterofl(MODEL.axes, BUDGET, scaler=False, masked_loss=False)
    else:
        method = fedavg(MODEL.axes, BUDGET, mode=mode, tier=tier)
    spec = fakes.spec(MODEL, method, batch_size=16, epochs=1)
    start = fakes.start(spec, DATA, params=fakes.drawn(MODEL, DATA.x[:1]))
    step = functools.partial(round.step, spec=spec, layout=layout.vmapped())
    return start, jax.jit(step)


def one_round(mode, cohort, tier=0):
    start, step = ready(mode, tier)
    return start, *step(start, DATA, cohort)


def among(clients, tier):
    """All four slots on one tier; only these clients are valid."""
    return fakes.cohort(tiers=(tier,) * 4, valid=[k in clients for k in range(4)])


def moved(before, after):
    """Units of the first layer that changed."""
    kernels = (np.asarray(p["hidden0"]["kernel"]) for p in (before, after))
    return np.flatnonzero(np.any(np.subtract(*kernels) != 0, axis=0)).tolist()


def test_smallest_is_the_width_of_tier_0_for_everybody():
    start, end, info = one_round("smallest", ALL)
    assert moved(start.params, end.params) == list(range(4))
    assert info.valid.tolist() == [True] * 4
    _, same, _ = one_round(None, fakes.cohort(tiers=(0, 0, 0, 0)))
    assert fakes.gap(end.params, same.params) < 1e-6


def test_exclusive_leaves_out_the_poor():
    start, end, info = one_round("exclusive", ALL, tier=1)
    assert info.valid.tolist() == [False, True, True, True]
    assert moved(start.params, end.params) == list(range(8))
    assert float(info.weights[0]) == 0
    _, same, _ = one_round(None, among((1, 2, 3), 1))
    assert fakes.gap(end.params, same.params) < 1e-6


def test_decoupled_tiers_never_mix():
    """Each tier is the federation of its own clients; the plain model does not move."""
    start, end, _ = one_round("decoupled", ALL)
    assert fakes.equal(start.params, end.params)
    for tier, clients in enumerate([(0,), (1, 3), (2,)]):
        got = scopes.gather(end.leaf_copies, end.params, fakes.member(0, tier))
        _, alone, _ = one_round(None, among(clients, tier))
        assert fakes.gap(got, alone.params) < 1e-6
        assert moved(start.params, got) == list(range((4, 8, 16)[tier]))


def test_the_whole_model_is_trained_at_every_budget():
    kept = fedavg(MODEL.axes, BUDGET).submodel(
        jax.random.key(0), jnp.asarray(0), None, fakes.member()
    )
    assert kept.forward is None
    assert kept.update is None


def test_an_unknown_mode_is_refused():
    with pytest.raises(require.InputError, match='mean "decoupled"'):
        fedavg(MODEL.axes, BUDGET, mode="decouple")
