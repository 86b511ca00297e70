"""flax modules and bare functions train masked like fairjax's own models."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fairjax import models
from fairjax.core import axes, client, require
from fairjax.core.types import Axes, ClientData, ClientView, LeafAxes, Size
from fairjax.submodels.heterofl import heterofl
from tests import fakes

WIDTH = 8
DENSE = {
    "first": {"kernel": LeafAxes((None, "hidden0")), "bias": LeafAxes(("hidden0",))},
    "head": {
        "kernel": LeafAxes(("hidden0", "classes")),
        "bias": LeafAxes(("classes",)),
    },
}
AXES = Axes(DENSE, {"hidden0": WIDTH, "classes": fakes.CLASSES}, {})
ROW = jax.ShapeDtypeStruct((1, 6), jnp.float32)


class Linen(nn.Module):
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.relu(nn.Dense(WIDTH, name="first")(x))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return nn.Dense(fakes.CLASSES, name="head")(h)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, fakes.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.first(x)))


def draw(key, x):
    return Linen().init(key, x)["params"]


def forward(params, x):
    h = x @ params["first"]["kernel"] + params["first"]["bias"]
    return jax.nn.relu(h) @ params["head"]["kernel"] + params["head"]["bias"]


MODELS = {
    "linen": lambda: models.from_linen(Linen(), AXES, ROW),
    "nnx": lambda: models.from_nnx(Nnx, AXES),
    "functions": lambda: models.from_functions(draw, forward, AXES),
}


def train(model, params):
    """The update of one client of the half-wide tier."""
    method = heterofl(model.axes, (0.5, 1.0), scaler=False, masked_loss=False)
    local, data = fakes.spec(model, method, epochs=1).local, fakes.federation()
    tier = jnp.asarray(0)
    member = ClientView(tier, tier, jnp.asarray(True), data.count[0], data.labels[0])
    examples = ClientData(data.x, data.y, data.offset[0], data.count[0])
    kept = method.submodel(jax.random.key(0), tier, params, member)
    run = functools.partial(client.update, client=member, round=tier, local=local)
    return jax.jit(run)(jax.random.key(1), params, None, kept, examples)[0]


NAMES = {"first": "hidden0", "head": "head"}


@functools.cache
def trained_by_the_house():
    """(params, their change) of the same network as an `mlp`."""
    own = fakes.small_mlp(hidden=(WIDTH,))
    params = own.init(jax.random.key(3), jnp.zeros((1, 6)))
    change = train(own, params)
    return tuple(
        {theirs: dict(tree[ours]) for theirs, ours in NAMES.items()}
        for tree in (params, change)
    )


@pytest.mark.parametrize("name", ["linen", "nnx", "functions"])
def test_an_adapted_module_trains_masked_as_the_house_s_own_network(name):
    adapted = MODELS[name]()
    params, expected = trained_by_the_house()
    drawn = adapted.init(jax.random.key(3), jnp.zeros((1, 6)))
    axes.check(name, drawn, adapted.axes)
    assert require.describe(drawn) == require.describe(params)
    assert adapted.resize is None
    got = train(adapted, params)
    assert fakes.gap(got, expected) < 1e-6
    assert np.any(got["first"]["kernel"][:, : WIDTH // 2])
    assert not np.any(got["first"]["kernel"][:, WIDTH // 2 :])


@pytest.mark.parametrize("name", ["linen", "nnx", "functions"])
def test_init_depends_on_the_key(name):
    init, x = MODELS[name]().init, jnp.zeros((1, 6))
    one, again, other = (init(jax.random.key(seed), x) for seed in (0, 0, 1))
    assert fakes.equal(one, again)
    assert not fakes.equal(one, other)


def test_a_module_that_is_given_starts_from_its_own_parameters():
    module = Nnx(nnx.Rngs(5))
    params = models.from_nnx(module, AXES).init(jax.random.key(0), jnp.zeros((1, 6)))
    np.testing.assert_array_equal(params["first"]["kernel"], module.first.kernel[...])


def test_a_module_hears_of_training_and_of_the_dropout_key():
    model = models.from_linen(
        Linen(dropout=0.5), AXES, ROW, call=lambda module, x, train, _: module(x, train)
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    params = model.init(jax.random.key(0), x)

    def run(seed, train):
        key = jax.random.key(seed)
        return model.apply(params, x, train=train, key=key).logits

    np.testing.assert_array_equal(run(1, False), run(2, False))
    np.testing.assert_array_equal(run(1, True), run(1, True))
    assert fakes.gap(run(1, True), run(2, True)) > 1e-3


class Averages(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(x)


def test_modules_with_state_of_their_own_are_refused():
    with pytest.raises(require.InputError, match=r"params alone.*batch_stats"):
        models.from_linen(Averages(), AXES, ROW)
    for build in (
        lambda rngs: nnx.BatchNorm(3, rngs=rngs),
        lambda rngs: nnx.Dropout(0.5, rngs=rngs),
    ):
        with pytest.raises(require.InputError, match=r"nnx\.Param variables alone"):
            models.from_nnx(build, AXES)


@pytest.fixture
def promoting():
    """flax's group norm does not promote strictly."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("promoting")
def test_layers_compute_in_bfloat16_and_nothing_else_does():
    model, x = fakes.small_cnn(), jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
    half = models.computing_in("bfloat16", model)
    params = model.init(jax.random.key(0), x)

    def loss(model, params):
        return jnp.mean(model.apply(params, x).logits ** 2)

    (value, grads), (whole, exact) = (
        jax.jit(jax.value_and_grad(functools.partial(loss, one)))(params)
        for one in (half, model)
    )
    assert value.dtype == jnp.float32
    assert value == pytest.approx(float(whole), rel=0.05)
    assert value != whole
    for ours, theirs in zip(*map(jax.tree.leaves, (grads, exact)), strict=True):
        assert ours.dtype == jnp.float32
        error = np.linalg.norm(ours - theirs)
        assert error < 0.2 * np.linalg.norm(theirs) + 1e-3
    text = str(jax.make_jaxpr(lambda params: half.apply(params, x).logits)(params))
    products = re.findall(r":(\w+)\[[\d,]*\] = (?:dot_general|conv_general)", text)
    assert set(products) == {"bf16"}


@pytest.mark.usefixtures("promoting")
def test_precision_goes_with_the_size_and_float32_is_the_model_itself():
    model = fakes.small_cnn()
    assert models.computing_in("float32", model) is model
    half, x = models.computing_in("bfloat16", model), jnp.ones((1, 8, 8, 2))
    small = half.resize(Size({"conv0": 4, "conv1": 8}, {}))
    params = small.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(lambda params: small.apply(params, x).logits)(params))
    assert "bf16" in text
