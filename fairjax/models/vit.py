"""Vision transformer; its units are heads, feed-forward units and stream channels."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import require
from fairjax.core.types import Model, Moments
from fairjax.models import layers, leaves, residual
from fairjax.models.layers import Setting

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3, "patch": 16},
    "small": {"width": 384, "depth": 12, "heads": 6, "patch": 16},
    "base": {"width": 768, "depth": 12, "heads": 12, "patch": 16},
    "1b": {"width": 1280, "depth": 64, "heads": 16, "patch": 16},
}
"""Sizes by name, as keyword arguments of `vit`."""


def vit(
    *,
    classes: int,
    width: int,
    depth: int,
    heads: int,
    patch: int,
    ratio: int = 4,
    exits: bool = False,
    steps: bool = False,
) -> Model:
    """Patches, learned positions, pre-norm blocks, mean over tokens, dense head.

        a = x + s attention(norm x),   x' = a + s V gelu(U norm a)

    Attention has `heads` heads of width / heads dimensions each. The scale 1 / sqrt(of
    these dimensions) is the same for every subset of heads.

    Args:
        classes: C.
        width: width of the residual stream, axis "stream". Its units may be dropped:
            the layer norms count the active channels.
        depth: number of blocks, list "blocks"; a dropped one passes its input on.
        heads: heads of every block, axis "heads<i>" with a whole head as a unit.
        patch: side of a patch in pixels; images are whole patches.
        ratio: feed-forward units per stream channel; axis "ffn<i>".
        exits: a head (norm, mean, dense) behind every block, which goes with its block;
            else one behind the last.
        steps: s is learnt per block, from 1; else it is 1.

    Raises:
        InputError: a size below 1, or a width that is not a whole number of heads; in
            `init` and `apply`, an image that is not a whole number of patches.

    Source: A. Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for
    Image Recognition at Scale", ICLR 2021, arXiv:2010.11929; sizes of H. Touvron
    et al., "Training data-efficient image transformers & distillation through
    attention" (DeiT), ICML 2021, arXiv:2012.12877; steps of NeFL (see
    `fairjax.submodels.nefl`). Deviates: the mean over tokens instead of a class token,
    and no dropout.
    """
    layers.check_sizes(width=width, depth=depth, heads=heads, patch=patch, ratio=ratio)
    if width % heads:
        require.fail("width", f"a multiple of the {heads} heads", width)
    units = {"stream": width, "classes": classes}
    units |= {f"heads{i}": heads for i in range(depth)}
    units |= {f"ffn{i}": ratio * width for i in range(depth)}
    design = _Design(classes, width // heads, patch, exits, steps)
    return _network(design, units, tuple(range(depth)))


class _Design(NamedTuple):
    """The options of `vit` that are the same at every size."""

    classes: int
    size_of_head: int
    patch: int
    exits: bool
    steps: bool

    def patch_grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches of an image batch of this shape."""
        patch = self.patch
        if shape[1] % patch or shape[2] % patch:
            requirement = f"images of whole {patch} x {patch} patches"
            require.fail("patch", requirement, shape[1:3])
        return shape[1] // patch, shape[2] // patch


def _stem(
    design: _Design, name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """Tokens: the patches as vectors of the stream, plus their positions."""
    rows, columns = design.patch_grid(x.shape)
    patch = design.patch
    x = x.reshape(x.shape[0], rows, patch, columns, patch, x.shape[-1])
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows * columns, -1)
    return layers.dense(params["patch"], x) + params["position"], {}


def _norm(params: Any, x: Array, setting: Setting) -> Array:
    """The layer norm over the active channels of the stream."""
    return layers.norm(params, x, setting, kind="layer", axis="stream")[0]


