"""Families of branches: the parameters of one branch, and the kernel they amount to.

A branch beside a plain kernel W [*space, I, O] has parameters psi of the shapes of
`shapes`; `tau` turns them into a kernel of W's own shape.

Source: X. Ding et al., "Diverse Branch Block: Building a Convolution as an
Inception-like Unit", CVPR 2021, arXiv:2103.13425, and T. Huang et al., "DyRep:
Bootstrapping Training with Dynamic Re-parameterization", CVPR 2022, arXiv:2203.12868.
Deviates: no batch norm inside a branch, see `fairjax.submodels.expanded`.
"""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

CONV = ("1x1", "1x1-KxK", "1x1-avg", "1xK", "Kx1", "scale", "KxK")
"""Families beside a K x K kernel [K, K, I, O]."""
LINEAR = ("linear", "lowrank", "scale")
"""Families beside a matrix [I, O]."""
FAMILIES = tuple(dict.fromkeys(CONV + LINEAR))
SEQUENCES = ("1x1-KxK", "lowrank")
"""Families of two maps, one after the other; bilinear in their parameters."""
ONE_MAP = tuple(family for family in FAMILIES if family not in SEQUENCES)
"""Families that are linear in their parameters."""

Psi = Mapping[str, Array]
"""The parameters of one branch."""


def fits(family: str, kernel: Sequence[int], groups: int = 1) -> bool:
    """Whether a kernel of this shape can have a branch of this family.

    "scale" maps every channel onto itself, which needs as many inputs as outputs. Other
    families need a K x K kernel with K > 1, or a matrix.

    Args:
        family: one of `FAMILIES`.
        kernel: shape [*space, I, O]; I counts the inputs of one group.
        groups: groups of the convolution.
    """
    *space, inputs, outputs = kernel
    if family == "scale" and inputs * groups != outputs:
        return False
    if not space:
        return family in LINEAR
    return family in CONV and len(space) == 2 and min(space) > 1


def shapes(
    family: str,
    kernel: Sequence[int],
    *,
    bias: bool,
    rank: int = 4,
    inner: float = 1.0,
    groups: int = 1,
) -> dict[str, tuple[int, ...]]:
    """The parameters of a branch beside a kernel [*space, I, O] as {name: shape}.

    A sequence of two maps has "first" and "second", with ceil(inner * I) channels (or
    the rank) between them per group, and their biases "between" and "bias". All other
    families have "kernel" or "scale", and "bias".

    Args:
        family: one of `FAMILIES`.
        kernel: shape of the plain kernel; I counts the inputs of one group.
        bias: whether the layer has a bias.
        rank: inner width of "lowrank".
        inner: inner width of "1x1-KxK", as a share of I.
        groups: groups of the convolution.
    """
    *space, inputs, outputs = kernel
    unit_extent = (1,) * len(space)
    if family in SEQUENCES:
        inner_width = rank if family == "lowrank" else math.ceil(inner * inputs)
        param_shapes = {
            "first": (*unit_extent, inputs, inner_width * groups),
            "second": (*space, inner_width, outputs),
        }
        if bias:
            param_shapes["between"] = (inner_width * groups,)
    elif family == "scale":
        param_shapes = {"scale": (outputs,)}
    else:
        extents = {
            "1x1": unit_extent,
            "1x1-avg": unit_extent,
            "1xK": (1, *space[1:]),
            "Kx1": (*space[:1], 1),
        }
        param_shapes = {"kernel": (*extents.get(family, tuple(space)), inputs, outputs)}
    return param_shapes | ({"bias": (outputs,)} if bias else {})


def tau(
    family: str, psi: Psi, kernel: Sequence[int], groups: int = 1
) -> tuple[Float[Array, "*space I O"], Float[Array, "O"] | None]:
    """The plain kernel and bias that a branch is equal to.

        1x1, 1xK, Kx1    W = psi at the centre, 0 around it
        KxK, linear      W = psi
        1x1-avg          W[u, v, i, o] = psi[i, o] / K^2
        scale            W[centre, o, o] = psi[o]
        1x1-KxK,         W[u, v, i, o] = sum_m first[i, m] second[u, v, m, o],
        lowrank          b[o] = bias[o] + sum_uvm second[u, v, m, o] between[m]

    Args:
        family: one of `FAMILIES`.
        psi: parameters of the shapes of `shapes`.
        kernel: shape [*space, I, O] of the plain kernel.
        groups: groups of the convolution; output o belongs to group o // (O / groups).

    Returns:
        (kernel, bias), linear in every parameter; the bias is None without one.

    Edge cases: the centre of K taps is tap (K - 1) // 2, under which SAME padding puts
    the output. A sequence whose first map has a bias reads "between" outside the image
    too: its second map is padded with "between", not with 0.

    Source: transforms I to VI of Ding et al. 2021 (see `fairjax.submodels.families`).
    """
    *space, inputs, outputs = kernel
    bias = psi.get("bias")
    if family in SEQUENCES:
        first = psi["first"].reshape(inputs, groups, -1)
        second = psi["second"].reshape(*space, -1, groups, outputs // groups)
        product = jnp.einsum("igm,...mgo->...igo", first, second)
        if bias is not None:
            inner_bias = psi["between"].reshape(groups, -1)
            spatial_sum = second.sum(tuple(range(len(space))))
            bias = bias + jnp.einsum("gm,mgo->go", inner_bias, spatial_sum).ravel()
        return product.reshape(*space, inputs, outputs), bias
    if family == "scale":
        identity = np.tile(np.eye(inputs), (1, groups))
        branch_kernel = psi["scale"] * identity.astype(psi["scale"].dtype)
        branch_kernel = branch_kernel.reshape(*(1,) * len(space), inputs, outputs)
    else:
        branch_kernel = psi["kernel"]
    if family == "1x1-avg":
        # Not broadcast: its gradient, a sum over leading axes, is slow on XLA:CPU.
        taps = math.prod(space)
        return jnp.concatenate([branch_kernel / taps] * taps).reshape(kernel), bias
    pads = [
        ((length - 1) // 2, length // 2) if extent == 1 else (0, 0)
        for length, extent in zip(space, branch_kernel.shape[: len(space)], strict=True)
    ]
    return jnp.pad(branch_kernel, (*pads, (0, 0), (0, 0))), bias
