"""Standardised inputs of models, by the moments of training records."""

import functools

import numpy as np
from jaxtyping import Float, Int, UInt8

from fairjax.data.pixels import Pixels
from fairjax.data.table import TRAIN, Table


def fit_transform(
    table: Table,
    owner: Int[np.ndarray, "E"],
    split: Int[np.ndarray, "E"],
    clients: int,
    normalise: str,
) -> tuple[Float[np.ndarray, "E ..."], Pixels | None]:
    """Imputes and standardises inputs: images by channel, tables by column.

        x' = (x - mean) / deviation,

    where x is divided by `table.scale` first if it holds bytes.

    Args:
        table: the E records.
        owner: the client of every record.
        split: the split of every record; moments come from training records alone.
        clients: N.
        normalise: whose moments are used: "pooled", those of all training records;
            "client", those of each client; "none", mean 0 and deviation 1. A missing
            value takes the mean of these moments, with "none" the pooled mean.

    Returns:
        The float32 inputs [E, ...], and the line from bytes to inputs. The line is None
        for other inputs, and with "client".

    Edge cases:
        A constant column has deviation 1. A column that a client never measured takes
        the pooled moments, and one without any value has mean 0.
    """
    x, is_train = table.x, split == TRAIN
    identity_moments = (
        np.zeros(x.shape[-1], np.float32),
        np.ones(x.shape[-1], np.float32),
    )
    is_uint8 = x.dtype == np.uint8
    moments = functools.partial(_moments_of_bytes, scale=table.scale)
    transform = functools.partial(_transform_bytes, scale=table.scale)
    if not is_uint8:
        x, moments, transform = x.astype(np.float32), _moments, _transform
    pooled_moments = moments(x[is_train], identity_moments)
    if normalise == "client":
        out = np.empty(x.shape, np.float32)
        for client in range(clients):
            in_client = owner == client
            client_moments = moments(x[in_client & is_train], pooled_moments)
            out[in_client] = transform(x[in_client], client_moments[0], *client_moments)
        return out, None
    mean, deviation = pooled_moments if normalise == "pooled" else identity_moments
    out = transform(x, pooled_moments[0], mean, deviation)
    step = 1 / (np.float32(table.scale) * deviation)
    return out, Pixels(-mean / deviation, step) if is_uint8 else None


def _transform(
    x: Float[np.ndarray, "n ..."],
    missing: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
) -> Float[np.ndarray, "n ..."]:
    """(x - mean) / deviation, with `missing` in place of NaN."""
    values = np.where(np.isnan(x), missing, x)
    return ((values - mean) / deviation).astype(np.float32)


def _transform_bytes(
    x: UInt8[np.ndarray, "n ..."],
    missing: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    *,
    scale: float,
) -> Float[np.ndarray, "n ..."]:
    """`_transform` of x / scale by look-up, which allocates the result alone."""
    levels = _transform(
        np.arange(256)[:, None] / np.float32(scale), missing, mean, deviation
    )
    out = np.empty(x.shape, np.float32)
    for channel, level in enumerate(levels.T):
        np.take(level, x[..., channel], out=out[..., channel])
    return out


def _moments(
    x: Float[np.ndarray, "n ..."], fallback: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and deviation over all axes but the last.

    A column without a value takes the fallback, and a constant column has deviation 1.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    has_value = ~np.isnan(rows)
    return _weighted_moments(np.where(has_value, rows, 0), has_value, fallback)


def _moments_of_bytes(
    x: UInt8[np.ndarray, "n ..."],
    fallback: tuple[np.ndarray, np.ndarray],
    *,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """`_moments` of x / scale, from the counts of every byte in a channel."""
    counts = np.zeros((256, x.shape[-1]), np.int64)
    for image in x:
        for channel in range(x.shape[-1]):
            counts[:, channel] += np.bincount(
                image[..., channel].ravel(), minlength=256
            )
    value = np.broadcast_to(np.arange(256)[:, None] / scale, counts.shape)
    return _weighted_moments(value, counts, fallback)


def _weighted_moments(
    values: Float[np.ndarray, "v I"],
    weights: np.ndarray,
    fallback: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and deviation of values that occur `weights` times, see `_moments`."""
    count = weights.sum(0)
    mean = (weights * values).sum(0) / np.maximum(count, 1)
    sum_squares = (weights * (values - mean) ** 2).sum(0)
    deviation = np.sqrt(sum_squares / np.maximum(count, 1))
    mean = np.where(count > 0, mean, fallback[0])
    deviation = np.where(count > 0, deviation, fallback[1])
    # Rounding makes a constant vary in float32.
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    return mean.astype(np.float32), np.where(constant, 1, deviation).astype(np.float32)