def _block(
    design: _Design, name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """Attention, then the feed-forward layer."""
    step = params.get("step", 1)
    h = _norm(params["norm1"], x, setting)
    x = x + step * attention(params["attention"], h, design.size_of_head)
    h = layers.dense(params["inner"], _norm(params["norm2"], x, setting))
    return x + step * layers.dense(params["outer"], jax.nn.gelu(h)), {}


def _exit_head(
    name: str, params: Any, x: Array, setting: Setting
) -> tuple[Array, dict[str, Moments]]:
    """Logits from the stream."""
    x = _norm(params["norm"], x, setting)
    return layers.dense(params["dense"], x.mean(1)), {}


def _table(
    design: _Design,
    units: dict[str, int],
    block_positions: tuple[int, ...],
    shape: tuple[int, ...],
) -> leaves.Table:
    """The leaves of the network for inputs of this shape."""
    stream, stem_block = ("stream", units["stream"]), (residual.STEM, 0)
    inputs = (None, design.patch * design.patch * shape[-1])
    tokens = (None, math.prod(design.patch_grid(shape)))
    position = leaves.initializers.normal(0.02)
    leaf_table: leaves.Table = {
        "stem": {
            "patch": leaves.dense(inputs, stream, block=stem_block),
            "position": leaves.Leaf((tokens, stream), position, stem_block),
        }
    }
    for p, i in enumerate(block_positions):
        leaf_block = (residual.BLOCKS, p)
        head = (f"heads{i}", units[f"heads{i}"] * design.size_of_head)
        ffn = (f"ffn{i}", units[f"ffn{i}"])
        leaf_table[f"block{i}"] = {
            **leaves.norm("norm1", "layer", stream, leaf_block),
            "attention": {
                "query": leaves.dense(stream, head, block=leaf_block),
                "key": leaves.dense(stream, head, block=leaf_block),
                "value": leaves.dense(stream, head, block=leaf_block),
                "out": leaves.dense(head, stream, block=leaf_block),
            },
            **leaves.norm("norm2", "layer", stream, leaf_block),
            "inner": leaves.dense(stream, ffn, block=leaf_block),
            "outer": leaves.dense(ffn, stream, block=leaf_block),
            **leaves.step(design.steps, leaf_block),
        }
    logits = ("classes", design.classes)
    for p, name in residual.exit_names(block_positions, design.exits).items():
        leaf_block = (residual.BLOCKS, p) if design.exits else None
        leaf_table[name] = {
            **leaves.norm("norm", "layer", stream, leaf_block),
            "dense": leaves.dense(stream, logits, block=leaf_block),
        }
    return leaf_table


def _network(
    design: _Design, units: dict[str, int], block_positions: tuple[int, ...]
) -> Model:
    """The network of one size."""
    architecture = residual.Architecture(
        partial(_table, design, units, block_positions),
        (1, design.patch, design.patch, 1),
        units,
        tuple(f"block{i}" for i in block_positions),
        residual.exit_names(block_positions, design.exits),
        partial(_stem, design),
        partial(_block, design),
        _exit_head,
    )
    network = partial(_network, design)
    return residual.model(
        architecture, residual.resize_function(network, "depth", units, block_positions)
    )


def attention(params: Any, x: Array, size: int) -> Array:
    """Self-attention with heads of `size` dimensions, as many as the kernels have.

        softmax(q k' / sqrt(size)) v

    Args:
        params: "query", "key", "value" and "out".
        x: tokens, [B, tokens, width].
        size: dimensions of one head.

    Returns:
        [B, tokens, width].
    """

    def heads(name: str) -> Array:
        h = layers.dense(params[name], x)
        return h.reshape(*h.shape[:2], -1, size)

    scores = jnp.einsum("bqhd,bkhd->bhqk", heads("query"), heads("key"))
    scores = layers.promote(scores) / math.sqrt(size)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    outputs = jnp.einsum("bhqk,bkhd->bqhd", weights, heads("value"))
    return layers.dense(params["out"], outputs.reshape(*outputs.shape[:2], -1))
