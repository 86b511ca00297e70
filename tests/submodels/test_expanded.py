"""A collapsed kernel equals branches side by side; with norms, only sometimes."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given

from fairjax.core.types import Moments
from fairjax.models import layers
from fairjax.submodels import expanded, families
from fairjax.submodels.expanded import EPSILON, Branch, Conv

PADDINGS = ("VALID", "SAME", "asymmetric")
SIZE = (6, 5)


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def padding_of(name, taps, stride):
    if name == "asymmetric":
        return ((0, 2), (3, 1))
    return tuple(jax.lax.padtype_to_pads(SIZE, taps, (stride, stride), name))


@st.composite
def cases(draw):
    """(family, kernel shape, conv, with a bias)."""
    family = draw(st.sampled_from(families.FAMILIES))
    groups = draw(st.sampled_from([1, 2, 3]))
    inputs = 2
    outputs = inputs * groups * (1 if family == "scale" else draw(st.integers(1, 2)))
    matrix = family in families.LINEAR and (family != "scale" or draw(st.booleans()))
    if matrix:
        return family, (inputs, outputs), Conv(groups=groups), draw(st.booleans())
    taps = draw(st.sampled_from([(3, 3), (2, 2), (4, 3), (2, 5)]))
    stride = draw(st.sampled_from([1, 2]))
    pads = padding_of(draw(st.sampled_from(PADDINGS)), taps, stride)
    conv = Conv(stride, pads, groups)
    return family, (*taps, inputs, outputs), conv, draw(st.booleans())


@given(cases())
def test_every_branch_is_a_convolution_with_its_tau(case):
    family, kernel, conv, bias = case
    with jax.enable_x64(True):
        shapes = families.shapes(family, kernel, bias=bias, groups=conv.groups)
        psi = {name: normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}
        x = normal(9, (2, *SIZE[: len(kernel) - 2], kernel[-2] * conv.groups))

        @jax.jit
        def both(psi, x):
            kernels, offset = families.tau(family, psi, kernel, conv.groups)
            y = expanded.convolve(x, kernels, conv)
            y = y if offset is None else y + offset
            return y, expanded.parallel(family, psi, x, kernel, conv)

        y, parts = both(psi, x)
        np.testing.assert_allclose(parts, y, rtol=0, atol=1e-10)


# --------------------------------------------------------------------------- with norms

KERNEL = (4, 3, 2, 4)
CONV = Conv(2, ((0, 2), (1, 3)), 2)


def plain_layer(x, kernel, bias):
    return expanded.convolve(x, kernel, CONV) + bias


def noisy(tree):
    """The tree plus noise, as after training."""
    leaves, structure = jax.tree.flatten(tree)
    moved = [leaf + 0.3 * normal(i, leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, moved)


@functools.cache
def figures():
    """Both sides of every claim from one program, on two batches."""

    @jax.jit
    def run(plain, batches):
        x, other = batches
        block = functools.partial(expanded.apply, kernel=KERNEL, conv=CONV)
        fold = functools.partial(expanded.fold, kernel=KERNEL, groups=CONV.groups)
        start, measured = expanded.expand(jax.random.key(0), plain, x, CONV)
        trained = noisy(start)
        mine, moments = block(trained, x)
        others, of_other = block(trained, other)
        stacked = jax.tree.map(lambda *pair: jnp.stack(pair), moments, of_other)
        average = expanded.average_moments(stacked)
        released = {
            family: expanded.fresh_branch(family, branch.psi, KERNEL, jnp.float64)
            for family, branch in start.items()
        }
        standard = jax.tree.map(
            lambda own: Moments(own.count, 0 * own.mean, 0 * own.var + 1 - EPSILON),
            measured,
            is_leaf=lambda node: isinstance(node, Moments),
        )
        bias = plain["bias"]
        return {
            "kernel and bias": fold(trained, moments),
            "given": block(trained, other, moments=moments)[0],
            "given, merged": plain_layer(other, *fold(trained, moments)),
            "training": (mine, others),
            "own, merged": plain_layer(x, *fold(trained, moments)),
            "average": average,
            "both": (moments, of_other),
            "average, merged": plain_layer(x, *fold(trained, average)),
            "plain": plain_layer(x, plain["kernel"], bias),
            "plain, other": plain_layer(other, plain["kernel"], bias),
            "expanded": block(start, x)[0],
            "expanded, other": block(start, other)[0],
            "expanded, other, given": block(start, other, moments=measured)[0],
            "released, given": block(released, other, moments=standard)[0] + bias,
            "released": block(released, x)[0] + bias,
            "trained": (trained, x),
        }

    with jax.enable_x64(True):
        plain = {"kernel": normal(0, KERNEL), "bias": normal(1, KERNEL[-1:])}
        batches = normal(2, (2, 5, *SIZE, 4)) + normal(3, (2, 1, 1, 1, 4))
        return jax.tree.map(np.asarray, run(plain, batches))


def away(a, b):
    """Relative difference."""
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_by_given_moments_a_block_is_its_fold_bias_included():
    made = figures()
    _, bias = made["kernel and bias"]
    assert away(made["given"], made["given, merged"]) < 1e-12
    # Without the bias, as released, all outputs lack it.
    without = made["given, merged"] - bias
    assert away(without, made["given"]) > 0.1
    np.testing.assert_allclose(
        made["given"] - without, np.broadcast_to(bias, without.shape), atol=1e-12
    )


def test_in_training_mode_a_block_is_the_fold_of_its_own_batch_alone():
    made = figures()
    mine, other = made["training"]
    assert away(made["own, merged"], mine) < 1e-12
    assert away(made["given, merged"], other) > 0.1
    assert away(made["average, merged"], mine) > 0.1


def test_moments_are_those_of_what_a_map_gives_before_it_is_padded():
    made = figures()
    trained, x = made["trained"]
    moments, of_other = made["both"]
    first = trained["1x1-KxK"].psi["first"][0, 0].reshape(2, 2, -1)
    y = np.einsum("bhwgi,igm->bhwgm", x.reshape(*x.shape[:-1], 2, 2), first)
    y = y.reshape(*x.shape[:-1], -1)
    between = moments["1x1-KxK"]["between"]
    np.testing.assert_allclose(between.mean, y.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(between.var, y.var((0, 1, 2)), rtol=1e-12)
    assert between.count == np.prod(x.shape[:-1])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, moments, of_other)
    same = jax.tree.map(lambda a, b: np.allclose(a, b), made["average"], mean)
    assert all(jax.tree.leaves(same))


def test_an_expansion_keeps_the_layer_on_the_records_it_was_measured_on():
    made = figures()
    assert away(made["expanded"], made["plain"]) < 1e-12
    assert away(made["expanded, other, given"], made["plain, other"]) < 1e-12
    assert away(made["expanded, other"], made["plain, other"]) > 0.1


def test_norms_of_scale_1_keep_it_by_given_moments_alone():
    made = figures()
    assert away(made["released, given"], made["plain, other"]) < 1e-12
    assert away(made["released"], made["plain"]) > 0.1


def test_a_norm_is_the_models_batch_norm():
    x = normal(0, (5, *SIZE, 4)).astype(np.float32)
    branch = expanded.fresh_branch("scale", {}, (3, 3, 4, 4), np.float32)
    norm = {"scale": normal(1, 4), "bias": normal(2, 4)}
    norm = jax.tree.map(lambda leaf: leaf.astype(np.float32), norm)
    conv = Conv(padding=((1, 1), (1, 1)))
    block = {"scale": Branch(branch.psi, {"bias": norm})}
    y, moments = jax.jit(
        functools.partial(expanded.apply, kernel=(3, 3, 4, 4), conv=conv)
    )(block, x)
    expected, theirs = layers.batch_norm(norm, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(moments["scale"]["bias"].var, theirs.var, rtol=1e-5)


# ------------------------------------------------------------------------ without norms


def test_without_norms_side_by_side_is_collapsed_with_gradients():
    """For any base and branches, not only expansions."""
    with jax.enable_x64(True):
        base = {"kernel": normal(0, KERNEL), "bias": normal(1, KERNEL[-1:])}
        psi = {
            family: {
                name: normal(10 * i + j, shape)
                for j, (name, shape) in enumerate(
                    families.shapes(family, KERNEL, bias=True, groups=2).items()
                )
            }
            for i, family in enumerate((*expanded.BLOCK, "KxK"))
        }
        x = normal(3, (3, *SIZE, 4))

        def side_by_side(base, psi, x):
            y = plain_layer(x, **base)
            for family, own in psi.items():
                y = y + expanded.parallel(family, own, x, KERNEL, CONV)
            return y

        def collapsed(base, psi, x):
            kernel, bias = base["kernel"], base["bias"]
            for family, own in psi.items():
                part, offset = families.tau(family, own, KERNEL, CONV.groups)
                kernel, bias = kernel + part, bias + offset
            return plain_layer(x, kernel, bias)

        def whole(layer):
            y, back = jax.vjp(layer, base, psi, x)
            return y, back(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

        ours, theirs = jax.jit(lambda: (whole(collapsed), whole(side_by_side)))()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), ours, theirs
        )
