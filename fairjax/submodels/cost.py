"""The cost of a client: parameters, operations, activations and bytes sent."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval
from jaxtyping import Array, Num, PyTree

from fairjax.core import axes, trees
from fairjax.core.method import Method
from fairjax.core.types import (
    Axes,
    Batch,
    ClientView,
    Context,
    Masks,
    Model,
    Objective,
    Outputs,
    Params,
    Size,
    Submodel,
)

EXAMPLES = 1009
"""Examples of the counted batch: a prime, and no size of a model. Counts in multiples
of it are per example, all others per call."""


def client_cost(
    model: Model,
    method: Method,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Params,
    submodel: Submodel,
    client: ClientView,
    *,
    x: Num[Array, "B ..."],
) -> dict[str, int]:
    """The cost of one client, counted and not measured.

    - `parameters` of the forward pass, which the client receives (`bytes_down`); it
      sends back those it trains (`bytes_up`). The units of a sub-model follow from tier
      and round, so indices cost nothing. Single coordinates (`Method.mask`) follow from
      the whole model, which the client lacks: it also receives a bitmap, a bit per
      parameter. The server has the model and needs no bitmap back.
    - `flops_forward` and `flops_train` of one example: two for every multiply-add of a
      matrix product or convolution (the SAME count, taps on the border included), in
      one prediction of the sub-model, and in its objective with the gradient of the
      trained coordinates. Distillation's further passes count; a backward pass that no
      trained coordinate needs does not.
    - `flops_step` of one local step, for any number of examples: products of parameters
      with parameters (collapsed branches, low-rank factors), which a deployed model no
      longer needs, and those of `Reparameterisation.optimizer`.
    - `activation_floats` of one example: outputs of these products and of the norms in
      one forward pass, which the backward pass needs.
    - `optimizer_floats`: state of the local optimiser for the trained leaves.

    They are the device's costs: the sliced network's where the method has sizes and the
    model resizes, else the full one's, because a mask alone saves no computation. Where
    a method narrows single steps (`Reparameterisation.per_step_sizes`), the training
    cost is the mean over these sizes, and memory is that of the widest.

    Args:
        model: the plain model.
        method: the method of the sub-model.
        objective: the client's objective.
        optimizer: the local optimiser.
        params: the plain parameters.
        submodel: the client's sub-model, from `Method.submodel`; concrete.
        client: the client; its tier gives the size.
        x: inputs whose shape and dtype count.
    """
    download_mask, upload_mask, bitmap = _traffic(model, method, params, submodel)
    problem = _device_problem(model, method, params, submodel, client)
    forward, _ = _count_products(functools.partial(_predict, problem), problem.tree, x)
    trained_leaves, frozen_leaves = _split_leaves(problem)
    sizes: tuple[Size | None, ...] = (None,)
    if method.local.per_step_sizes is not None:
        sizes = method.local.per_step_sizes(int(client.tier))
    steps = [
        _count_products(
            jax.value_and_grad(functools.partial(_loss, problem, objective, size)),
            trained_leaves,
            frozen_leaves,
            x,
        )
        for size in sizes
    ]
    train, per_step = np.mean(steps, axis=0)
    per_step += _optimizer_products(method, problem.tree)
    state = jax.tree.leaves(jax.eval_shape(optimizer.init, trained_leaves))
    return {
        "parameters": _masked_total(params, download_mask, lambda leaf: 1),
        "flops_forward": 2 * int(forward[0]),
        "flops_train": 2 * int(train[0]),
        "flops_step": 2 * int(per_step[0]),
        "activation_floats": int(forward[1]),
        "optimizer_floats": sum(
            leaf.size for leaf in state if jnp.issubdtype(leaf.dtype, jnp.floating)
        ),
        "bytes_down": _masked_total(
            params, download_mask, lambda leaf: leaf.dtype.itemsize
        )
        + bitmap,
        "bytes_up": _masked_total(
            params, upload_mask, lambda leaf: leaf.dtype.itemsize
        ),
    }


def _traffic(
    model: Model, method: Method, params: Params, submodel: Submodel
) -> tuple[Masks, Masks, int]:
    """(coordinates received, coordinates sent, bytes of a bitmap of the former)."""
    # In NumPy: JAX would compile a program for every operation.
    host_submodel = jax.device_get(submodel)
    download_mask = axes.masks(params, model.axes, host_submodel.forward)
    upload_mask = axes.masks(
        params, model.axes, host_submodel.update or host_submodel.forward
    )
    if method.mask is None:
        return download_mask, upload_mask, 0
    coordinate_mask = method.mask(params, submodel)
    download_mask, upload_mask = (
        trees.multiply(coordinate_mask, units) for units in (download_mask, upload_mask)
    )
    bitmap = math.ceil(sum(leaf.size for leaf in jax.tree.leaves(params)) / 8)
    return download_mask, upload_mask, bitmap


class _DeviceProblem(NamedTuple):
    """What the client's device runs."""

    model: Model
    """The plain model."""
    method: Method
    network: Model
    """The sliced network, or the plain model."""
    submodel: Submodel
    """The sub-model, of the plain model."""
    local_submodel: Submodel
    """The sub-model, of the network."""
    slice_index: axes.Part | None
    """Where the network lies in the plain model; None: it is the plain model."""
    client: ClientView
    memory: PyTree
    tree: PyTree
    """The local tree."""
    is_trained: list[bool]
    """For every leaf of the local tree, whether any of it is trained."""


