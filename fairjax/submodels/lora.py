"""Low-rank factors of different ranks beside a frozen model."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import require, rng
from fairjax.core.axes import CLASSES
from fairjax.core.method import Method
from fairjax.core.types import (
    Axes,
    ClientView,
    LeafAxes,
    Model,
    Params,
    Size,
    Submodel,
    Units,
)

RANK = "rank"
"""The unit axis of all factors."""
BASE = "base"
"""A block list of length 1: the frozen parameters."""


def adapt(model: Model, rank: int, alpha: float, *, head: bool = True) -> Model:
    """The model with trainable low-rank factors beside its kernels.

        kernel = base + (alpha / rank) a b,    a [in, rank] random, b [rank, out] 0.

    Its parameters are {"base": plain parameters, "lora": factors where the kernels
    are}. Every leaf named "kernel" has factors. Its output side is as many last
    dimensions as the bias beside it has, or the last one without a bias; the others are
    its input side. So a dense kernel is in x out, the query kernel [D, heads, h] of an
    attention is D x (heads h), its output kernel [heads, h, D] is (heads h) x D, and a
    convolution is the (k k in) x out matrix of its patches.

    The factor is alpha / rank at every tier's rank. With alpha / rank_t, a shared
    coordinate of a or b would stand for another change of the kernel at every tier, and
    the mean of those coordinates for none of these changes.

    Base leaves get no gradient. The product a b is formed before the layer runs, which
    costs in * out * rank multiply-adds per step and leaves the layers as they are.

    Args:
        model: the plain model, whose parameters are nested dictionaries.
        rank: the largest rank, the length of axis "rank".
        alpha: numerator of the factor.
        head: train the leaves on the class axis whole, beside the factors; False: they
            are treated like any other leaf.

    Returns:
        A model whose `resize` narrows axis "rank" alone.

    Raises:
        InputError: a rank below 1.

    Source: E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR
    2022, arXiv:2106.09685, section 4; kernels with more than two dimensions as stated
    here.
    """
    require.count("rank", rank)
    return _add_factors(model, rank, alpha / rank, head)


def _add_factors(model: Model, rank: int, factor: float, head: bool) -> Model:
    """The model with kernel = base + factor * a b."""
    plain = model.axes

    def base_axes(leaf: LeafAxes) -> LeafAxes:
        is_trained = head and CLASSES in leaf.dims
        return LeafAxes(leaf.dims, None if is_trained else (BASE, 0))

    base = jax.tree.map(base_axes, plain.tree, is_leaf=_is_leaf)
    factor_axes = _factor_axes(base)
    tree = {"base": base, "lora": factor_axes}
    axes = Axes(tree, {**plain.units, RANK: rank}, {BASE: 1})

    def init(key: Array, x: Array) -> Params:
        base_params = model.init(key, x)
        pairs = iter(range(len(jax.tree.leaves(factor_axes, is_leaf=_is_leaf))))

        def draw(node: Any, params: Any) -> Any:
            if "a" not in node:
                return {name: draw(node[name], params[name]) for name in node}
            inputs = params.shape[: len(node["a"].dims) - 1]
            outputs = params.shape[len(inputs) :]
            leaf_key = rng.fold_in(key, next(pairs))
            a = jax.random.normal(leaf_key, (*inputs, rank), params.dtype)
            a = a / math.sqrt(math.prod(inputs))
            return {"a": a, "b": jnp.zeros((rank, *outputs), params.dtype)}

        return {"base": base_params, "lora": draw(factor_axes, base_params)}

    def merge(params: Any, pairs: Any, leaf_axes: Any) -> Any:
        if isinstance(params, Mapping):
            return {
                name: merge(params[name], pairs.get(name, {}), leaf_axes[name])
                for name in params
            }
        if leaf_axes.block is not None:
            params = jax.lax.stop_gradient(params)
        if not pairs:
            return params
        return params + factor * jnp.tensordot(pairs["a"], pairs["b"], 1)

    def apply(params: Any, x, **options):
        effective = merge(params["base"], params["lora"], base)
        return model.apply(effective, x, **options)

    def resize(size: Size) -> Model:
        return _add_factors(model, size.axes.get(RANK, rank), factor, head)

    return Model(init, apply, axes, resize)


def _factor_axes(base: Any) -> Any:
    """Axes of the factors beside frozen kernels, nested as the kernels are."""
    out = {}
    for name, child in base.items():
        if isinstance(child, Mapping):
            out[name] = _factor_axes(child)
        elif name == "kernel" and len(child.dims) > 1 and child.block is not None:
            split = len(child.dims) - (len(base["bias"].dims) if "bias" in base else 1)
            out[name] = {
                "a": LeafAxes((*child.dims[:split], RANK)),
                "b": LeafAxes((RANK, *child.dims[split:])),
            }
    return {name: child for name, child in out.items() if child}


def _is_leaf(node: object) -> bool:
    return isinstance(node, LeafAxes)


def lora(axes: Axes, budget: tuple[float, ...]) -> Method:
    """Rank-heterogeneous LoRA on an `adapt`ed model.

    A tier runs and trains the first ceil(budget * rank) ranks of every pair of factors;
    the base never changes. The masked mean over the rank axis divides every rank by the
    weights of the clients that train it; padding with zeros would shrink the ranks that
    few train.

    Args:
        axes: unit axes of an adapted model.
        budget: share of the ranks per tier, in (0, 1], smallest tier first.

    Raises:
        InputError: a model without the axis "rank".

    Source: the truncation of HetLoRA (Cho et al. 2024, arXiv:2401.06432) with the mean
    of factors per rank of RBLA (Chen et al. 2024, arXiv:2408.08699). Deviates from
    HetLoRA: clients are weighted by the fairness rule (by records, as in RBLA: rule
    "size"), not by the norm of their product, and none prunes its own rank. FlexLoRA
    (arXiv:2402.11505) and raFLoRA (arXiv:2602.13486) are other methods: they average
    products of factors and take an SVD.
    """
    require.one_of("axes", RANK, axes.units)
    total = axes.units[RANK]
    ranks = [unit_axes.prefix_size(share, total) for share in budget]

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        rank_mask = jnp.arange(total) < jnp.asarray(ranks)[client.tier]
        forward = Units({RANK: rank_mask}, {})
        return Submodel(forward, forward._replace(blocks={BASE: jnp.zeros(1, bool)}))

    return Method(submodel=submodel, size=lambda tier: Size({RANK: ranks[tier]}, {}))
