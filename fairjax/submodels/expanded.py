"""What a collapsed kernel stands for: branches that run side by side.

`fairjax.submodels.branches` trains the sum of a layer's branches as one kernel. Here a
layer runs as DynamicFL draws it: every branch as operations of its own, without norms
or with the batch norms that the paper's released code puts into every branch. No round
trains it; it is the reference for what collapsing keeps and for what norms would cost.

Where the layer is the same function as one convolution, and how far off it is where not
(relative differences of a small network's logits on the digits, in float64, lowest to
highest of three seeds; `python scripts/expanded.py`):

- Without norms: always, gradients included, whatever base and branches are. Trained for
  400 steps, expanded and collapsed differ by less than 1e-12.
- With norms by given moments: with the kernel *and bias* of `fold`, less than 1e-12.
  Without that bias, which the released code drops: 1.7 to 4.5.
- With norms in training mode: on the batch whose moments are folded, and on no other.
  By moments averaged over 20 batches, as released: 0.15 to 0.16.
- An expansion: on the records that its norms were measured on, if they pass what they
  receive (`expand`), less than 1e-12. In training mode with norms of scale 1 and bias
  0, as released: 1 to 2.5.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from fairjax.core.types import Moments
from fairjax.submodels import branches
from fairjax.submodels.branches import Psi

BLOCK = ("1x1", "1x1-KxK", "1x1-avg", "1xK", "Kx1", "scale")
"""What a Diverse Branch Block of the released code has beside its K x K convolution."""
EPSILON = 1e-5


class Conv(NamedTuple):
    """What a layer does with its kernel; as it stands, with a matrix."""

    stride: int = 1
    padding: tuple[tuple[int, int], ...] = ()
    """Zeros before and after the input, per dimension of space."""
    groups: int = 1


def convolve(
    x: Float[Array, "B *space C"], kernel: Float[Array, "*taps I O"], conv: Conv
) -> Float[Array, "B *out O"]:
    """The plain layer without bias: x times a matrix where there is no space."""
    space = "HW"[: len(conv.padding)]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (conv.stride,) * len(space),
        conv.padding,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=conv.groups,
    )


# ---------------------------------------------------------------------- without a norm


def parallel(
    family: str,
    psi: Psi,
    x: Float[Array, "B *space C"],
    kernel: Sequence[int],
    conv: Conv,
) -> Float[Array, "B *out O"]:
    """One branch, without norm, as the operations that it stands for.

        parallel(psi, x) = convolve(x, W) + b,   W, b = branches.tau(psi)

    A 1 x 1, 1 x K or K x 1 kernel reads the input under the centre (K - 1) // 2 of the
    plain one, whose padding it has less of. A sequence pads what its first map gives,
    with that map's bias; an average counts the padding. "scale" is the strided input
    times a number per channel.

    Args:
        family: one of `branches.FAMILIES`.
        psi: parameters of the shapes of `branches.shapes`.
        x: input, C = I * groups.
        kernel: shape [*taps, I, O] of the plain kernel.
        conv: of the plain layer.
    """

    def after(name: str, y: Array) -> tuple[Array | int, Array | int]:
        return 1, psi.get(name, 0)

    return _run(family, psi, x, kernel, conv, after)


_FIRST = {"1x1-KxK": "first", "1x1-avg": "kernel", "lowrank": "first"}
"""The first map of those branches that are a sequence of two."""

After = Callable[[str, Array], tuple[Array | int, Array | int]]
"""(name, output of a map) -> gain and offset per channel. A map is named by its bias:
"between" for the first of a sequence, else "bias"."""


def _run(
    family: str,
    psi: Psi,
    x: Array,
    kernel: Sequence[int],
    conv: Conv,
    after: After,
) -> Array:
    *taps, _, _ = kernel
    bare = conv._replace(padding=((0, 0),) * len(taps))
    if family in _FIRST:
        y = convolve(x, psi[_FIRST[family]], bare._replace(stride=1))
        gain, offset = after("between", y)
        y = _pad(y, conv.padding) * gain + offset
        if family == "1x1-avg":
            y = _average(y, taps, conv.stride)
        else:
            y = convolve(y, psi["second"], bare)
    elif family == "scale":
        y = _pad(x, _centred(kernel, [1] * len(taps), conv))
        y = y[:, *(slice(None, None, conv.stride),) * len(taps)] * psi.get("scale", 1)
    else:
        own = psi["kernel"]
        padding = _centred(kernel, own.shape[: len(taps)], conv)
        y = convolve(x, own, conv._replace(padding=padding))
    gain, offset = after("bias", y)
    return y * gain + offset


def _centred(
    kernel: Sequence[int], own: Sequence[int], conv: Conv
) -> tuple[tuple[int, int], ...]:
    """The padding of a kernel with 1 or all of the K taps; negative where it crops."""
    return tuple(
        (before - (length - here) // 2, behind - (length - here + 1) // 2)
        for length, here, (before, behind) in zip(
            kernel[:-2], own, conv.padding, strict=True
        )
    )


def _pad(y: Array, padding: tuple[tuple[int, int], ...]) -> Array:
    around = [(before, behind, 0) for before, behind in padding]
    zero = jnp.zeros((), y.dtype)
    return jax.lax.pad(y, zero, ((0, 0, 0), *around, (0, 0, 0)))


def _average(y: Array, taps: Sequence[int], stride: int) -> Array:
    strides = (1, *(stride,) * len(taps), 1)
    total = jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, *taps, 1), strides, "VALID")
    return total / math.prod(taps)


# ------------------------------------------------------------------------- with norms


class Branch(NamedTuple):
    """A branch whose maps are each followed by a batch norm."""

    psi: Psi
    """As in `branches.shapes`, without biases; "scale", the identity, has none."""
    norms: Mapping[str, dict[str, Float[Array, "channels"]]]
    """{"bias": {"scale", "bias"}}; a sequence has "between", of its first map, too."""


Block = dict[str, Branch]
"""{family: branch}, "KxK" (or "linear") among them."""
Measured = dict[str, dict[str, Moments]]
"""{family: {norm: moments}}."""


def apply(
    block: Block,
    x: Float[Array, "B *space C"],
    kernel: Sequence[int],
    conv: Conv,
    moments: Measured | None = None,
) -> tuple[Float[Array, "B *out O"], Measured]:
    """The sum of all branches, each with its norms: a Diverse Branch Block.

        KxK-BN + 1x1-BN + 1x1-BN-KxK-BN + 1x1-BN-avg-BN + 1xK-BN + Kx1-BN + BN

    of which those run that the block has. What a sequence pads with is the value that
    its first norm gives to 0; what is padded enters no moment.

    Args:
        block: the branches.
        x: input.
        kernel: shape of the plain kernel.
        conv: of the plain layer.
        moments: what to normalise by; None: those of this batch (training mode).

    Returns:
        (output, the moments used).

    Source: Ding et al. 2021, Huang et al. 2022.
    """
    parts, measured = [], {}
    for family, branch in block.items():
        given = None if moments is None else moments[family]
        y, measured[family] = _normed(family, branch, x, kernel, conv, given)
        parts.append(y)
    return functools.reduce(jnp.add, parts), measured


def _normed(
    family: str,
    branch: Branch,
    x: Array,
    kernel: Sequence[int],
    conv: Conv,
    given: Mapping[str, Moments] | None,
) -> tuple[Array, dict[str, Moments]]:
    used = {}

    def after(name: str, y: Array) -> tuple[Array, Array]:
        used[name] = _moments(y) if given is None else given[name]
        return _affine(branch.norms[name], used[name])

    return _run(family, branch.psi, x, kernel, conv, after), used


def _moments(y: Array) -> Moments:
    over = tuple(range(y.ndim - 1))
    count = jnp.asarray(math.prod(y.shape[:-1]), y.dtype)
    return Moments(count, y.mean(over), y.var(over))


def _affine(norm: Mapping[str, Array], moments: Moments) -> tuple[Array, Array]:
    """A norm with these moments as gain and offset."""
    gain = norm["scale"] * jax.lax.rsqrt(moments.var + EPSILON)
    return gain, norm["bias"] - moments.mean * gain


def fold(
    block: Block, moments: Measured, kernel: Sequence[int], groups: int = 1
) -> tuple[Float[Array, "*taps I O"], Float[Array, "O"]]:
    """The plain kernel and bias that a block with these moments is equal to.

    A norm is a gain g = scale / sqrt(var + 1e-5) and an offset bias - mean * g per
    channel: the gain goes into the map before it, the offset is that map's bias, and
    `branches.tau` does the rest.

    Source: transforms I to VI of Ding et al. 2021. Deviates from the released code of
    DynamicFL, which computes the bias and drops it.
    """
    parts = [
        branches.tau(family, _folded(family, branch, moments[family]), kernel, groups)
        for family, branch in block.items()
    ]
    kernels, biases = zip(*parts, strict=True)
    return functools.reduce(jnp.add, kernels), functools.reduce(jnp.add, biases)


def _folded(family: str, branch: Branch, moments: Mapping[str, Moments]) -> Psi:
    """The branch without norms that a branch with these moments is equal to."""
    psi, norms = branch.psi, branch.norms
    gain, bias = _affine(norms["bias"], moments["bias"])
    if family == "scale":
        return {"scale": gain, "bias": bias}
    if "between" not in norms:
        return {"kernel": psi["kernel"] * gain, "bias": bias}
    inner, between = _affine(norms["between"], moments["between"])
    if family == "1x1-avg":
        # The inner offset lies in the padding too, so that its average is itself.
        kernel = psi["kernel"] * inner * gain
        return {"kernel": kernel, "bias": between * gain + bias}
    return {
        "first": psi["first"] * inner,
        "between": between,
        "second": psi["second"] * gain,
        "bias": bias,
    }


def reestimated(
    measured: PyTree[Float[Array, "batches ..."]],
) -> PyTree[Float[Array, "..."]]:
    """Moments to evaluate by: the average of those of several batches.

    Args:
        measured: what `apply` returned for every batch, stacked: [batches, ...] a leaf.

    Source: the released code, which runs 20 batches in training mode and takes the
    average of their means and variances (with divisor n - 1, here n).
    """
    return jax.tree.map(lambda leaf: leaf.mean(0), measured)


def fresh(family: str, psi: Psi, kernel: Sequence[int], dtype: Any) -> Branch:
    """The branch with norms of scale 1 and bias 0, beside a kernel of this shape."""
    channels = {"bias": kernel[-1]}
    if family in _FIRST:
        channels["between"] = psi[_FIRST[family]].shape[-1]
    norms = {
        name: {"scale": jnp.ones(size, dtype), "bias": jnp.zeros(size, dtype)}
        for name, size in channels.items()
    }
    return Branch(psi, norms)


def passing(block: Block, moments: Measured) -> Block:
    """The block whose norms change nothing under these moments.

        scale = sqrt(var + 1e-5),   bias = mean

    Args:
        block: whose branches it has.
        moments: of what every norm receives.
    """

    def one(moments: Moments) -> dict[str, Array]:
        return {"scale": jnp.sqrt(moments.var + EPSILON), "bias": moments.mean}

    return {
        family: Branch(
            branch.psi, {name: one(moments[family][name]) for name in branch.norms}
        )
        for family, branch in block.items()
    }


def expand(
    key: Key[Array, ""],
    plain: Mapping[str, Array],
    x: Float[Array, "B *space C"],
    conv: Conv,
    families: Sequence[str] = BLOCK,
) -> tuple[Block, Measured]:
    """A block that computes, in training mode on `x`, what the plain layer does.

        psi random,   norms that pass,   base = plain - sum of the others' fold

    Args:
        key: of the draw.
        plain: kernel and, if the layer has one, bias.
        x: the records that the norms are measured on.
        conv: of the plain layer.
        families: those that do not fit the kernel are left out.

    Returns:
        (block, the moments on `x`).

    Source: Zhang et al. 2025, eq. 15. Deviates from the released code, whose new norms
    have scale 1 and bias 0 and so pass mean 0 and variance 1 alone.
    """
    kernel, dtype = plain["kernel"].shape, plain["kernel"].dtype
    layer = branches.Layer(0, "", kernel, False, dtype, conv.groups)
    drawn = branches.draw(key, [layer], branches.Form(tuple(families)))[""]
    others = {}
    for slot, psi in drawn.items():
        family = branches.family_of(slot)
        psi = {} if family == "scale" else psi
        others[family] = fresh(family, psi, kernel, dtype)

    def measured(made: Block) -> Measured:
        return apply(made, x, kernel, conv)[1]

    # Twice: what the outer norm of a sequence receives is what the inner one gives.
    others = passing(others, measured(others))
    others = passing(others, measured(others))
    shift, offset = fold(others, measured(others), kernel, conv.groups)
    name = "KxK" if len(kernel) > 2 else "linear"
    base = {name: fresh(name, {"kernel": plain["kernel"] - shift}, kernel, dtype)}
    base = passing(base, measured(base))
    norm = base[name].norms["bias"]
    norm = norm | {"bias": norm["bias"] + plain.get("bias", 0) - offset}
    whole = {name: Branch(base[name].psi, {"bias": norm}), **others}
    return whole, measured(whole)
