"""Two well-known convolutional networks with dense layers behind."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fairjax.core.types import Model, Outputs, Size
from fairjax.models import layers, leaves


def lenet(
    *,
    classes: int,
    channels: tuple[int, ...] = (6, 16),
    hidden: tuple[int, ...] = (120, 84),
    lowering: str,
) -> Model:
    """LeNet-5 with ReLU: 5 x 5 convolutions, each pooled, then dense layers.

    Args:
        classes: C.
        channels: of every convolution, axes "conv<i>".
        hidden: width of every dense layer before the head, axes "hidden<i>".
        lowering: of `layers.CONVOLUTIONS`.

    Source: LeCun et al. 1998. Deviates: ReLU for tanh, maximum for mean pooling, a
    dense head for the radial units, full connections between the convolutions, and SAME
    padding, so that images of any size pass.
    """
    design = _Design(5, "SAME", (True,) * len(channels), lowering)
    return _convnet(classes, channels, hidden, design)


def two_conv(
    *,
    classes: int,
    channels: tuple[int, int] = (32, 64),
    hidden: tuple[int, ...] = (128,),
    lowering: str,
) -> Model:
    """Two 3 x 3 convolutions without padding, one 2 x 2 pooling, dense layers.

    Args:
        classes: C.
        channels: of both convolutions, axes "conv<i>".
        hidden: width of every dense layer before the head, axes "hidden<i>".
        lowering: of `layers.CONVOLUTIONS`.

    Images have at least 6 x 6 pixels.

    Source: the CNN of the FedJAX and pfl-research benchmarks (Reddi et al. 2021).
    Deviates: no dropout.
    """
    design = _Design(3, "VALID", (False, True), lowering)
    return _convnet(classes, channels, hidden, design)


class _Design(NamedTuple):
    size: int
    padding: str
    pooled: tuple[bool, ...]
    lowering: str


def _convnet(
    classes: int, channels: tuple[int, ...], hidden: tuple[int, ...], design: _Design
) -> Model:
    """Convolutions, then dense layers.

    The first dense kernel is [H, W, channels, outputs]: nothing is flattened, so that
    channels can be sliced.
    """
    convolve = layers.CONVOLUTIONS[design.lowering]
    convs = {f"conv{i}": width for i, width in enumerate(channels)}
    dense = {f"hidden{i}": width for i, width in enumerate(hidden)}

    def see(x, params, scale=None):
        for name, pooled in zip(convs, design.pooled, strict=True):
            x = convolve(x, params[name]["kernel"], 1, design.padding)
            x = jax.nn.relu(layers.scaled(x + params[name]["bias"], scale))
            x = layers.pool(x) if pooled else x
        return x

    def table(shape: tuple[int, ...]) -> leaves.Table:
        parts, before = {}, (None, shape[-1])
        for name in convs:
            after = (name, convs[name])
            parts[name] = leaves.conv(design.size, before, after) | {
                "bias": leaves.bias(after)
            }
            before = after
        like = jax.eval_shape(
            lambda key, x: see(x, leaves.init(key, parts)),
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32),
        )
        inputs = ((None, like.shape[1]), (None, like.shape[2]), before)
        for name, width in (dense | {"head": classes}).items():
            after = ("classes" if name == "head" else name, width)
            parts[name] = leaves.dense(*inputs, after)
            inputs = (after,)
        return parts

    def init(key, x):
        return leaves.init(key, table(x.shape))

    def apply(params, x, *, train=False, key=None, where=None, stats=None, kept=None):
        scale = layers.setting(where, stats, kept).scale
        x = see(x, params, scale)
        for name in dense:
            x = jax.nn.relu(layers.scaled(layers.dense(params[name], x), scale))
        logits = layers.dense(params["head"], x)
        return Outputs(logits, (logits,))

    def resize(size: Size) -> Model:
        kept = units | dict(size.axes)
        return _convnet(
            classes,
            tuple(kept[name] for name in convs),
            tuple(kept[name] for name in dense),
            design,
        )

    units = convs | dense | {"classes": classes}
    return Model(init, apply, leaves.axes(table((1, 8, 8, 1)), units), resize)
