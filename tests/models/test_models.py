"""Models: their layers, their axes, and the same architecture at another size."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import axes, require, trees
from fairjax.core.types import LeafAxes, Size, Submodel, Units
from fairjax.models import (
    cnn,
    convolutions,
    layers,
    lenet,
    mlp,
    resmlp,
    resnet,
    two_conv,
    vit,
)
from tests import fakes

MODELS = {
    "mlp": (fakes.small_mlp(), (5, 6)),
    "cnn": (fakes.small_cnn(), (5, 9, 7, 2)),
    "cnn without norm": (
        cnn(classes=3, channels=(6, 4), group_size=0, lowering="xla"),
        (5, 4, 4, 1),
    ),
    "cnn with exits": (
        cnn(classes=3, channels=(4, 8), group_size=2, exits=True, lowering="xla"),
        (5, 4, 4, 1),
    ),
    "lenet": (
        lenet(classes=3, channels=(4, 6), hidden=(8, 5), lowering="xla"),
        (5, 4, 5, 2),
    ),
    "two_conv": (
        two_conv(classes=3, channels=(4, 6), hidden=(8,), lowering="xla"),
        (5, 8, 9, 2),
    ),
    "resmlp": (resmlp(classes=3, width=6, hidden=8, depth=2, norm="layer"), (5, 2, 3)),
    "resnet": (
        resnet(classes=3, channels=(4, 8), blocks=(1, 1), group_size=2, lowering="xla"),
        (5, 5, 6, 2),
    ),
    "vit": (vit(classes=3, width=8, depth=2, heads=2, patch=3), (5, 3, 6, 2)),
}
HALF = {
    "mlp": {"hidden0": [1, 4, 5, 15], "hidden1": [0, 7]},
    "cnn": {"conv0": [1], "conv1": [0, 3]},
    "cnn without norm": {"conv0": [0, 2, 5], "conv1": [3]},
    "cnn with exits": {"conv0": [1], "conv1": [0, 3]},
    "lenet": {"conv0": [0, 3], "conv1": [1, 2, 5], "hidden0": [2, 7], "hidden1": [1]},
    "two_conv": {"conv0": [1], "conv1": [0, 4], "hidden0": [2, 7]},
    "resmlp": {"stream": [1, 2, 5], "hidden0": [3], "hidden1": [0, 7]},
    "resnet": {"stage0": [1], "stage1": [0, 3], "stage1_block0": [2]},
    "vit": {"stream": [0, 1, 4, 5, 6], "heads0": [1], "ffn1": [0, 3, 30]},
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.mark.parametrize(
    ("factory", "argument", "size"),
    [
        (mlp, "hidden", (4, 0)),
        (cnn, "channels", (0, 4)),
        (lenet, "channels", (0, 4)),
        (lenet, "hidden", (0, 4)),
        (two_conv, "channels", (4, 0)),
        (two_conv, "channels", (4, 4, 4)),
        (two_conv, "hidden", (0,)),
        (resmlp, "width", 0),
        (resmlp, "hidden", 0),
        (resmlp, "depth", 0),
        (resnet, "channels", (0,)),
        (resnet, "channels", ()),
        (resnet, "blocks", (0,)),
        *[(vit, name, 0) for name in ("width", "depth", "heads", "patch", "ratio")],
    ],
)
def test_a_layer_without_units_is_refused_by_its_argument(factory, argument, size):
    sizes = {
        mlp: {"hidden": (4,)},
        cnn: {"channels": (4,), "group_size": 4, "lowering": "xla"},
        lenet: {"lowering": "xla"},
        two_conv: {"lowering": "xla"},
        resmlp: {"width": 4, "hidden": 4, "depth": 1, "norm": "layer"},
        resnet: {"channels": (4,), "blocks": (1,), "lowering": "xla"},
        vit: {"width": 4, "depth": 1, "heads": 2, "patch": 2},
    }[factory]
    factory(classes=3, **sizes)
    with pytest.raises(require.InputError, match=rf"^{argument}: expected "):
        factory(classes=3, **sizes | {argument: size})


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dense(model, x):
    """Parameters of which none is 0, biases and norms included."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: 0.3 * normal(leaf.shape, leaf.size), shapes)


def drawn(name):
    """(model, params, x)."""
    model, shape = MODELS[name]
    x = normal(shape)
    return model, dense(model, x), x


def logits(model, params, x, **more):
    return jax.jit(model.apply, static_argnames="train")(params, x, **more).logits


def halved(name):
    """(part, units, size) of the sub-model that HALF names."""
    model = MODELS[name][0]
    index = {a: jnp.asarray(kept, jnp.int32) for a, kept in HALF[name].items()}
    masks = {a: jnp.zeros(model.axes.units[a]).at[i].set(1) for a, i in index.items()}
    sizes = {a: len(kept) for a, kept in HALF[name].items()}
    return axes.Part(index, {}), Units(masks, {}), Size(sizes, {})


