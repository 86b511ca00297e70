"""The bill of every tier: what its sub-model weighs, computes, keeps and sends."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxprs_in_params
from jaxtyping import Array, Num

from fairjax import losses, trees
from fairjax.submodels import axes
from fairjax.types import Kept, Masks, Method, Model, Params


def ledger(
    model: Model,
    method: Method,
    optimizer: optax.GradientTransformation,
    params: Params,
    kept: Kept,
    *,
    tier: int,
    x: Num[Array, "B ..."],
) -> dict[str, int]:
    """The bill of one tier, counted and not measured.

    - `parameters` of the forward pass, which the client receives (`bytes_down`); it
      sends back those it trains (`bytes_up`). Which units are kept follows from tier
      and round, so indices cost nothing. Which single coordinates are (`Method.mask`)
      follows from the whole model, which the client lacks: it also receives a bitmap,
      a bit per parameter. The server has the model and needs none back.
    - `flops_forward` and `flops_train` of one example: two for every multiply-add of a
      matrix product or convolution (the SAME count, taps on the border included), in
      the network itself and in it with the gradient of its loss.
    - `activation_floats` of one example: outputs of these products, which the backward
      pass needs.
    - `optimizer_floats`: state of the local optimiser.

    They are the device's costs: the sliced network's where the method has sizes and the
    model resizes, else the full one's, because a mask alone saves no computation.

    Args:
        model: the plain model.
        method: who decides its sizes.
        optimizer: the local optimiser.
        params: the plain parameters.
        kept: what a client of the tier keeps, from `Method.units`.
        tier: the tier.
        x: inputs whose shape and dtype count.
    """
    forward = axes.masks(params, model.axes, kept.forward)
    update = axes.masks(params, model.axes, kept.update or kept.forward)
    bitmap = 0
    if method.mask is not None:
        held = method.mask(params, kept)
        forward, update = (trees.multiply(held, units) for units in (forward, update))
        bitmap = math.ceil(sum(leaf.size for leaf in jax.tree.leaves(params)) / 8)

    def itemsize(leaf: Array) -> int:
        return leaf.dtype.itemsize

    network = model
    if method.size is not None and model.resize is not None:
        network = model.resize(method.size(tier))
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    weights = jax.eval_shape(network.init, jax.random.key(0), one)

    def loss(weights: Params, x: Array) -> Array:
        logits = network.apply(weights, x, train=True).logits
        return jnp.sum(losses.cross_entropy(logits, jnp.zeros(1, jnp.int32)))

    run = jax.make_jaxpr(lambda weights, x: network.apply(weights, x).logits)
    train = jax.make_jaxpr(jax.value_and_grad(loss))
    products = list(_products(run(weights, one).jaxpr))
    state = jax.tree.leaves(jax.eval_shape(optimizer.init, weights))
    return {
        "parameters": _held(params, forward, lambda leaf: 1),
        "flops_forward": sum(2 * adds for adds, _ in products),
        "flops_train": sum(
            2 * adds for adds, _ in _products(train(weights, one).jaxpr)
        ),
        "activation_floats": sum(floats for _, floats in products),
        "optimizer_floats": sum(
            leaf.size for leaf in state if jnp.issubdtype(leaf.dtype, jnp.floating)
        ),
        "bytes_down": _held(params, forward, itemsize) + bitmap,
        "bytes_up": _held(params, update, itemsize),
    }


def _held(params: Params, masks: Masks, price: Callable[[Array], int]) -> int:
    def one(param: Array, mask: Array) -> int:
        kept = np.broadcast_to(np.asarray(mask), param.shape)
        return int(np.count_nonzero(kept)) * price(param)

    return sum(jax.tree.leaves(jax.tree.map(one, params, masks)))


def _products(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """(multiply-adds, floats of the output) of every product of a jaxpr."""
    for eqn in jaxpr.eqns:
        out: Any = eqn.outvars[0].aval if eqn.outvars else None
        if eqn.primitive.name == "dot_general":
            left = eqn.invars[0].aval.shape
            contracted = eqn.params["dimension_numbers"][0][0]
            yield out.size * math.prod(left[dim] for dim in contracted), out.size
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            spec = eqn.params["dimension_numbers"].rhs_spec
            taps = math.prod(kernel[dim] for dim in spec[1:])
            # Zeros that a strided convolution's gradient puts between inputs are free.
            yield out.size * taps // math.prod(eqn.params["lhs_dilation"]), out.size
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(eqn.params):
            for adds, floats in _products(inner):
                yield times * adds, times * floats
