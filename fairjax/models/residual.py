"""The skeleton of residual networks: a stem, blocks that may be dropped, and exits.

    x_0 = stem(x),   x_{i+1} = block_i(x_i),   logits = answer(x_last)

A model gives its parts as pure functions of their own parameters, and this module runs
them: it collects the moments of batch norms, picks the deepest exit that is kept, and
ends the backward pass where nothing below is trained.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from fairjax.core import require
from fairjax.core.types import Axes, Kept, Model, Moments, Outputs, Size
from fairjax.models import layers, leaves
from fairjax.models.layers import Setting

BLOCKS = "blocks"
"""The list of residual blocks, first to last."""

STEM = "stem"
"""A list of length 1: what lies before the first block. No tier can drop it, but an
update that trains only blocks names it with 0."""

HEAD = "head"
"""The name of a single head behind all blocks."""

Part = Callable[[str, Any, Array, Setting], tuple[Array, dict[str, Moments]]]
"""(name, its parameters, x, setting) -> (output, moments of its batch norms)."""


class Parts(NamedTuple):
    """A residual network."""

    table: Callable[[tuple[int, ...]], leaves.Table]
    """Shape of x -> the leaves by part: "stem", block names, exit names."""
    shape: tuple[int, ...]
    """A shape of x that `table` accepts, for the axes."""
    units: Mapping[str, int]
    blocks: tuple[str, ...]
    """Names of the blocks, in order."""
    exits: Mapping[int, str]
    """Name of the exit behind a block, by position; the last exit is the answer. One
    that is called `HEAD` stays when blocks go."""
    stem: Part
    block: Part
    answer: Part
    """Of an exit: from the stream to logits."""
    fixed: tuple[int, ...] = ()
    """See `types.Axes`."""


def model(parts: Parts, resize: Callable[[Size], Model]) -> Model:
    """The network with these parts."""
    stem = partial(parts.stem, STEM)
    blocks = {name: partial(parts.block, name) for name in parts.blocks}

    def init(key: Array, x: Array) -> Any:
        return leaves.init(key, parts.table(x.shape))

    def apply(params, x, *, train=False, key=None, where=None, stats=None, kept=None):
        around = layers.setting(where, stats, kept)
        below, *needed = reach(kept, len(blocks))
        x, moments = gated(stem, below)(params[STEM], x, around)
        answers = []
        for i, (name, block) in enumerate(blocks.items()):
            x, more = gated(block, needed[i])(params[name], x, around)
            moments |= more
            if i in parts.exits:
                exit = parts.exits[i]
                logits, more = parts.answer(exit, params[exit], x, around)
                answers.append(logits)
                moments |= more
        logits = deepest(answers, tuple(parts.exits), kept)
        return Outputs(logits, tuple(answers), moments or None)

    lengths = {BLOCKS: len(blocks), STEM: 1}
    axes: Axes = leaves.axes(parts.table(parts.shape), parts.units, lengths)
    ends = () if HEAD in parts.exits.values() else tuple(parts.exits)
    return Model(init, apply, axes._replace(exits=ends, fixed=parts.fixed), resize)


def remaining(where: str, blocks: tuple[int, ...], size: Size) -> tuple[int, ...]:
    """Those of `blocks`, positions in the plain network, that a size keeps.

    Raises:
        InputError: no block is left, or the size names a block that is not there.
    """
    kept = size.blocks.get(BLOCKS, tuple(range(len(blocks))))
    if not kept or any(position not in range(len(blocks)) for position in kept):
        require.fail(where, f"some of the {len(blocks)} blocks", kept)
    return tuple(blocks[position] for position in kept)


def deepest(
    exits: Sequence[Float[Array, "B C"]], positions: Sequence[int], kept: Kept | None
) -> Float[Array, "B C"]:
    """Logits of the deepest exit whose block is kept; the last one if nothing is said.

    Args:
        exits: logits of every exit, first to last.
        positions: the block that each exit stands behind.
        kept: what of the network is kept; may be traced.
    """
    forward = kept.forward if kept else None
    # A single answer stands behind all blocks and reads whatever they pass on.
    if forward is None or BLOCKS not in forward.blocks or len(exits) == 1:
        return exits[-1]
    logits = exits[0]
    for position, deeper in zip(positions[1:], exits[1:], strict=True):
        present = forward.blocks[BLOCKS][position].astype(bool)
        logits = jnp.where(present, deeper, logits)
    return logits


def reach(kept: Kept | None, count: int) -> list[bool | Bool[Array, ""]]:
    """For the stem and each block: must the backward pass come this far?

    It must if something is trained there or nearer the input. Without an update that
    freezes the stem, everything is needed. The answers are Python bools unless the
    update is traced.
    """
    update = kept.update if kept else None
    if update is None or STEM not in update.blocks:
        return [True] * (count + 1)
    stem = update.blocks[STEM]
    blocks = update.blocks.get(BLOCKS, np.ones(count, bool))
    xp = jnp if isinstance(stem, Tracer) or isinstance(blocks, Tracer) else np
    trained = xp.concatenate([xp.asarray(stem, bool), xp.asarray(blocks, bool)])
    reached = xp.cumsum(trained) > 0
    return reached.tolist() if isinstance(reached, np.ndarray) else list(reached)


def gated(
    block: Callable[[Any, Array, Setting], Any], needed: bool | Bool[Array, ""]
) -> Callable[[Any, Array, Setting], Any]:
    """The block, whose backward pass runs only if it is needed.

    The value is the block's own. The cotangents of parameters and input are the block's
    if `needed`, else 0 without having been computed: a Python bool decides while
    tracing, a traced one inside `lax.cond`. Under a vmap that maps over it the
    condition becomes a selection, which is right but saves nothing.
    """
    if needed is True:
        return block
    if needed is False:
        return lambda params, x, around: block(
            *jax.lax.stop_gradient((params, x)), around
        )

    @jax.custom_vjp
    def run(needed, params, x, around):
        return block(params, x, around)

    def forward(needed, params, x, around):
        y, back = jax.vjp(lambda params, x: block(params, x, around), params, x)
        return y, (needed, back)

    def backward(residual, cotangent):
        needed, back = residual
        shapes = jax.eval_shape(back, cotangent)
        grads = jax.lax.cond(
            needed,
            back,
            lambda _: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
            cotangent,
        )
        return None, *grads, None

    run.defvjp(forward, backward)
    return partial(run, needed)
