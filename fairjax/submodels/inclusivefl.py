"""Depth prefixes whose last block is their own and learns from deeper ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from fairjax.core import require, trees
from fairjax.core.types import (
    Axes,
    Kept,
    LeafAxes,
    Member,
    Method,
    Params,
    Scope,
    Size,
)
from fairjax.submodels import depth


def inclusivefl(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    stages: tuple[int, ...],
    beta: float,
) -> Method:
    """InclusiveFL: a tier answers by its deepest exit, which sits on blocks of its own.

    Tier i keeps the first L_i blocks and trains the loss of its deepest exit alone. Its
    last block and that exit belong to the tier; all below is the mean over those who
    hold and share it. After a round the last block moves by

        (1 - beta) d_i[L_i] + beta mean(d_{i+1}[L_i], ..., d_{i+1}[L_{i+1}]),

    d_i[l] being the mean change of block l inside tier i: the momentum that distils
    what tier i lacks. The richest tier has no teacher, and its model is the full one.

    Args:
        axes: unit axes of the plain model, which has exits.
        budget: share of the exits per tier, in (0, 1], smallest tier first.
        stages: exits that every tier keeps, no fewer than the tier below; ():
            ceil(budget * exits).
        beta: share of the teacher in the change, in [0, 1]; 0: none.

    Raises:
        InputError: a model without exits, a number of exits that it does not have or
            that decreases, beta out of range, or beta above 0 where the blocks to be
            averaged differ in shape (those of a ResNet's stages).

    Edge cases: between exits several blocks apart, all blocks since the last exit are
    the tier's own, and each is taught by the mean of the teacher's from the first of
    them on. Tiers of one depth keep a copy each. Where nobody of the teacher's tier
    came, the change is the tier's own; where nobody of the tier came, there is none.

    Source: Liu et al. 2022 (KDD, arXiv 2202.08036). Deviates: the momentum is applied,
    as the paper says, while the released code asks for it only before it has any, so
    that it never does, and would overwrite one block's share with the next one's where
    they add up; clients are weighted by the fairness rule (there alike: "size");
    changes of local training are averaged, where the released code steps one AdamW per
    tier along gradients.
    """
    where = "submodel.inclusivefl"
    require.in_range(f"{where}.beta", beta, 0, 1)
    counts = depth.counts(f"{where}.stages", stages, budget, len(axes.exits))
    require.non_decreasing(f"{where}.stages", counts)
    ends = (0, *(position + 1 for position in axes.exits))
    lengths = [ends[count] for count in counts]
    own = [range(ends[count - 1], ends[count]) for count in counts]
    parts = _parts(axes)
    blocks = [name for name in parts if not name.startswith(depth.EXIT)]
    scopes: dict[str, Scope] = {}
    for name, (position, _) in parts.items():
        owners = tuple(tier for tier, last in enumerate(own) if position in last)
        scopes[name] = owners or "shared"
    # Blocks of the next tier that teach each tier, from its own first one on.
    lessons = [
        blocks[last.start : length]
        for last, length in zip(own[:-1], lengths[1:], strict=True)
    ]
    for names in lessons if beta else ():
        for name in names:
            if parts[name][1] != parts[names[0]][1]:
                what = f"0 where {names[0]} and {name} differ in shape"
                require.fail(f"{where}.beta", what, beta)
            if scopes[name] == "shared":
                scopes[name] = ()

    def private(params: Params) -> PyTree[Scope]:
        return trees.map_named(
            lambda path, _: scopes.get(path.partition("/")[0], "shared"), params
        )

    def between(changes: dict[str, Array], covered: dict[str, Array]):
        taught = dict(changes)
        for tier, names in enumerate(lessons):
            for leaf in parts[names[0]][1]:
                paths = [f"{name}/{leaf}" for name in names]
                if not changes.keys() >= set(paths):
                    continue  # a rule has clients keep it, and no tier teaches it
                teacher = sum(changes[path][tier + 1] for path in paths) / len(paths)
                known = jnp.stack([covered[path][tier + 1] for path in paths])
                for path in paths[: len(own[tier])]:
                    mine = changes[path][tier]
                    mixed = (1 - beta) * mine + beta * teacher
                    change = jnp.where(jnp.all(known, 0), mixed, mine)
                    taught[path] = taught[path].at[tier].set(change)
        return taught

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        return Kept(depth.prefix(axes, jnp.asarray(lengths)[member.tier]))

    def size(tier: int) -> Size:
        return depth.size(lengths[tier])

    return Method(
        units=units, size=size, private=private, between=between if beta else None
    )


_Leaves = dict[str, tuple[int | None, ...]]
"""{path inside a block: units of its dimensions}."""


def _parts(axes: Axes) -> dict[str, tuple[int, _Leaves]]:
    """{name: (position, leaves)} of the blocks and exits, first to last."""
    parts: dict[str, tuple[int, _Leaves]] = {}
    for path, leaf in jax.tree.leaves_with_path(
        axes.tree, is_leaf=lambda node: isinstance(node, LeafAxes)
    ):
        if leaf.block and leaf.block[0] == depth.BLOCKS:
            path = jax.tree_util.keystr(path, simple=True, separator="/")
            name, _, inside = path.partition("/")
            _, leaves = parts.setdefault(name, (leaf.block[1], {}))
            leaves[inside] = tuple(axes.units[d] if d else None for d in leaf.dims)
    return dict(sorted(parts.items(), key=lambda part: part[1][0]))
