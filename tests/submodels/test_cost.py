"""The bill of a tier, counted by hand and against the network that is really built."""

import functools
import math

import jax
import jax.numpy as jnp
import optax
import pytest

from fairjax.core import axes, losses, objectives
from fairjax.core.method import Method
from fairjax.core.types import (
    Axes,
    ClientView,
    LeafAxes,
    Model,
    Outputs,
    Size,
    Submodel,
    Units,
)
from fairjax.models import cnn, convolutions, mlp, resnet
from fairjax.submodels import cost
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.heterofl import heterofl
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
    member = ClientView(
        number, number, jnp.asarray(True), jnp.asarray(9), jnp.asarray(labels)
    )
    kept = method.submodel(jax.random.key(0), jnp.asarray(0), params, member)
    optimizer = optimizer or optax.sgd(0.1)
    objective = method.objective or objectives.mean_cross_entropy()
    return cost.client_cost(
        model, method, objective, optimizer, params, kept, member, x=x
    )


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
        "flops_step": 0,
        "activation_floats": 4 + 2,
        "optimizer_floats": 0,
        "bytes_down": 4 * 26,
        "bytes_up": 4 * 26,
    }
    assert bill(TINY, method, ROW, 0, labels=(1, 1)) == {
        "parameters": 3 * 2 + 2 + 2 * 2 + 2,
        "flops_forward": 2 * (3 * 2 + 2 * 2),
        "flops_train": 2 * (2 * 3 * 2 + 3 * 2 * 2),
        "flops_step": 0,
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
            x = convolutions.CONVOLUTIONS[lowering](x, params[name], 2)
        logits = x.mean((1, 2))
        return Outputs(logits, (logits,), None)

    return Model(
        lambda key, x: {name: jnp.zeros(shape) for name, shape in kernels.items()},
        apply,
        Axes({name: LeafAxes((None,) * 4) for name in kernels}, {}, {}),
    )


@pytest.mark.parametrize("build", [normed, strided])
def test_every_lowering_has_the_same_bill(build):
    """In training too: the gradients of a convolution are as many multiply-adds."""
    x = jnp.zeros((1, 8, 8, 1))
    one, *others = (
        bill(m, width(m), x, 1) for m in map(build, convolutions.CONVOLUTIONS)
    )
    assert all(other == one for other in others)
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
    # No product of parameters alone: nothing is paid per step.
    assert poor["flops_step"] == rich["flops_step"] == 0
    grown = rich.keys() - {"flops_step"}
    assert all(poor[key] < middle[key] < rich[key] for key in grown)
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
    kept = Submodel(None, update)
    method = fedavg(TINY.axes)._replace(submodel=lambda *_: kept)
    got = bill(TINY, method, ROW, 0)
    assert (got["bytes_down"], got["bytes_up"]) == (4 * 26, 4 * 8)
    nothing = Units({name: jnp.zeros(n) for name, n in TINY.axes.units.items()}, {})
    assert axes.masks(start(TINY, ROW), TINY.axes, nothing)["head"]["bias"].sum() == 0


def test_bytes_follow_the_dtype_of_each_leaf():
    params = start(TINY, ROW)
    params["hidden0"]["kernel"] = params["hidden0"]["kernel"].astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        got = bill(TINY, width(TINY, (0.5, 1.0)), ROW, 0, labels=(1, 1), params=params)
    assert got["bytes_down"] == got["bytes_up"] == 2 * 6 + 4 * 8


def test_a_backward_pass_ends_at_the_lowest_layer_that_is_trained():
    """Only the head is trained: its gradient is one product more than the answer."""
    frozen = {
        "hidden0": {"kernel": LeafAxes((None, None), ("stem", 0))},
        "head": {"kernel": LeafAxes((None, None))},
    }

    def apply(params, x, **settings):
        hidden = jax.nn.relu(x @ params["hidden0"]["kernel"])
        logits = hidden @ params["head"]["kernel"]
        return Outputs(logits, (logits,))

    model = Model(None, apply, Axes(frozen, {}, {"stem": 1}))
    params = {"hidden0": {"kernel": jnp.ones((3, 4))}}
    params["head"] = {"kernel": jnp.ones((4, 2))}
    update = Units({}, {"stem": jnp.zeros(1)})
    method = Method(lambda *_: Submodel(None, update))
    got = bill(model, method, ROW, 0, params=params, optimizer=optax.adam(0.1))
    assert got["flops_forward"] == 2 * (12 + 8)
    assert got["flops_train"] == 2 * (12 + 8 + 8)
    assert got["optimizer_floats"] == 2 * 8
    assert (got["bytes_down"], got["bytes_up"]) == (4 * 20, 4 * 8)


def valid_taps(eqn):
    """Multiply-adds of a convolution without the taps that fall outside the image."""
    if eqn.primitive.name == "dot_general":
        return cost.multiply_adds(eqn)
    numbers, image = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    pairs = 1
    for dim, (low, _) in enumerate(eqn.params["padding"]):
        spread = eqn.params["lhs_dilation"][dim]
        last = (image[numbers.lhs_spec[2 + dim]] - 1) * spread
        at = [
            o * eqn.params["window_strides"][dim]
            + k * eqn.params["rhs_dilation"][dim]
            - low
            for o in range(out[numbers.out_spec[2 + dim]])
            for k in range(kernel[numbers.rhs_spec[2 + dim]])
        ]
        pairs *= sum(0 <= a <= last and a % spread == 0 for a in at)
    rows, features = (out[numbers.out_spec[i]] for i in (0, 1))
    return rows * features * pairs * kernel[numbers.rhs_spec[1]]


def half_wide(lowering):
    """The physically sliced half of a network wide enough that products are all."""
    model = cnn(classes=3, channels=(512, 512), group_size=0, lowering=lowering)
    return model.resize(Size({"conv0": 256, "conv1": 256}, {}))


@pytest.mark.parametrize("build", [half_wide, strided])
def test_the_bill_is_what_xla_counts_on_valid_taps(build):
    """The same equations, priced as XLA prices a compiled step: to 1 %."""
    model, x = build("xla"), jnp.zeros((1, 16, 16, 1))
    params = start(model, x)

    def loss(params):
        logits = model.apply(params, x, train=True).logits
        return jnp.sum(losses.cross_entropy(logits, jnp.zeros(1, jnp.int32)))

    step = jax.value_and_grad(loss)
    eqns = [
        eqn
        for eqn in jax.make_jaxpr(step)(params).jaxpr.eqns
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    priced = jax.jit(step).lower(params).cost_analysis()["flops"]
    ours = 2 * sum(map(valid_taps, eqns))
    assert ours == pytest.approx(priced, rel=0.01)


# ------------------------------------------------------------- ResNet-18 at 32 x 32

IMAGE = jnp.zeros((1, 32, 32, 3))


@functools.cache
def resnet18():
    model = resnet(classes=10, norm="batch", lowering="xla")
    return model, start(model, IMAGE)


def share_of_resnet18(budget):
    model, params = resnet18()
    return bill(model, width(model, (budget,)), IMAGE, 0, params=params)


def test_the_bill_of_resnet18():
    """11.17 M parameters, 555.4 M multiply-adds, 1.171 M activation floats."""
    got = share_of_resnet18(1.0)
    assert round(got["parameters"] / 1e6, 2) == 11.17
    assert round(got["flops_forward"] / 2e6, 1) == 555.4
    assert round(got["activation_floats"] / 1e6, 3) == 1.171
    # Forward, both gradients of every product, and none for the pixels.
    stem = 32 * 32 * 27 * 64
    assert got["flops_train"] == 3 * got["flops_forward"] - 2 * stem


@pytest.mark.parametrize(
    ("budget", "parameters", "adds", "floats"),
    [
        (1 / 2, 25.0, 25.1, 50),
        (1 / 16, 0.40, 0.41, 6.25),
        *[
            pytest.param(*row, marks=pytest.mark.slow)
            for row in [
                (1 / 4, 6.27, 6.31, 25),
                (1 / 8, 1.58, 1.60, 12.5),
                (0.2, 4.1, 4.2, 20),
                (0.4, 16.1, 16.4, 41),
                (0.6, 36.2, 36.5, 61),
                (0.8, 64.2, 64.9, 80),
                (math.sqrt(0.2), 20.1, 20.4, 45),
                (math.sqrt(0.4), 40.1, 40.4, 64),
            ]
        ],
    ],
)
def test_the_share_of_a_narrow_resnet18(budget, parameters, adds, floats):
    """Percent of the whole: weights and operations fall with the square of the width,
    activations only with the width."""
    whole, got = share_of_resnet18(1.0), share_of_resnet18(budget)

    def percent(key):
        return 100 * got[key] / whole[key]

    for key, expected in (
        ("parameters", parameters),
        ("flops_forward", adds),
        ("activation_floats", floats),
    ):
        digits = len(f"{expected}".partition(".")[2])
        # The last digit that is written down, in either rounding.
        assert abs(percent(key) - expected) <= 10**-digits, key
