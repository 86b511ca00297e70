"""Options of architectures, one dataclass per model of the registry."""

import dataclasses

from fairjax.core import require
from fairjax.core.problem import MOMENTS
from fairjax.experiment.config.options.fields import interval, one_of, option


@dataclasses.dataclass(frozen=True)
class MLP:
    """Options of `mlp`."""

    hidden: tuple[int, ...] = option(
        (32,), "units per hidden layer; () is logistic regression", check=require.count
    )


@dataclasses.dataclass(frozen=True)
class CNN:
    """Options of `cnn`."""

    channels: tuple[int, ...] = option(
        (16, 32), "channels per stage", check=require.count
    )
    group_size: int = option(
        4, "channels per norm group; 0: no norm", check=interval(0)
    )


@dataclasses.dataclass(frozen=True)
class LeNet:
    """Options of `lenet`."""

    channels: tuple[int, ...] = option(
        (6, 16), "channels per 5 x 5 convolution", check=require.count
    )
    hidden: tuple[int, ...] = option(
        (120, 84), "units per dense layer", check=require.count
    )


@dataclasses.dataclass(frozen=True)
class TwoConv:
    """Options of `two_conv`."""

    channels: tuple[int, ...] = option(
        (32, 64), "channels per 3 x 3 convolution", check=require.count
    )
    hidden: tuple[int, ...] = option(
        (128,), "units per dense layer", check=require.count
    )


@dataclasses.dataclass(frozen=True)
class ResMLP:
    """Options of `resmlp`."""

    width: int = option(64, "units of the residual stream", check=require.count)
    hidden: int = option(64, "units inside a block", check=require.count)
    depth: int = option(4, "blocks", check=require.count)
    norm: str = option("batch", "batch, layer or none")
    moments: str = option(
        "static",
        'moments that batch norms use in evaluation: "static", pooled over all '
        'clients; "per_tier", over a tier\'s own clients; "batch", those of the '
        "evaluated batch",
        check=one_of(MOMENTS),
    )


@dataclasses.dataclass(frozen=True)
class ResNet:
    """Options of `resnet`."""

    channels: tuple[int, ...] = option(
        (64, 128, 256, 512), "channels per stage", check=require.count
    )
    blocks: tuple[int, ...] = option(
        (2, 2, 2, 2), "per stage: ResNet-18; (3, 4, 6, 3): 34", check=require.count
    )
    activation: str = option("pre", "pre- or post-activation blocks")
    norm: str = option("group", "group, batch or none")
    group_size: int = option(4, "channels per norm group")
    moments: str = option("static", "as for resmlp", check=one_of(MOMENTS))


@dataclasses.dataclass(frozen=True)
class ViT:
    """Options of `vit`."""

    width: int = option(
        192, "units of the residual stream: ViT-tiny", check=require.count
    )
    depth: int = option(12, "blocks", check=require.count)
    heads: int = option(3, "attention heads per block", check=require.count)
    patch: int = option(16, "side of a patch, pixels", check=require.count)
    ratio: int = option(4, "feed-forward units per stream channel", check=require.count)
