"""Small convolutional network for images."""

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from fairjax.core import require
from fairjax.core.types import Axes, LeafAxes, Model, Outputs, Size
from fairjax.models import layers, residual


class _Cnn(nn.Module):
    classes: int
    channels: tuple[int, ...]
    group_size: int
    lowering: str
    heads: tuple[str | None, ...]
    """Name of the head behind every stage, if it has one."""

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None) -> tuple[jax.Array, ...]:
        answers = []
        for i, (width, head) in enumerate(zip(self.channels, self.heads, strict=True)):
            x = layers.Conv(width, lowering=self.lowering, name=f"conv{i}")(x)
            x = layers.scaled(x, scale)
            if self.group_size:
                norm = nn.GroupNorm(None, group_size=self.group_size, name=f"norm{i}")
                x = checkpoint_name(norm(x), "norm")
            x = nn.relu(x)
            if min(x.shape[1:3]) > 1:
                x = layers.pool(x)
            if head:
                answers.append(nn.Dense(self.classes, name=head)(x.mean((1, 2))))
        return tuple(answers)


def cnn(
    *,
    classes: int,
    channels: tuple[int, ...],
    group_size: int,
    exits: bool = False,
    lowering: str,
) -> Model:
    """Stages of 3 x 3 convolution, group norm, ReLU, 2 x 2 pooling; mean; dense head.

    Args:
        classes: C.
        channels: output channels of every stage, first to last; stage i is axis
            "conv<i>".
        group_size: channels of one norm group, the same at every width: a unit *is* a
            group, so that a narrower network normalises each kept group as the wide one
            does. 0: no norm, and a unit is one channel.
        exits: a head behind every stage, which goes with it: stages are then the list
            "blocks", of which a prefix can be kept. Else one head behind the last.
        lowering: of `layers.CONVOLUTIONS`.

    Inputs are [B, H, W, channels]; the mean over space keeps channels sliceable.

    Raises:
        InputError: no stages, or channels that are no whole norm groups; from `resize`,
            stages that are no prefix, or fewer than all without exits.
    """
    unit, where = group_size or 1, "model.cnn.channels"
    if not channels:
        require.fail(where, "at least one stage", channels)
    for width in channels:
        if width % unit:
            require.fail(where, f"multiples of group_size {unit}", width)
    stages = range(len(channels))
    heads = tuple(
        f"exit{i}" if exits else residual.HEAD if i == stages[-1] else None
        for i in stages
    )
    module = _Cnn(classes, channels, group_size, lowering, heads)
    units = {f"conv{i}": width // unit for i, width in enumerate(channels)}
    tree, before = {}, None
    for i, name in enumerate(units):
        block = (residual.BLOCKS, i) if exits else None
        tree[name] = {
            "kernel": LeafAxes((None, None, before, name), block),
            "bias": LeafAxes((name,), block),
        }
        if group_size:
            leaf = LeafAxes((name,), block)
            tree[f"norm{i}"] = {"scale": leaf, "bias": leaf}
        if head := heads[i]:
            tree[head] = {
                "kernel": LeafAxes((name, "classes"), block),
                "bias": LeafAxes(("classes",), block),
            }
        before = name

    def init(key: jax.Array, x: jax.Array) -> Any:
        # Without running the network: of x only shape and dtype count.
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return module.lazy_init(key, shape, None)["params"]

    def apply(params, x, *, train=False, key=None, where=None, stats=None, kept=None):
        around = layers.setting(where, stats, kept)
        answers: Any = module.apply({"params": params}, x, around.scale)
        return Outputs(residual.deepest(answers, stages, kept), answers)

    def resize(size: Size) -> Model:
        left = residual.remaining(where, tuple(stages), size)
        if left != tuple(stages[: len(left) if exits else None]):
            require.fail(where, "a prefix of the stages, and exits", left)
        kept = units | dict(size.axes)
        return cnn(
            classes=classes,
            channels=tuple(kept[f"conv{i}"] * unit for i in left),
            group_size=group_size,
            exits=exits,
            lowering=lowering,
        )

    axes = Axes(tree, units | {"classes": classes}, {})
    if exits:
        ends, blocks = tuple(stages), {residual.BLOCKS: len(stages)}
        axes = axes._replace(blocks=blocks, exits=ends, fixed=ends[1:])
    return Model(init, apply, axes, resize)
