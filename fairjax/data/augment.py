"""Random changes of images in training, drawn inside the step for every record anew."""

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
    """Every image as it is or with left and right exchanged, each as likely."""
    turned = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(turned, x[:, :, ::-1], x)


def crop(key: Key[Array, ""], x: Float[Array, "B H W I"]) -> Float[Array, "B H W I"]:
    """Every image moved by up to an eighth of its height and width, 0 where it was.

    0 is the mean of a channel after `data.normalise`. All moves are as likely; at 32 x
    32 they are the usual 4 pixels of CIFAR (He et al. 2016).
    """
    batch, height, width, channels = x.shape
    reach = (height // 8, width // 8)
    padded = jnp.pad(x, ((0, 0), *((r, r) for r in reach), (0, 0)))
    most = 2 * jnp.asarray(reach, jnp.int32) + 1
    start = jax.random.randint(key, (batch, 2), 0, most, jnp.int32)

    def window(image: Array, at: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*at, 0), (height, width, channels))

    return jax.vmap(window)(padded, start)


AUGMENTS: dict[str, Augment] = {"crop": crop, "flip": flip}


def chain(names: Sequence[str], bytes_: Pixels | None = None) -> Augment | None:
    """The named changes in turn, each with a key of its own; None for ().

    Args:
        names: of `AUGMENTS`.
        bytes_: how images that are bytes are read first.
    """
    if not names:
        return None

    def augment(key: Array, x: Array) -> Array:
        if bytes_ is not None:
            x = pixels.read(bytes_, x)
        for number, name in enumerate(names):
            x = AUGMENTS[name](rng.at(key, number), x)
        return x

    return augment