# ------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (3, (2, 7, 5, 1)),
        (3, (2, 8, 3, convolutions.NARROW)),
        (2, (1, 5, 4, convolutions.NARROW)),
        (1, (1, 3, 2, 2)),
    ],
)
def test_every_lowering_is_the_convolution_values_and_gradients(
    size, shape, stride, padding
):
    lost = size - 1 if padding == "VALID" else 0
    out = (shape[0], *(-(-(n - lost) // stride) for n in shape[1:3]), 4)
    x, kernel = normal(shape), normal((size, size, shape[-1], 4), 1)
    cotangent = normal(out, 2)

    def run(convolve):
        y, back = jax.vjp(lambda *args: convolve(*args, stride, padding), x, kernel)
        return y, *back(cotangent)

    made = jax.jit(lambda: {k: run(f) for k, f in convolutions.CONVOLUTIONS.items()})()
    xla = made.pop("xla")
    for ours in made.values():
        assert ours[0].shape == out
        for mine, theirs in zip(ours, xla, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-5)


def test_gradients_of_gradients_are_those_of_the_convolution():
    """Which inversion needs, as it differentiates through training."""
    x, kernel = (
        normal((2, 5, 4, convolutions.NARROW)),
        normal((3, 3, convolutions.NARROW, 2), 1),
    )

    def second(convolve):
        def inner(x):
            y = lambda kernel: jnp.sum(jnp.tanh(convolve(x, kernel)))  # noqa: E731
            return jnp.sum(jax.grad(y)(kernel) ** 2)

        return jax.grad(inner)(x)

    ours, theirs = jax.jit(
        lambda: (
            second(convolutions.convolve_forward),
            second(convolutions.convolve_xla),
        )
    )()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batched", [False, True])
def test_training_on_cpu_runs_no_slow_convolution(batched):
    """In a loop XLA:CPU is quick at one layout alone, and slow at grouped ones."""
    form = convolutions.lowering("auto", "cpu", vmapped=batched)
    model, x = cnn(classes=3, channels=(8, 16), group_size=4, lowering=form), (2, 8, 8)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((*x, 1)))

    def loss(params, x):
        return jnp.sum(model.apply(params, x).logits ** 2)

    def train(params, xs):
        def step(params, x):
            grads = jax.grad(loss)(params, x)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), None

        return jax.lax.scan(step, params, xs)[0]

    xs = jnp.zeros((2, *x, 1))
    if batched:
        train, xs = jax.vmap(train, (None, 0)), xs[None].repeat(2, 0)
    text = jax.jit(train).lower(params, xs).compile().as_text()
    found = set(re.findall(r"dim_labels=(\S+?)[,\s]", text))
    assert found == (set() if batched else {"b01f_01io->b01f"})
    assert "feature_group_count" not in text


@pytest.mark.parametrize(
    ("name", "backend", "vmapped", "expected"),
    [
        ("auto", "cpu", False, "forward"),
        ("auto", "cpu", True, "shift"),
        ("auto", "gpu", False, "xla"),
        ("auto", "tpu", True, "xla"),
        ("xla", "cpu", False, "xla"),
        ("shift", "gpu", False, "shift"),
    ],
)
def test_auto_lowers_by_backend(name, backend, vmapped, expected):
    assert convolutions.lowering(name, backend, vmapped=vmapped) == expected


@pytest.mark.parametrize("other", ["xla", "forward"])
def test_a_network_is_the_same_under_every_lowering(other):
    shift, params, x = drawn("cnn")
    same = cnn(classes=3, channels=(8, 16), group_size=4, lowering=other)
    np.testing.assert_allclose(
        logits(shift, params, x), logits(same, params, x), rtol=1e-4, atol=1e-5
    )


def test_a_dense_layer_over_a_map_has_the_gradients_of_its_product():
    x, kernel, g = normal((3, 2, 2, 4)), normal((2, 2, 4, 5), 1), normal((3, 5), 2)
    given = {"kernel": kernel, "bias": jnp.zeros(5)}
    y, back = jax.vjp(lambda x, p: layers.dense(p, x), x, given)
    flat = kernel.reshape(-1, 5)
    np.testing.assert_allclose(y, x.reshape(3, -1) @ flat, rtol=1e-5, atol=1e-5)
    at_x, at_params = back(g)
    np.testing.assert_allclose(at_x.reshape(3, -1), g @ flat.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        at_params["kernel"].reshape(-1, 5),
        x.reshape(3, -1).T @ g,
        rtol=1e-5,
        atol=1e-5,
    )


def test_pool_takes_the_maximum_of_whole_windows():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(layers.pool(x)[0, :, :, 0], [[6, 8]])


# ---------------------------------------------------------------------- shapes and axes


@every_model
def test_apply_gives_logits_as_the_last_exit(name):
    model, params, x = drawn(name)

    def run():
        outputs = model.apply(params, x)
        assert outputs.exits[-1] is outputs.logits
        assert outputs.stats is None
        return outputs.logits

    assert jax.eval_shape(run).shape == (5, 3)


@every_model
def test_records_do_not_see_each_other(name):
    model, params, x = drawn(name)
    np.testing.assert_allclose(
        logits(model, params, x)[2:3], logits(model, params, x[2:3]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlp(classes=2, hidden=(3,)), (4, 5)),
        (cnn(classes=2, channels=(3,), group_size=0, lowering="shift"), (4, 3, 3, 1)),
    ],
    ids=["mlp", "cnn"],
)
def test_init_depends_on_the_key_and_on_nothing_of_x_but_its_shape(model, shape):
    init = jax.jit(model.init)
    one = init(jax.random.key(0), jnp.zeros(shape))
    assert fakes.equal(one, init(jax.random.key(0), jnp.ones(shape)))
    assert not fakes.equal(one, init(jax.random.key(1), jnp.ones(shape)))


