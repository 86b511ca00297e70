"""LeNet-5 and a two-layer network: convolutions, then dense layers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fairjax.core import require
from fairjax.core.types import Model, Outputs, Size
from fairjax.models import convolutions, layers, leaves


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
        channels: output channels of every convolution, axes "conv<i>".
        hidden: width of every dense layer before the head, axes "hidden<i>".
        lowering: one of `convolutions.CONVOLUTIONS`.

    Raises:
        InputError: a layer without units.

    Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-Based Learning
    Applied to Document Recognition", Proceedings of the IEEE 1998,
    doi:10.1109/5.726791. Deviates: ReLU for tanh, maximum for mean pooling, a dense
    head for the radial units, full connections between the convolutions, and SAME
    padding, so that images of any size pass.
    """
    layers.check_sizes(channels=channels, hidden=hidden)
    design = _Design(5, "SAME", (True,) * len(channels), lowering)
    return _convnet(classes, channels, hidden, design)


def two_conv(
    *,
    classes: int,
    channels: tuple[int, ...] = (32, 64),
    hidden: tuple[int, ...] = (128,),
    lowering: str,
) -> Model:
    """Two 3 x 3 convolutions without padding, one 2 x 2 pooling, dense layers.

    Images have at least 6 x 6 pixels.

    Args:
        classes: C.
        channels: output channels of both convolutions, axes "conv<i>".
        hidden: width of every dense layer before the head, axes "hidden<i>".
        lowering: one of `convolutions.CONVOLUTIONS`.

    Raises:
        InputError: not two convolutions, or a layer without units.

    Source: the CNN of the FedJAX and pfl-research benchmarks (S. Reddi et al.,
    "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295). Deviates: no
    dropout.
    """
    if len(channels) != 2:
        require.fail("channels", "channels of two convolutions", channels)
    layers.check_sizes(channels=channels, hidden=hidden)
    design = _Design(3, "VALID", (False, True), lowering)
    return _convnet(classes, channels, hidden, design)


class _Design(NamedTuple):
    """What the convolutions of a network are like."""

    size: int
    """Side of the kernels."""
    padding: str
    pooling: tuple[bool, ...]
    """Whether pooling follows, per convolution."""
    lowering: str


def _convnet(
    classes: int, channels: tuple[int, ...], hidden: tuple[int, ...], design: _Design
) -> Model:
    """Convolutions, then dense layers.

    The first dense kernel is [H, W, channels, outputs]: nothing is flattened, so that
    channels can be sliced.
    """
    convolve = convolutions.CONVOLUTIONS[design.lowering]
    convs = {f"conv{i}": width for i, width in enumerate(channels)}
    dense = {f"hidden{i}": width for i, width in enumerate(hidden)}

    def extract_features(x, params, scale=None):
        for name, has_pooling in zip(convs, design.pooling, strict=True):
            x = convolve(x, params[name]["kernel"], 1, design.padding)
            x = jax.nn.relu(layers.apply_scaler(x + params[name]["bias"], scale))
            x = layers.pool(x) if has_pooling else x
        return x

    def table(shape: tuple[int, ...]) -> leaves.Table:
        leaf_table, input_dim = {}, (None, shape[-1])
        for name in convs:
            output_dim = (name, convs[name])
            leaf_table[name] = leaves.conv(design.size, input_dim, output_dim) | {
                "bias": leaves.bias(output_dim)
            }
            input_dim = output_dim
        features = jax.eval_shape(
            lambda key, x: extract_features(x, leaves.init(key, leaf_table)),
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32),
        )
        inputs = ((None, features.shape[1]), (None, features.shape[2]), input_dim)
        for name, width in (dense | {"head": classes}).items():
            output_dim = ("classes" if name == "head" else name, width)
            leaf_table[name] = leaves.dense(*inputs, output_dim)
            inputs = (output_dim,)
        return leaf_table

    def init(key, x):
        return leaves.init(key, table(x.shape))

    def apply(
        params, x, *, train=False, key=None, where=None, stats=None, submodel=None
    ):
        scale = layers.make_setting(where, stats, submodel).scale
        x = extract_features(x, params, scale)
        for name in dense:
            x = jax.nn.relu(layers.apply_scaler(layers.dense(params[name], x), scale))
        logits = layers.dense(params["head"], x)
        return Outputs(logits, (logits,))

    def resize(size: Size) -> Model:
        unit_counts = units | dict(size.axes)
        return _convnet(
            classes,
            tuple(unit_counts[name] for name in convs),
            tuple(unit_counts[name] for name in dense),
            design,
        )

    units = convs | dense | {"classes": classes}
    return Model(init, apply, leaves.axes(table((1, 8, 8, 1)), units), resize)
