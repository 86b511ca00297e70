"""The bill of a tier, counted by hand and against the network that is really built."""

import jax
import jax.numpy as jnp
import optax
import pytest

from fairjax.models import cnn, layers, mlp
from fairjax.submodels import axes, cost
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.heterofl import heterofl
from fairjax.types import Axes, Kept, LeafAxes, Member, Model, Outputs, Units
from tests import fakes

BUDGET = (0.25, 0.5, 1.0)
MODELS = {
    "mlp": (fakes.small_mlp(), (1, 6)),
    "cnn": (fakes.small_cnn(), (1, 8, 8, 1)),
}
TINY = mlp(classes=2, hidden=(4,))
ROW = jnp.zeros((1, 3))


def start(model, x):
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def bill(model, method, x, tier, *, labels=(1, 1, 1), optimizer=None, params=None):
    """The ledger of a tier whose client holds these records of each class."""
    params = start(model, x) if params is None else params
    number = jnp.asarray(tier)
    member = Member(
        number, number, jnp.asarray(True), jnp.asarray(9), jnp.asarray(labels)
    )
    kept = method.units(jax.random.key(0), jnp.asarray(0), params, member)
    optimizer = optimizer or optax.sgd(0.1)
    return cost.ledger(model, method, optimizer, params, kept, tier=tier, x=x)


def width(model, budget=BUDGET, masked_loss=False):
    return heterofl(model.axes, budget, scaler=False, masked_loss=masked_loss)


def test_the_bill_by_hand():
    """3 inputs, 4 (or 2) hidden units, 2 classes.

    Training multiplies once more per weight for its gradient, and in the head once more
    for the gradient of the hidden layer.
    """
    method = width(TINY, (0.5, 1.0))
    assert bill(TINY, method, ROW, 1, labels=(1, 1)) == {
        "parameters": 3 * 4 + 4 + 4 * 2 + 2,
        "flops_forward": 2 * (3 * 4 + 4 * 2),
        "flops_train": 2 * (2 * 3 * 4 + 3 * 4 * 2),
        "activation_floats": 4 + 2,
        "optimizer_floats": 0,
        "bytes_down": 4 * 26,
        "bytes_up": 4 * 26,
    }
    assert bill(TINY, method, ROW, 0, labels=(1, 1)) == {
        "parameters": 3 * 2 + 2 + 2 * 2 + 2,
        "flops_forward": 2 * (3 * 2 + 2 * 2),
        "flops_train": 2 * (2 * 3 * 2 + 3 * 2 * 2),
        "activation_floats": 2 + 2,
        "optimizer_floats": 0,
        "bytes_down": 4 * 14,
        "bytes_up": 4 * 14,
    }


def test_a_convolution_by_hand():
    """3 x 3 taps at each of 5 x 5 places, 2 channels to 4; then a head of 4 x 3."""
    model = cnn(classes=3, channels=(4,), group_size=0, lowering="xla")
    got = bill(model, width(model), jnp.zeros((1, 5, 5, 2)), 2)
    assert got["flops_forward"] == 2 * (5 * 5 * 9 * 2 * 4 + 4 * 3)
    assert got["activation_floats"] == 5 * 5 * 4 + 3
    assert got["parameters"] == 9 * 2 * 4 + 4 + 4 * 3 + 3


def normed(lowering):
    return cnn(classes=3, channels=(8, 8), group_size=4, lowering=lowering)


def strided(lowering):
    """Two convolutions of stride 2 and a mean: a model without flax, units or sizes."""
    kernels = {"first": (3, 3, 1, 4), "second": (3, 3, 4, 3)}

    def apply(params, x, **_):
        for name in kernels:
            x = layers.CONVOLUTIONS[lowering](x, params[name], 2)
        logits = x.mean((1, 2))
        return Outputs(logits, (logits,), None)

    return Model(
        lambda key, x: {name: jnp.zeros(shape) for name, shape in kernels.items()},
        apply,
        Axes({name: LeafAxes((None,) * 4) for name in kernels}, {}, {}),
    )


@pytest.mark.parametrize("build", [normed, strided])
def test_both_lowerings_have_the_same_bill(build):
    """In training too: the gradients of a convolution are as many multiply-adds."""
    x = jnp.zeros((1, 8, 8, 1))
    one, other = (bill(m, width(m), x, 1) for m in map(build, ("xla", "shift")))
    assert one == other
    assert one["flops_train"] > 2 * one["flops_forward"]


