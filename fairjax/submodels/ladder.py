"""The tiers of a federation: kinds of sub-models side by side, fitted to budgets."""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Num

from fairjax.core import axes as unit_axes
from fairjax.core import require
from fairjax.core.types import (
    Axes,
    Kept,
    Member,
    Method,
    Model,
    Objective,
    Params,
    Size,
    Units,
)
from fairjax.submodels import cost, depth
from fairjax.submodels.dynamicfl import branched

KINDS = ("width", "depth", "plain")


def ladder(
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

    A "width" tier keeps the first ceil(budget * U) of the U units of the axes in `cut`,
    a "depth" tier a prefix of the residual blocks, a "plain" tier everything, beside
    which it may train DynamicFL's branches. Each trains the loss of the deepest exit
    that it keeps.

    Args:
        axes: unit axes of the plain model.
        budget: share of every tier, in (0, 1], smallest tier first.
        kinds: kind of every tier; (): "width" everywhere.
        cut: axes that width tiers narrow; (): every hidden axis.
        blocks: length of every tier's prefix, of which those of depth tiers count; ():
            ceil(budget * blocks).
        number: branches per layer of every tier; (): none.
        **options: of `dynamicfl.branched`.

    Raises:
        InputError: an unknown kind or axis, another number of tiers, more blocks than
            there are, branches on a tier that is not whole, or a depth tier that a
            model without exits cannot have because the rest of it needs the blocks that
            change the stream's shape.
    """
    kinds = kinds or ("width",) * len(budget)
    if len(kinds) != len(budget):
        what = f"{len(budget)} values, as tiers.budget"
        require.fail("submodel.ladder.kinds", what, kinds)
    for kind in kinds:
        require.one_of("submodel.ladder.kinds", kind, KINDS)
    number = number or (0,) * len(budget)
    if len(number) != len(budget):
        what = f"{len(budget)} values, as tiers.budget"
        require.fail("tiers.branches", what, number)
    for tier, (kind, count) in enumerate(zip(kinds, number, strict=True)):
        if count and kind != "plain" and budget[tier] < 1:
            what = f"0 for tier {tier}, of kind {kind!r} and below the plain model"
            require.fail("tiers.branches", what, number)
    hidden = unit_axes.hidden(axes)
    for name in cut:
        require.one_of("submodel.ladder.cut", name, hidden)
    narrowed = [name for name in hidden if name in cut or not cut]
    sizes = [
        {
            name: unit_axes.prefix_sizes(axes, share)[name] if kind == "width" else all_
            for name, all_ in hidden.items()
            if name in narrowed
        }
        for kind, share in zip(kinds, budget, strict=True)
    ]
    lengths = _lengths(axes, budget, kinds, blocks)

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        here = {
            name: jnp.asarray([tier[name] for tier in sizes])[member.tier]
            for name in narrowed
        }
        prefix = Units({}, {})
        if lengths is not None:
            prefix = depth.prefix(axes, jnp.asarray(lengths)[member.tier])
        return Kept(prefix._replace(axes=unit_axes.prefix(axes, here).axes))

    def size(tier: int) -> Size:
        prefix = Size({}, {}) if lengths is None else depth.size(lengths[tier])
        return prefix._replace(axes=sizes[tier])

    return branched(Method(units=units, size=size), axes, number, **options)


def _lengths(
    axes: Axes,
    budget: tuple[float, ...],
    kinds: tuple[str, ...],
    blocks: tuple[int, ...],
) -> list[int] | None:
    """Blocks that every tier keeps; None without depth tiers."""
    if "depth" not in kinds:
        return None
    where, total = "submodel.ladder.blocks", axes.blocks.get(depth.BLOCKS, 0)
    counts = depth.counts(where, blocks, budget, total)
    lengths = [
        count if kind == "depth" else total
        for kind, count in zip(kinds, counts, strict=True)
    ]
    # Up to its first exit a model answers nothing; without exits its one head needs
    # every block that changes the shape of what it reads.
    least = max(axes.fixed, default=0) + 1
    if axes.exits:
        least = axes.exits[0] + 1
    for length in lengths:
        require.in_range(where, length, least, total)
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

    The share is sought by bisection among the n / U of all axes, block lists and exits
    of the model, between which a sub-model that keeps ceil(share * U) does not change;
    the bill must grow with the share.

    Args:
        budgets: what each tier can spend of the resource, smallest tier first.
        resource: an entry of `cost.ledger`, such as "flops_train" or
            "activation_floats".
        family: share in (0, 1] -> method with that one tier.
        model: the plain model.
        objective: the local objective of a method without one of its own.
        optimizer: the local optimiser.
        params: the plain parameters.
        x: inputs whose shape and dtype count.

    Returns:
        A share per budget, for `tiers.budget`.

    Raises:
        InputError: an unknown resource, or a budget below the smallest sub-model's
            bill.
    """
    axes = model.axes
    zero, one = jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32)
    labels = jnp.ones(axes.units.get(unit_axes.CLASSES, 1), jnp.int32)
    member = Member(zero, zero, one > 0, one, labels)

    def bill(share: float) -> dict[str, int]:
        method = family(share)
        kept = method.units(jax.random.key(0), jnp.asarray(0), params, member)
        loss = method.objective or objective
        return cost.ledger(model, method, loss, optimizer, params, kept, member, x=x)

    lengths = {*unit_axes.hidden(axes).values(), *axes.blocks.values(), len(axes.exits)}
    shares = sorted({n / length for length in lengths for n in range(1, length + 1)})
    smallest = bill(shares[0])
    require.one_of("resource", resource, smallest)
    fitted = []
    for tier, budget in enumerate(budgets):
        if budget < smallest[resource]:
            what = f"at least {smallest[resource]}, the smallest sub-model's {resource}"
            require.fail(f"budgets[{tier}]", what, budget)
        at = bisect.bisect_right(shares, budget, key=lambda s: bill(s)[resource])
        fitted.append(shares[at - 1])
    return tuple(fitted)
