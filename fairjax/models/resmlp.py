"""Residual multi-layer perceptron for tables."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from fairjax.core import require
from fairjax.core.types import Model, Moments
from fairjax.models import layers, leaves, residual
from fairjax.models.layers import Setting

NORMS = ("batch", "layer", "none")


def resmlp(
    *,
    classes: int,
    width: int,
    hidden: int,
    depth: int,
    norm: str,
    exits: bool = False,
    steps: bool = False,
) -> Model:
    """A residual stream of `width` units with dense blocks.

        x_0 = W x + b,   x_{i+1} = x_i + s_i (V_i relu(norm(U_i x_i + c_i)) + d_i)

    A dense head reads the last x. Inputs of any shape [B, ...] are read as rows.
    HeteroFL's scaler divides the input of the norm.

    Args:
        classes: C.
        width: width of the stream, axis "stream".
        hidden: width inside block i, axis "hidden<i>".
        depth: number of blocks, list "blocks"; a dropped one passes its input on.
        norm: "batch", "layer" (over the hidden units) or "none".
        exits: a head behind every block, which goes with it; else one head behind the
            last.
        steps: s_i is learnt, from 1; else it is 1.

    Raises:
        InputError: an unknown norm, or a size below 1.

    Source: the network of our CPU experiments; learnable steps of NeFL (see
    `fairjax.submodels.nefl`).
    """
    require.one_of("norm", norm, NORMS)
    layers.check_sizes(width=width, hidden=hidden, depth=depth)
    units = {"stream": width, "classes": classes}
    units |= {f"hidden{i}": hidden for i in range(depth)}
    design = _Design(classes, norm, exits, steps)
    return _network(design, units, tuple(range(depth)))


class _Design(NamedTuple):
    """The options of `resmlp` that are the same at every size."""

    classes: int
    norm: str
    exits: bool
    steps: bool


def _stem(
    name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """The map from a row to the stream."""
    return layers.dense(params, x.reshape(x.shape[0], -1)), {}


def _block(
    design: _Design, name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """One block, whose name "block<i>" gives its axis."""
    h, moments = layers.norm(
        params.get("norm"),
        layers.dense(params["inner"], x),
        setting,
        kind=design.norm,
        name=f"{name}/norm",
        axis=_axis_of(name),
    )
    delta = layers.dense(params["outer"], jax.nn.relu(h))
    return x + params.get("step", 1) * delta, moments


def _axis_of(block: str) -> str:
    """The axis of the units inside a block."""
    return block.replace("block", "hidden")


def _exit_head(
    name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """Logits from the stream."""
    return layers.dense(params, x), {}


def _table(
    design: _Design,
    units: dict[str, int],
    block_positions: tuple[int, ...],
    shape: tuple[int, ...],
) -> leaves.Table:
    """The leaves of the network for inputs of this shape."""
    stream, logits = ("stream", units["stream"]), ("classes", design.classes)
    features = (None, math.prod(shape[1:]))
    stem_block = (residual.STEM, 0)
    leaf_table = {"stem": leaves.dense(features, stream, block=stem_block)}
    for p, i in enumerate(block_positions):
        name, leaf_block = f"block{i}", (residual.BLOCKS, p)
        axis = _axis_of(name)
        inner_dim = (axis, units[axis])
        leaf_table[name] = {
            "inner": leaves.dense(stream, inner_dim, block=leaf_block),
            "outer": leaves.dense(inner_dim, stream, block=leaf_block),
            **leaves.norm("norm", design.norm, inner_dim, leaf_block),
            **leaves.step(design.steps, leaf_block),
        }
    for p, name in residual.exit_names(block_positions, design.exits).items():
        leaf_block = (residual.BLOCKS, p) if design.exits else None
        leaf_table[name] = leaves.dense(stream, logits, block=leaf_block)
    return leaf_table


def _network(
    design: _Design, units: dict[str, int], block_positions: tuple[int, ...]
) -> Model:
    """The network of one size."""
    architecture = residual.Architecture(
        partial(_table, design, units, block_positions),
        (1, 1),
        units,
        tuple(f"block{i}" for i in block_positions),
        residual.exit_names(block_positions, design.exits),
        _stem,
        partial(_block, design),
        _exit_head,
    )
    network = partial(_network, design)
    return residual.model(
        architecture, residual.resize_function(network, "depth", units, block_positions)
    )
