"""The skeleton of residual networks: a stem, blocks that may be dropped, and exits.

    x_0 = stem(x),   x_{i+1} = block_i(x_i),   logits = exit_head(x_last)

A model gives its parts as pure functions of their own parameters, and this module runs
them: it collects the moments of batch norms, picks the deepest exit of the sub-model,
and ends the backward pass where nothing nearer the input is trained.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from fairjax.core import require
from fairjax.core.types import Axes, Model, Moments, Outputs, Size, Submodel
from fairjax.models import layers, leaves
from fairjax.models.layers import Setting

BLOCKS = "blocks"
"""The list of residual blocks, first to last."""

STEM = "stem"
"""A block list of length 1: the layers before the first block. No tier can drop it,
but an update that trains only blocks names it with 0."""

HEAD = "head"
"""The name of a single head behind all blocks."""


class Forward(Protocol):
    """The forward pass of one part of a network."""

    def __call__(
        self, name: str, params: Any, x: Array, setting: Setting, /
    ) -> tuple[Array, dict[str, Moments]]:
        """Runs the part.

        Args:
            name: name of the part.
            params: its parameters.
            x: its input.
            setting: the setting of this pass.

        Returns:
            (output, moments of its batch norms).
        """
        ...


def exit_names(block_positions: Sequence[int], exits: bool) -> dict[int, str]:
    """{position: name of the exit behind it}: one behind every block, or one head.

    Args:
        block_positions: positions of the blocks in the plain network.
        exits: whether every block has an exit.
    """
    if exits:
        return {position: f"exit{i}" for position, i in enumerate(block_positions)}
    return {len(block_positions) - 1: HEAD}


class Architecture(NamedTuple):
    """A residual network."""

    table: Callable[[tuple[int, ...]], leaves.Table]
    """Shape of x -> the leaves by part: "stem", block names, exit names."""
    shape: tuple[int, ...]
    """A shape of x that `table` accepts, for the axes."""
    units: Mapping[str, int]
    blocks: tuple[str, ...]
    """Names of the blocks, in order."""
    exits: Mapping[int, str]
    """Name of the exit behind a block, by position; the last exit gives the logits. An
    exit with the name `HEAD` stays when blocks are dropped."""
    stem: Forward
    block: Forward
    exit_head: Forward
    """From the stream to the logits of an exit."""
    reshaping_blocks: tuple[int, ...] = ()
    """See `types.Axes`."""


def model(architecture: Architecture, resize: Callable[[Size], Model]) -> Model:
    """The network with these parts.

    Args:
        architecture: the parts.
        resize: the same architecture at another size.
    """
    stem = partial(architecture.stem, STEM)
    blocks = {name: partial(architecture.block, name) for name in architecture.blocks}

    def init(key: Array, x: Array) -> Any:
        return leaves.init(key, architecture.table(x.shape))

    def apply(
        params, x, *, train=False, key=None, where=None, stats=None, submodel=None
    ):
        setting = layers.make_setting(where, stats, submodel)
        needs_stem, *needs_block = backward_reach(submodel, len(blocks))
        x, moments = gate_backward(stem, needs_stem)(params[STEM], x, setting)
        exit_logits = []
        for i, (name, block) in enumerate(blocks.items()):
            x, new_moments = gate_backward(block, needs_block[i])(
                params[name], x, setting
            )
            moments |= new_moments
            if i in architecture.exits:
                exit = architecture.exits[i]
                logits, new_moments = architecture.exit_head(
                    exit, params[exit], x, setting
                )
                exit_logits.append(logits)
                moments |= new_moments
        logits = deepest_logits(exit_logits, tuple(architecture.exits), submodel)
        return Outputs(logits, tuple(exit_logits), moments or None)

    lengths = {BLOCKS: len(blocks), STEM: 1}
    axes: Axes = leaves.axes(
        architecture.table(architecture.shape), architecture.units, lengths
    )
    ends = () if HEAD in architecture.exits.values() else tuple(architecture.exits)
    return Model(
        init,
        apply,
        axes._replace(exits=ends, reshaping_blocks=architecture.reshaping_blocks),
        resize,
    )


def remaining_blocks(
    field: str, blocks: tuple[int, ...], size: Size
) -> tuple[int, ...]:
    """The blocks of a network at another size, as positions in the plain network.

    Args:
        field: the model's argument that gives the blocks, for the error.
        blocks: positions of the network's blocks in the plain network.
        size: the new size, relative to this network.

    Raises:
        InputError: no block is left, or the size names a block that does not exist.
    """
    positions = size.blocks.get(BLOCKS, tuple(range(len(blocks))))
    if not positions or any(
        position not in range(len(blocks)) for position in positions
    ):
        require.fail(field, f"some of the {len(blocks)} blocks", positions)
    return tuple(blocks[position] for position in positions)


def resize_function(
    network: Callable[[dict[str, int], tuple[int, ...]], Model],
    field: str,
    units: dict[str, int],
    blocks: tuple[int, ...],
) -> Callable[[Size], Model]:
    """The `Model.resize` of a network of which any blocks may go.

    Args:
        network: (units of every axis, positions of the blocks) -> network.
        field: as for `remaining_blocks`.
        units: units of every axis.
        blocks: positions of the network's blocks in the plain network.
    """

    def resize(size: Size) -> Model:
        positions = remaining_blocks(field, blocks, size)
        return network(units | dict(size.axes), positions)

    return resize


def deepest_logits(
    exits: Sequence[Float[Array, "B C"]],
    positions: Sequence[int],
    submodel: Submodel | None,
) -> Float[Array, "B C"]:
    """Logits of the deepest exit of a sub-model.

    Args:
        exits: logits of every exit, first to last.
        positions: the block before each exit.
        submodel: the sub-model of the network; may be traced. None: all of it.
    """
    forward = submodel.forward if submodel else None
    # A single head stands behind all blocks; dropped ones pass their input on to it.
    if forward is None or BLOCKS not in forward.blocks or len(exits) == 1:
        return exits[-1]
    logits = exits[0]
    for position, deeper_logits in zip(positions[1:], exits[1:], strict=True):
        is_present = forward.blocks[BLOCKS][position].astype(bool)
        logits = jnp.where(is_present, deeper_logits, logits)
    return logits


def backward_reach(
    submodel: Submodel | None, count: int
) -> list[bool | Bool[Array, ""]]:
    """Whether the backward pass reaches the stem, and each block.

    It reaches a part if something is trained there or nearer the input. It reaches all
    of them unless the update freezes the stem. The results are Python bools unless the
    update is traced.

    Args:
        submodel: the sub-model of the network.
        count: number of blocks.
    """
    update = submodel.update if submodel else None
    if update is None or STEM not in update.blocks:
        return [True] * (count + 1)
    stem = update.blocks[STEM]
    blocks = update.blocks.get(BLOCKS, np.ones(count, bool))
    xp = jnp if isinstance(stem, Tracer) or isinstance(blocks, Tracer) else np
    is_trained = xp.concatenate([xp.asarray(stem, bool), xp.asarray(blocks, bool)])
    needs_backward = xp.cumsum(is_trained) > 0
    return (
        needs_backward.tolist()
        if isinstance(needs_backward, np.ndarray)
        else list(needs_backward)
    )


def gate_backward(
    block: Callable[[Any, Array, Setting], Any], needs_backward: bool | Bool[Array, ""]
) -> Callable[[Any, Array, Setting], Any]:
    """The block, with a backward pass that runs only if it is needed.

    The output is the block's. The cotangents of parameters and input are the block's if
    `needs_backward`, else 0 without computation: a Python bool decides while tracing, a
    traced one inside `lax.cond`. A vmap over it turns the condition into a selection,
    which is correct but saves nothing.

    Args:
        block: (parameters, x, setting) -> output.
        needs_backward: whether anything at or before the block is trained.
    """
    if needs_backward is True:
        return block
    if needs_backward is False:
        return lambda params, x, setting: block(
            *jax.lax.stop_gradient((params, x)), setting
        )

    @jax.custom_vjp
    def run(needs_backward, params, x, setting):
        return block(params, x, setting)

    def forward(needs_backward, params, x, setting):
        y, vjp = jax.vjp(lambda params, x: block(params, x, setting), params, x)
        return y, (needs_backward, vjp)

    def backward(residual, cotangent):
        needs_backward, vjp = residual
        shapes = jax.eval_shape(vjp, cotangent)
        grads = jax.lax.cond(
            needs_backward,
            vjp,
            lambda _: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
            cotangent,
        )
        return None, *grads, None

    run.defvjp(forward, backward)
    return partial(run, needs_backward)
