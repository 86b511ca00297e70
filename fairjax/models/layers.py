"""Layers whose masked and sliced forms agree, and the two lowerings of a convolution.

A masked unit must give exactly 0 to the next layer. Affine maps do (their bias is
masked too), and so does a group norm whose groups *are* the units: a group of zeros
stays zero, and no statistic mixes units that are kept with units that are not.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fairjax.types import Kept

Convolve = Callable[[Array, Array, int], Array]
"""(x [B, H, W, I], kernel [k, k, I, O], stride) -> [B, H', W', O], SAME padding."""


def convolve_xla(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k k I O"], stride: int = 1
) -> Float[Array, "B H2 W2 O"]:
    """SAME convolution by the compiler's own primitive: the choice on GPU and TPU."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_shift(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k k I O"], stride: int = 1
) -> Float[Array, "B H2 W2 O"]:
    """SAME convolution as k*k shifted slices side by side and one matrix product.

    The choice on CPU: XLA there computes the gradient of a convolution inside a loop 5
    to 38 times slower than outside, and a vmapped kernel becomes a grouped convolution
    that is slower still. A matrix product suffers from neither, and gives the same bits
    whether clients are vmapped or looped over (small shapes). It keeps k*k copies of
    the activations alive.
    """
    size = kernel.shape[0]
    batch, height, width, channels = x.shape
    out = (-(-height // stride), -(-width // stride))
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


CONVOLUTIONS: dict[str, Convolve] = {"xla": convolve_xla, "shift": convolve_shift}


def lowering(name: str, backend: str) -> str:
    """The lowering that "auto" stands for: "shift" on CPU, "xla" elsewhere."""
    if name != "auto":
        return name
    return "shift" if backend == "cpu" else "xla"


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


def scaled(
    x: Float[Array, "..."], kept: Kept | None, train: bool
) -> Float[Array, "..."]:
    """Gives x / kept.scale in training, so that narrow and wide layers feed alike.

    Source: the Scaler of HeteroFL (Diao et al. 2021), placed before the norm as there.
    """
    if kept is None or kept.scale is None or not train:
        return x
    return x / kept.scale.astype(x.dtype)


def pool(x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 I"]:
    """2 x 2 maximum; an odd last row or column is dropped."""
    return nn.max_pool(x, (2, 2), (2, 2))
