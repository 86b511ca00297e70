"""Random changes of training images, drawn inside the step anew for every record."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fairjax.core import rng
from fairjax.data import pixels
from fairjax.data.pixels import Pixels

Augment = Callable[[Key[Array, ""], Float[Array, "B H W I"]], Float[Array, "B H W I"]]
"""(key, images) -> images."""


def flip(key: Key[Array, ""], x: Float[Array, "B H W I"]) -> Float[Array, "B H W I"]:
    """Mirrors every image left to right with probability 1/2."""
    is_flipped = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(is_flipped, x[:, :, ::-1], x)


def crop(key: Key[Array, ""], x: Float[Array, "B H W I"]) -> Float[Array, "B H W I"]:
    """Shifts every image by up to an eighth of its height and width.

    All shifts are equally likely, and 0 fills the border. 0 is the mean of a channel
    after `data.normalise`. At 32 x 32 the shift is at most 4 pixels, as is usual for
    CIFAR.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition",
    CVPR 2016, arXiv:1512.03385.
    """
    batch, height, width, channels = x.shape
    max_shift = (height // 8, width // 8)
    padded = jnp.pad(x, ((0, 0), *((r, r) for r in max_shift), (0, 0)))
    num_offsets = 2 * jnp.asarray(max_shift, jnp.int32) + 1
    start = jax.random.randint(key, (batch, 2), 0, num_offsets, jnp.int32)

    def crop_image(image: Array, offset: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*offset, 0), (height, width, channels))

    return jax.vmap(crop_image)(padded, start)


AUGMENTS: dict[str, Augment] = {"crop": crop, "flip": flip}


def chain(names: Sequence[str], pixel_scale: Pixels | None = None) -> Augment | None:
    """Chains named augmentations, each with its own key; None for ().

    Args:
        names: names of `AUGMENTS`, in order.
        pixel_scale: the line by which images of bytes are converted first.
    """
    if not names:
        return None

    def augment(key: Array, x: Array) -> Array:
        if pixel_scale is not None:
            x = pixels.to_float32(pixel_scale, x)
        for number, name in enumerate(names):
            x = AUGMENTS[name](rng.fold_in(key, number), x)
        return x

    return augment