def _device_problem(
    model: Model,
    method: Method,
    params: Params,
    submodel: Submodel,
    client: ClientView,
) -> _DeviceProblem:
    """The network, local tree and sub-model of the client's device."""
    network, slice_index, local_submodel = model, None, submodel
    if method.size is not None and model.resize is not None:
        host_submodel = jax.device_get(submodel)
        size = method.size(int(client.tier))
        slice_index = axes.locate_slice(host_submodel.forward, size)
        local_submodel = jax.tree.map(
            jnp.asarray, axes.restrict_submodel(host_submodel, slice_index)
        )
        network = model.resize(size)
        local_submodel = local_submodel._replace(forward=None)
    memory = None if method.memory is None else method.memory.init(params)
    tree, is_trained = _local_tree(
        method, network, params, local_submodel, memory, model.axes, slice_index
    )
    return _DeviceProblem(
        model,
        method,
        network,
        submodel,
        local_submodel,
        slice_index,
        client,
        memory,
        tree,
        is_trained,
    )


def _local_tree(
    method: Method,
    network: Model,
    params: Params,
    submodel: Submodel,
    memory: PyTree,
    plain_axes: Axes,
    slice_index: axes.Part | None,
) -> tuple[PyTree, list[bool]]:
    """The local tree, and for every leaf whether any of it is trained.

    Only shapes of the tree count, unless the method builds it (`to_local`).
    """

    def slice_params(params: Params) -> Params:
        if slice_index is None:
            return params
        return axes.take(params, plain_axes, slice_index)

    small_shapes = jax.eval_shape(slice_params, params)
    host_submodel = jax.device_get(submodel)
    forward = axes.masks(small_shapes, network.axes, host_submodel.forward)
    update = axes.masks(
        small_shapes, network.axes, host_submodel.update or host_submodel.forward
    )
    tree, trained = small_shapes, update
    if method.local.to_local is not None:
        key = jax.random.key(0)
        tree, trained = method.local.to_local(
            key, slice_params(params), submodel, memory, forward, update
        )
    return tree, [bool(np.any(np.asarray(mask))) for mask in jax.tree.leaves(trained)]


def _split_leaves(problem: _DeviceProblem) -> tuple[list[Any], list[Any]]:
    """(trained leaves, frozen leaves) of the local tree.

    Gradients are taken of the trained leaves alone, so that the backward pass ends
    where none of them needs it.
    """
    leaves = list(zip(jax.tree.leaves(problem.tree), problem.is_trained, strict=True))
    trained_leaves = [leaf for leaf, is_trained in leaves if is_trained]
    return trained_leaves, [leaf for leaf, is_trained in leaves if not is_trained]


def _merge_leaves(
    problem: _DeviceProblem, trained_leaves: list[Array], frozen_leaves: list[Array]
) -> PyTree:
    """The local tree of these leaves."""
    sources = {True: iter(trained_leaves), False: iter(frozen_leaves)}
    all_leaves = [next(sources[is_trained]) for is_trained in problem.is_trained]
    return jax.tree.unflatten(jax.tree.structure(problem.tree), all_leaves)


