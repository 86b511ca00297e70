"""Nested prefixes; the masked loss and the scaler are tested with the client."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.core import layout, round
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.heterofl import heterofl
from tests import fakes

BUDGET = (0.3, 0.5, 1.0)
MODEL = fakes.small_mlp()
PLAIN = {"scaler": False, "masked_loss": False}


def widths(method, tier, client=0, number=0):
    """Units of both layers, and whether they are a prefix."""
    key = jax.random.fold_in(jax.random.key(3), number)
    kept = method.submodel(key, jnp.asarray(number), None, fakes.member(client, tier))
    masks = [np.asarray(kept.forward.axes[name]) for name in ("hidden0", "hidden1")]
    assert all(not np.any(mask[1:] & ~mask[:-1]) for mask in masks)
    return [int(mask.sum()) for mask in masks]


def test_a_tier_keeps_the_lead_of_every_layer_rounded_up():
    method = heterofl(MODEL.axes, BUDGET, **PLAIN)
    assert [widths(method, tier) for tier in range(3)] == [[5, 3], [8, 4], [16, 8]]
    assert [dict(method.size(tier).axes) for tier in (0, 2)] == [
        {"hidden0": 5, "hidden1": 3},
        {"hidden0": 16, "hidden1": 8},
    ]


def test_with_full_tiers_alone_it_is_fedavg():
    data = fakes.federation()

    def end(method):
        spec = fakes.spec(MODEL, method, epochs=1)
        start = fakes.start(spec, data, params=fakes.drawn(MODEL, data.x[:1]))
        step = functools.partial(round.step, spec=spec, layout=layout.vmapped())
        return jax.jit(step)(start, data, fakes.cohort())[0].params

    full = heterofl(MODEL.axes, (1.0, 1.0, 1.0), scaler=True, masked_loss=False)
    assert fakes.gap(end(full), end(fedavg(MODEL.axes))) < 1e-6


def test_dynamic_tiers_are_redrawn_by_their_shares():
    """Draws ignore a client's own tier; a share of 0 is never drawn."""
    method = heterofl(MODEL.axes, BUDGET, redraw=(3.0, 0.0, 1.0), **PLAIN)
    assert method.size is None
    member = fakes.member(0, 1)

    def width(key, client):
        kept = method.submodel(
            key, jnp.asarray(0), None, member._replace(client=client)
        )
        return jnp.sum(kept.forward.axes["hidden0"])

    draw = jax.jit(jax.vmap(width, (None, 0)))
    drawn = np.asarray(draw(jax.random.key(0), jnp.arange(400)))
    assert set(drawn.tolist()) == {5, 16}
    assert abs(np.mean(drawn == 5) - 0.75) < 0.08
    again = np.asarray(draw(jax.random.key(1), jnp.arange(400)))
    assert np.mean(again != drawn) > 0.2


def test_a_dynamic_client_is_scaled_by_the_tier_it_drew():
    method = heterofl(
        MODEL.axes, BUDGET, scaler=True, masked_loss=False, redraw=(1.0, 1.0, 1.0)
    )
    for client in range(4):
        kept = method.submodel(
            jax.random.key(0), jnp.asarray(0), None, fakes.member(client, 0)
        )
        width = int(kept.forward.axes["hidden0"].sum())
        np.testing.assert_allclose(kept.scale, {5: 0.3, 8: 0.5, 16: 1.0}[width])
