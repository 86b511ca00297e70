"""Norms: their formulas, and independence of masked channels and padded records."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core.types import Submodel, Units
from fairjax.models import layers

EPSILON = layers.EPSILON


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def affine(channels):
    return {"scale": 1 + normal(channels, 1), "bias": normal(channels, 2)}


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


@pytest.mark.parametrize("shape", [(7, 5), (7, 3, 4, 5)])
def test_batch_norm_is_its_formula_over_valid_records(shape):
    with jax.enable_x64(True):
        x, params = 3 + 2 * normal(shape), affine(5)
        where = np.array([1, 1, 0, 1, 0, 0, 1], bool)
        x[~where] *= 1e3
        valid = x[where].reshape(-1, 5)
        mean, var = valid.mean(0), valid.var(0)
        y, moments = layers.batch_norm(
            as_jax(params), jnp.asarray(x), where=jnp.asarray(where)
        )
        expected = (x - mean) / np.sqrt(var + EPSILON)
        expected = expected * params["scale"] + params["bias"]
        np.testing.assert_allclose(y, expected, rtol=1e-10)
        assert float(moments.count) == valid.shape[0]
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(moments.var, var, rtol=1e-12)
        whole, _ = layers.batch_norm(as_jax(params), jnp.asarray(x[where]))
        np.testing.assert_allclose(y[where], whole, rtol=1e-12)


def test_batch_norm_by_given_moments_does_not_look_at_the_batch():
    x, params = jnp.asarray(normal((6, 4)), jnp.float32), affine(4)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    _, given = layers.batch_norm(params, x)
    alone, reported = layers.batch_norm(params, x[2:3], moments=given)
    np.testing.assert_allclose(alone, layers.batch_norm(params, x)[0][2:3], rtol=1e-5)
    assert reported is given


def test_batch_norm_without_a_record_and_of_a_masked_channel_is_finite():
    x = jnp.asarray(normal((4, 3)), jnp.float32).at[:, 1].set(0)
    params = {"scale": jnp.asarray([1.0, 0, 2]), "bias": jnp.asarray([1.0, 0, 2])}

    def run(x, where):
        y, moments = layers.batch_norm(params, x, where=where)
        return jnp.sum(y**3), (y, moments)

    for where in (jnp.ones(4, bool), jnp.zeros(4, bool)):
        grad, (y, moments) = jax.grad(run, has_aux=True)(x, where)
        assert np.all(np.isfinite(grad))
        assert not np.any(y[:, 1])
    assert [float(jnp.sum(leaf)) for leaf in moments] == [0, 0, 0]


def test_a_layer_norm_counts_the_active_channels():
    with jax.enable_x64(True):
        kept = np.array([0, 2, 3, 6])
        active = np.zeros(8)
        active[kept] = 1
        x, params = 2 + normal((5, 3, 8)), affine(8)
        masked = jax.tree.map(lambda p: p * active, params)
        got = layers.layer_norm(
            as_jax(masked), jnp.asarray(x * active), active=jnp.asarray(active)
        )
        sliced = {name: leaf[kept] for name, leaf in params.items()}
        expected = layers.layer_norm(as_jax(sliced), jnp.asarray(x[..., kept]))
        np.testing.assert_allclose(got[..., kept], expected, rtol=1e-10)
        assert not np.any(np.delete(got, kept, axis=-1))
        part = x[..., kept]
        centred = part - part.mean(-1, keepdims=True)
        by_hand = centred / np.sqrt(part.var(-1, keepdims=True) + EPSILON)
        by_hand = by_hand * sliced["scale"] + sliced["bias"]
        np.testing.assert_allclose(expected, by_hand, rtol=1e-10)


@pytest.mark.parametrize("shape", [(3, 8), (3, 4, 2, 8)])
def test_a_group_norm_is_flax_s(shape):
    x = jnp.asarray(normal(shape), jnp.float32)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), affine(8))
    theirs = nn.GroupNorm(None, group_size=2, epsilon=EPSILON)
    np.testing.assert_allclose(
        layers.group_norm(params, x, group_size=2),
        theirs.apply({"params": params}, x),
        rtol=1e-4,
        atol=1e-5,
    )


def names(jaxpr):
    return [e.params["name"] for e in jaxpr.eqns if e.primitive.name == "name"]


@pytest.mark.parametrize("kind", ["group", "batch", "layer", "none"])
def test_the_scaler_divides_before_a_norm_which_is_marked_for_the_bill(kind):
    x = 30 * jnp.asarray(normal((6, 4)), jnp.float32)
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    scaled = Submodel(Units({}, {}), scale=jnp.asarray(0.5))

    def run(x, kept):
        around = layers.make_setting(None, None, kept)
        return layers.norm(params, x, around, kind=kind, name="n", group_size=2)

    y, moments = run(x, scaled)
    assert moments.keys() == ({"n"} if kind == "batch" else set())
    np.testing.assert_array_equal(y, run(2 * x, Submodel())[0])
    jaxpr = jax.make_jaxpr(lambda x: run(x, Submodel())[0])(x).jaxpr
    assert names(jaxpr) == ([] if kind == "none" else ["norm"])