def _predict(problem: _DeviceProblem, tree: PyTree, x: Array) -> Array:
    """The logits of the deployed sub-model."""
    method = problem.method
    plain = method.local.effective(tree)
    key, submodel = jax.random.key(0), problem.local_submodel
    outputs = problem.network.apply(plain, x, train=False, key=key, submodel=submodel)
    return method.predict(outputs, problem.submodel)


def _loss(
    problem: _DeviceProblem,
    objective: Objective,
    narrow: Size | None,
    trained_leaves: list[Array],
    frozen_leaves: list[Array],
    x: Array,
) -> Array:
    """The objective of one step, which a size may narrow."""
    model, network, slice_index = problem.model, problem.network, problem.slice_index
    tree = _merge_leaves(problem, trained_leaves, frozen_leaves)
    plain = problem.method.local.effective(tree)

    def outputs_at(override: Submodel | None = None) -> Outputs:
        active_network, tree = network, plain
        active_submodel = problem.local_submodel
        if override is not None:
            active_submodel = axes.restrict_submodel(override, slice_index)
        elif narrow is not None and slice_index is not None and model.resize:
            forward = jax.device_get(problem.submodel).forward
            narrow_index = axes.locate_slice(
                axes.restrict(forward, slice_index), narrow
            )
            active_network = model.resize(narrow)
            tree = axes.take(plain, network.axes, narrow_index)
        return active_network.apply(
            tree, x, train=True, key=jax.random.key(0), submodel=active_submodel
        )

    zero = jnp.zeros((), jnp.int32)
    context = Context(
        zero, zero, zero, problem.client, problem.submodel, problem.memory, plain, plain
    )
    batch = Batch(x, jnp.zeros(len(x), jnp.int32), jnp.ones(len(x), bool))
    return objective(outputs_at, batch, jax.random.key(0), context)[0]


def _count_products(f: Callable, *args: Any) -> tuple[np.ndarray, np.ndarray]:
    """(multiply-adds, floats) per example of f, and per call besides.

    The last argument of f is a batch, of which shape and dtype count.
    """
    *leading_args, x = args
    batch = jax.ShapeDtypeStruct((EXAMPLES, *x.shape[1:]), x.dtype)
    jaxpr = _pruned_jaxpr(f, *leading_args, batch)
    counts = np.array([(0, 0), *_products(jaxpr)], np.int64)
    is_per_example = counts % EXAMPLES == 0
    return counts.sum(0, where=is_per_example) // EXAMPLES, counts.sum(
        0, where=~is_per_example
    )


def _optimizer_products(method: Method, tree: PyTree) -> int:
    """Multiply-adds of `Reparameterisation.optimizer` in one step."""
    optimizer = method.local.optimizer(optax.identity(), tree)
    update_jaxpr = _pruned_jaxpr(
        lambda grads: optimizer.update(grads, optimizer.init(tree), tree)[0], tree
    )
    return sum(adds for adds, _ in _products(update_jaxpr))


def _pruned_jaxpr(f: Callable, *args: Any) -> Any:
    """The jaxpr of f without operations that its outputs do not need."""
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _masked_total(params: Params, masks: Masks, price: Callable[[Array], int]) -> int:
    """Sum over the masked coordinates of the price per coordinate of their leaf."""

    def per_leaf(param: Array, mask: Array) -> int:
        full_mask = np.broadcast_to(np.asarray(mask), param.shape)
        return int(np.count_nonzero(full_mask)) * price(param)

    return sum(jax.tree.leaves(jax.tree.map(per_leaf, params, masks)))


def _products(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """(multiply-adds, floats of the output) of every product and norm of a jaxpr."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield multiply_adds(eqn), eqn.outvars[0].aval.size
        elif eqn.primitive.name == "name" and eqn.params["name"] == "norm":
            yield 0, eqn.outvars[0].aval.size
        elif eqn.primitive.name == "cond":
            # One branch runs: the dearest one counts.
            branches = [list(_products(b.jaxpr)) for b in eqn.params["branches"]]
            yield from max(
                branches, key=lambda products: sum(adds for adds, _ in products)
            )
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
