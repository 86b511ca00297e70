"""Residual networks for small images, with activation before or after convolution."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from fairjax.core import require
from fairjax.core.types import Model, Moments, Size
from fairjax.models import convolutions, layers, leaves, residual
from fairjax.models.layers import Setting

NORMS = ("group", "batch", "none")
ACTIVATIONS = ("pre", "post")
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Blocks of every stage in the published networks."""


def stages(blocks: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Positions in the list "blocks" of every stage's blocks.

    stages(blocks)[:d] are the positions of the first d stages, a prefix.
    """
    ends = tuple(itertools.accumulate(blocks))
    return tuple(
        tuple(range(end - count, end)) for end, count in zip(ends, blocks, strict=True)
    )


def resnet(
    *,
    classes: int,
    channels: tuple[int, ...] = (64, 128, 256, 512),
    blocks: tuple[int, ...] = BLOCKS["resnet18"],
    activation: str = "pre",
    norm: str = "group",
    group_size: int = 4,
    exits: bool = False,
    steps: bool = False,
    lowering: str,
) -> Model:
    """ResNet with basic blocks and the 3 x 3 stem of CIFAR, which does not pool.

        pre:   h = relu(norm x),  x' = P h + s conv(relu(norm(conv h)))
        post:  x' = relu(P x + s norm(conv(relu(norm(conv x)))))

    The first block of every stage but the first has stride 2 and a 1 x 1 projection P
    (followed by a norm in "post"); elsewhere P h is x, the identity. Convolutions have
    no bias. Norm and ReLU end the stem ("post") or begin the head ("pre"); the mean
    over space and a dense layer follow in the head.

    Args:
        classes: C.
        channels: channels of every stage, first to last. Every layer that reads or
            writes the residual stream of stage i, the stem included, has the axis
            "stage<i>"; the inside of its block j has the axis "stage<i>_block<j>".
        blocks: blocks of every stage, see `BLOCKS`, in the one block list "blocks";
            `stages` gives the positions of each stage, so that a tier of d stages has a
            prefix. A block whose shortcut is the identity can be dropped and passes its
            input on. If a block with a projection is dropped, all blocks behind it
            are too, which needs `exits`.
        activation: "pre" or "post".
        norm: "group", "batch" or "none".
        group_size: channels of a norm group, which then is the unit of every axis.
        exits: a head at the end of every stage, which goes with the stage's last block;
            else one head behind all blocks.
        steps: s is learnt per block, from 1; else it is 1.
        lowering: one of `convolutions.CONVOLUTIONS`.

    Raises:
        InputError: channels that are not whole norm groups, a stage without blocks, an
            unknown norm or activation; from `resize`, blocks that cannot be dropped.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385 ("post"), and "Identity Mappings in Deep Residual Networks", ECCV
    2016, arXiv:1603.05027 ("pre"); steps of NeFL (see `fairjax.submodels.nefl`); exits
    as in DepthFL (see `fairjax.submodels.depthfl`). Deviates: DepthFL's released code
    puts convolutions in front of its exits.
    """
    unit = group_size if norm == "group" else 1
    _check_options(channels, blocks, activation, norm, unit)
    convolution = convolutions.CONVOLUTIONS[lowering]
    design = _Design(classes, blocks, activation, norm, unit, exits, steps, convolution)
    units = {f"stage{i}": width // unit for i, width in enumerate(channels)}
    units |= {f"stage{i}_block{j}": channels[i] // unit for i, j in design.places}
    positions = tuple(range(len(design.places)))
    return _network(design, units | {"classes": classes}, positions)


def _check_options(
    channels: tuple[int, ...],
    blocks: tuple[int, ...],
    activation: str,
    norm: str,
    unit: int,
) -> None:
    """Refuses options of `resnet` that no network has."""
    require.one_of("norm", norm, NORMS)
    require.one_of("activation", activation, ACTIVATIONS)
    require.count("group_size", unit)
    if not channels:
        require.fail("channels", "at least one stage", channels)
    if len(channels) != len(blocks) or not all(count > 0 for count in blocks):
        require.fail("blocks", "blocks for every stage", blocks)
    layers.check_sizes(channels=channels)
    for width in channels:
        if width % unit:
            requirement = f"multiples of group_size {unit}"
            require.fail("channels", requirement, width)


class _Design(NamedTuple):
    """The options of `resnet` that are the same at every size."""

    classes: int
    blocks: tuple[int, ...]
    activation: str
    norm: str
    unit: int
    """Channels of one unit."""
    exits: bool
    steps: bool
    convolution: convolutions.Convolve

    @property
    def places(self) -> list[tuple[int, int]]:
        """(stage, index in the stage) of every block."""
        return [(i, j) for i, count in enumerate(self.blocks) for j in range(count)]

    def apply_norm(
        self, name: str, params: Any, x: Array, setting: Setting
    ) -> tuple[Array, dict[str, Moments]]:
        """The norm with the path `name`, in the part with these parameters."""
        leaf = params.get(name.rpartition("/")[2])
        kind, size = self.norm, self.unit
        return layers.norm(leaf, x, setting, kind=kind, name=name, group_size=size)

    def convolve(self, params: Any, x: Array, stride: int = 1) -> Array:
        """A convolution without bias."""
        return self.convolution(x, params["kernel"], stride)


def _stem(
    design: _Design, name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """The convolution before the first block."""
    x = design.convolve(params["conv"], x)
    if design.activation == "pre":
        return x, {}
    x, moments = design.apply_norm(f"{name}/norm", params, x, setting)
    return jax.nn.relu(x), moments


def _pre_block(
    design: _Design, name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """Computes x' = P h + s conv(relu(norm(conv h))) with h = relu(norm x)."""
    has_projection = "shortcut" in params
    stride = 2 if has_projection else 1
    h, moments1 = design.apply_norm(f"{name}/norm1", params, x, setting)
    h = jax.nn.relu(h)
    shortcut = design.convolve(params["shortcut"], h, stride) if has_projection else x
    h = design.convolve(params["conv1"], h, stride)
    h, moments2 = design.apply_norm(f"{name}/norm2", params, h, setting)
    h = design.convolve(params["conv2"], jax.nn.relu(h))
    return shortcut + params.get("step", 1) * h, moments1 | moments2


def _post_block(
    design: _Design, name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """Computes x' = relu(P x + s norm(conv(relu(norm(conv x)))))."""
    has_projection = "shortcut" in params
    stride = 2 if has_projection else 1
    h = design.convolve(params["conv1"], x, stride)
    h, moments1 = design.apply_norm(f"{name}/norm1", params, h, setting)
    h = design.convolve(params["conv2"], jax.nn.relu(h))
    h, moments2 = design.apply_norm(f"{name}/norm2", params, h, setting)
    shortcut, moments3 = x, {}
    if has_projection:
        shortcut = design.convolve(params["shortcut"], x, stride)
        shortcut, moments3 = design.apply_norm(
            f"{name}/norm3", params, shortcut, setting
        )
    y = jax.nn.relu(shortcut + params.get("step", 1) * h)
    return y, moments1 | moments2 | moments3


def _exit_head(
    design: _Design, name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """Logits from the stream."""
    moments = {}
    if design.activation == "pre":
        x, moments = design.apply_norm(f"{name}/norm", params, x, setting)
        x = jax.nn.relu(x)
    return layers.dense(params["dense"], x.mean((1, 2))), moments


class _Names(NamedTuple):
    """The names of blocks and exits in a network of one size."""

    blocks: dict[int, str]
    """{position in the plain network: name}, in order."""
    exits: dict[int, tuple[str, str]]
    """{position in this network: (name of the exit behind it, axis of its stream)}."""


def _names(design: _Design, block_positions: tuple[int, ...]) -> _Names:
    """The names in the network with these blocks."""
    blocks = {p: "stage{}_block{}".format(*design.places[p]) for p in block_positions}
    if not design.exits:
        axis = f"stage{len(design.blocks) - 1}"
        return _Names(blocks, {len(block_positions) - 1: (residual.HEAD, axis)})
    stage_ends = {ps[-1]: i for i, ps in enumerate(stages(design.blocks))}
    exits = {
        position: (f"exit{stage_ends[p]}", f"stage{stage_ends[p]}")
        for position, p in enumerate(block_positions)
        if p in stage_ends
    }
    return _Names(blocks, exits)


def _table(
    design: _Design, units: dict[str, int], names: _Names, shape: tuple[int, ...]
) -> leaves.Table:
    """The leaves of the network for inputs of this shape."""

    def dim(axis: str) -> leaves.Dim:
        return axis, units[axis] * design.unit

    image, input_dim = (None, shape[-1]), dim("stage0")
    stem_block = (residual.STEM, 0)
    stem: leaves.Table = {"conv": leaves.conv(3, image, input_dim, stem_block)}
    if design.activation == "post":
        stem |= leaves.norm("norm", design.norm, input_dim, stem_block)
    leaf_table = {"stem": stem}
    for position, (p, name) in enumerate(names.blocks.items()):
        stage, index = design.places[p]
        dims = input_dim, dim(name), dim(f"stage{stage}")
        has_projection = stage > 0 and index == 0
        leaf_block = (residual.BLOCKS, position)
        leaf_table[name] = _block_table(design, dims, leaf_block, has_projection)
        input_dim = dims[-1]
    for position, (name, axis) in names.exits.items():
        leaf_block = (residual.BLOCKS, position) if design.exits else None
        logits = ("classes", design.classes)
        head: leaves.Table = {
            "dense": leaves.dense(dim(axis), logits, block=leaf_block)
        }
        if design.activation == "pre":
            head |= leaves.norm("norm", design.norm, dim(axis), leaf_block)
        leaf_table[name] = head
    return leaf_table


def _block_table(
    design: _Design,
    dims: tuple[leaves.Dim, leaves.Dim, leaves.Dim],
    leaf_block: tuple[str, int],
    has_projection: bool,
) -> leaves.Table:
    """The leaves of one block, whose dims are its input, inside and output."""
    input_dim, inner_dim, output_dim = dims
    leaf: leaves.Table = {
        "conv1": leaves.conv(3, input_dim, inner_dim, leaf_block),
        "conv2": leaves.conv(3, inner_dim, output_dim, leaf_block),
        **leaves.step(design.steps, leaf_block),
    }
    if design.activation == "pre":
        leaf |= leaves.norm("norm1", design.norm, input_dim, leaf_block)
        leaf |= leaves.norm("norm2", design.norm, inner_dim, leaf_block)
    else:
        leaf |= leaves.norm("norm1", design.norm, inner_dim, leaf_block)
        leaf |= leaves.norm("norm2", design.norm, output_dim, leaf_block)
    if has_projection:
        leaf["shortcut"] = leaves.conv(1, input_dim, output_dim, leaf_block)
        if design.activation == "post":
            leaf |= leaves.norm("norm3", design.norm, output_dim, leaf_block)
    return leaf


def _network(
    design: _Design, units: dict[str, int], block_positions: tuple[int, ...]
) -> Model:
    """The network of one size."""
    names = _names(design, block_positions)

    def resize(size: Size) -> Model:
        positions = residual.remaining_blocks("blocks", block_positions, size)
        _check_remaining(positions, design.blocks, design.exits)
        return _network(design, units | dict(size.axes), positions)

    block = _pre_block if design.activation == "pre" else _post_block
    architecture = residual.Architecture(
        partial(_table, design, units, names),
        (1, 8, 8, 1),
        units,
        tuple(names.blocks.values()),
        {position: name for position, (name, _) in names.exits.items()},
        partial(_stem, design),
        partial(block, design),
        partial(_exit_head, design),
        tuple(
            position
            for position, p in enumerate(block_positions)
            if design.places[p][0] and not design.places[p][1]
        ),
    )
    return residual.model(architecture, resize)


def _check_remaining(
    block_positions: tuple[int, ...], blocks: tuple[int, ...], exits: bool
) -> None:
    """Refuses positions that leave a gap in the network, or none of its heads."""
    positions = stages(blocks)
    # The first block of a stage projects; all blocks behind it need the projection.
    deepest_stage = max(
        i for i, stage in enumerate(positions) if set(stage) & set(block_positions)
    )
    for stage in positions[1 : deepest_stage + 1]:
        if stage[0] not in block_positions:
            requirement = f"block {stage[0]}, which projects for those behind it"
            require.fail("blocks", requirement, block_positions)
    if not exits and deepest_stage < len(blocks) - 1:
        require.fail("blocks", "a block of the last stage, or exits", block_positions)
    if exits and not any(stage[-1] in block_positions for stage in positions):
        require.fail(
            "blocks", "the last block of some stage, where an exit is", block_positions
        )
