"""Depth prefixes whose last block is the tier's own and learns from deeper ones."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from fairjax.core import require, trees
from fairjax.core.method import Method
from fairjax.core.types import Axes, ClientView, LeafAxes, Params, Scope, Submodel
from fairjax.submodels import depth


def inclusivefl(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    stages: tuple[int, ...],
    beta: float,
) -> Method:
    """InclusiveFL: a tier predicts with its deepest exit, behind blocks of its own.

    Tier i has the first L_i blocks and trains the loss of its deepest exit alone. Its
    last block and that exit have the scope of the tier; all blocks below are the mean
    over the clients that cover and share them. After a round the last block moves by

        (1 - beta) d_i[L_i] + beta mean(d_{i+1}[L_i], ..., d_{i+1}[L_{i+1}]),

    where d_i[l] is the mean change of block l inside tier i: this momentum distils the
    deeper blocks of the next richer tier, the teacher. The richest tier has no teacher,
    and its model is the full one.

    Args:
        axes: unit axes of the plain model, which has exits.
        budget: share of the exits per tier, in (0, 1], smallest tier first.
        stages: number of exits of every tier, no fewer than of the tier below; ():
            ceil(budget * exits).
        beta: share of the teacher in the change, in [0, 1]; 0: none.

    Raises:
        InputError: a model without exits, a number of exits that it does not have or
            that decreases, beta out of range, or beta above 0 where the averaged blocks
            differ in shape (those of a ResNet's stages).

    Edge cases: between exits several blocks apart, all blocks since the last exit are
    the tier's own, and the mean of the teacher's blocks, from the first of them on,
    teaches each. Tiers of one depth keep a copy each. Where no client of the teacher's
    tier took part, the change is the tier's own; where none of the tier took part,
    there is no change.

    Source: R. Liu et al., "No One Left Behind: Inclusive Federated Learning over
    Heterogeneous Devices", KDD 2022, arXiv:2202.08036. Deviates: the momentum is
    applied, as in the paper; the released code never applies it, as it reads the
    momentum only before one exists, and would overwrite one block's share with the next
    one's where they should add up. Clients are weighted by the fairness rule (there by
    records: "size"); changes of local training are averaged, where the released code
    steps one AdamW per tier along gradients.
    """
    require.in_range("beta", beta, 0, 1)
    counts = depth.counts("stages", stages, budget, len(axes.exits))
    require.non_decreasing("stages", counts)
    distillation = _distillation(axes, counts)
    block_scopes = _block_scopes(distillation)
    if beta:
        _check_shapes(distillation, beta)
        for names in distillation.teacher_blocks:
            for name in names:
                if block_scopes[name] == "shared":
                    block_scopes[name] = ()

    def scopes(params: Params) -> PyTree[Scope]:
        return trees.map_with_path(
            lambda path, _: block_scopes.get(path.partition("/")[0], "shared"), params
        )

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        return Submodel(
            depth.prefix(axes, jnp.asarray(distillation.lengths)[client.tier])
        )

    return Method(
        submodel=submodel,
        size=lambda tier: depth.size(distillation.lengths[tier]),
        scopes=scopes,
        share_between_tiers=(
            functools.partial(_share_between_tiers, distillation, beta)
            if beta
            else None
        ),
    )


_Leaves = dict[str, tuple[int | None, ...]]
"""{path inside a block: units of its dimensions}."""


class _Distillation(NamedTuple):
    """Which blocks every tier owns, and which teach it."""

    lengths: list[int]
    """Blocks of every tier, its prefix."""
    tier_blocks: list[range]
    """Positions of the blocks that are the tier's own."""
    block_table: dict[str, tuple[int, _Leaves]]
    """From `_block_table`."""
    teacher_blocks: list[list[str]]
    """Blocks of the next tier that teach each tier, from its own first one on."""


def _distillation(axes: Axes, counts: Sequence[int]) -> _Distillation:
    """The blocks of tiers with these numbers of exits."""
    ends = (0, *(position + 1 for position in axes.exits))
    lengths = [ends[count] for count in counts]
    tier_blocks = [range(ends[count - 1], ends[count]) for count in counts]
    block_table = _block_table(axes)
    blocks = [name for name in block_table if not name.startswith(depth.EXIT)]
    teacher_blocks = [
        blocks[block_range.start : length]
        for block_range, length in zip(tier_blocks[:-1], lengths[1:], strict=True)
    ]
    return _Distillation(lengths, tier_blocks, block_table, teacher_blocks)


def _block_scopes(distillation: _Distillation) -> dict[str, Scope]:
    """{block or exit: the tiers that own it, or "shared"}."""
    block_scopes: dict[str, Scope] = {}
    for name, (position, _) in distillation.block_table.items():
        owners = tuple(
            tier
            for tier, block_range in enumerate(distillation.tier_blocks)
            if position in block_range
        )
        block_scopes[name] = owners or "shared"
    return block_scopes


def _check_shapes(distillation: _Distillation, beta: float) -> None:
    """Refuses to average blocks of different shapes."""
    table = distillation.block_table
    for names in distillation.teacher_blocks:
        for name in names:
            if table[name][1] != table[names[0]][1]:
                requirement = f"0 where {names[0]} and {name} differ in shape"
                require.fail("beta", requirement, beta)


def _share_between_tiers(
    distillation: _Distillation,
    beta: float,
    updates: dict[str, Array],
    cover: dict[str, Array],
) -> dict[str, Array]:
    """The updates of the tiers' own blocks, mixed with their teachers'."""
    new_updates = dict(updates)
    for tier, names in enumerate(distillation.teacher_blocks):
        for leaf in distillation.block_table[names[0]][1]:
            paths = [f"{name}/{leaf}" for name in names]
            if not updates.keys() >= set(paths):
                continue  # by a rule the leaf stays at its clients: no tier teaches it
            teacher_update = sum(updates[path][tier + 1] for path in paths) / len(paths)
            is_covered = jnp.stack([cover[path][tier + 1] for path in paths])
            for path in paths[: len(distillation.tier_blocks[tier])]:
                tier_update = updates[path][tier]
                mixed_update = (1 - beta) * tier_update + beta * teacher_update
                taught_update = jnp.where(
                    jnp.all(is_covered, 0), mixed_update, tier_update
                )
                new_updates[path] = new_updates[path].at[tier].set(taught_update)
    return new_updates


def _block_table(axes: Axes) -> dict[str, tuple[int, _Leaves]]:
    """{name: (position, leaves)} of the blocks and exits, first to last."""
    block_table: dict[str, tuple[int, _Leaves]] = {}
    for path, leaf in jax.tree.leaves_with_path(
        axes.tree, is_leaf=lambda node: isinstance(node, LeafAxes)
    ):
        if leaf.block and leaf.block[0] == depth.BLOCKS:
            path = jax.tree_util.keystr(path, simple=True, separator="/")
            name, _, leaf_path = path.partition("/")
            _, leaves = block_table.setdefault(name, (leaf.block[1], {}))
            leaves[leaf_path] = tuple(axes.units[d] if d else None for d in leaf.dims)
    return dict(sorted(block_table.items(), key=lambda item: item[1][0]))
