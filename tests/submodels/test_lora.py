"""LoRA: shapes and factor by hand, a base that never moves, means per rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import axes as unit_axes
from fairjax.core import layout, require, round
from fairjax.core.types import Axes, Cohort, LeafAxes, Model, Outputs
from fairjax.fairness import weights
from fairjax.submodels.lora import adapt, lora
from tests import fakes
from tests.submodels.residual import residual, trained

RANK, ALPHA = 4, 8.0
PLAIN = residual(hidden=(5,), ends=())
MODEL = adapt(PLAIN, RANK, ALPHA)
BUDGET = (0.5, 1.0)


def start(model=MODEL):
    return model.init(jax.random.key(3), jnp.zeros((1, 6)))


def filled(model=MODEL):
    """Parameters with nonzero b."""
    return jax.tree.map(lambda p: p + 0.1 * jnp.ones_like(p), start(model))


def rounds(model, method, cohort, number=1):
    data = fakes.federation()
    spec = fakes.spec(model, method, epochs=1, rule=weights.uniform())
    step = jax.jit(
        lambda s: round.step(s, data, cohort, spec=spec, layout=layout.vmapped())[0]
    )
    states = [fakes.start(spec, data)]
    for _ in range(number):
        states.append(step(states[-1]))
    return states


def test_an_adapted_model_begins_as_the_plain_one():
    x = jax.random.normal(jax.random.key(0), (3, 6))
    params = start()
    assert fakes.equal(params["base"], PLAIN.init(jax.random.key(3), x))
    plain = PLAIN.apply(params["base"], x).logits
    np.testing.assert_array_equal(MODEL.apply(params, x).logits, plain)
    unit_axes.check("adapted", params, MODEL.axes)
    assert "head" not in params["lora"]
    assert np.std(params["lora"]["stem"]["kernel"]["a"]) > 0.1


def test_the_kernel_is_base_plus_the_scaled_product_at_any_rank():
    """Rank 2 of 4 has the factor alpha / 4: coordinates mean the same at all tiers."""
    x = jax.random.normal(jax.random.key(0), (3, 6))
    small = MODEL.resize(lora(MODEL.axes, BUDGET).size(0))
    for model, rank in ((MODEL, 4), (small, 2)):
        params = filled(model)
        factors = params["lora"]

        def merge(base, pair):
            if "a" in pair:
                return base + ALPHA / RANK * pair["a"] @ pair["b"]
            return {k: merge(v, pair[k]) if k in pair else v for k, v in base.items()}

        assert factors["stem"]["kernel"]["a"].shape == (6, rank)
        expected = PLAIN.apply(merge(params["base"], factors), x).logits
        np.testing.assert_allclose(
            model.apply(params, x).logits, expected, rtol=1e-4, atol=1e-5
        )


def attention():
    """Query and output kernels of an attention, and a 2 x 2 convolution."""
    shapes = {
        "query": {"kernel": (6, 2, 3), "bias": (2, 3)},
        "out": {"kernel": (2, 3, 6), "bias": (6,)},
        "conv": {"kernel": (2, 2, 1, 5)},
    }
    tree = jax.tree.map(lambda s: LeafAxes((None,) * len(s)), shapes, is_leaf=_shape)

    def init(key, x):
        return jax.tree.map(lambda s: jnp.ones(s), shapes, is_leaf=_shape)

    def apply(params, x, **_):
        h = jnp.einsum("bd,dhk->bhk", x, params["query"]["kernel"])
        logits = jnp.einsum("bhk,hkd->bd", h, params["out"]["kernel"])
        return Outputs(logits, (logits,))

    return Model(init, apply, Axes(tree, {}, {}))


def _shape(node):
    return isinstance(node, tuple)


def test_kernels_of_higher_rank_split_where_their_bias_says():
    model = adapt(attention(), 2, 1.0)
    params = model.init(jax.random.key(0), jnp.zeros((1, 6)))
    shapes = jax.tree.map(jnp.shape, params["lora"], is_leaf=lambda n: not _is_dict(n))
    assert shapes == {
        "query": {"kernel": {"a": (6, 2), "b": (2, 2, 3)}},
        "out": {"kernel": {"a": (2, 3, 2), "b": (2, 6)}},
        "conv": {"kernel": {"a": (2, 2, 1, 2), "b": (2, 5)}},
    }
    params["lora"]["query"]["kernel"]["b"] = jnp.arange(12.0).reshape(2, 2, 3)
    a, b = params["lora"]["query"]["kernel"].values()
    flat = 1.0 + 0.5 * (a @ b.reshape(2, 6))
    base = dict(params["base"], query={"kernel": flat.reshape(6, 2, 3)})
    x = jax.random.normal(jax.random.key(1), (3, 6))
    np.testing.assert_allclose(
        model.apply(params, x).logits, attention().apply(base, x).logits, rtol=1e-4
    )


def _is_dict(node):
    return isinstance(node, dict)


def test_the_base_is_the_same_bytes_after_rounds_and_the_head_is_not():
    states = rounds(
        MODEL, lora(MODEL.axes, BUDGET), fakes.cohort(tiers=(0, 1, 0, 1)), 2
    )
    old, new = states[0].params, states[2].params
    rest = [name for name in old["base"] if name != "head"]
    assert all(fakes.equal(old["base"][n], new["base"][n]) for n in rest)
    assert not fakes.equal(old["base"]["head"], new["base"]["head"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), old["lora"], new["lora"])
    assert all(jax.tree.leaves(moved))


def test_a_head_that_is_no_exception_has_factors():
    model = adapt(PLAIN, RANK, ALPHA, head=False)
    assert "head" in start(model)["lora"]
    spec = fakes.spec(model, lora(model.axes, BUDGET), epochs=1)
    delta, _, _ = trained(spec, 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(delta["base"]))
    assert np.any(delta["lora"]["head"]["kernel"]["b"])


def test_equal_ranks_are_the_plain_mean_and_others_are_counted_per_rank():
    data = fakes.federation()
    spec = fakes.spec(MODEL, lora(MODEL.axes, BUDGET), epochs=1, rule=weights.uniform())
    state = fakes.start(spec, data)

    @jax.jit
    def changes(tier, valid):
        """The change of b in the stem, after a round of the valid ones of clients 0 and
        1."""
        cohort = Cohort(jnp.arange(2), tier, valid)
        new, _ = round.step(state, data, cohort, spec=spec, layout=layout.vmapped())
        pair = lambda params: params["lora"]["stem"]["kernel"]["b"]  # noqa: E731
        return pair(new.params) - pair(state.params)

    def change(tiers, valid=(True, True)):
        return changes(jnp.asarray(tiers), jnp.asarray(valid))

    first, second = (True, False), (False, True)
    poor, rich = change((0, 1), first), change((0, 1), second)
    mixed, both, full = change((0, 1)), change((1, 1)), change((1, 1), first)
    assert not np.any(poor[2:])
    np.testing.assert_allclose(mixed[:2], (poor[:2] + rich[:2]) / 2, atol=1e-6)
    np.testing.assert_allclose(mixed[2:], rich[2:], atol=1e-6)
    np.testing.assert_allclose(both, (full + rich) / 2, atol=1e-6)


def test_a_model_without_factors_and_a_rank_of_none_are_refused():
    with pytest.raises(require.InputError, match=r"^rank: expected a whole number"):
        adapt(PLAIN, 0, 1.0)
    with pytest.raises(require.InputError, match=r"^axes: expected one of .*'rank'"):
        lora(PLAIN.axes, BUDGET)