def test_classes_that_are_not_held_are_not_sent_back():
    """One head row of two stays at home: 2 weights and a bias of the half-wide tier."""
    method = width(TINY, (0.5, 1.0), masked_loss=True)
    plain = bill(TINY, width(TINY, (0.5, 1.0)), ROW, 0, labels=(5, 0))
    masked = bill(TINY, method, ROW, 0, labels=(5, 0))
    assert masked == plain | {"bytes_up": 4 * (14 - 3)}
    assert bill(TINY, method, ROW, 0, labels=(5, 1)) == plain


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tier", range(len(BUDGET)))
def test_a_tier_weighs_what_its_own_network_does(name, tier):
    model, shape = MODELS[name]
    x, method = jnp.zeros(shape), width(model)
    small = start(model.resize(method.size(tier)), x)
    got = bill(model, method, x, tier)
    entries = sum(leaf.size for leaf in jax.tree.leaves(small))
    assert got["parameters"] == entries
    assert got["bytes_down"] == got["bytes_up"] == 4 * entries


@pytest.mark.parametrize("name", MODELS)
def test_a_bill_grows_with_the_budget_up_to_the_whole_model(name):
    model, shape = MODELS[name]
    x = jnp.zeros(shape)
    poor, middle, rich = (
        bill(model, width(model), x, t, optimizer=optax.adam(0.1)) for t in range(3)
    )
    assert all(poor[key] < middle[key] < rich[key] for key in rich)
    whole = bill(model, fedavg(model.axes), x, 0, optimizer=optax.adam(0.1))
    assert rich == whole


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [(optax.sgd(0.1), 0), (optax.sgd(0.1, momentum=0.9), 1), (optax.adam(0.1), 2)],
)
def test_an_optimiser_keeps_copies_of_the_tier_s_parameters(optimizer, copies):
    got = bill(
        TINY, width(TINY, (0.5, 1.0)), ROW, 0, labels=(1, 1), optimizer=optimizer
    )
    assert got["optimizer_floats"] == copies * got["parameters"]


def test_one_example_is_billed_whatever_the_batch():
    method = width(TINY, (0.5, 1.0))
    one, many = (
        bill(TINY, method, jnp.zeros((rows, 3)), 0, labels=(1, 1)) for rows in (1, 64)
    )
    assert one == many


def test_without_sizes_a_tier_computes_on_the_whole_network():
    """A mask saves bytes, but no operation."""
    method = width(TINY, (0.5, 1.0))
    whole = bill(TINY, method, ROW, 1, labels=(1, 1))
    masked = bill(TINY, method._replace(size=None), ROW, 0, labels=(1, 1))
    assert masked["flops_forward"] == whole["flops_forward"]
    assert masked["activation_floats"] == whole["activation_floats"]
    assert masked["bytes_down"] == 4 * 14
    rigid = TINY._replace(resize=None)
    assert bill(rigid, method, ROW, 0, labels=(1, 1)) == masked


def test_frozen_parameters_are_received_but_not_sent():
    """Only the first hidden unit is trained: 3 weights, a bias, 2 weights, 2 biases."""
    update = axes.prefix(TINY.axes, {"hidden0": 1})
    kept = Kept(None, update)
    got = cost.ledger(
        TINY, fedavg(TINY.axes), optax.sgd(0.1), start(TINY, ROW), kept, tier=0, x=ROW
    )
    assert (got["bytes_down"], got["bytes_up"]) == (4 * 26, 4 * 8)
    nothing = Units({name: jnp.zeros(n) for name, n in TINY.axes.units.items()}, {})
    assert axes.masks(start(TINY, ROW), TINY.axes, nothing)["head"]["bias"].sum() == 0


def test_bytes_follow_the_dtype_of_each_leaf():
    params = start(TINY, ROW)
    params["hidden0"]["kernel"] = params["hidden0"]["kernel"].astype(jnp.bfloat16)
    got = bill(TINY, width(TINY, (0.5, 1.0)), ROW, 0, labels=(1, 1), params=params)
    assert got["bytes_down"] == got["bytes_up"] == 2 * 6 + 4 * 8
