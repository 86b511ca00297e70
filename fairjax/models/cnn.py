"""Small convolutional network for images."""

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from fairjax.core import require
from fairjax.core.types import Axes, LeafAxes, Model, Outputs, Size
from fairjax.models import convolutions, layers, residual


class _Cnn(nn.Module):
    """The network as a linen module, which returns the logits of every exit."""

    classes: int
    channels: tuple[int, ...]
    group_size: int
    lowering: str
    heads: tuple[str | None, ...]
    """Name of the head behind every stage, if it has one."""

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None) -> tuple[jax.Array, ...]:
        exit_logits = []
        for i, (width, head) in enumerate(zip(self.channels, self.heads, strict=True)):
            x = convolutions.Conv(width, lowering=self.lowering, name=f"conv{i}")(x)
            x = layers.apply_scaler(x, scale)
            if self.group_size:
                norm = nn.GroupNorm(None, group_size=self.group_size, name=f"norm{i}")
                x = checkpoint_name(norm(x), "norm")
            x = nn.relu(x)
            if min(x.shape[1:3]) > 1:
                x = layers.pool(x)
            if head:
                exit_logits.append(nn.Dense(self.classes, name=head)(x.mean((1, 2))))
        return tuple(exit_logits)


def cnn(
    *,
    classes: int,
    channels: tuple[int, ...],
    group_size: int,
    exits: bool = False,
    lowering: str,
) -> Model:
    """Stages of 3 x 3 convolution, group norm, ReLU, 2 x 2 pooling; mean; dense head.

    Inputs are [B, H, W, channels]; the mean over space keeps channels sliceable.

    Args:
        classes: C.
        channels: output channels of every stage, first to last; stage i is axis
            "conv<i>".
        group_size: channels of one norm group, the same at every width: a unit *is* a
            group, so that a narrower network normalises each of its groups as the wide
            one does. 0: no norm, and a unit is one channel.
        exits: a head behind every stage, which goes with it: stages are then the list
            "blocks", of which a tier may have a prefix. Else one head behind the last.
        lowering: one of `convolutions.CONVOLUTIONS`.

    Raises:
        InputError: no stages, a stage without channels, or channels that are not whole
            norm groups; from `resize`, stages that are not a prefix, or fewer than all
            without exits.
    """
    unit = group_size or 1
    if not channels:
        require.fail("channels", "at least one stage", channels)
    layers.check_sizes(channels=channels)
    for width in channels:
        if width % unit:
            require.fail("channels", f"multiples of group_size {unit}", width)
    stages = range(len(channels))
    heads = tuple(
        f"exit{i}" if exits else residual.HEAD if i == stages[-1] else None
        for i in stages
    )
    module = _Cnn(classes, channels, group_size, lowering, heads)
    units = {f"conv{i}": width // unit for i, width in enumerate(channels)}

    def init(key: jax.Array, x: jax.Array) -> Any:
        # Only shape and dtype of x count: the network does not run.
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return module.lazy_init(key, shape, None)["params"]

    def apply(
        params, x, *, train=False, key=None, where=None, stats=None, submodel=None
    ):
        setting = layers.make_setting(where, stats, submodel)
        exit_logits: Any = module.apply({"params": params}, x, setting.scale)
        return Outputs(
            residual.deepest_logits(exit_logits, stages, submodel), exit_logits
        )

    def resize(size: Size) -> Model:
        positions = residual.remaining_blocks("channels", tuple(stages), size)
        if positions != tuple(stages[: len(positions) if exits else None]):
            require.fail("channels", "a prefix of the stages, and exits", positions)
        unit_counts = units | dict(size.axes)
        return cnn(
            classes=classes,
            channels=tuple(unit_counts[f"conv{i}"] * unit for i in positions),
            group_size=group_size,
            exits=exits,
            lowering=lowering,
        )

    return Model(init, apply, _axes(module, units, exits), resize)


def _axes(module: _Cnn, units: dict[str, int], exits: bool) -> Axes:
    """The axes of a network with these units, and a head behind every stage or one."""
    tree, input_axis = {}, None
    for i, name in enumerate(units):
        block = (residual.BLOCKS, i) if exits else None
        tree[name] = {
            "kernel": LeafAxes((None, None, input_axis, name), block),
            "bias": LeafAxes((name,), block),
        }
        if module.group_size:
            leaf = LeafAxes((name,), block)
            tree[f"norm{i}"] = {"scale": leaf, "bias": leaf}
        if head := module.heads[i]:
            tree[head] = {
                "kernel": LeafAxes((name, "classes"), block),
                "bias": LeafAxes(("classes",), block),
            }
        input_axis = name
    axes = Axes(tree, units | {"classes": module.classes}, {})
    if not exits:
        return axes
    ends = tuple(range(len(units)))
    blocks = {residual.BLOCKS: len(ends)}
    return axes._replace(blocks=blocks, exits=ends, reshaping_blocks=ends[1:])
