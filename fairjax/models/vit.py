"""Vision transformer whose units are whole heads and feed-forward units."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fairjax.core import require
from fairjax.core.types import Model, Size
from fairjax.models import layers, leaves, residual

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
    these dimensions) does not depend on which heads are kept.

    Args:
        classes: C.
        width: of the residual stream, axis "stream". It may be cut: the layer norms
            count the channels that are kept.
        depth: blocks, list "blocks"; a dropped one passes its input on.
        heads: of every block; axis "heads<i>", a unit being a whole head.
        patch: side of a patch in pixels; images are whole patches.
        ratio: feed-forward units per stream channel; axis "ffn<i>".
        exits: a head (norm, mean, dense) behind every block, which goes with its block;
            else one behind the last.
        steps: s is learnt per block, from 1; else it is 1.

    Raises:
        InputError: a width that is no whole number of heads; in `init` and `apply`, an
            image that is no whole number of patches.

    Source: Dosovitskiy et al. 2021, sizes of Touvron et al. 2021; steps of NeFL (Kang
    et al. 2023). Deviates: the mean over tokens in place of a class token, and no
    dropout.
    """
    for field, value in {"depth": depth, "heads": heads, "patch": patch}.items():
        require.count(f"model.vit.{field}", value)
    if width % heads:
        require.fail("model.vit.width", f"a multiple of the {heads} heads", width)
    size_of_head = width // heads

    def patches(shape: tuple[int, ...]) -> tuple[int, int]:
        if shape[1] % patch or shape[2] % patch:
            what = f"images of whole {patch} x {patch} patches"
            require.fail("model.vit.patch", what, shape[1:3])
        return shape[1] // patch, shape[2] // patch

    def stem(name, params, x, around):
        rows, columns = patches(x.shape)
        x = x.reshape(x.shape[0], rows, patch, columns, patch, x.shape[-1])
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows * columns, -1)
        return layers.dense(params["patch"], x) + params["position"], {}

    def normed(params, x, around):
        return layers.norm(params, x, around, kind="layer", axis="stream")[0]

    def block(name, params, x, around):
        step = params.get("step", 1)
        h = normed(params["norm1"], x, around)
        x = x + step * attention(params["attention"], h, size_of_head)
        h = layers.dense(params["inner"], normed(params["norm2"], x, around))
        return x + step * layers.dense(params["outer"], jax.nn.gelu(h)), {}

    def answer(name, params, x, around):
        x = normed(params["norm"], x, around)
        return layers.dense(params["dense"], x.mean(1)), {}

    def network(units: dict[str, int], kept: tuple[int, ...]) -> Model:
        names = tuple(f"block{i}" for i in kept)
        last = len(kept) - 1
        ends = (
            {p: f"exit{i}" for p, i in enumerate(kept)}
            if exits
            else {last: residual.HEAD}
        )

        def table(shape: tuple[int, ...]) -> leaves.Table:
            stream, before = ("stream", units["stream"]), (residual.STEM, 0)
            inputs = (None, patch * patch * shape[-1])
            tokens = (None, math.prod(patches(shape)))
            position = leaves.initializers.normal(0.02)
            parts: leaves.Table = {
                "stem": {
                    "patch": leaves.dense(inputs, stream, block=before),
                    "position": leaves.Leaf((tokens, stream), position, before),
                }
            }
            for p, i in enumerate(kept):
                at = (residual.BLOCKS, p)
                head = (f"heads{i}", units[f"heads{i}"] * size_of_head)
                ffn = (f"ffn{i}", units[f"ffn{i}"])
                parts[names[p]] = {
                    **leaves.norm("norm1", "layer", stream, at),
                    "attention": {
                        "query": leaves.dense(stream, head, block=at),
                        "key": leaves.dense(stream, head, block=at),
                        "value": leaves.dense(stream, head, block=at),
                        "out": leaves.dense(head, stream, block=at),
                    },
                    **leaves.norm("norm2", "layer", stream, at),
                    "inner": leaves.dense(stream, ffn, block=at),
                    "outer": leaves.dense(ffn, stream, block=at),
                    **leaves.step(steps, at),
                }
            for p, name in ends.items():
                at = (residual.BLOCKS, p) if exits else None
                parts[name] = {
                    **leaves.norm("norm", "layer", stream, at),
                    "dense": leaves.dense(stream, ("classes", classes), block=at),
                }
            return parts

        def resize(size: Size) -> Model:
            where = "model.vit.depth"
            return network(
                units | dict(size.axes), residual.remaining(where, kept, size)
            )

        shape = (1, patch, patch, 1)
        parts = residual.Parts(table, shape, units, names, ends, stem, block, answer)
        return residual.model(parts, resize)

    units = {"stream": width, "classes": classes}
    units |= {f"heads{i}": heads for i in range(depth)}
    units |= {f"ffn{i}": ratio * width for i in range(depth)}
    return network(units, tuple(range(depth)))


def attention(params: Any, x: jax.Array, size: int) -> jax.Array:
    """Self-attention by heads of `size` dimensions, of as many as the kernels hold.

    Args:
        params: "query", "key", "value" and "out".
        x: tokens, [B, tokens, width].
        size: dimensions of one head.
    """

    def heads(name: str) -> jax.Array:
        h = layers.dense(params[name], x)
        return h.reshape(*h.shape[:2], -1, size)

    scores = jnp.einsum("bqhd,bkhd->bhqk", heads("query"), heads("key"))
    scores = layers.wide(scores) / math.sqrt(size)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, heads("value"))
    return layers.dense(params["out"], mixed.reshape(*mixed.shape[:2], -1))
