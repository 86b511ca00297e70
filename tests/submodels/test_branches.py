"""Branches by hand, and the sum that `expand`, `merge` and `regroup` do not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from fairjax.core import trees
from fairjax.models import lenet, resmlp, resnet, vit
from fairjax.submodels import branches, families, preconditioner
from fairjax.submodels.branches import Form
from tests import fakes

EVERY = Form(families.FAMILIES, rank=2)


def small_resnet(channels=(8, 8), blocks=(1, 1)):
    return resnet(
        classes=3, channels=channels, blocks=blocks, group_size=4, lowering="xla"
    )


MODELS = {
    "mlp": (fakes.small_mlp(), (6,)),
    "cnn": (fakes.small_cnn(), (8, 8, 1)),
    "resnet": (small_resnet((8,), (1,)), (8, 8, 1)),
    "vit": (
        vit(classes=3, width=8, depth=2, heads=2, patch=4, ratio=2),
        (8, 8, 1),
    ),
}


def random_psi(family, kernel, bias, groups=1, seed=0):
    """Random parameters, biases too; `branches.draw` sets biases to 0."""
    rng = np.random.default_rng(seed)
    shapes = families.shapes(family, kernel, bias=bias, rank=2, groups=groups)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


# ------------------------------------------------------------------------- one branch


def test_tau_by_hand():
    rng = np.random.default_rng(0)
    shape = (3, 3, 2, 2)
    with jax.enable_x64(True):
        for family in families.CONV:
            psi = random_psi(family, shape, bias=True)
            kernel, bias = families.tau(family, psi, shape)
            expected, shift = np.zeros(shape), np.asarray(psi["bias"])
            if family == "1x1":
                expected[1, 1] = psi["kernel"][0, 0]
            elif family == "1xK":
                expected[1] = psi["kernel"][0]
            elif family == "Kx1":
                expected[:, 1] = psi["kernel"][:, 0]
            elif family == "KxK":
                expected[:] = psi["kernel"]
            elif family == "1x1-avg":
                expected[:] = psi["kernel"][0, 0] / 9
            elif family == "scale":
                expected[1, 1] = np.diag(psi["scale"])
            else:
                first, second = np.asarray(psi["first"]), np.asarray(psi["second"])
                expected[:] = first[0, 0] @ second
                shift = shift + psi["between"] @ second.sum((0, 1))
            np.testing.assert_allclose(kernel, expected, atol=1e-12)
            np.testing.assert_allclose(bias, shift, atol=1e-12)
        matrix = rng.normal(size=(4, 2)), rng.normal(size=(2, 3))
        psi = {"first": jnp.asarray(matrix[0]), "second": jnp.asarray(matrix[1])}
        kernel, bias = families.tau("lowrank", psi, (4, 3))
        np.testing.assert_allclose(kernel, matrix[0] @ matrix[1], atol=1e-12)
        assert bias is None


def test_which_families_fit():
    fit = lambda kernel: {f for f in families.FAMILIES if families.fits(f, kernel)}  # noqa: E731
    conv = set(families.CONV)
    assert fit((3, 3, 4, 4)) == conv
    assert fit((3, 3, 4, 8)) == conv - {"scale"}
    assert fit((1, 1, 4, 4)) == set()
    assert fit((4, 4)) == set(families.LINEAR)
    assert fit((4, 8)) == {"linear", "lowrank"}
    assert families.fits("scale", (3, 3, 2, 8), groups=4)


@pytest.mark.parametrize("family", ["1x1-KxK", "lowrank"])
def test_a_drawn_branch_has_the_size_of_a_fresh_layer(family):
    """The output of either map keeps the variance of its input."""
    kernel = (3, 3, 32, 64) if family in families.CONV else (32, 64)
    layer = branches.Layer(0, "c", kernel, True, jnp.float32)
    form = Form((family,), rank=64)
    psi = branches.draw(jax.random.key(0), [layer], form)["c"][f"0_{family}"]
    for name in ("first", "second"):
        inputs = np.prod(psi[name].shape[:-1])
        np.testing.assert_allclose(np.var(np.asarray(psi[name])) * inputs, 1, rtol=0.1)
    assert not np.any(psi["bias"])
    assert not np.any(psi["between"])


def test_the_inner_width_of_a_sequence_is_a_share_of_its_inputs():
    shapes = functools.partial(families.shapes, "1x1-KxK", (3, 3, 10, 4), bias=True)
    assert shapes()["first"] == (1, 1, 10, 10)
    narrow = shapes(inner=0.25, groups=2)
    assert narrow["first"] == (1, 1, 10, 6)
    assert narrow["second"] == (3, 3, 3, 4)
    assert narrow["between"] == (6,)
    rng = np.random.default_rng(0)
    psi = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in narrow.items()}
    kernel, _ = families.tau("1x1-KxK", psi, (3, 3, 10, 4), groups=2)
    first = psi["first"][0, 0].reshape(10, 2, 3)
    for output in range(4):
        own = first[:, output // 2] @ psi["second"][..., output].reshape(9, 3).T
        np.testing.assert_allclose(
            kernel[..., output].reshape(9, 10), own.T, rtol=1e-4, atol=1e-5
        )


# ------------------------------------------------------------------------------- layers


def test_layers_come_bottom_to_top():
    assert branches.layers(MODELS["cnn"][0].axes) == ("conv0", "conv1")
    deep = small_resnet((8, 16), (1, 1))
    assert branches.layers(deep.axes) == (
        "stem/conv",
        "stage0_block0/conv1",
        "stage0_block0/conv2",
        "stage1_block0/conv1",
        "stage1_block0/conv2",
        "stage1_block0/shortcut",
    )
    over_maps = lenet(classes=3, channels=(4, 4), hidden=(5, 4), lowering="xla")
    assert branches.layers(over_maps.axes) == ("conv0", "conv1", "hidden0", "hidden1")
    twelve = resmlp(classes=3, width=4, hidden=4, depth=12, norm="none")
    names = branches.layers(twelve.axes)
    assert names[0] == "stem"
    assert names[1:3] == ("block0/inner", "block0/outer")
    assert names[-2:] == ("block11/inner", "block11/outer")


def test_heads_and_skipped_parts_have_no_branches():
    model, shape = MODELS["vit"]
    names = branches.layers(model.axes, ("attention", "patch"))
    assert names == ("block0/inner", "block0/outer", "block1/inner", "block1/outer")
    assert "block0/attention/query" in branches.layers(model.axes, ("patch",))
    # No family fits a 1 x 1 shortcut.
    model, shape = small_resnet((8, 16), (1, 1)), (1, 8, 8, 1)
    names = branches.layers(model.axes)
    table = branches.existing_slots(fakes.drawn(model, jnp.zeros(shape)), names, EVERY)
    assert not np.any(table[names.index("stage1_block0/shortcut")])


# ------------------------------------------------------------------------------ the sum


def grown(name, dtype, seed):
    """A model, and three draws of the alive slots, about two thirds each."""
    model, shape = MODELS[name]
    plain = fakes.drawn(model, jnp.zeros((1, *shape)), dtype, seed)
    names = branches.layers(model.axes, ("attention", "patch"))
    rng = np.random.default_rng(seed)
    alive = rng.random((3, len(names), len(EVERY.families))) < 0.67
    return model, plain, names, jnp.asarray(alive.astype(np.float32))


def relative(tree, other):
    """Largest |difference| over the largest |value| of the leaf."""
    return max(
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        ("mlp", np.float32, 1e-5),
        *(
            pytest.param(
                *(name, np.float64, 1e-12),
                marks=pytest.mark.slow if name in ("resnet", "vit") else [],
            )
            for name in MODELS
        ),
    ],
)
def test_expand_and_regroup_change_no_output(name, dtype, bound):
    """The sum of an expanded tree is p, also after two regroups and in evaluation."""
    with jax.enable_x64(dtype is np.float64), jax.numpy_dtype_promotion("standard"):
        model, plain, names, alive = grown(name, dtype, 0)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(2, *MODELS[name][1])))
        x = x.astype(dtype)

        @jax.jit
        def all_of_it(plain, alive):
            local = branches.expand(
                jax.random.key(0), plain, alive[0], layers=names, form=EVERY
            )
            # As after training: every parameter of an alive branch has moved.
            living = branches.branch_mask(local)
            local["branches"] = jax.tree.map(
                lambda leaf, on: leaf + 0.3 * on, local["branches"], living
            )
            trained = branches.effective(local)
            sums, outputs = [], []
            for number in (1, 2):
                local = branches.regroup(
                    jax.random.key(number),
                    local,
                    alive[number],
                    layers=names,
                    form=EVERY,
                )
                sums.append(branches.effective(local))
            fresh = branches.expand(
                jax.random.key(0), plain, alive[0], layers=names, form=EVERY
            )
            four = (plain, branches.effective(fresh), trained, sums[1])
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *four)
            for train in (True, False):
                answer = lambda p, train=train: model.apply(p, x, train=train).logits  # noqa: E731
                outputs.append(jax.vmap(answer)(stacked))
            return branches.effective(fresh), trained, sums, outputs

        merged, trained, sums, outputs = all_of_it(plain, alive)
        assert relative(merged, plain) < bound
        assert relative(trained, plain) > 1e-2
        for total in sums:
            assert relative(total, trained) < 3 * bound
        for before, after, one, other in outputs:
            assert relative(after, before) < 30 * bound
            assert relative(other, one) < 30 * bound


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit-tiny"])
def test_expand_changes_no_output_at_full_size(name):
    if name == "resnet18":
        model, shape = resnet(classes=10, lowering="xla"), (1, 32, 32, 3)
    else:
        model, shape = vit(classes=10, width=192, depth=12, heads=3, patch=16), (
            1, 224, 224, 3,
        )  # fmt: skip
    x = jax.random.normal(jax.random.key(1), shape)
    plain = jax.jit(model.init)(jax.random.key(0), x)
    names = branches.layers(model.axes)
    alive = branches.existing_slots(plain, names, EVERY).astype(jnp.float32)

    @jax.jit
    def both(plain, alive):
        local = branches.expand(
            jax.random.key(2), plain, alive, layers=names, form=EVERY
        )
        merged = branches.effective(local)
        return merged, *(model.apply(p, x, train=True).logits for p in (plain, merged))

    merged, before, after = both(plain, alive)
    kernels = [
        trees.leaves_by_path(tree)[f"{names[1]}/kernel"] for tree in (merged, plain)
    ]
    assert relative(*([kernel] for kernel in kernels)) < 1e-5
    assert relative(after, before) < 1e-4


@given(seed=st.integers(0, 2**16), model=st.sampled_from(["mlp", "cnn"]))
def test_regroup_keeps_what_lives_and_ends_what_does_not(seed, model):
    _, plain, names, alive = grown(model, np.float32, seed)
    local = _expand(plain, alive[0], names)
    after = _regroup(local, alive[1], names)
    admitted = branches.existing_slots(plain, names, EVERY)
    wanted = alive[1] * admitted.astype(jnp.float32)
    assert fakes.equal(after["alive"], dict(zip(names, wanted, strict=True)))
    for layer, slots in after["branches"].items():
        for slot, psi in slots.items():
            row, column = names.index(layer), branches.column_of(slot)
            was, now = alive[0][row, column], alive[1][row, column]
            if was and now:
                assert fakes.equal(psi, local["branches"][layer][slot])
            elif now:
                assert all(np.any(psi[name]) for name in psi if "b" not in name)
            else:
                assert not any(np.any(leaf) for leaf in psi.values())


def _expand(plain, alive, names):
    expand = jax.jit(branches.expand, static_argnames=("layers", "form"))
    return expand(jax.random.key(0), plain, alive, layers=names, form=EVERY)


def _regroup(local, alive, names):
    regroup = jax.jit(branches.regroup, static_argnames=("layers", "form"))
    return regroup(jax.random.key(1), local, alive, layers=names, form=EVERY)


def test_without_a_living_branch_nothing_changes_at_all():
    _, plain, names, alive = grown("cnn", np.float32, 0)
    local = _expand(plain, jnp.zeros_like(alive[0]), names)
    assert fakes.equal(jax.jit(branches.effective)(local), plain)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(local["branches"]))


def test_known_dead_branches_are_not_there():
    """Only alive branches add to the cost."""
    _, plain, names, alive = grown("mlp", np.float32, 1)
    known = branches.expand(
        jax.random.key(0), plain, alive[0], layers=names, form=EVERY
    )
    traced = _expand(plain, alive[0], names)
    assert fakes.gap(known["base"], traced["base"]) < 1e-6
    count = sum(len(slots) for slots in known["branches"].values())
    slots = jnp.stack(list(known["alive"].values()))
    assert count == int(slots.sum()) < slots.size
    for layer, slots in known["branches"].items():
        for slot, psi in slots.items():
            assert fakes.gap(psi, traced["branches"][layer][slot]) < 1e-6


def test_the_product_of_a_dead_sequence_is_left_out():
    """A condition skips dead sequences, in the backward pass too."""
    _, plain, names, alive = grown("mlp", np.float32, 1)
    local = _expand(plain, alive[0], names)

    def products(jaxpr, inside=False):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield inside
            for inner in jaxprs_in_params(eqn.params):
                yield from products(inner, inside or eqn.primitive.name == "cond")

    def total(branches_, base, alive):
        tree = {"base": base, "branches": branches_, "alive": alive}
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(branches.effective(tree)))

    made = jax.make_jaxpr(jax.grad(total))(
        local["branches"], local["base"], local["alive"]
    )
    found = list(products(made.jaxpr))
    assert len(found) >= 3
    assert all(found)


def test_no_two_branches_are_alike():
    form = Form(("KxK", "KxK", "1x1"))
    model, shape = MODELS["cnn"]
    plain = fakes.drawn(model, jnp.zeros((1, *shape)))
    names = branches.layers(model.axes)
    local = branches.expand(
        jax.random.key(0), plain, jnp.ones((2, 3)), layers=names, form=form
    )
    one, other = (local["branches"]["conv1"][f"{i}_KxK"]["kernel"] for i in (0, 1))
    assert fakes.gap(one, other) > 0.1


# --------------------------------------------------------------- learning rate, or more


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_branches_make_of_a_gradient(dtype):
    """3 x 3 kernels with each set of branches, and a matrix with both of its own."""
    form = Form((*families.ONE_MAP, "KxK"))
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype is np.float64):
        g = {
            "c": {"kernel": rng.normal(size=(3, 3, 2, 2)), "bias": rng.normal(size=2)},
            "m": {"kernel": rng.normal(size=(2, 2))},
            "other": {"kernel": rng.normal(size=(2, 3))},
        }
        g = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), g)
        at = branches.zeros(branches.layers_of(g, ("c", "m")), form)

        @jax.jit
        def turned(alive):
            turn = preconditioner.scale_by_branches({"c": alive, "m": alive}, at)
            return turn.update(g, turn.init(g))[0]

        def expected(alive):
            on = dict.fromkeys(form.families, 0.0)
            for family, living in zip(form.families, alive, strict=True):
                on[family] += living
            kernel = np.asarray(g["c"]["kernel"])
            more = on["KxK"] * kernel
            more[1, 1] += on["1x1"] * kernel[1, 1]
            more[1] += on["1xK"] * kernel[1]
            more[:, 1] += on["Kx1"] * kernel[:, 1]
            more += on["1x1-avg"] * kernel.sum((0, 1)) / 81
            more[1, 1] += on["scale"] * np.diag(np.diag(kernel[1, 1]))
            # All families but "linear" fit the convolution, with a bias each.
            number = sum(on.values()) - on["linear"]
            bias, matrix = np.asarray(g["c"]["bias"]), np.asarray(g["m"]["kernel"])
            return {
                "c": {"kernel": kernel + more, "bias": (1 + number) * bias},
                "m": {
                    "kernel": matrix * (1 + on["linear"])
                    + on["scale"] * np.diag(np.diag(matrix))
                },
                "other": g["other"],
            }

        sets = [*np.eye(8), np.ones(8), rng.integers(0, 2, 8)]
        for alive in np.asarray(sets, np.float32):
            bound = 1e-6 if dtype is np.float32 else 1e-14
            assert relative(turned(jnp.asarray(alive)), expected(alive)) < bound
        assert fakes.equal(turned(jnp.zeros(8)), g)


@pytest.mark.parametrize("family", ["1x1", "1xK", "Kx1", "1x1-avg", "scale", "KxK"])
def test_a_linear_branch_is_a_learning_rate(family):
    """Several steps of branches are several steps of `scale_by_branches`."""
    assert _apart((family,) * 2, steps=4) < 1e-12


def test_a_sequence_is_one_for_its_first_step_alone():
    # The first step changes both factors: their product is of second order.
    assert _apart(("1x1-KxK",), steps=1, rate=1e-6) < 1e-10
    assert _apart(("1x1-KxK",), steps=4) > 1e-4


def _apart(families, steps, rate=0.05):
    """Largest difference between branches and `scale_by_branches`, by plain SGD."""
    form = Form(families)
    shape = (3, 3, 4, 4)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        rng = np.random.default_rng(0)
        plain = {
            "c": {
                "kernel": jnp.asarray(rng.normal(size=shape)),
                "bias": jnp.asarray(rng.normal(size=4)),
            }
        }
        target = jnp.asarray(rng.normal(size=shape))

        def loss(plain):
            kernel, bias = plain["c"]["kernel"], plain["c"]["bias"]
            away = jnp.sin(kernel - target) ** 2
            return jnp.sum(away) + jnp.sum(bias**2) * jnp.mean(kernel)

        @jax.jit
        def run(plain):
            alive = jnp.ones((1, len(families)))
            local = branches.expand(
                jax.random.key(0), plain, alive, layers=("c",), form=form
            )
            scale = preconditioner.scale_by_branches(local["alive"], local["branches"])
            other = plain
            for _ in range(steps):
                grads = jax.grad(lambda t: loss(branches.effective(t)))(local)
                step, _ = scale.update(jax.grad(loss)(other), optax.EmptyState())
                move = lambda p, g: p - rate * g  # noqa: E731
                local = {
                    "base": jax.tree.map(move, local["base"], grads["base"]),
                    "branches": jax.tree.map(
                        move, local["branches"], grads["branches"]
                    ),
                    "alive": local["alive"],
                }
                other = jax.tree.map(move, other, step)
            return branches.effective(local), other

        one, two = run(plain)
        assert fakes.gap(one, plain) > 0.5 * rate
        return fakes.gap(one, two)
