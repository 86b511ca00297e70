"""Residual networks for small images, before or after activation."""

import itertools

import jax

from fairjax.core import require
from fairjax.core.types import Model, Size
from fairjax.models import layers, leaves, residual

NORMS = ("group", "batch", "none")
ACTIVATIONS = ("pre", "post")
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Blocks of every stage in the published networks."""


def stages(blocks: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Positions in the list "blocks" of every stage's blocks.

    The first d stages are the positions of stages(blocks)[:d], a prefix.
    """
    ends = tuple(itertools.accumulate(blocks))
    return tuple(
        tuple(range(end - count, end)) for end, count in zip(ends, blocks, strict=True)
    )


def resnet(
    *,
    classes: int,
    channels: tuple[int, ...] = (64, 128, 256, 512),
    blocks: tuple[int, ...] = BLOCKS["resnet18"],
    activation: str = "pre",
    norm: str = "group",
    group_size: int = 4,
    exits: bool = False,
    steps: bool = False,
    lowering: str,
) -> Model:
    """ResNet with basic blocks and the 3 x 3 stem of CIFAR, which does not pool.

        pre:   h = relu(norm x),  x' = P h + s conv(relu(norm(conv h)))
        post:  x' = relu(P x + s norm(conv(relu(norm(conv x)))))

    The first block of every stage but the first has stride 2 and a 1 x 1 projection P
    (followed by a norm in "post"); elsewhere P h is x, the identity. Convolutions have
    no bias. The stem ends ("post") or the head begins ("pre") with norm and ReLU; the
    head goes on with the mean over space and a dense layer.

    Args:
        classes: C.
        channels: of every stage, first to last. The residual stream of stage i is the
            one axis "stage<i>" of all that read or write it, the stem included; the
            inside of its block j is axis "stage<i>_block<j>".
        blocks: of every stage, see `BLOCKS`. All are numbered through in the one block
            list "blocks"; `stages` gives the positions of each stage, so that a tier of
            d stages keeps a prefix. Any block whose shortcut is the identity can be
            dropped and passes its input on. One with a projection ends the network: if
            it goes, so do all behind it, which needs `exits`.
        activation: "pre" or "post".
        norm: "group", "batch" or "none".
        group_size: channels of a norm group, which then is the unit of every axis.
        exits: a head at the end of every stage, at the position of the stage's last
            block, which it goes with; else one head behind everything.
        steps: s is learnt per block, from 1; else it is 1.
        lowering: of `layers.CONVOLUTIONS`.

    Raises:
        InputError: channels that are no whole norm groups, a stage without blocks, an
            unknown norm or activation; from `resize`, blocks that cannot be dropped.

    Source: He et al. 2016a ("post") and 2016b ("pre"); steps of NeFL (Kang et al.
    2023); exits as in DepthFL (Kim et al. 2023), without the convolutions that its
    released code puts in front of them.
    """
    unit = group_size if norm == "group" else 1
    require.one_of("model.resnet.norm", norm, NORMS)
    require.one_of("model.resnet.activation", activation, ACTIVATIONS)
    require.count("model.resnet.group_size", unit)
    if len(channels) != len(blocks) or not all(count > 0 for count in blocks):
        require.fail("model.resnet.blocks", "blocks for every stage", blocks)
    for width in channels:
        if width % unit:
            what = f"multiples of group_size {unit}"
            require.fail("model.resnet.channels", what, width)
    places = [(i, j) for i, count in enumerate(blocks) for j in range(count)]
    last = {positions[-1]: i for i, positions in enumerate(stages(blocks))}
    convolve = layers.CONVOLUTIONS[lowering]

    def normed(name, params, x, around):
        """`name` is the path of the norm, `params` those of the part that it is in."""
        leaf = params.get(name.rpartition("/")[2])
        return layers.norm(leaf, x, around, kind=norm, name=name, group_size=unit)

    def stem(name, params, x, around):
        x = convolve(x, params["conv"]["kernel"])
        if activation == "pre":
            return x, {}
        x, moments = normed(f"{name}/norm", params, x, around)
        return jax.nn.relu(x), moments

    def block(name, params, x, around):
        projects = "shortcut" in params
        stride = 2 if projects else 1

        def conv(which, x, stride=1):
            return convolve(x, params[which]["kernel"], stride)

        step = params.get("step", 1)
        if activation == "pre":
            h, first = normed(f"{name}/norm1", params, x, around)
            h = jax.nn.relu(h)
            short = conv("shortcut", h, stride) if projects else x
            h = conv("conv1", h, stride)
            h, second = normed(f"{name}/norm2", params, h, around)
            return short + step * conv("conv2", jax.nn.relu(h)), first | second
        h, first = normed(f"{name}/norm1", params, conv("conv1", x, stride), around)
        h = conv("conv2", jax.nn.relu(h))
        h, second = normed(f"{name}/norm2", params, h, around)
        short, third = x, {}
        if projects:
            short = conv("shortcut", x, stride)
            short, third = normed(f"{name}/norm3", params, short, around)
        return jax.nn.relu(short + step * h), first | second | third

    def answer(name, params, x, around):
        moments = {}
        if activation == "pre":
            x, moments = normed(f"{name}/norm", params, x, around)
            x = jax.nn.relu(x)
        return layers.dense(params["dense"], x.mean((1, 2))), moments

    def network(units: dict[str, int], kept: tuple[int, ...]) -> Model:
        names = {p: "stage{}_block{}".format(*places[p]) for p in kept}
        if exits:
            ends = {
                at: (f"exit{last[p]}", f"stage{last[p]}")
                for at, p in enumerate(kept)
                if p in last
            }
        else:
            ends = {len(kept) - 1: (residual.HEAD, f"stage{len(blocks) - 1}")}

        def table(shape: tuple[int, ...]) -> leaves.Table:
            def dim(axis: str) -> leaves.Dim:
                return axis, units[axis] * unit

            image, before = (None, shape[-1]), dim("stage0")
            start = (residual.STEM, 0)
            stem: leaves.Table = {"conv": leaves.conv(3, image, before, start)}
            if activation == "post":
                stem |= leaves.norm("norm", norm, before, start)
            parts = {"stem": stem}
            for at, p in enumerate(kept):
                here, (stage, first) = (residual.BLOCKS, at), places[p]
                inside, after = dim(names[p]), dim(f"stage{stage}")
                leaf: leaves.Table = {
                    "conv1": leaves.conv(3, before, inside, here),
                    "conv2": leaves.conv(3, inside, after, here),
                    **leaves.step(steps, here),
                }
                if activation == "pre":
                    leaf |= leaves.norm("norm1", norm, before, here)
                    leaf |= leaves.norm("norm2", norm, inside, here)
                else:
                    leaf |= leaves.norm("norm1", norm, inside, here)
                    leaf |= leaves.norm("norm2", norm, after, here)
                if stage > 0 and first == 0:
                    leaf["shortcut"] = leaves.conv(1, before, after, here)
                    if activation == "post":
                        leaf |= leaves.norm("norm3", norm, after, here)
                parts[names[p]], before = leaf, after
            for at, (name, axis) in ends.items():
                here = (residual.BLOCKS, at) if exits else None
                head: leaves.Table = {
                    "dense": leaves.dense(dim(axis), ("classes", classes), block=here)
                }
                if activation == "pre":
                    head |= leaves.norm("norm", norm, dim(axis), here)
                parts[name] = head
            return parts

        def resize(size: Size) -> Model:
            where = "model.resnet.blocks"
            remain = residual.remaining(where, kept, size)
            _check_remaining(where, remain, blocks, exits)
            return network(units | dict(size.axes), remain)

        heads = {at: name for at, (name, _) in ends.items()}
        parts = residual.Parts(
            table,
            (1, 8, 8, 1),
            units,
            tuple(names.values()),
            heads,
            stem,
            block,
            answer,
            tuple(at for at, p in enumerate(kept) if places[p][0] and not places[p][1]),
        )
        return residual.model(parts, resize)

    units = {f"stage{i}": width // unit for i, width in enumerate(channels)}
    units |= {f"stage{i}_block{j}": channels[i] // unit for i, j in places}
    return network(units | {"classes": classes}, tuple(range(len(places))))


def _check_remaining(
    where: str, kept: tuple[int, ...], blocks: tuple[int, ...], exits: bool
) -> None:
    """Refuses kept positions that leave a hole in the network, or none of its heads."""
    positions = stages(blocks)
    # The first block of a stage projects; it is needed by all that lie behind it.
    reached = max(i for i, stage in enumerate(positions) if set(stage) & set(kept))
    for stage in positions[1 : reached + 1]:
        if stage[0] not in kept:
            what = f"block {stage[0]}, which projects for those behind it"
            require.fail(where, what, kept)
    if not exits and reached < len(blocks) - 1:
        require.fail(where, "a block of the last stage, or exits", kept)
    if exits and not any(stage[-1] in kept for stage in positions):
        require.fail(where, "the last block of some stage, where an exit is", kept)
