"""Inputs as models take them: standardised by what training records are like."""

import functools

import numpy as np
from jaxtyping import Float, Int, UInt8

from fairjax.data.pixels import Pixels
from fairjax.data.table import TRAIN, Table


def standardised(
    table: Table,
    owner: Int[np.ndarray, "E"],
    split: Int[np.ndarray, "E"],
    clients: int,
    normalise: str,
) -> tuple[Float[np.ndarray, "E ..."], Pixels | None]:
    """Imputed and standardised float32 inputs: images by channel, tables by column.

    Args:
        table: E records.
        owner: client of every record.
        split: of every record; training records alone decide.
        clients: N.
        normalise: "pooled", by all training records; "client", by those of each client;
            "none", by nothing. What is missing takes the mean that would be taken away,
            under "none" the pooled one.

    Returns:
        (inputs, how bytes become them; None for other inputs, and by client).
    """
    x, train = table.x, split == TRAIN
    neutral = np.zeros(x.shape[-1], np.float32), np.ones(x.shape[-1], np.float32)
    bytes_ = x.dtype == np.uint8
    moments = functools.partial(_moments_of_bytes, scale=table.scale)
    written = functools.partial(_write_bytes, scale=table.scale)
    if not bytes_:
        x, moments, written = x.astype(np.float32), _moments, _write
    pooled = moments(x[train], neutral)
    if normalise == "client":
        out = np.empty(x.shape, np.float32)
        for client in range(clients):
            mine = owner == client
            own = moments(x[mine & train], pooled)
            out[mine] = written(x[mine], own[0], *own)
        return out, None
    mean, deviation = pooled if normalise == "pooled" else neutral
    out = written(x, pooled[0], mean, deviation)
    step = 1 / (np.float32(table.scale) * deviation)
    return out, Pixels(-mean / deviation, step) if bytes_ else None


def _write(
    x: Float[np.ndarray, "n ..."],
    missing: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
) -> Float[np.ndarray, "n ..."]:
    """(x - mean) / deviation, with `missing` where nothing is known."""
    known = np.where(np.isnan(x), missing, x)
    return ((known - mean) / deviation).astype(np.float32)


def _write_bytes(
    x: UInt8[np.ndarray, "n ..."],
    missing: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    *,
    scale: float,
) -> Float[np.ndarray, "n ..."]:
    """The same of x / scale: looked up, so that no more than the result is held."""
    levels = _write(
        np.arange(256)[:, None] / np.float32(scale), missing, mean, deviation
    )
    out = np.empty(x.shape, np.float32)
    for channel, level in enumerate(levels.T):
        np.take(level, x[..., channel], out=out[..., channel])
    return out


def _moments(
    x: Float[np.ndarray, "n ..."], fallback: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation over all but the last axis.

    A column without a value takes the fallback; a constant one has deviation 1.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    known = ~np.isnan(rows)
    return _weighted(np.where(known, rows, 0), known, fallback)


def _moments_of_bytes(
    x: UInt8[np.ndarray, "n ..."],
    fallback: tuple[np.ndarray, np.ndarray],
    *,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The same of x / scale, from how often a channel has every byte."""
    counts = np.zeros((256, x.shape[-1]), np.int64)
    for image in x:
        for channel in range(x.shape[-1]):
            counts[:, channel] += np.bincount(
                image[..., channel].ravel(), minlength=256
            )
    value = np.broadcast_to(np.arange(256)[:, None] / scale, counts.shape)
    return _weighted(value, counts, fallback)


def _weighted(
    values: Float[np.ndarray, "v I"],
    times: np.ndarray,
    fallback: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of values that occur so many times each, see `_moments`."""
    count = times.sum(0)
    mean = (times * values).sum(0) / np.maximum(count, 1)
    spread = (times * (values - mean) ** 2).sum(0)
    deviation = np.sqrt(spread / np.maximum(count, 1))
    mean = np.where(count > 0, mean, fallback[0])
    deviation = np.where(count > 0, deviation, fallback[1])
    # The rounding of a constant in float32 is no spread either.
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    return mean.astype(np.float32), np.where(constant, 1, deviation).astype(np.float32)
