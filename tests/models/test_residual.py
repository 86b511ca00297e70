"""Networks of blocks: dropped widths and blocks, exits, and the end of the backward
pass."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import axes, require, trees
from fairjax.core.types import Size, Submodel, Units
from fairjax.models import cnn, layers, residual, resmlp, resnet, vit
from fairjax.submodels import cost

resnet_module = importlib.import_module("fairjax.models.resnet")
vit_module = importlib.import_module("fairjax.models.vit")
B, CLASSES = 4, 3
small_resnet = functools.partial(
    resnet,
    classes=CLASSES,
    channels=(8, 16),
    blocks=(2, 2),
    group_size=4,
    lowering="xla",
)
small_resmlp = functools.partial(
    resmlp, classes=CLASSES, width=8, hidden=6, depth=3, steps=True
)
small_vit = functools.partial(
    vit, classes=CLASSES, width=8, depth=3, heads=4, patch=2, ratio=1
)
small_cnn = functools.partial(
    cnn, classes=CLASSES, channels=(4, 6, 4), group_size=0, lowering="xla"
)
# Name: (model, shape of x, kept blocks).
CASES = {
    "resmlp, batch, middle": (small_resmlp(norm="batch"), (5,), (0, 2)),
    "resmlp, layer, prefix": (small_resmlp(norm="layer"), (5,), (0,)),
    "resmlp, none, exits": (small_resmlp(norm="none", exits=True), (5,), (0, 1)),
    "resnet, group, ends of stages": (small_resnet(), (6, 6, 2), (0, 2)),
    "resnet, batch, no first": (small_resnet(norm="batch"), (6, 6, 2), (1, 2, 3)),
    "resnet, post, batch, middle": (
        small_resnet(norm="batch", activation="post", steps=True),
        (6, 6, 2),
        (0, 2, 3),
    ),
    "resnet, post, one stage": (
        small_resnet(activation="post", exits=True, steps=True),
        (6, 6, 2),
        (0, 1),
    ),
    "resnet, batch, one stage": (
        small_resnet(norm="batch", exits=True),
        (6, 6, 2),
        (0, 1),
    ),
    "vit, middle": (small_vit(steps=True), (4, 4, 1), (0, 2)),
    "vit, exits": (small_vit(exits=True), (4, 4, 1), (0, 1)),
    "cnn, exits": (small_cnn(exits=True), (6, 6, 2), (0, 1)),
}
every_case = pytest.mark.parametrize("name", CASES)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def drawn(name, dtype=np.float64):
    """(model, params without zeros, x)."""
    model, shape, _ = CASES[name]
    shapes, _ = shapes_of(model, shape)
    axes.check(name, shapes, model.axes)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * normal(leaf.shape, leaf.size) + 0.2, dtype),
        shapes,
    )
    return model, params, jnp.asarray(normal((B, *shape)), dtype)


def shapes_of(model, shape):
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x), x


def ones_at(length, index):
    ones = np.zeros(length)
    ones[list(index)] = 1
    return jnp.asarray(ones)


def cut(model, blocks):
    """(units, size): a random half of every hidden axis, and these blocks."""
    rng, units = np.random.default_rng(5), axes.hidden_axes(model.axes)
    sizes = {axis: -(-count // 2) for axis, count in units.items()}
    kept = {
        axis: ones_at(units[axis], rng.permutation(units[axis])[:size])
        for axis, size in sizes.items()
    }
    present = ones_at(model.axes.blocks["blocks"], blocks)
    return Units(kept, {"blocks": present}), Size(sizes, {"blocks": blocks})


def outputs_and_grads(model, params, x, kept, where):
    def loss(params):
        outputs = model.apply(params, x, train=True, where=where, submodel=kept)
        weights = jnp.asarray(normal((B, CLASSES), 9), x.dtype)
        return jnp.sum(weights * outputs.logits), outputs

    (_, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return outputs, grads


@every_case
def test_masked_is_sliced_in_width_and_depth(name):
    """Logits, exits and moments, with a padded record and a scaler."""
    with jax.enable_x64(True):
        model, params, x = drawn(name)
        units, size = cut(model, CASES[name][2])
        small, inside = model.resize(size), axes.locate_slice(units, size)
        where = jnp.asarray([True, True, False, True])
        half = jnp.asarray(0.5)

        @jax.jit
        def run(params, x):
            masked = trees.multiply(params, axes.masks(params, model.axes, units))
            sliced = axes.take(params, model.axes, inside)
            kept = Submodel(units, scale=half), Submodel(scale=half)
            full, dense = (
                network.apply(weights, x, train=True, where=where, submodel=which)
                for network, weights, which in zip(
                    (model, small), (masked, sliced), kept, strict=True
                )
            )
            return full, dense, sliced

        full, dense, sliced = run(params, x)
        axes.check(name, sliced, small.axes)
        shapes, _ = shapes_of(small, CASES[name][1])
        assert [p.shape for p in jax.tree.leaves(shapes)] == [
            p.shape for p in jax.tree.leaves(sliced)
        ]
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
        close(full.logits, dense.logits)
        assert np.max(np.abs(dense.logits)) > 1e-2
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(full))
        for exit, value in zip(full.exits, dense.exits, strict=False):
            close(exit, value)
        for norm, moments in (dense.stats or {}).items():
            close(
                np.sort(full.stats[norm].var)[-len(moments.var) :], np.sort(moments.var)
            )


@pytest.mark.parametrize(
    "name",
    ["resmlp, none, exits", "resnet, batch, one stage", "vit, exits", "cnn, exits"],
)
def test_the_answer_is_that_of_the_deepest_exit_that_is_kept(name):
    model, params, x = drawn(name, np.float32)
    blocks = model.axes.blocks["blocks"]

    @jax.jit
    def run(depth):
        kept = Submodel(Units({}, {"blocks": jnp.arange(blocks) < depth}))
        return model.apply(params, x, submodel=kept)

    ends = [2, 4] if "resnet" in name else [1, 2, 3]
    for i, depth in enumerate(ends):
        outputs = run(depth)
        assert len(outputs.exits) == len(ends)
        np.testing.assert_array_equal(outputs.logits, outputs.exits[i])
    whole = model.apply(params, x)
    assert whole.logits is whole.exits[-1]
    assert len({float(jnp.sum(exit)) for exit in whole.exits}) == len(ends)


def test_masked_exits_leave_gradients_finite_and_nothing_of_their_own():
    name = "resnet, batch, one stage"
    model, params, x = drawn(name, np.float32)

    @jax.jit
    def run(params):
        units, _ = cut(model, (0, 1))
        mask = axes.masks(params, model.axes, units)
        masked = trees.multiply(params, mask)
        return outputs_and_grads(model, masked, x, Submodel(units), None)[1]

    grads = run(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    behind = {name: grads[name] for name in ("stage1_block1", "exit1")}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(behind))
    assert np.any(grads["exit0"]["dense"]["kernel"])


def test_moments_that_are_given_replace_those_of_the_batch():
    model, params, x = drawn("resnet, post, batch, middle", np.float32)
    run = jax.jit(model.apply)
    first = run(params, x)
    assert first.stats.keys() >= {"stem/norm", "stage1_block0/norm3"}
    again = run(params, x[1:2], stats=first.stats)
    np.testing.assert_allclose(again.logits, first.logits[1:2], rtol=1e-3, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, again.stats, first.stats)


@pytest.mark.parametrize(
    ("options", "blocks", "message"),
    [
        ({}, (0, 1, 3), "^blocks: .* block 2, which projects"),
        ({}, (0, 1), "^blocks: .* last stage, or exits"),
        ({"exits": True}, (0, 2), "^blocks: .* last block of some stage"),
        ({}, (), "^blocks: .* some of the 4 blocks"),
        ({}, (0, 1, 2, 4), "^blocks: .* some of the 4 blocks"),
    ],
)
def test_blocks_that_cannot_go_are_refused(options, blocks, message):
    with pytest.raises(require.InputError, match=message):
        small_resnet(**options).resize(Size({}, {"blocks": blocks}))


@pytest.mark.parametrize(
    ("exits", "blocks"), [(False, (0, 1)), (True, (0, 2)), (True, (1, 2))]
)
def test_stages_of_a_plain_network_go_from_the_end_alone(exits, blocks):
    size = Size({}, {"blocks": blocks})
    with pytest.raises(
        require.InputError, match=r"^channels: .* a prefix of the stages, and"
    ):
        small_cnn(exits=exits).resize(size)


def test_a_plain_network_without_exits_has_no_list_of_blocks():
    assert not small_cnn().axes.blocks
    assert small_cnn(exits=True).axes.reshaping_blocks == (1, 2)
    with pytest.raises(require.InputError, match=r"^channels: .* at least one stage"):
        small_cnn(channels=())


def test_names_and_sizes_that_do_not_fit_are_refused():
    for build, message in [
        (lambda: small_resnet(norm="layer"), "^norm: "),
        (lambda: small_resnet(activation="mid"), "^activation: "),
        (lambda: small_resnet(channels=(8, 10)), "^channels: .* group_size 4"),
        (lambda: small_resnet(blocks=(2,)), "^blocks: "),
        (lambda: small_vit(heads=3), "^width: .* 3 heads"),
        (lambda: small_resmlp(norm="group"), "^norm: "),
        (lambda: small_resmlp(norm="none", depth=0), "^depth: "),
    ]:
        with pytest.raises(require.InputError, match=message):
            build()
    with pytest.raises(require.InputError, match=r"^patch: .* whole 2 x 2 patches"):
        small_vit().init(jax.random.key(0), jnp.zeros((1, 4, 5, 1)))


# ------------------------------------------------------------------ each by its formula


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def test_a_residual_mlp_is_its_formula():
    with jax.enable_x64(True):
        model, params, x = drawn("resmlp, batch, middle")
        h = dense(params["stem"], x)
        for i in range(3):
            p = params[f"block{i}"]
            inner = dense(p["inner"], h)
            inner = (inner - inner.mean(0)) / np.sqrt(inner.var(0) + layers.EPSILON)
            inner = inner * p["norm"]["scale"] + p["norm"]["bias"]
            h = h + p["step"] * dense(p["outer"], np.maximum(inner, 0))
        np.testing.assert_allclose(
            model.apply(params, x).logits, dense(params["head"], h), rtol=1e-9
        )


def test_attention_is_jax_s_own_for_the_heads_that_are_there():
    size, params = 3, {}
    for i, name in enumerate(("query", "key", "value")):
        params[name] = {"kernel": normal((8, 12), i), "bias": normal(12, 10 + i)}
    params["out"] = {"kernel": normal((12, 8), 4), "bias": normal(8, 14)}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    x = jnp.asarray(normal((2, 5, 8)), jnp.float32)
    query, key, value = (
        dense(params[n], x).reshape(2, 5, 4, size) for n in ("query", "key", "value")
    )
    mixed = jax.nn.dot_product_attention(query, key, value).reshape(2, 5, 12)
    np.testing.assert_allclose(
        vit_module.attention(params, x, size),
        dense(params["out"], mixed),
        rtol=1e-4,
        atol=1e-4,
    )


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("tier", "share"),
    [(1, (1, 1, 1)), (2, (0.2500, 0.251, 0.50)), (4, (0.0627, 0.0631, 0.25))],
)
def test_resnet_18_has_the_published_parameters_operations_and_activations(tier, share):
    """Parameters and FLOPs, 11.17 M, 555.4 M and 1.171 M, and the shares of width
    tiers."""
    plain = resnet(classes=10, norm="batch", lowering="xla")
    half = {a: n // tier for a, n in axes.hidden_axes(plain.axes).items()}
    model = plain.resize(Size(half, {}))
    shapes, x = shapes_of(model, (32, 32, 3))
    jaxpr = jax.make_jaxpr(lambda p, x: model.apply(p, x).logits)(shapes, x).jaxpr
    products = list(cost._products(jaxpr))
    got = (
        size_of(shapes),
        sum(adds for adds, _ in products),
        sum(floats for _, floats in products),
    )
    whole = (11_172_170, 555_422_720, 1_171_466)
    if tier == 1:
        assert got == whole
    np.testing.assert_allclose(np.divide(got, whole), share, rtol=5e-3)


@pytest.mark.parametrize(
    ("name", "expected"), [("resnet18", 11_173_962), ("resnet34", 21_282_122)]
)
def test_post_activation_resnets_have_their_published_parameters(name, expected):
    blocks = resnet_module.BLOCKS[name]
    model = resnet(
        classes=10, blocks=blocks, activation="post", norm="batch", lowering="xla"
    )
    shapes, _ = shapes_of(model, (32, 32, 3))
    axes.check(name, shapes, model.axes)
    assert size_of(shapes) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("tiny", 5.7), ("small", 22.0), ("base", 86.6), ("1b", 1262)]
)
def test_vision_transformers_have_their_published_millions(name, expected):
    """Equal but for the class token, which is a mean here."""
    model = vit(classes=1000, **vit_module.PRESETS[name])
    shapes, _ = shapes_of(model, (224, 224, 3))
    axes.check(name, shapes, model.axes)
    assert round(size_of(shapes) / 1e6, 1) == pytest.approx(expected, abs=0.2)


def test_stages_are_runs_of_positions():
    assert resnet_module.stages((1, 3, 2)) == ((0,), (1, 2, 3), (4, 5))
    end = resnet_module.stages(resnet_module.BLOCKS["resnet34"])[-1][-1]
    assert end == sum(resnet_module.BLOCKS["resnet34"]) - 1


# ------------------------------------------------------------- where the backward stops


def counted(calls):
    """A block that counts its backward passes."""

    @jax.custom_vjp
    def mark(x):
        return x

    def backward(_, cotangent):
        jax.debug.callback(lambda: calls.append(1))
        return (cotangent,)

    mark.defvjp(lambda x: (x, None), backward)
    return lambda params, x, around: mark(jnp.tanh(x @ params))


@pytest.mark.parametrize("traced", [True, False])
def test_the_backward_pass_of_a_block_runs_only_if_it_is_needed(traced):
    calls = []
    block, around = counted(calls), layers.make_setting(None, None, None)
    params, x, seen = (
        jnp.asarray(normal(shape, 3), jnp.float32) for shape in [(3, 3), (2, 3), (2, 3)]
    )

    def run(needed, params, x):
        y, back = jax.vjp(
            lambda *args: residual.gate_backward(block, needed)(*args, around),
            params,
            x,
        )
        return y, *back(seen)

    gated = jax.jit(run, static_argnums=() if traced else 0)
    plain = jax.jit(functools.partial(run, True))(params, x)
    jax.effects_barrier()
    for needed in (True, False):
        calls.clear()
        y, *grads = gated(needed, params, x)
        jax.effects_barrier()
        assert len(calls) == needed
        np.testing.assert_allclose(y, plain[0], rtol=1e-6)
        for grad, expected in zip(grads, plain[1:], strict=True):
            np.testing.assert_allclose(grad, float(needed) * expected, rtol=1e-6)
    if traced:
        both = jax.vmap(gated, (0, None, None))(jnp.asarray([True, False]), params, x)
        for grad, expected in zip(both[1:], plain[1:], strict=True):
            np.testing.assert_allclose(grad[0], expected, rtol=1e-6)
            assert not np.any(grad[1])


def frozen(blocks, trained, stem=0):
    update = {"blocks": ones_at(blocks, trained)}
    return Units({}, update | {"stem": jnp.full(1, stem)})


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("resmlp, batch, middle", (1,)),
        ("resmlp, batch, middle", (0, 2)),
        ("resnet, batch, one stage", (2,)),
    ],
)
def test_what_is_trained_gets_its_whole_gradient_and_the_rest_below_none(name, trained):
    with jax.enable_x64(True):
        model, params, x = drawn(name)

        @jax.jit
        def run(params, x, update, where):
            some = outputs_and_grads(model, params, x, Submodel(None, update), where)
            return *some, *outputs_and_grads(model, params, x, None, where)

        update = frozen(model.axes.blocks["blocks"], trained)
        outputs, grads, plain, whole = run(params, x, update, jnp.ones(B, bool))
        np.testing.assert_allclose(outputs.logits, plain.logits, rtol=1e-12)
        mask = axes.masks(params, model.axes, update)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12),
            trees.multiply(grads, mask),
            trees.multiply(whole, mask),
        )
        names = [name for name in params if "block" in name]
        below = ["stem", *names[: trained[0]]]
        for name in below:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads[name]))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(whole["stem"]))


@pytest.mark.parametrize("stem", [0, 1])
def test_a_known_update_computes_no_gradient_below_what_is_trained(stem):
    """Blocks of 4 x 6 and 6 x 4, five features, three classes; the last block is
    trained. Its input needs no gradient; the head's kernel and input need one each."""
    model = resmlp(classes=3, width=4, hidden=6, depth=3, norm="none")
    params, x = shapes_of(model, (5,))

    kept = Submodel(None, frozen(3, (2,), stem))

    def loss(params, x):
        return jnp.sum(model.apply(params, x, submodel=kept).logits)

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params, x).jaxpr
    got = sum(adds for adds, _ in cost._products(jaxpr))
    block = 4 * 6 + 6 * 4
    forward = 5 * 4 + 3 * block + 4 * 3
    partial = 2 * 4 * 3 + 2 * 6 * 4 + 4 * 6
    whole = 2 * 4 * 3 + 3 * 2 * block + 5 * 4
    assert got == forward + (whole if stem else partial)


def test_without_word_of_the_stem_everything_is_needed():
    update = Units({}, {"blocks": jnp.asarray([0, 1])})
    for kept in (None, Submodel(), Submodel(update), Submodel(None, update)):
        assert residual.backward_reach(kept, 2) == [True, True, True]
    only_top = Submodel(None, frozen(3, (1,)))
    assert residual.backward_reach(only_top, 3) == [False, False, True, True]
    assert all(residual.backward_reach(Submodel(None, frozen(3, (2,), stem=1)), 3))
