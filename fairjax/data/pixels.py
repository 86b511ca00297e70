"""Images as bytes until a step reads them: a quarter of memory and of traffic.

Normalisation by channel is a line, x = low + step * byte, so that a model can be given
the bytes and read them itself (`reading`), after the gather of a batch.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from fairjax.core.types import Block, Federation, Model, Size


class Pixels(NamedTuple):
    """What the bytes of every channel are to a model."""

    low: Float[np.ndarray, "I"]
    """Of byte 0."""
    step: Float[np.ndarray, "I"]
    """From one byte to the next."""


def packed(pixels: Pixels | None, data: Federation) -> Federation:
    """The records with their images as uint8; None: as they are.

    Args:
        pixels: by which `data.x` [E, H, W, I] was made of bytes.
        data: with NumPy leaves.
    """
    if pixels is None:
        return data
    x = np.rint((np.asarray(data.x) - pixels.low) / pixels.step)
    return dataclasses.replace(data, x=x.astype(np.uint8))


def read(pixels: Pixels, x: Num[Block, "..."]) -> Float[Array, "..."]:
    """Bytes as the model's inputs, to float32; any other dtype is returned as it is."""
    x = jnp.asarray(x)
    if x.dtype != jnp.uint8:
        return x
    return x.astype(jnp.float32) * pixels.step + pixels.low


def reading(pixels: Pixels | None, model: Model) -> Model:
    """The model that takes bytes as well; None: the model itself."""
    if pixels is None:
        return model

    def apply(params, x, **given):
        return model.apply(params, read(pixels, x), **given)

    def resize(size: Size) -> Model:
        assert model.resize is not None
        return reading(pixels, model.resize(size))

    return model._replace(apply=apply, resize=None if model.resize is None else resize)