@every_model
def test_axes_fit_the_parameters(name):
    model, params, _ = drawn(name)
    axes.check(name, params, model.axes)
    leaves = jax.tree.leaves(
        model.axes.tree, is_leaf=lambda node: isinstance(node, LeafAxes)
    )
    named = {name for leaf in leaves for name in leaf.dims if name}
    assert named == set(model.axes.units)


@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet"])
@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (LeafAxes(("classes", None)), r"\['head'\]\['bias'\]: expected 1 axis names"),
        (LeafAxes(("klasses",)), r'\[\'bias\'\]: .*Did you mean "classes"'),
        (LeafAxes(("classes",), ("stage", 0)), r"\['bias'\]: expected one of"),
    ],
)
def test_axes_of_another_rank_or_name_are_refused(name, leaf, message):
    model, params, _ = drawn(name)
    head = model.axes.tree["head"] | {"bias": leaf}
    wrong = model.axes._replace(tree=model.axes.tree | {"head": head})
    with pytest.raises(require.InputError, match=message):
        axes.check(name, params, wrong)


@every_model
def test_axes_of_another_length_are_refused(name):
    model, params, _ = drawn(name)
    wrong = model.axes._replace(units={**model.axes.units, "classes": 2})
    with pytest.raises(
        require.InputError, match="multiple of the 2 units of axis 'cla"
    ):
        axes.check(name, params, wrong)


@every_model
def test_a_resized_model_has_the_shapes_of_the_sliced_tree(name):
    model, params, x = drawn(name)
    index, _, size = halved(name)
    small = model.resize(size)
    taken = axes.take(params, model.axes, index)
    anew = jax.eval_shape(small.init, jax.random.key(0), x)
    assert require.describe(anew) == require.describe(taken)
    assert small.axes.units == {**model.axes.units, **size.axes}
    axes.check(name, taken, small.axes)


@every_model
def test_a_model_resized_to_its_own_size_is_itself(name):
    model, params, x = drawn(name)
    same = model.resize(Size(dict(model.axes.units), {}))
    assert same.axes == model.axes
    np.testing.assert_array_equal(logits(same, params, x), logits(model, params, x))


@every_model
def test_a_masked_network_computes_what_the_sliced_one_does(name):
    model, params, x = drawn(name)
    index, units, size = halved(name)
    masked = trees.multiply(params, axes.masks(params, model.axes, units))
    sliced = axes.take(params, model.axes, index)
    got = logits(model, masked, x, submodel=Submodel(units))
    np.testing.assert_allclose(
        got, logits(model.resize(size), sliced, x), rtol=1e-4, atol=1e-5
    )
    assert fakes.gap(got, logits(model, params, x)) > 1e-3


@pytest.mark.parametrize("name", ["mlp", "cnn without norm"])
def test_the_scale_divides_hidden_activations_in_training_and_evaluation(name):
    """Without a norm the network is linear in them up to its biases."""
    model, params, x = drawn(name)
    params = jax.tree.map(lambda p: p if p.ndim > 1 else jnp.zeros_like(p), params)
    whole, half = Submodel(), Submodel(scale=jnp.asarray(0.5))
    plain = logits(model, params, x)
    for train, kept, factor in [
        (True, half, 4),
        (False, half, 4),
        (True, whole, 1),
        (True, None, 1),
        (False, None, 1),
    ]:
        got = logits(model, params, x, train=train, submodel=kept)
        np.testing.assert_allclose(got, factor * plain, rtol=1e-5, atol=1e-6)


