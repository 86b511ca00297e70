"""A residual network in bare functions, with blocks, exits and step sizes, on the small
federation; its names follow `types.Axes`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.core import client
from fairjax.core.types import Axes, ClientData, ClientView, LeafAxes, Model, Outputs
from fairjax.submodels import depth
from tests import fakes

INPUTS, CLASSES = 6, 3


def residual(
    *, width=8, hidden=(6, 6, 6), ends=None, steps=False, numbers=None, fixed=()
):
    """x + step * F(x), F of one hidden layer behind an affine map named as a norm.

    hidden: units of every block.  ends: blocks after which an exit sits; (): one head
    at the end.  numbers: of the blocks in the plain network; a sliced one lacks some.
    """
    numbers = tuple(range(len(hidden))) if numbers is None else numbers
    ends = numbers if ends is None else tuple(end for end in ends if end in numbers)
    place = {number: position for position, number in enumerate(numbers)}
    names = [f"exit{end}" for end in ends]

    def dense(into, out, block):
        return {"kernel": LeafAxes((into, out), block), "bias": LeafAxes((out,), block)}

    tree = {"stem": dense(None, "stream", None)}
    for number in numbers:
        block = ("blocks", place[number])
        tree[f"block{number}"] = {
            "norm": {
                "scale": LeafAxes(("stream",), block),
                "bias": LeafAxes(("stream",), block),
            },
            "up": dense("stream", f"hidden{number}", block),
            "down": dense(f"hidden{number}", "stream", block),
        } | ({"step": LeafAxes((), block)} if steps else {})
    for name, end in zip(names, ends, strict=True):
        tree[name] = dense("stream", "classes", ("blocks", place[end]))
    if not ends:
        tree["head"] = dense("stream", "classes", None)
    units = {f"hidden{n}": size for n, size in zip(numbers, hidden, strict=True)}
    units |= {"stream": width, "classes": CLASSES}
    axes = Axes(
        tree,
        units,
        {"blocks": len(numbers)},
        tuple(place[end] for end in ends),
        tuple(place[n] for n in fixed if n in place),
    )

    # Constants for any key, which need no compilation.
    def init(key, x):
        def one(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            shape = tuple(INPUTS if dim is None else units[dim] for dim in leaf.dims)
            if name.endswith(("scale", "step")):
                return jnp.ones(shape)
            draw = np.random.default_rng(list(name.encode())).normal(size=shape)
            return jnp.asarray(0.4 * draw, jnp.float32)

        return jax.tree.map_with_path(
            one, tree, is_leaf=lambda node: isinstance(node, LeafAxes)
        )

    def affine(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def apply(
        params, x, *, train=False, key=None, where=None, stats=None, submodel=None
    ):
        scale = 1 if submodel is None or submodel.scale is None else submodel.scale
        x, exits = affine(params["stem"], x), []
        for number in numbers:
            block = params[f"block{number}"]
            h = x * block["norm"]["scale"] + block["norm"]["bias"]
            h = affine(block["down"], jnp.tanh(affine(block["up"], h) / scale))
            x = x + block.get("step", jnp.ones((), x.dtype)) * h
            if number in ends:
                exits.append(affine(params[names[ends.index(number)]], x))
        if not ends:
            return Outputs(affine(params["head"], x), ())
        logits = exits[-1]
        if submodel is not None:
            present = depth.exits(axes, submodel)
            last = len(ends) - 1 - jnp.argmax(present[::-1])
            logits = jnp.stack(exits)[last]
        return Outputs(logits, tuple(exits))

    def resize(size):
        remain = [numbers[p] for p in size.blocks.get("blocks", range(len(numbers)))]
        new = units | dict(size.axes)
        return residual(
            width=new["stream"],
            hidden=tuple(new[f"hidden{n}"] for n in remain),
            ends=ends,
            steps=steps,
            numbers=tuple(remain),
            fixed=fixed,
        )

    return Model(init, apply, axes, resize)


def member(data, who, tier):
    number = jnp.asarray
    return ClientView(
        number(who), number(tier), number(True), data.count[who], data.labels[who]
    )


def trained(spec, tier, *, sliced=False, who=1, params=None, round=0):
    """(delta, full cover, info) of one client of a tier after two steps."""
    data = fakes.federation(dtype=np.float64 if jax.config.jax_enable_x64 else "f4")
    model, method = spec.local.model, spec.local.method
    if params is None:
        params = jax.jit(model.init)(jax.random.key(1), data.x[:1])
    params = jax.tree.map(lambda leaf: leaf.astype(data.x.dtype), params)
    one, round = member(data, who, tier), jnp.asarray(round)
    run = client.update
    if sliced:
        run = functools.partial(client.update_sliced, size=method.size(tier))
    run = functools.partial(run, client=one, round=round, local=spec.local)

    @jax.jit
    def train(params):
        kept = method.submodel(jax.random.key(5), round, params, one)
        examples = ClientData(data.x, data.y, data.offset[who], data.count[who])
        delta, cover, _, info = run(jax.random.key(5), params, None, kept, examples)
        whole = jax.tree.map(lambda c, p: jnp.broadcast_to(c, p.shape), cover, params)
        return delta, whole, info

    return train(params)


def agree(spec, tier, params=None):
    """Masked and sliced training of a tier's client agree in float64, and move."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        masked, cover, one = trained(spec, tier, params=params, round=7)
        sliced, also, other = trained(spec, tier, sliced=True, params=params, round=7)
        assert fakes.equal(cover, also)
        assert fakes.gap(masked, sliced) < 1e-9
        assert abs(float(one.loss - other.loss)) < 1e-9
        assert fakes.gap(masked, jax.tree.map(jnp.zeros_like, masked)) > 1e-4


def moved(tree):
    """Paths of the leaves that are not 0 everywhere."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree.leaves_with_path(tree)
        if np.any(leaf)
    }
