"""Importance masks against a NumPy top-k, and local steps against plain NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.core import inference, layout, objectives, require, round
from fairjax.core.types import Submodel
from fairjax.models import mlp
from fairjax.submodels import cost
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.fiarse import fiarse, straight_through
from tests import fakes
from tests.submodels import rounds
from tests.submodels.by_hand import (
    cross_entropy,
    each,
    gap,
    gradient,
    leaves,
    perceptron,
)

BUDGET = (0.1, 0.29, 1.0)
MODEL = fakes.small_cnn()
IMAGE = jnp.zeros((1, 8, 8, 1))
PARAMS = fakes.drawn(MODEL, IMAGE)
LAYERS = ("conv0", "conv1", "head")
NORMS = ("norm0", "norm1")
MLP, DECAY = mlp(classes=rounds.CLASSES, hidden=(7, 5)), 0.1


def masks(method, tier):
    kept = method.submodel(
        jax.random.key(0), jnp.asarray(0), PARAMS, fakes.member(0, tier)
    )
    return jax.tree.map(np.asarray, method.mask(PARAMS, kept))


def flat(tree, names):
    leaves = [leaf for name in names for leaf in jax.tree.leaves(tree[name])]
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def largest(values, share):
    """0/1: the floor(share * n) largest, by a sort in NumPy."""
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
    """1.5 at the threshold, 1 + 2 * 3 / 16 at three times it, 1 without a threshold; 0
    below it, where the forward pass lacks the weight."""
    weight = jnp.asarray([0.2, -0.2, 0.6, -0.6, 0.19, -0.19])
    tau = jnp.asarray(0.2)
    gain, of_tau = jax.grad(lambda w, t: straight_through(w, t).sum(), (0, 1))(
        weight, tau
    )
    np.testing.assert_allclose(gain, [1.5, 1.5, 1.375, 1.375, 0, 0], rtol=1e-6)
    assert float(of_tau) == 0
    kept = np.asarray([0.2, -0.2, 0.6, -0.6, 0, 0], np.float32)
    np.testing.assert_array_equal(straight_through(weight, tau), kept)
    zero = jax.grad(lambda w: straight_through(w, jnp.asarray(0.0)).sum())
    np.testing.assert_array_equal(zero(jnp.asarray([0.0, 3.0])), [1, 1])


def released(theta, share, x, y, *, steps, frozen=False):
    """(change, mask at the start, weights that fell) of local steps, in NumPy.

    Weights that start below the threshold are 0 and stay so; `frozen` keeps the first
    mask in all steps.
    """
    sizes = np.sort(np.concatenate([abs(leaf).ravel() for leaf in leaves(theta)]))
    tau = sizes[::-1][math.floor(share * sizes.size) - 1]
    first = each(lambda leaf: abs(leaf) >= tau, theta)
    weights = start = each(np.multiply, theta, first)
    for _ in range(steps):
        mask = first if frozen else each(lambda leaf: abs(leaf) >= tau, weights)
        slope = gradient(
            lambda effective: cross_entropy(perceptron(effective, x), y),
            each(np.multiply, weights, mask),
        )

        def moved(w, g, m, trained):
            straight = g * (1 + 2 * tau * abs(w) / (abs(w) + tau) ** 2) * m
            return w - 0.1 * (straight + DECAY * w) * trained

        weights = each(moved, weights, slope, mask, first)
    fell = each(lambda w, m: m & (abs(w) < tau), weights, first)
    return each(np.subtract, weights, start), first, fell


@pytest.mark.parametrize("steps", [1, 5])
@rounds.wide
def test_a_round_by_hand(steps):
    """The mask of every step, the gain of the current weight, and the upload: changes
    also of weights that have left the forward pass, averaged over the clients that had
    them when the round began."""
    params, share = rounds.drawn(MLP), (0.2, 0.5, 1.0)
    _, [(_, got)] = rounds.federated(
        MLP,
        fiarse(share, layerwise=False),
        params,
        steps=steps,
        optimizer=optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(0.1)),
    )

    def expected(frozen):
        total, count = (each(np.zeros_like, params) for _ in range(2))
        fallen = []
        for tier, (x, y) in zip(rounds.TIERS, rounds.records(), strict=True):
            delta, mask, fell = released(
                params, share[tier], x, y, steps=steps, frozen=frozen
            )
            total, count = each(np.add, total, delta), each(np.add, count, mask)
            for change, gone in zip(leaves(delta), leaves(fell), strict=True):
                fallen += list(change[gone])
        mean = each(lambda p, s, n: p + s / np.maximum(n, 1), params, total, count)
        return mean, fallen

    anew, fallen = expected(frozen=False)
    assert gap(got.params, anew) < rounds.TIGHT
    frozen, _ = expected(frozen=True)
    if steps == 1:
        assert gap(got.params, frozen) < rounds.TIGHT
        return
    # The case has weights that fell below the threshold and are sent; a constant mask
    # gives another model.
    assert len(fallen) > 5
    assert np.all(np.asarray(fallen) != 0)
    assert gap(got.params, frozen) > 1e-3


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
    kept = method.submodel(
        jax.random.key(0), jnp.asarray(0), PARAMS, fakes.member(0, 1)
    )
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    got = inference.predict(local, PARAMS, x, kept)
    by_hand = jax.tree.map(jnp.multiply, PARAMS, masks(method, 1))
    np.testing.assert_allclose(got, MODEL.apply(by_hand, x).logits, rtol=1e-5)
    whole = inference.predict(local, PARAMS, x, Submodel())
    np.testing.assert_allclose(whole, MODEL.apply(PARAMS, x).logits, rtol=1e-5)


def test_the_bill_is_the_kept_weights_and_a_bitmap():
    method = fiarse(BUDGET, layerwise=False)
    member = fakes.member(0, 1)
    kept = method.submodel(jax.random.key(0), jnp.asarray(0), PARAMS, member)
    bill = cost.client_cost(
        MODEL,
        method,
        objectives.mean_cross_entropy(),
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
    with pytest.raises(require.InputError, match=r'^params: .* layers with a "kernel"'):
        fiarse(BUDGET, layerwise=False).submodel(
            jax.random.key(0), jnp.asarray(0), {"w": jnp.ones(3)}, fakes.member()
        )