def test_a_group_norm_forgets_the_scale():
    """It is applied before the norm, which divides it out again but for epsilon."""
    model, params, x = drawn("cnn")
    params = jax.tree.map(lambda p: p if p.ndim > 1 else jnp.ones_like(p), params)
    plain = logits(model, params, 10 * x)
    scaled = logits(
        model, params, 10 * x, train=True, submodel=Submodel(scale=jnp.asarray(0.5))
    )
    np.testing.assert_allclose(scaled, plain, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- each model by itself


def count(model, shape):
    """Parameters, without drawing them."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_published_networks_have_their_published_sizes():
    """EMNIST-62 of FedJAX and pfl-research; LeNet-5 with 7 x 7 and not 5 x 5 maps."""
    assert count(two_conv(classes=62, lowering="xla"), (28, 28, 1)) == 1_206_590
    dense = (7 * 7 * 16 + 1) * 120 + 121 * 84 + 85 * 10
    expected = 26 * 6 + (25 * 6 + 1) * 16 + dense
    assert count(lenet(classes=10, lowering="xla"), (28, 28, 1)) == expected


def test_the_scale_divides_every_hidden_activation_of_a_convnet():
    """Four of them; without biases the network is homogeneous."""
    model, params, x = drawn("lenet")
    params = jax.tree.map(lambda p: p if p.ndim > 1 else jnp.zeros_like(p), params)
    half = logits(
        model, params, x, train=True, submodel=Submodel(scale=jnp.asarray(0.5))
    )
    np.testing.assert_allclose(half, 16 * logits(model, params, x), rtol=1e-4)


def test_an_mlp_without_hidden_layers_is_logistic_regression():
    model = mlp(classes=3, hidden=())
    x = normal((4, 2, 3))
    params = dense(model, x)
    assert require.describe(params) == {
        "['head']['bias']": "float32[3]",
        "['head']['kernel']": "float32[6, 3]",
    }
    head = params["head"]
    expected = np.asarray(x).reshape(4, 6) @ head["kernel"] + head["bias"]
    got = logits(
        model, params, x, train=True, submodel=Submodel(scale=jnp.asarray(0.5))
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert axes.hidden_axes(model.axes) == {}


def test_an_mlp_is_its_layers():
    model, params, x = drawn("mlp")
    h = np.asarray(x)
    for name in ("hidden0", "hidden1"):
        h = np.maximum(h @ params[name]["kernel"] + params[name]["bias"], 0)
    expected = h @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits(model, params, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [(6,), (8, 10), (2, 8)])
def test_channels_must_be_whole_norm_groups(channels):
    with pytest.raises(require.InputError, match=r"^channels: .*group_size 4"):
        cnn(classes=2, channels=channels, group_size=4, lowering="xla")
    cnn(classes=2, channels=channels, group_size=0, lowering="xla")


def test_a_unit_of_a_normed_network_is_a_norm_group():
    assert fakes.small_cnn().axes.units == {"conv0": 2, "conv1": 4, "classes": 3}
    bare = cnn(classes=3, channels=(8, 16), group_size=0, lowering="xla")
    assert bare.axes.units == {"conv0": 8, "conv1": 16, "classes": 3}


def test_the_norm_of_a_group_does_not_see_the_others():
    """Other values in groups that the head does not read leave the logits alone."""
    model = cnn(classes=3, channels=(12,), group_size=4, lowering="shift")
    x = normal((2, 5, 5, 1))
    params = dense(model, x)
    unread = slice(4, 8)
    params["head"]["kernel"] = params["head"]["kernel"].at[unread].set(0)
    before = logits(model, params, x)
    conv = {
        "kernel": params["conv0"]["kernel"].at[..., unread].mul(-30),
        "bias": params["conv0"]["bias"].at[unread].add(7),
    }
    np.testing.assert_array_equal(logits(model, params | {"conv0": conv}, x), before)
    inside = {**conv, "bias": params["conv0"]["bias"].at[0].add(7)}
    assert fakes.gap(logits(model, params | {"conv0": inside}, x), before) > 1e-2


def test_a_masked_group_stays_zero_through_the_norm():
    model, params, x = drawn("cnn")
    _, units, _ = halved("cnn")
    params = trees.multiply(params, axes.masks(params, model.axes, units))
    loud = params["conv1"]["kernel"].at[:, :, :4].set(1e3)  # reads dropped channels
    loudly = params | {"conv1": params["conv1"] | {"kernel": loud}}
    silent = params["conv1"]["kernel"].at[:, :, :4].set(0)
    silently = params | {"conv1": params["conv1"] | {"kernel": silent}}
    np.testing.assert_array_equal(logits(model, loudly, x), logits(model, silently, x))


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_small_and_odd_images_pass(side):
    model = fakes.small_cnn()
    x = jnp.ones((2, side, side, 1))
    outputs = jax.eval_shape(
        lambda key: model.apply(model.init(key, x), x), jax.random.key(0)
    )
    assert outputs.logits.shape == (2, 3)
