"""Residual multi-layer perceptron for tables."""

import math

import jax

from fairjax.core import require
from fairjax.core.types import Model, Size
from fairjax.models import layers, leaves, residual

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
    """A stream of `width` units to which every block adds.

        x_0 = W x + b,   x_{i+1} = x_i + s_i (V_i relu(norm(U_i x_i + c_i)) + d_i)

    and a dense head reads the last x.

    Args:
        classes: C.
        width: of the stream, axis "stream".
        hidden: width inside block i, axis "hidden<i>".
        depth: blocks, list "blocks"; a dropped one passes its input on.
        norm: "batch", "layer" (over the hidden units) or "none".
        exits: a head behind every block, which goes with its block; else one head
            behind the last.
        steps: s_i is learnt, from 1; else it is 1.

    Inputs of any shape [B, ...] are read as rows. HeteroFL's scaler divides the input
    of the norm.

    Source: the network of our CPU experiments; learnable steps of NeFL (Kang et al.
    2023).
    """
    require.one_of("model.resmlp.norm", norm, NORMS)
    for field, value in {"width": width, "hidden": hidden, "depth": depth}.items():
        require.count(f"model.resmlp.{field}", value)

    def network(units: dict[str, int], kept: tuple[int, ...]) -> Model:
        axis = {f"block{i}": f"hidden{i}" for i in kept}
        names, last = tuple(axis), len(kept) - 1
        ends = (
            {p: f"exit{i}" for p, i in enumerate(kept)}
            if exits
            else {last: residual.HEAD}
        )

        def table(shape: tuple[int, ...]) -> leaves.Table:
            stream = ("stream", units["stream"])
            head = ("classes", classes)
            features = (None, math.prod(shape[1:]))
            stem = (residual.STEM, 0)
            parts = {"stem": leaves.dense(features, stream, block=stem)}
            for p, name in enumerate(names):
                at, inside = (residual.BLOCKS, p), (axis[name], units[axis[name]])
                parts[name] = {
                    "inner": leaves.dense(stream, inside, block=at),
                    "outer": leaves.dense(inside, stream, block=at),
                    **leaves.norm("norm", norm, inside, at),
                    **leaves.step(steps, at),
                }
            for p, name in ends.items():
                at = (residual.BLOCKS, p) if exits else None
                parts[name] = leaves.dense(stream, head, block=at)
            return parts

        def stem(name, params, x, around):
            return layers.dense(params, x.reshape(x.shape[0], -1)), {}

        def block(name, params, x, around):
            h, moments = layers.norm(
                params.get("norm"),
                layers.dense(params["inner"], x),
                around,
                kind=norm,
                name=f"{name}/norm",
                axis=axis[name],
            )
            added = layers.dense(params["outer"], jax.nn.relu(h))
            return x + params.get("step", 1) * added, moments

        def answer(name, params, x, around):
            return layers.dense(params, x), {}

        def resize(size: Size) -> Model:
            where = "model.resmlp.depth"
            return network(
                units | dict(size.axes), residual.remaining(where, kept, size)
            )

        parts = residual.Parts(table, (1, 1), units, names, ends, stem, block, answer)
        return residual.model(parts, resize)

    units = {"stream": width, "classes": classes}
    units |= {f"hidden{i}": hidden for i in range(depth)}
    return network(units, tuple(range(depth)))
