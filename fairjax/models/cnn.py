"""Small convolutional network for images."""

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from fairjax import checks
from fairjax.models import layers
from fairjax.types import Axes, LeafAxes, Model, Outputs, Size


class _Cnn(nn.Module):
    classes: int
    channels: tuple[int, ...]
    group_size: int
    lowering: str

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None) -> jax.Array:
        for i, width in enumerate(self.channels):
            x = layers.Conv(width, lowering=self.lowering, name=f"conv{i}")(x)
            x = layers.scaled(x, scale)
            if self.group_size:
                norm = nn.GroupNorm(None, group_size=self.group_size, name=f"norm{i}")
                x = checkpoint_name(norm(x), "norm")
            x = nn.relu(x)
            if min(x.shape[1:3]) > 1:
                x = layers.pool(x)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


def cnn(
    *, classes: int, channels: tuple[int, ...], group_size: int, lowering: str
) -> Model:
    """Stages of 3 x 3 convolution, group norm, ReLU, 2 x 2 pooling; mean; dense head.

    Args:
        classes: C.
        channels: output channels of every stage, first to last; stage i is axis
            "conv<i>".
        group_size: channels of one norm group, the same at every width: a unit *is* a
            group, so that a narrower network normalises each kept group as the wide one
            does. 0: no norm, and a unit is one channel.
        lowering: of `layers.CONVOLUTIONS`.

    Inputs are [B, H, W, channels]; the mean over space keeps channels sliceable.
    """
    unit = group_size or 1
    for width in channels:
        if width % unit:
            checks.fail("model.cnn.channels", f"multiples of group_size {unit}", width)
    module = _Cnn(classes, channels, group_size, lowering)
    names = [f"conv{i}" for i in range(len(channels))]
    tree, before = {}, None
    for i, name in enumerate(names):
        tree[name] = {
            "kernel": LeafAxes((None, None, before, name)),
            "bias": LeafAxes((name,)),
        }
        if group_size:
            tree[f"norm{i}"] = {"scale": LeafAxes((name,)), "bias": LeafAxes((name,))}
        before = name
    tree["head"] = {
        "kernel": LeafAxes((before, "classes")),
        "bias": LeafAxes(("classes",)),
    }
    units = {name: width // unit for name, width in zip(names, channels, strict=True)}

    def init(key: jax.Array, x: jax.Array) -> Any:
        return module.init(key, x, None)["params"]

    def apply(params, x, *, train=False, key=None, where=None, stats=None, kept=None):
        around = layers.setting(train, where, stats, kept)
        logits: Any = module.apply({"params": params}, x, around.scale)
        return Outputs(logits, (logits,))

    def resize(size: Size) -> Model:
        kept = units | dict(size.axes)
        return cnn(
            classes=classes,
            channels=tuple(kept[name] * unit for name in names),
            group_size=group_size,
            lowering=lowering,
        )

    return Model(init, apply, Axes(tree, units | {"classes": classes}, {}), resize)
