"""Layers whose masked and sliced forms agree, and the lowerings of a convolution.

A masked unit must give exactly 0 to the next layer. Affine maps do (their bias is
masked too), and so do norms whose statistics never mix units that are kept with units
that are not: a batch norm looks at one channel, a group norm at the groups that *are*
the units, and a layer norm counts the channels that are kept.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Shaped

from fairjax.core.types import Kept, Moments

# ------------------------------------------------------------------------ convolutions


Convolve = Callable[..., Array]
"""(x [B, H, W, I], kernel [k, k, I, O], stride=1, padding="SAME") -> [B, H', W', O];
the padding is "SAME" or "VALID"."""


def convolve_xla(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k I O"],
    stride: int = 1,
    padding: str = "SAME",
) -> Float[Array, "B H2 W2 O"]:
    """Convolution by the compiler's own primitive: the choice on GPU and TPU."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_shift(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k I O"],
    stride: int = 1,
    padding: str = "SAME",
) -> Float[Array, "B H2 W2 O"]:
    """Convolution as k*k shifted slices side by side and one matrix product.

    The choice for vmapped clients on CPU: XLA there computes the gradient of a
    convolution inside a loop 5 to 38 times slower than outside, and a vmapped kernel
    becomes a grouped convolution that is slower still. A matrix product suffers from
    neither, and gives the same bits whether clients are vmapped or looped over (small
    shapes). It keeps k*k copies of the activations alive.
    """
    size = kernel.shape[0]
    batch, height, width, channels = x.shape
    lost = size - 1 if padding == "VALID" else 0
    out = tuple(-(-(n - lost) // stride) for n in (height, width))
    pads = [
        max((o - 1) * stride + size - n, 0)
        for o, n in zip(out, (height, width), strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)))
    taps = [
        jax.lax.slice(
            x,
            (0, row, column, 0),
            (
                batch,
                row + (out[0] - 1) * stride + 1,
                column + (out[1] - 1) * stride + 1,
                channels,
            ),
            (1, stride, stride, 1),
        )
        for row in range(size)
        for column in range(size)
    ]
    patches = jnp.concatenate(taps, axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def convolve_forward(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k I O"],
    stride: int = 1,
    padding: str = "SAME",
) -> Float[Array, "B H2 W2 O"]:
    """Convolution whose gradients are written as convolutions, too.

    The choice on CPU for clients one after the other. What is slow there inside a loop
    is not a convolution but the layouts in which XLA writes its gradients; in the
    layout of a forward pass they are faster than the products of `convolve_shift`, by
    up to 1.8 times for the layers of a ResNet, and keep no copies. That one runs where
    it is the faster: strides above 1, 1 x 1 kernels, and fewer than `NARROW` inputs.
    """
    size, inputs = kernel.shape[0], kernel.shape[2]
    if stride > 1 or size == 1 or inputs < NARROW:
        return convolve_shift(x, kernel, stride, padding)
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (1, 1), padding)
    return _correlate(x, kernel, tuple(pads))


NARROW = 8
"""Inputs of a kernel below which its products take less than its convolution."""

Pads = tuple[tuple[int, int], ...]
"""(before, after) of every dimension of space."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _correlate(x: Array, kernel: Array, pads: Pads) -> Any:
    """y[p] = sum_u x[p + u - before] kernel[u], of stride 1."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _correlate_forward(x: Array, kernel: Array, pads: Pads) -> tuple[Array, Any]:
    return _correlate(x, kernel, pads), (x, kernel)


def _correlate_backward(pads: Pads, kept: Any, g: Array) -> tuple[Array, Array]:
    """Both gradients of y, as correlations.

    at x       sum_u g[q - u + before] kernel[u]: g with the kernel turned round
    at kernel  sum_p x[p + u - before] g[p]: x with g, records being the inputs
    """
    x, kernel = kept
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    around = tuple(
        (size - 1 - before, size - 1 - after)
        for size, (before, after) in zip(kernel.shape, pads, strict=False)
    )
    # Barriers, as XLA would fold what is transposed into the layout that is slow.
    at_x: Any = _correlate(g, jax.lax.optimization_barrier(turned), around)
    by_input = jax.lax.optimization_barrier(x.transpose(3, 1, 2, 0))
    by_record = jax.lax.optimization_barrier(g.transpose(1, 2, 0, 3))
    at_kernel: Any = _correlate(by_input, by_record, pads)
    return at_x, at_kernel.transpose(1, 2, 0, 3)


_correlate.defvjp(_correlate_forward, _correlate_backward)

CONVOLUTIONS: dict[str, Convolve] = {
    "xla": convolve_xla,
    "shift": convolve_shift,
    "forward": convolve_forward,
}


def lowering(name: str, backend: str, *, vmapped: bool) -> str:
    """The lowering that "auto" stands for.

    Args:
        name: of `CONVOLUTIONS`, or "auto": on CPU "forward", or "shift" where kernels
            are vmapped; elsewhere "xla".
        backend: "cpu", "gpu" or "tpu".
        vmapped: whether clients, runs or per-record gradients lie side by side.
    """
    if name != "auto":
        return name
    if backend != "cpu":
        return "xla"
    return "shift" if vmapped else "forward"


class Conv(nn.Module):
    """k x k SAME convolution with bias; kernel HWIO."""

    features: int
    size: int = 3
    stride: int = 1
    lowering: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        """Convolves, then adds the bias."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return CONVOLUTIONS[self.lowering](x, kernel, self.stride) + bias


def pool(x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 I"]:
    """2 x 2 maximum; an odd last row or column is dropped.

    Two maxima of pairs, whose gradient XLA:CPU computes 8 times faster than that of a
    window. Where values are tied they share it.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // 2, width // 2
    x = x[:, : 2 * rows, : 2 * columns]
    x = x.reshape(batch, rows, 2, columns, 2, channels)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def dense(
    params: Mapping[str, Float[Array, "..."]], x: Float[Array, "B ..."]
) -> Float[Array, "B ..."]:
    """Gives x W + b, contracting all leading dimensions of the kernel.

    A kernel [H, W, I, O] reads a whole feature map, whose channels stay a dimension of
    their own: a model that flattened it could not be sliced.
    """
    kernel = params["kernel"]
    if kernel.ndim == 2:
        return x @ kernel + params["bias"]
    return _read(x, kernel) + params["bias"]


@jax.custom_vjp
def _read(x: Array, kernel: Array) -> Array:
    return jnp.tensordot(x, kernel, kernel.ndim - 1)


def _read_forward(x: Array, kernel: Array) -> tuple[Array, Any]:
    return _read(x, kernel), (x, kernel)


def _read_backward(kept: Any, g: Array) -> tuple[Array, Array]:
    """The usual gradients, with the kernel on the left of its product.

    On its right, XLA:CPU writes a transposed copy of it in every step, which doubles
    what a large one costs.
    """
    x, kernel = kept
    at_x = jnp.tensordot(kernel, g, ((kernel.ndim - 1,), (1,)))
    return jnp.moveaxis(at_x, -1, 0), jnp.tensordot(x, g, ((0,), (0,)))


_read.defvjp(_read_forward, _read_backward)


# ------------------------------------------------------------------------------- norms


EPSILON = 1e-5


class Setting(NamedTuple):
    """What layers need to know besides their parameters and input."""

    where: Bool[Array, "B"] | None
    """Valid records; None: all."""
    stats: Mapping[str, Moments] | None
    """Moments by the name of their batch norm; None: those of the batch."""
    scale: Float[Array, ""] | None
    """`Kept.scale`, in training and evaluation alike; None: no scaling."""
    active: Mapping[str, Shaped[Array, "units"]]
    """Kept units of the masked axes."""


def setting(
    where: Bool[Array, "B"] | None,
    stats: Mapping[str, Moments] | None,
    kept: Kept | None,
) -> Setting:
    """The setting that these arguments of `Model.apply` describe.

    Training mode is none of them: nothing in these layers hangs on it, so a sub-model
    answers in evaluation as it was trained.
    """
    kept = kept or Kept()
    active = kept.forward.axes if kept.forward else {}
    return Setting(where, stats, kept.scale, active)


def wide(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """In float32 at least: moments in less lose what they are to tell apart."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def scaled(
    x: Float[Array, "..."], scale: Float[Array, ""] | None
) -> Float[Array, "..."]:
    """Gives x / scale, so that narrow and wide layers feed alike; x when scale is None.

    It is part of the sub-model: it divides in evaluation as in training. A norm behind
    it would hide the difference but for its epsilon; where there is none, or where its
    moments were taken behind the scaler, an answer without it is another function than
    the one that was trained.

    Source: the Scaler of HeteroFL (Diao et al. 2021), placed before the norm as there.
    The released code evaluates the whole model alone, which has no scaler.
    """
    return x if scale is None else x / scale.astype(x.dtype)


def norm(
    params: Mapping[str, Float[Array, "C"]] | None,
    x: Float[Array, "B *space C"],
    around: Setting,
    *,
    kind: str,
    name: str = "",
    axis: str = "",
    group_size: int = 1,
) -> tuple[Float[Array, "B *space C"], dict[str, Moments]]:
    """One of `leaves.NORMS`, after HeteroFL's scaler.

    The output carries the checkpoint name "norm": a rematerialisation policy may save
    it by that name, and a bill of activations finds it.

    Args:
        params: scale and bias; None for kind "none".
        x: the input.
        around: the setting of this pass.
        kind: "group", "batch", "layer" or "none".
        name: under which a batch norm's moments are given and reported.
        axis: whose masked units, channels here, a layer norm does not count.
        group_size: channels of one group, for kind "group".

    Returns:
        (output, {name: moments} of a batch norm; empty for other kinds).
    """
    x, moments = scaled(x, around.scale), {}
    if kind == "none" or params is None:
        return x, moments
    if kind == "batch":
        given = None if around.stats is None else around.stats[name]
        y, moments[name] = batch_norm(params, x, where=around.where, moments=given)
    elif kind == "group":
        y = group_norm(params, x, group_size=group_size)
    else:
        y = layer_norm(params, x, active=around.active.get(axis))
    return checkpoint_name(y, "norm"), moments


def batch_norm(
    params: Mapping[str, Float[Array, "C"]],
    x: Float[Array, "B *space C"],
    *,
    where: Bool[Array, "B"] | None = None,
    moments: Moments | None = None,
) -> tuple[Float[Array, "B *space C"], Moments]:
    """Normalises every channel over records and space.

        y = scale * (x - mean) / sqrt(var + 1e-5) + bias

    Args:
        params: scale and bias.
        x: the input.
        where: valid records; others enter no moment. None: all.
        moments: what to normalise by; None: the moments of the valid records of x.

    Returns:
        (y, the moments used). Without a valid record mean and variance are 0.

    Source: Ioffe and Szegedy 2015. Deviates: no running average hides inside; who wants
    other moments than the batch's gives them.
    """
    x32 = wide(x)
    if moments is None:
        moments = _moments(x32, where)
    y = (x32 - moments.mean) * jax.lax.rsqrt(moments.var + EPSILON)
    return y.astype(x.dtype) * params["scale"] + params["bias"], moments


def _moments(x: Float[Array, "B *space C"], where: Bool[Array, "B"] | None) -> Moments:
    over = tuple(range(x.ndim - 1))
    valid = jnp.ones(x.shape[:1], bool) if where is None else where
    valid = jnp.broadcast_to(
        valid.reshape(-1, *[1] * (x.ndim - 1)), (*x.shape[:-1], 1)
    ).astype(x.dtype)
    count = jnp.sum(valid)
    divisor = jnp.maximum(count, 1)
    mean = jnp.sum(x * valid, axis=over) / divisor
    var = jnp.sum((x - mean) ** 2 * valid, axis=over) / divisor
    return Moments(count, mean, var)


def group_norm(
    params: Mapping[str, Float[Array, "C"]],
    x: Float[Array, "B *space C"],
    *,
    group_size: int,
) -> Float[Array, "B *space C"]:
    """Normalises every record over space and each run of `group_size` channels.

    Source: Wu and He 2018. Deviates: the size of a group is fixed and not their number,
    so that a narrower network normalises each kept group as the wide one does.
    """
    grouped = wide(x).reshape(*x.shape[:-1], -1, group_size)
    over = (*range(1, x.ndim - 1), x.ndim)
    y = (grouped - jnp.mean(grouped, axis=over, keepdims=True)) * jax.lax.rsqrt(
        jnp.var(grouped, axis=over, keepdims=True) + EPSILON
    )
    return y.reshape(x.shape).astype(x.dtype) * params["scale"] + params["bias"]


def layer_norm(
    params: Mapping[str, Float[Array, "C"]],
    x: Float[Array, "*lead C"],
    *,
    active: Shaped[Array, "C"] | None = None,
) -> Float[Array, "*lead C"]:
    """Normalises the last axis, counting only its active channels.

        mean = sum_c a_c x_c / n,   var = sum_c a_c (x_c - mean)^2 / n,   n = sum_c a_c

    Args:
        params: scale and bias.
        x: the input.
        active: 0/1 per channel, a above; None: all, which is the usual layer norm.

    Returns:
        0 (plus the bias) in channels that are not active; others as if the inactive
        ones did not exist.

    Source: Ba et al. 2016; the count is what makes it agree with its slice.
    """
    x32 = wide(x)
    if active is None:
        active = jnp.ones(x.shape[-1], x32.dtype)
    active = active.astype(x32.dtype)
    count = jnp.maximum(jnp.sum(active), 1)
    mean = jnp.sum(x32 * active, axis=-1, keepdims=True) / count
    centred = (x32 - mean) * active
    var = jnp.sum(centred**2, axis=-1, keepdims=True) / count
    y = centred * jax.lax.rsqrt(var + EPSILON)
    return y.astype(x.dtype) * params["scale"] + params["bias"]
