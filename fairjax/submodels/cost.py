"""The bill of every tier: what its sub-model weighs, computes, keeps and sends."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval
from jaxtyping import Array, Num, PyTree

from fairjax.core import axes, trees
from fairjax.core.types import (
    Axes,
    Batch,
    Context,
    Kept,
    Masks,
    Member,
    Method,
    Model,
    Objective,
    Outputs,
    Params,
    Size,
)

EXAMPLES = 1009
"""Of a batch that is counted: a prime, and no size of a model. What counts in multiples
of it is done for examples, anything else once a call."""


def ledger(
    model: Model,
    method: Method,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Params,
    kept: Kept,
    member: Member,
    *,
    x: Num[Array, "B ..."],
) -> dict[str, int]:
    """The bill of one client, counted and not measured.

    - `parameters` of the forward pass, which the client receives (`bytes_down`); it
      sends back those it trains (`bytes_up`). Which units are kept follows from tier
      and round, so indices cost nothing. Which single coordinates are (`Method.mask`)
      follows from the whole model, which the client lacks: it also receives a bitmap,
      a bit per parameter. The server has the model and needs none back.
    - `flops_forward` and `flops_train` of one example: two for every multiply-add of a
      matrix product or convolution (the SAME count, taps on the border included), in
      one answer of the sub-model, and in its objective with the gradient of what is
      trained. Distillation's further passes count; a pass that nothing trained needs
      does not.
    - `flops_step` of one local step, however many examples it has: the products of
      parameters with parameters (branches that are collapsed, low-rank factors), which
      a deployed model has behind it, and those of `Method.optimizer`.
    - `activation_floats` of one example: outputs of these products and of the norms in
      one forward pass, which the backward pass needs.
    - `optimizer_floats`: state of the local optimiser for the leaves that are trained.

    They are the device's costs: the sliced network's where the method has sizes and the
    model resizes, else the full one's, because a mask alone saves no computation. Where
    a method narrows single steps (`Method.narrow`), training is billed as their mean,
    and what a device must have room for at the widest.

    Args:
        model: the plain model.
        method: who decides what is trained and how.
        objective: what it minimises.
        optimizer: the local optimiser.
        params: the plain parameters.
        kept: what the client keeps, from `Method.units`; concrete.
        member: the client; its tier gives the size.
        x: inputs whose shape and dtype count.
    """
    # In NumPy, as XLA would take a program for every operation.
    known = jax.device_get(kept)
    received = axes.masks(params, model.axes, known.forward)
    sent = axes.masks(params, model.axes, known.update or known.forward)
    bitmap = 0
    if method.mask is not None:
        held = method.mask(params, kept)
        received, sent = (trees.multiply(held, units) for units in (received, sent))
        bitmap = math.ceil(sum(leaf.size for leaf in jax.tree.leaves(params)) / 8)
    network, inside, here = model, None, kept
    if method.size is not None and model.resize is not None:
        size = method.size(int(member.tier))
        inside = axes.part(known.forward, size)
        here = jax.tree.map(jnp.asarray, axes.inside(known, inside))
        network, here = model.resize(size), here._replace(forward=None)
    memory = None if method.memory is None else method.memory.init(params)
    tree, trained = _local(method, network, params, here, memory, model.axes, inside)
    leaves, structure = jax.tree.flatten(tree)
    hot = [leaf for leaf, is_hot in zip(leaves, trained, strict=True) if is_hot]
    cold = [leaf for leaf, is_hot in zip(leaves, trained, strict=True) if not is_hot]

    def whole(hot: list[Array], cold: list[Array]) -> PyTree:
        # Gradients are taken of the trained leaves alone: the backward pass ends where
        # none of them needs it.
        sources = {True: iter(hot), False: iter(cold)}
        mixed = [next(sources[is_hot]) for is_hot in trained]
        return jax.tree.unflatten(structure, mixed)

    def answer(tree: PyTree, x: Array) -> Array:
        plain = method.effective(tree)
        key = jax.random.key(0)
        outputs = network.apply(plain, x, train=False, key=key, kept=here)
        return method.predict(outputs, kept)

    def loss(
        narrow: Size | None, hot: list[Array], cold: list[Array], x: Array
    ) -> Array:
        plain = method.effective(whole(hot, cold))

        def outputs_at(other: Kept | None = None) -> Outputs:
            runs, tree, at = network, plain, here
            if other is not None:
                at = axes.inside(other, inside)
            elif narrow is not None and inside is not None and model.resize:
                lead = axes.part(axes.restrict(known.forward, inside), narrow)
                runs, tree = model.resize(narrow), axes.take(plain, network.axes, lead)
            return runs.apply(tree, x, train=True, key=jax.random.key(0), kept=at)

        zero = jnp.zeros((), jnp.int32)
        context = Context(zero, zero, zero, member, kept, memory, plain, plain)
        batch = Batch(x, jnp.zeros(len(x), jnp.int32), jnp.ones(len(x), bool))
        return objective(outputs_at, batch, jax.random.key(0), context)[0]

    def counted(f: Callable, *args: Any) -> tuple[np.ndarray, np.ndarray]:
        """(multiply-adds, floats) per example, and per call besides."""
        batch = jax.ShapeDtypeStruct((EXAMPLES, *x.shape[1:]), x.dtype)
        found = np.array([(0, 0), *_products(_used(f, *args, batch))], np.int64)
        examples = found % EXAMPLES == 0
        return found.sum(0, where=examples) // EXAMPLES, found.sum(0, where=~examples)

    forward, _ = counted(answer, tree)
    sizes: tuple[Size | None, ...] = (None,)
    if method.narrow is not None:
        sizes = method.narrow(int(member.tier))
    steps = [
        counted(jax.value_and_grad(functools.partial(loss, size)), hot, cold)
        for size in sizes
    ]
    train, per_step = np.mean(steps, axis=0)
    own = method.optimizer(optax.identity(), tree)
    turned = _used(lambda grads: own.update(grads, own.init(tree), tree)[0], tree)
    per_step += sum(adds for adds, _ in _products(turned))
    state = jax.tree.leaves(jax.eval_shape(optimizer.init, hot))
    return {
        "parameters": _held(params, received, lambda leaf: 1),
        "flops_forward": 2 * int(forward[0]),
        "flops_train": 2 * int(train[0]),
        "flops_step": 2 * int(per_step[0]),
        "activation_floats": int(forward[1]),
        "optimizer_floats": sum(
            leaf.size for leaf in state if jnp.issubdtype(leaf.dtype, jnp.floating)
        ),
        "bytes_down": _held(params, received, lambda leaf: leaf.dtype.itemsize)
        + bitmap,
        "bytes_up": _held(params, sent, lambda leaf: leaf.dtype.itemsize),
    }


def _local(
    method: Method,
    network: Model,
    params: Params,
    kept: Kept,
    memory: PyTree,
    plain: Axes,
    inside: axes.Part | None,
) -> tuple[PyTree, list[bool]]:
    """The local tree, and which of its leaves are trained at all.

    Only shapes of the tree count, unless the method makes the tree by itself.
    """

    def sliced(params: Params) -> Params:
        return params if inside is None else axes.take(params, plain, inside)

    small = jax.eval_shape(sliced, params)
    known = jax.device_get(kept)
    forward = axes.masks(small, network.axes, known.forward)
    update = axes.masks(small, network.axes, known.update or known.forward)
    tree, trained = small, update
    if method.enter is not None:
        key = jax.random.key(0)
        tree, trained = method.enter(key, sliced(params), kept, memory, forward, update)
    return tree, [bool(np.any(np.asarray(mask))) for mask in jax.tree.leaves(trained)]


def _used(f: Callable, *args: Any) -> Any:
    """The jaxpr of f without what its outputs do not need."""
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _held(params: Params, masks: Masks, price: Callable[[Array], int]) -> int:
    def one(param: Array, mask: Array) -> int:
        kept = np.broadcast_to(np.asarray(mask), param.shape)
        return int(np.count_nonzero(kept)) * price(param)

    return sum(jax.tree.leaves(jax.tree.map(one, params, masks)))


def _products(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """(multiply-adds, floats of the output) of every product and norm of a jaxpr."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield multiply_adds(eqn), eqn.outvars[0].aval.size
        elif eqn.primitive.name == "name" and eqn.params["name"] == "norm":
            yield 0, eqn.outvars[0].aval.size
        elif eqn.primitive.name == "cond":
            # One branch runs: the dearest is billed.
            branches = [list(_products(b.jaxpr)) for b in eqn.params["branches"]]
            yield from max(branches, key=lambda found: sum(adds for adds, _ in found))
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for inner in jaxprs_in_params(eqn.params):
                for adds, floats in _products(inner):
                    yield times * adds, times * floats


def multiply_adds(eqn: Any) -> int:
    """Multiply-adds of a `dot_general` or `conv_general_dilated` equation of a jaxpr.

    A convolution counts every tap of every output, inside the image or not; the zeros
    that a strided convolution's gradient puts between its inputs are free.
    """
    out = eqn.outvars[0].aval.size
    if eqn.primitive.name == "dot_general":
        left = eqn.invars[0].aval.shape
        return out * math.prod(
            left[dim] for dim in eqn.params["dimension_numbers"][0][0]
        )
    kernel = eqn.invars[1].aval.shape
    taps = math.prod(
        kernel[dim] for dim in eqn.params["dimension_numbers"].rhs_spec[1:]
    )
    return out * taps // math.prod(eqn.params["lhs_dilation"])
