"""Images as bytes until a step reads them, at a quarter of the memory and traffic.

Normalisation by channel is a line, x = low + step * byte. A model can therefore take
bytes and convert them after a batch is gathered (`with_uint8_inputs`).
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from fairjax.core.types import Block, FederatedData, Model, Size


class Pixels(NamedTuple):
    """The line from bytes to inputs, by channel."""

    low: Float[np.ndarray, "I"]
    """The input of byte 0."""
    step: Float[np.ndarray, "I"]
    """The step of the input from one byte to the next."""


def to_uint8(pixels: Pixels | None, data: FederatedData) -> FederatedData:
    """The records with their images as uint8 again.

    Args:
        pixels: the line by which `data.x` [E, H, W, I] follows from bytes; None leaves
            the records as they are.
        data: the records, with NumPy leaves.
    """
    if pixels is None:
        return data
    x = np.rint((np.asarray(data.x) - pixels.low) / pixels.step)
    return dataclasses.replace(data, x=x.astype(np.uint8))


def to_float32(pixels: Pixels, x: Num[Block, "..."]) -> Float[Array, "..."]:
    """Bytes as float32 inputs; an array of another dtype is returned as it is."""
    x = jnp.asarray(x)
    if x.dtype != jnp.uint8:
        return x
    return x.astype(jnp.float32) * pixels.step + pixels.low


def with_uint8_inputs(pixels: Pixels | None, model: Model) -> Model:
    """The model that also takes bytes; the model itself if `pixels` is None."""
    if pixels is None:
        return model

    def apply(params, x, **kwargs):
        return model.apply(params, to_float32(pixels, x), **kwargs)

    def resize(size: Size) -> Model:
        assert model.resize is not None
        return with_uint8_inputs(pixels, model.resize(size))

    return model._replace(apply=apply, resize=None if model.resize is None else resize)
