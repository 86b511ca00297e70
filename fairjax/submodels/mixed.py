"""Different kinds of sub-models in one federation, fitted to the tiers' budgets."""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Num

from fairjax.core import axes as unit_axes
from fairjax.core import require
from fairjax.core.method import Method
from fairjax.core.types import (
    Axes,
    ClientView,
    Model,
    Objective,
    Params,
    Size,
    Submodel,
    Units,
)
from fairjax.submodels import cost, depth, width
from fairjax.submodels.dynamicfl import branched

KINDS = ("width", "depth", "plain")


def mixed(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    kinds: tuple[str, ...],
    cut: tuple[str, ...],
    blocks: tuple[int, ...],
    number: tuple[int, ...] = (),
    **options: Any,
) -> Method:
    """One federation whose tiers are narrow, short, whole, or whole with branches.

    A "width" tier trains the first ceil(budget * U) of the U units of the axes in
    `cut`, a "depth" tier a prefix of the residual blocks, and a "plain" tier the whole
    model, with or without DynamicFL's branches. Each trains the loss of the deepest
    exit of its sub-model.

    Args:
        axes: unit axes of the plain model.
        budget: share of every tier, in (0, 1], smallest tier first.
        kinds: kind of every tier; (): "width" everywhere.
        cut: axes that width tiers narrow; (): every hidden axis.
        blocks: length of every tier's prefix, read for depth tiers alone; ():
            ceil(budget * blocks).
        number: branches per layer of every tier; (): none.
        **options: as for `dynamicfl.branched`.

    Raises:
        InputError: an unknown kind or axis, another number of tiers, more blocks than
            the model has, branches on a tier that is not whole, or a depth tier that
            lacks a block that changes the stream's shape in a model without exits.
    """
    kinds = kinds or ("width",) * len(budget)
    number = number or (0,) * len(budget)
    _check_tiers(budget, kinds, number)
    sizes = _sizes(axes, budget, kinds, cut)
    lengths = _lengths(axes, budget, kinds, blocks)

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        prefix = Units({}, {})
        axis_sizes = width.tier_sizes(sizes, client.tier)
        if lengths is not None:
            prefix = depth.prefix(axes, jnp.asarray(lengths)[client.tier])
        return Submodel(prefix._replace(axes=unit_axes.prefix(axes, axis_sizes).axes))

    def size(tier: int) -> Size:
        prefix = Size({}, {}) if lengths is None else depth.size(lengths[tier])
        return prefix._replace(axes=sizes[tier])

    return branched(Method(submodel=submodel, size=size), axes, number, **options)


def _check_tiers(
    budget: tuple[float, ...], kinds: tuple[str, ...], number: tuple[int, ...]
) -> None:
    """Refuses kinds and branches that do not fit the tiers."""
    requirement = f"{len(budget)} values, one per tier"
    if len(kinds) != len(budget):
        require.fail("kinds", requirement, kinds)
    for kind in kinds:
        require.one_of("kinds", kind, KINDS)
    if len(number) != len(budget):
        require.fail("number", requirement, number)
    for tier, (kind, count) in enumerate(zip(kinds, number, strict=True)):
        if count and kind != "plain" and budget[tier] < 1:
            requirement = (
                f"0 for tier {tier}, of kind {kind!r} and below the plain model"
            )
            require.fail("number", requirement, number)


def _sizes(
    axes: Axes, budget: tuple[float, ...], kinds: tuple[str, ...], cut: tuple[str, ...]
) -> width.Sizes:
    """Units that every tier has of the axes that width tiers narrow."""
    hidden = unit_axes.hidden_axes(axes)
    for name in cut:
        require.one_of("cut", name, hidden)
    return [
        {
            name: unit_axes.prefix_sizes(axes, share)[name]
            if kind == "width"
            else full_size
            for name, full_size in hidden.items()
            if name in cut or not cut
        }
        for kind, share in zip(kinds, budget, strict=True)
    ]


def _lengths(
    axes: Axes,
    budget: tuple[float, ...],
    kinds: tuple[str, ...],
    blocks: tuple[int, ...],
) -> list[int] | None:
    """Length of every tier's prefix of blocks; None without depth tiers."""
    if "depth" not in kinds:
        return None
    total = axes.blocks.get(depth.BLOCKS, 0)
    counts = depth.counts("blocks", blocks, budget, total)
    lengths = [
        count if kind == "depth" else total
        for kind, count in zip(kinds, counts, strict=True)
    ]
    # A model predicts from its first exit on; without exits its one head needs every
    # block that changes the shape of the stream.
    min_length = max(axes.reshaping_blocks, default=0) + 1
    if axes.exits:
        min_length = axes.exits[0] + 1
    for length in lengths:
        require.in_range("blocks", length, min_length, total)
    return lengths


def fit(
    budgets: Sequence[int | float],
    resource: str,
    *,
    family: Callable[[float], Method],
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Params,
    x: Num[Array, "B ..."],
) -> tuple[float, ...]:
    """The largest share for every budget whose sub-model stays within it.

    The share is found by bisection among the n / U of all axes, block lists and exits
    of the model. Between these a sub-model of ceil(share * U) units does not change.
    The cost must grow with the share.

    Args:
        budgets: each tier's budget of the resource, smallest tier first.
        resource: an entry of `cost.client_cost`, such as "flops_train" or
            "activation_floats".
        family: share in (0, 1] -> method with that one tier.
        model: the plain model.
        objective: the local objective of a method without one of its own.
        optimizer: the local optimiser.
        params: the plain parameters.
        x: inputs whose shape and dtype count.

    Returns:
        A share per budget, for a method's argument `budget`.

    Raises:
        InputError: an unknown resource, or a budget below the smallest sub-model's
            cost.
    """
    axes = model.axes
    zero, count = jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32)
    labels = jnp.ones(axes.units.get(unit_axes.CLASSES, 1), jnp.int32)
    client = ClientView(zero, zero, count > 0, count, labels)

    def cost_of_share(share: float) -> dict[str, int]:
        method = family(share)
        submodel = method.submodel(jax.random.key(0), jnp.asarray(0), params, client)
        loss = method.objective or objective
        return cost.client_cost(
            model, method, loss, optimizer, params, submodel, client, x=x
        )

    lengths = {
        *unit_axes.hidden_axes(axes).values(),
        *axes.blocks.values(),
        len(axes.exits),
    }
    shares = sorted({n / length for length in lengths for n in range(1, length + 1)})
    smallest = cost_of_share(shares[0])
    require.one_of("resource", resource, smallest)
    fitted_shares = []
    for tier, budget in enumerate(budgets):
        if budget < smallest[resource]:
            requirement = (
                f"at least {smallest[resource]}, the smallest sub-model's {resource}"
            )
            require.fail(f"budgets[{tier}]", requirement, budget)
        index = bisect.bisect_right(
            shares, budget, key=lambda s: cost_of_share(s)[resource]
        )
        fitted_shares.append(shares[index - 1])
    return tuple(fitted_shares)
