"""Lowerings of a convolution: the same sums, written for different compilers.

XLA's own primitive is the choice on GPU and TPU. On CPU its gradients are slow inside a
loop, which the other two avoid. `lowering` resolves the name "auto".
"""

import functools
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Convolve(Protocol):
    """A lowering of a k x k convolution."""

    def __call__(
        self,
        x: Float[Array, "B H W I"],
        kernel: Float[Array, "k k I O"],
        stride: int = 1,
        padding: str = "SAME",
    ) -> Float[Array, "B H2 W2 O"]:
        """Convolves.

        Args:
            x: input.
            kernel: kernel.
            stride: stride in both dimensions of space.
            padding: "SAME" or "VALID".
        """
        ...


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
    becomes a grouped convolution that is slower still. A matrix product has neither
    problem, and gives the same bits for vmapped and looped clients (small shapes). It
    keeps k*k copies of the activations alive.
    """
    size = kernel.shape[0]
    batch, height, width, channels = x.shape
    border = size - 1 if padding == "VALID" else 0
    out = tuple(-(-(n - border) // stride) for n in (height, width))
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
    """Convolution whose gradients are convolutions in the layout of a forward pass.

    The choice on CPU for clients one after the other. XLA there writes the gradients of
    a convolution inside a loop in slow layouts. In the layout of a forward pass they
    are up to 1.8 times as fast as the products of `convolve_shift` for the layers of a
    ResNet, and keep no copies. `convolve_shift` is faster, and runs, for strides above
    1, 1 x 1 kernels, and fewer than `NARROW` inputs.
    """
    size, inputs = kernel.shape[0], kernel.shape[2]
    if stride > 1 or size == 1 or inputs < NARROW:
        return convolve_shift(x, kernel, stride, padding)
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (1, 1), padding)
    return _correlate(x, kernel, tuple(pads))


NARROW = 8
"""Number of inputs below which `convolve_shift` is faster than a convolution."""

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


def _correlate_backward(pads: Pads, residuals: Any, g: Array) -> tuple[Array, Array]:
    """Both gradients of y, as correlations.

    at x       sum_u g[q - u + before] kernel[u]: g with the flipped kernel
    at kernel  sum_p x[p + u - before] g[p]: x with g, with records as input channels
    """
    x, kernel = residuals
    flipped_kernel = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    backward_pads = tuple(
        (size - 1 - before, size - 1 - after)
        for size, (before, after) in zip(kernel.shape, pads, strict=False)
    )
    # Without the barriers XLA folds the transpositions into its slow layout.
    grad_x: Any = _correlate(
        g, jax.lax.optimization_barrier(flipped_kernel), backward_pads
    )
    x_by_channel = jax.lax.optimization_barrier(x.transpose(3, 1, 2, 0))
    g_by_space = jax.lax.optimization_barrier(g.transpose(1, 2, 0, 3))
    grad_kernel: Any = _correlate(x_by_channel, g_by_space, pads)
    return grad_x, grad_kernel.transpose(1, 2, 0, 3)


_correlate.defvjp(_correlate_forward, _correlate_backward)

CONVOLUTIONS: dict[str, Convolve] = {
    "xla": convolve_xla,
    "shift": convolve_shift,
    "forward": convolve_forward,
}


def lowering(name: str, backend: str, *, vmapped: bool) -> str:
    """The lowering of this name; resolves "auto".

    Args:
        name: one of `CONVOLUTIONS`, or "auto": on CPU "forward", or "shift" where
            kernels are vmapped; elsewhere "xla".
        backend: "cpu", "gpu" or "tpu".
        vmapped: whether clients, runs or per-record gradients are vmapped.
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
