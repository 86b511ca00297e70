"""Importance masks against a NumPy top-k, and the gradient's gain by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax import checks, client, layout, round
from fairjax.submodels import cost
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.fiarse import fiarse, through
from fairjax.types import Examples, Kept
from tests import fakes

BUDGET = (0.1, 0.29, 1.0)
MODEL = fakes.small_cnn()
IMAGE = jnp.zeros((1, 8, 8, 1))
PARAMS = fakes.drawn(MODEL, IMAGE)
LAYERS = ("conv0", "conv1", "head")
NORMS = ("norm0", "norm1")


def masks(method, tier):
    kept = method.units(
        jax.random.key(0), jnp.asarray(0), PARAMS, fakes.member(0, tier)
    )
    return jax.tree.map(np.asarray, method.mask(PARAMS, kept))


def flat(tree, names):
    leaves = [leaf for name in names for leaf in jax.tree.leaves(tree[name])]
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def largest(values, share):
    """0/1 of the floor(share * n) largest, by a sort in NumPy."""
    size = math.floor(share * values.size)
    top = np.argsort(-np.abs(values))[:size]
    return np.isin(np.arange(values.size), top)


@pytest.mark.parametrize("tier", range(3))
def test_the_mask_is_the_top_k_of_all_layers_jointly(tier):
    mask = masks(fiarse(BUDGET, layerwise=False), tier)
    expected = largest(flat(PARAMS, LAYERS), BUDGET[tier])
    assert np.array_equal(flat(mask, LAYERS) > 0, expected)
    assert np.all(flat(mask, NORMS) == 1)


def test_layerwise_is_the_top_k_of_every_layer():
    mask = masks(fiarse(BUDGET, layerwise=True), 1)
    for name in LAYERS:
        expected = largest(flat(PARAMS, [name]), BUDGET[1])
        assert np.array_equal(flat(mask, [name]) > 0, expected)
    assert np.all(flat(mask, NORMS) == 1)
    joint = masks(fiarse(BUDGET, layerwise=False), 1)
    assert not fakes.equal(mask, joint)


def test_the_gain_by_hand():
    """1.5 at the threshold, 1 + 2 * 3 / 16 at three times it, 1 without one."""
    weight = jnp.asarray([0.2, -0.2, 0.6, -0.6])
    tau = jnp.asarray(0.2)
    gain, of_tau = jax.grad(lambda w, t: through(w, t).sum(), (0, 1))(weight, tau)
    np.testing.assert_allclose(gain, [1.5, 1.5, 1.375, 1.375], rtol=1e-6)
    assert float(of_tau) == 0
    np.testing.assert_array_equal(through(weight, tau), weight)
    zero = jax.grad(lambda w: through(w, jnp.asarray(0.0)).sum())
    np.testing.assert_array_equal(zero(jnp.asarray([0.0, 3.0])), [1, 1])


def test_two_steps_by_hand():
    """The incoming model's mask, the gain of the weight as it moves, masked decay."""
    model, data = fakes.small_mlp(), fakes.federation()
    params, member = fakes.drawn(model, data.x[:1]), fakes.member(0, 1)
    method = fiarse(BUDGET, layerwise=False)
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
    spec = fakes.spec(
        model, method, optimizer=optimizer, counts=(10,), batch_size=10, epochs=2
    )
    kept = method.units(jax.random.key(0), jnp.asarray(0), params, member)
    run = functools.partial(
        client.update, member=member, round=jnp.asarray(0), local=spec.local
    )
    examples = Examples(data.x, data.y, data.offset[0], data.count[0])
    delta, cover, _, _ = jax.jit(run)(jax.random.key(1), params, None, kept, examples)

    values = flat(params, params)
    tau = np.sort(np.abs(values))[::-1][math.floor(0.29 * values.size) - 1]
    mask = jax.tree.map(lambda leaf: (jnp.abs(leaf) >= tau).astype(leaf.dtype), params)

    @jax.jit
    def grads(weights):
        def loss(weights):
            logits = jax.nn.log_softmax(model.apply(weights, data.x[:10]).logits)
            return -logits[jnp.arange(10), data.y[:10]].mean()

        return jax.grad(loss)(weights)

    weights = first = jax.tree.map(jnp.multiply, params, mask)
    for _ in range(2):
        weights = jax.tree.map(
            lambda w, g, m: (
                w
                - 0.1
                * m
                * (g * (1 + 2 * tau * jnp.abs(w) / (jnp.abs(w) + tau) ** 2) + 0.1 * w)
            ),
            weights,
            grads(weights),
            mask,
        )
    assert fakes.gap(delta, jax.tree.map(jnp.subtract, weights, first)) < 1e-6
    assert fakes.equal(cover, mask)


def test_without_a_threshold_it_is_fedavg():
    """Biases start at 0, so at budget 1 tau is 0 and the gain 1."""
    model, data = fakes.small_mlp(), fakes.federation()
    params = fakes.drawn(model, data.x[:1])
    params = {k: {**v, "bias": jnp.zeros_like(v["bias"])} for k, v in params.items()}

    def end(method):
        spec = fakes.spec(model, method, epochs=1)
        start = fakes.start(spec, data, params=params)
        step = functools.partial(round.step, spec=spec, layout=layout.vmapped())
        cohort = fakes.cohort(tiers=(0, 0, 0, 0))
        return jax.jit(step)(start, data, cohort)[0].params

    full = end(fiarse((1.0,), layerwise=False))
    assert fakes.gap(full, end(fedavg(model.axes))) < 1e-6


def test_a_deployed_sub_model_holds_the_kept_weights_alone():
    method = fiarse(BUDGET, layerwise=False)
    local = fakes.spec(MODEL, method).local
    kept = method.units(jax.random.key(0), jnp.asarray(0), PARAMS, fakes.member(0, 1))
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    got = client.answer(local, PARAMS, x, kept)
    by_hand = jax.tree.map(jnp.multiply, PARAMS, masks(method, 1))
    np.testing.assert_allclose(got, MODEL.apply(by_hand, x).logits, rtol=1e-5)
    whole = client.answer(local, PARAMS, x, Kept())
    np.testing.assert_allclose(whole, MODEL.apply(PARAMS, x).logits, rtol=1e-5)


def test_the_bill_is_the_kept_weights_and_a_bitmap():
    method = fiarse(BUDGET, layerwise=False)
    member = fakes.member(0, 1)
    kept = method.units(jax.random.key(0), jnp.asarray(0), PARAMS, member)
    bill = cost.ledger(
        MODEL,
        method,
        client.mean_cross_entropy(),
        optax.sgd(0.1),
        PARAMS,
        kept,
        member,
        x=IMAGE,
    )
    maskable, norms = flat(PARAMS, LAYERS).size, flat(PARAMS, NORMS).size
    held = math.floor(0.29 * maskable) + norms
    assert bill["parameters"] == held
    assert bill["bytes_up"] == 4 * held
    assert bill["bytes_down"] == 4 * held + math.ceil((maskable + norms) / 8)


def test_a_model_without_layers_is_refused():
    with pytest.raises(checks.InputError, match='layers with a "kernel"'):
        fiarse(BUDGET, layerwise=False).units(
            jax.random.key(0), jnp.asarray(0), {"w": jnp.ones(3)}, fakes.member()
        )
