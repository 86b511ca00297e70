"""The reference for collapsed kernels: branches that run side by side.

`fairjax.submodels.branches` trains the sum of a layer's branches as one kernel. Here a
layer runs as DynamicFL draws it: every branch has operations of its own, without norms
or with the batch norms that the paper's released code puts into every branch. No round
trains this form; it shows what collapsing preserves and what norms would cost.

When the layer is the same function as one convolution, and the difference where it is
not (relative differences of a small network's logits on the digits, in float64, lowest
to highest of three seeds; `python studies/merging/run.py`):

- Without norms: always, gradients included, for any base and branches. Trained for 400
  steps, expanded and collapsed differ by less than 1e-12.
- With norms by given moments: with the kernel *and bias* of `fold`, less than 1e-12.
  Without that bias, which the released code drops: 1.7 to 4.5.
- With norms in training mode: on the batch whose moments are folded, and on no other.
  By moments averaged over 20 batches, as released: 0.15 to 0.16.
- An expansion: on the records whose moments its norms have, with norms that pass their
  input on (`expand`), less than 1e-12. In training mode with norms of scale 1 and bias
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
from fairjax.submodels.families import Psi, tau

BLOCK = ("1x1", "1x1-KxK", "1x1-avg", "1xK", "Kx1", "scale")
"""Families beside the K x K convolution of a Diverse Branch Block, as released."""
EPSILON = 1e-5


class Conv(NamedTuple):
    """Stride, padding and groups of a layer; the defaults are those of a matrix."""

    stride: int = 1
    padding: tuple[tuple[int, int], ...] = ()
    """Zeros before and after the input, per dimension of space."""
    groups: int = 1


def convolve(
    x: Float[Array, "B *space C"], kernel: Float[Array, "*taps I O"], conv: Conv
) -> Float[Array, "B *out O"]:
    """The plain layer without bias; x times a matrix where `conv` has no padding."""
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
    """One branch, without norm, as operations of its own.

        parallel(psi, x) = convolve(x, W) + b,   W, b = families.tau(psi)

    A 1 x 1, 1 x K or K x 1 kernel reads the input under the centre (K - 1) // 2 of the
    plain kernel and has accordingly less padding. A sequence pads the output of its
    first map with that map's bias; an average counts the padding. "scale" is the
    strided input times a number per channel.

    Args:
        family: one of `families.FAMILIES`.
        psi: parameters of the shapes of `families.shapes`.
        x: input, C = I * groups.
        kernel: shape [*taps, I, O] of the plain kernel.
        conv: stride, padding and groups of the plain layer.
    """

    def affine(name: str, y: Array) -> tuple[Array | int, Array | int]:
        return 1, psi.get(name, 0)

    return _run(family, psi, x, kernel, conv, affine)


_FIRST = {"1x1-KxK": "first", "1x1-avg": "kernel", "lowrank": "first"}
"""Name of the first map of branches that are a sequence of two."""

Affine = Callable[[str, Array], tuple[Array | int, Array | int]]
"""(name, output of a map) -> gain and offset per channel. A map is named by its bias:
"between" for the first of a sequence, else "bias"."""


def _run(
    family: str,
    psi: Psi,
    x: Array,
    kernel: Sequence[int],
    conv: Conv,
    affine: Affine,
) -> Array:
    """The operations of one branch, each map followed by `affine`."""
    *taps, _, _ = kernel
    unpadded = conv._replace(padding=((0, 0),) * len(taps))
    if family in _FIRST:
        y = convolve(x, psi[_FIRST[family]], unpadded._replace(stride=1))
        gain, offset = affine("between", y)
        y = _pad(y, conv.padding) * gain + offset
        if family == "1x1-avg":
            y = _average(y, taps, conv.stride)
        else:
            y = convolve(y, psi["second"], unpadded)
    elif family == "scale":
        y = _pad(x, _centred_padding(kernel, [1] * len(taps), conv))
        y = y[:, *(slice(None, None, conv.stride),) * len(taps)] * psi.get("scale", 1)
    else:
        branch_kernel = psi["kernel"]
        padding = _centred_padding(kernel, branch_kernel.shape[: len(taps)], conv)
        y = convolve(x, branch_kernel, conv._replace(padding=padding))
    gain, offset = affine("bias", y)
    return y * gain + offset


def _centred_padding(
    kernel: Sequence[int], extents: Sequence[int], conv: Conv
) -> tuple[tuple[int, int], ...]:
    """The padding of a kernel with 1 or all of the K taps; negative where it crops."""
    return tuple(
        (low - (length - extent) // 2, high - (length - extent + 1) // 2)
        for length, extent, (low, high) in zip(
            kernel[:-2], extents, conv.padding, strict=True
        )
    )


def _pad(y: Array, padding: tuple[tuple[int, int], ...]) -> Array:
    pads = [(low, high, 0) for low, high in padding]
    zero = jnp.zeros((), y.dtype)
    return jax.lax.pad(y, zero, ((0, 0, 0), *pads, (0, 0, 0)))


def _average(y: Array, taps: Sequence[int], stride: int) -> Array:
    strides = (1, *(stride,) * len(taps), 1)
    total = jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, *taps, 1), strides, "VALID")
    return total / math.prod(taps)


# ------------------------------------------------------------------------- with norms


class Branch(NamedTuple):
    """A branch whose maps are each followed by a batch norm."""

    psi: Psi
    """As in `families.shapes`, without biases; "scale", the identity, has none."""
    norms: Mapping[str, dict[str, Float[Array, "channels"]]]
    """{"bias": {"scale", "bias"}}; a sequence has "between" too, of its first map."""


Block = dict[str, Branch]
"""{family: branch}, with "KxK" (or "linear") among them."""
BlockMoments = dict[str, dict[str, Moments]]
"""{family: {norm: moments}}."""


def apply(
    block: Block,
    x: Float[Array, "B *space C"],
    kernel: Sequence[int],
    conv: Conv,
    moments: BlockMoments | None = None,
) -> tuple[Float[Array, "B *out O"], BlockMoments]:
    """The sum of all branches, each with its norms: a Diverse Branch Block.

        KxK-BN + 1x1-BN + 1x1-BN-KxK-BN + 1x1-BN-avg-BN + 1xK-BN + Kx1-BN + BN

    over the branches of the block. A sequence pads with the value that its first norm
    gives to 0; the padding enters no moment.

    Args:
        block: the branches.
        x: input.
        kernel: shape of the plain kernel.
        conv: stride, padding and groups of the plain layer.
        moments: the norms' moments; None: those of this batch (training mode).

    Returns:
        (output, the moments used).

    Source: Ding et al. 2021 and Huang et al. 2022 (see `fairjax.submodels.families`).
    """
    outputs, norm_moments = [], {}
    for family, branch in block.items():
        fixed_moments = None if moments is None else moments[family]
        y, norm_moments[family] = _run_with_norms(
            family, branch, x, kernel, conv, fixed_moments
        )
        outputs.append(y)
    return functools.reduce(jnp.add, outputs), norm_moments


def _run_with_norms(
    family: str,
    branch: Branch,
    x: Array,
    kernel: Sequence[int],
    conv: Conv,
    fixed_moments: Mapping[str, Moments] | None,
) -> tuple[Array, dict[str, Moments]]:
    """The output of one branch with its norms, and their moments."""
    norm_moments = {}

    def affine(name: str, y: Array) -> tuple[Array, Array]:
        norm_moments[name] = (
            _moments(y) if fixed_moments is None else fixed_moments[name]
        )
        return _affine(branch.norms[name], norm_moments[name])

    return _run(family, branch.psi, x, kernel, conv, affine), norm_moments


def _moments(y: Array) -> Moments:
    reduction_axes = tuple(range(y.ndim - 1))
    count = jnp.asarray(math.prod(y.shape[:-1]), y.dtype)
    return Moments(count, y.mean(reduction_axes), y.var(reduction_axes))


def _affine(norm: Mapping[str, Array], moments: Moments) -> tuple[Array, Array]:
    """A norm with these moments as gain and offset."""
    gain = norm["scale"] * jax.lax.rsqrt(moments.var + EPSILON)
    return gain, norm["bias"] - moments.mean * gain


def fold(
    block: Block, moments: BlockMoments, kernel: Sequence[int], groups: int = 1
) -> tuple[Float[Array, "*taps I O"], Float[Array, "O"]]:
    """The plain kernel and bias that a block with these moments is equal to.

    A norm is a gain g = scale / sqrt(var + 1e-5) and an offset bias - mean * g per
    channel: the gain goes into the map before it, the offset is that map's bias, and
    `families.tau` does the rest.

    Args:
        block: the branches.
        moments: the norms' moments.
        kernel: shape of the plain kernel.
        groups: groups of the convolution.

    Source: transforms I to VI of Ding et al. 2021 (see `fairjax.submodels.families`).
    Deviates from the released code of DynamicFL (see `fairjax.submodels.dynamicfl`),
    which computes the bias and drops it.
    """
    terms = [
        tau(family, _fold_branch(family, branch, moments[family]), kernel, groups)
        for family, branch in block.items()
    ]
    kernels, biases = zip(*terms, strict=True)
    return functools.reduce(jnp.add, kernels), functools.reduce(jnp.add, biases)


def _fold_branch(family: str, branch: Branch, moments: Mapping[str, Moments]) -> Psi:
    """The branch without norms that a branch with these moments is equal to."""
    psi, norms = branch.psi, branch.norms
    gain, bias = _affine(norms["bias"], moments["bias"])
    if family == "scale":
        return {"scale": gain, "bias": bias}
    if "between" not in norms:
        return {"kernel": psi["kernel"] * gain, "bias": bias}
    inner_gain, inner_offset = _affine(norms["between"], moments["between"])
    if family == "1x1-avg":
        # The padding has the inner offset too, so that its average is itself.
        kernel = psi["kernel"] * inner_gain * gain
        return {"kernel": kernel, "bias": inner_offset * gain + bias}
    return {
        "first": psi["first"] * inner_gain,
        "between": inner_offset,
        "second": psi["second"] * gain,
        "bias": bias,
    }


def average_moments(
    batch_moments: PyTree[Float[Array, "batches ..."]],
) -> PyTree[Float[Array, "..."]]:
    """Moments for evaluation: the average of the moments of several batches.

    Args:
        batch_moments: the moments from `apply`, stacked: [batches, ...] a leaf.

    Source: the released code of DynamicFL (see `fairjax.submodels.dynamicfl`), which
    runs 20 batches in training mode and averages their means and variances. Deviates:
    variances have divisor n, there n - 1.
    """
    return jax.tree.map(lambda leaf: leaf.mean(0), batch_moments)


def fresh_branch(family: str, psi: Psi, kernel: Sequence[int], dtype: Any) -> Branch:
    """A branch with norms of scale 1 and bias 0, beside a kernel of this shape."""
    channels = {"bias": kernel[-1]}
    if family in _FIRST:
        channels["between"] = psi[_FIRST[family]].shape[-1]
    norms = {
        name: {"scale": jnp.ones(size, dtype), "bias": jnp.zeros(size, dtype)}
        for name, size in channels.items()
    }
    return Branch(psi, norms)


def passthrough_norms(block: Block, moments: BlockMoments) -> Block:
    """The block with norms that change nothing under these moments.

        scale = sqrt(var + 1e-5),   bias = mean

    Args:
        block: the branches.
        moments: moments of the input of every norm.
    """

    def per_norm(moments: Moments) -> dict[str, Array]:
        return {"scale": jnp.sqrt(moments.var + EPSILON), "bias": moments.mean}

    return {
        family: Branch(
            branch.psi, {name: per_norm(moments[family][name]) for name in branch.norms}
        )
        for family, branch in block.items()
    }


def expand(
    key: Key[Array, ""],
    plain: Mapping[str, Array],
    x: Float[Array, "B *space C"],
    conv: Conv,
    families: Sequence[str] = BLOCK,
) -> tuple[Block, BlockMoments]:
    """A block that computes, in training mode on `x`, what the plain layer does.

        psi random,   norms that pass x on,   base = plain - fold of the other branches

    Args:
        key: key of the draw.
        plain: kernel and, if the layer has one, bias.
        x: the records whose moments the norms get.
        conv: stride, padding and groups of the plain layer.
        families: families of the branches; those that do not fit are left out.

    Returns:
        (block, the moments on `x`).

    Source: Zhang et al. 2025 (see `fairjax.submodels.dynamicfl`), eq. 15. Deviates: new
    norms of the released code have scale 1 and bias 0, and so pass on only inputs of
    mean 0 and variance 1.
    """
    kernel, dtype = plain["kernel"].shape, plain["kernel"].dtype
    layer = branches.Layer(0, "", kernel, False, dtype, conv.groups)
    fresh_psi = branches.draw(key, [layer], branches.Form(tuple(families)))[""]
    side_branches = {}
    for slot, psi in fresh_psi.items():
        family = branches.family_of(slot)
        psi = {} if family == "scale" else psi
        side_branches[family] = fresh_branch(family, psi, kernel, dtype)

    def measure_moments(block: Block) -> BlockMoments:
        return apply(block, x, kernel, conv)[1]

    # Twice: the outer norm of a sequence receives the output of the inner one.
    side_branches = passthrough_norms(side_branches, measure_moments(side_branches))
    side_branches = passthrough_norms(side_branches, measure_moments(side_branches))
    shift, offset = fold(
        side_branches, measure_moments(side_branches), kernel, conv.groups
    )
    name = "KxK" if len(kernel) > 2 else "linear"
    base = {
        name: fresh_branch(name, {"kernel": plain["kernel"] - shift}, kernel, dtype)
    }
    base = passthrough_norms(base, measure_moments(base))
    norm = base[name].norms["bias"]
    norm = norm | {"bias": norm["bias"] + plain.get("bias", 0) - offset}
    expanded_block = {name: Branch(base[name].psi, {"bias": norm}), **side_branches}
    return expanded_block, measure_moments(expanded_block)
