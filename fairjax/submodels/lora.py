"""Low-rank factors of different ranks on a model that stays as it is."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import require, rng
from fairjax.core.axes import CLASSES
from fairjax.core.types import (
    Axes,
    Kept,
    LeafAxes,
    Member,
    Method,
    Model,
    Params,
    Size,
    Units,
)

RANK = "rank"
"""The unit axis of all factors."""
BASE = "base"
"""A block list of length 1: the parameters that factors stand beside."""


def adapt(model: Model, rank: int, alpha: float, *, head: bool = True) -> Model:
    """The model with trainable low-rank factors beside its kernels.

        kernel = base + (alpha / rank) a b,    a [in, rank] random, b [rank, out] 0.

    Its parameters are {"base": plain parameters, "lora": factors where the kernels
    are}. Every leaf named "kernel" has factors. Its output side is as many last
    dimensions as the bias beside it has, or the last one without a bias; the others are
    its input side. So a dense kernel is in x out, the query kernel [D, heads, h] of an
    attention is D x (heads h), its output kernel [heads, h, D] is (heads h) x D, and a
    convolution is the (k k in) x out matrix of its patches.

    The factor is alpha / rank at every tier's rank: with alpha / rank_t a shared
    coordinate of a or b would mean another change of the kernel at every tier, and
    their mean none of them.

    Base leaves get no gradient. The product a b is formed before the layer runs, which
    costs in * out * rank multiply-adds per step and leaves the layers as they are.

    Args:
        model: the plain model, whose parameters are nested dictionaries.
        rank: the largest rank, the length of axis "rank".
        alpha: numerator of the factor.
        head: train the leaves on the class axis whole and beside the factors; False:
            they are as any other leaf.

    Returns:
        A model whose axis "rank" is the only one that `resize` narrows.

    Raises:
        InputError: a rank below 1.

    Source: Hu et al. 2022 (ICLR, arXiv 2106.09685), section 4; kernels of higher rank
    as stated here.
    """
    require.count("submodel.lora.rank", rank)
    return _adapted(model, rank, alpha / rank, head)


def _adapted(model: Model, rank: int, factor: float, head: bool) -> Model:
    plain = model.axes

    def whole(leaf: LeafAxes) -> bool:
        return head and CLASSES in leaf.dims

    def factors(tree: Any) -> Any:
        """Axes of the factors, nested as the kernels are."""
        out = {}
        for name, below in tree.items():
            if isinstance(below, Mapping):
                out[name] = factors(below)
            elif name == "kernel" and len(below.dims) > 1 and not whole(below):
                split = len(below.dims) - (
                    len(tree["bias"].dims) if "bias" in tree else 1
                )
                out[name] = {
                    "a": LeafAxes((*below.dims[:split], RANK)),
                    "b": LeafAxes((RANK, *below.dims[split:])),
                }
        return {name: below for name, below in out.items() if below}

    base = jax.tree.map(
        lambda leaf: LeafAxes(leaf.dims, None if whole(leaf) else (BASE, 0)),
        plain.tree,
        is_leaf=_is_leaf,
    )
    tree = {"base": base, "lora": factors(plain.tree)}
    axes = Axes(tree, {**plain.units, RANK: rank}, {BASE: 1})

    def init(key: Array, x: Array) -> Params:
        start = model.init(key, x)
        pairs = iter(range(len(jax.tree.leaves(tree["lora"], is_leaf=_is_leaf))))

        def draw(node: Any, params: Any) -> Any:
            if "a" not in node:
                return {name: draw(node[name], params[name]) for name in node}
            inputs = params.shape[: len(node["a"].dims) - 1]
            outputs = params.shape[len(inputs) :]
            here = rng.at(key, next(pairs))
            a = jax.random.normal(here, (*inputs, rank), params.dtype)
            a = a / math.sqrt(math.prod(inputs))
            return {"a": a, "b": jnp.zeros((rank, *outputs), params.dtype)}

        return {"base": start, "lora": draw(tree["lora"], start)}

    def merged(params: Any, pairs: Any, tags: Any) -> Any:
        if isinstance(params, Mapping):
            return {
                name: merged(params[name], pairs.get(name, {}), tags[name])
                for name in params
            }
        if tags.block is not None:
            params = jax.lax.stop_gradient(params)
        if not pairs:
            return params
        return params + factor * jnp.tensordot(pairs["a"], pairs["b"], 1)

    def apply(params: Any, x, **how):
        effective = merged(params["base"], params["lora"], base)
        return model.apply(effective, x, **how)

    def resize(size: Size) -> Model:
        return _adapted(model, size.axes.get(RANK, rank), factor, head)

    return Model(init, apply, axes, resize)


def _is_leaf(node: object) -> bool:
    return isinstance(node, LeafAxes)


def lora(axes: Axes, budget: tuple[float, ...]) -> Method:
    """Rank-heterogeneous LoRA on an `adapt`ed model.

    A tier keeps the first ceil(budget * rank) ranks of every pair of factors, in the
    forward pass and in what it trains; the base never changes. The masked mean over the
    rank axis divides every rank by those who hold it, where padding with zeros would
    shrink the ranks that few hold.

    Args:
        axes: unit axes of an adapted model.
        budget: share of the ranks per tier, in (0, 1], smallest tier first.

    Source: the truncation of HetLoRA (Cho et al. 2024, arXiv 2401.06432) with the mean
    of factors per rank of RBLA (Chen et al. 2024, arXiv 2408.08699). Deviates from
    HetLoRA: clients are weighted by the fairness rule (by records, as in RBLA: rule
    "size"), not by the norm of their product, and none prunes its own rank. FlexLoRA
    (arXiv 2402.11505) and raFLoRA (arXiv 2602.13486) are other methods: they average
    products of factors and take an SVD.
    """
    require.one_of("submodel.lora", RANK, axes.units)
    total = axes.units[RANK]
    ranks = [max(1, math.ceil(round(share * total, 9))) for share in budget]

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        kept = jnp.arange(total) < jnp.asarray(ranks)[member.tier]
        forward = Units({RANK: kept}, {})
        return Kept(forward, forward._replace(blocks={BASE: jnp.zeros(1, bool)}))

    return Method(units=units, size=lambda tier: Size({RANK: ranks[tier]}, {}))
