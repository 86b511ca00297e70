"""Neighbouring federations that differ by a canary.

A guarantee holds for any records that a client may have. So the attacker chooses the
records of the protected place, extreme ones too. Where only the noise is left to hide
the canary, the attacker lets all others have no records.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fairjax.core.types import FederatedData


class Target(NamedTuple):
    """The protected place, whose records differ in a neighbouring federation."""

    client: int
    """The client that has the place."""
    rows: Int[np.ndarray, "n"]
    """The place's records in the flat block."""
    is_client: bool
    """Whether the place is the whole client."""


Records = tuple[Float[np.ndarray, "n ..."], Int[np.ndarray, "n"]]
"""(inputs, labels) of a place."""
LOUD_SCALE = 10.0
"""The factor on a loud canary's inputs."""
FLOAT_MAX = float(np.finfo(np.float32).max)


def _loud_canary(x: np.ndarray, y: np.ndarray, classes: int) -> Records:
    return x * np.float32(LOUD_SCALE), (y + 1) % classes


def _spike_canary(x: np.ndarray, y: np.ndarray, classes: int) -> Records:
    """One input as large as a fill value; loss and gradient are finite, and huge."""
    inputs = np.zeros_like(x)
    inputs.reshape(len(x), -1)[:, 0] = 0.9 * FLOAT_MAX
    return inputs, y


def _overflow_canary(x: np.ndarray, y: np.ndarray, classes: int) -> Records:
    """All inputs so large that a step makes the model, or the loss, infinite."""
    return np.where(x < 0, -1, 1).astype(x.dtype) * np.float32(1e30), y


def _class_canary(x: np.ndarray, y: np.ndarray, classes: int) -> Records:
    return x, np.full_like(y, classes - 1)


CANARIES: dict[str, Callable[[np.ndarray, np.ndarray, int], Records]] = {
    "loud": _loud_canary,
    "spike": _spike_canary,
    "overflow": _overflow_canary,
    "class": _class_canary,
}
"""Name -> (inputs, labels, classes) -> the canary's inputs and labels.

- loud: large inputs with wrong labels, while all others have no records.
- spike: one huge input.
- overflow: inputs at which training overflows.
- class: a class that nobody else has.
"""


def neighbours(
    canary: str, data: FederatedData, target: Target, classes: int, *, replace_one: bool
) -> tuple[FederatedData, FederatedData]:
    """(with, without) the canary.

    Public facts are alike in both: all sizes, and that an absent place exists. An
    absent record is NaN, which trains nothing. An absent client has no records, and
    keeps its place in the population.

    Args:
        canary: one of `CANARIES`.
        data: the records of all others, where the canary leaves them any.
        target: the place of the canary.
        classes: C.
        replace_one: whether other records take the canary's place ("replace_one"): the
            records of `data`, or the opposite of a loud canary. Otherwise the place is
            empty ("zero_out").
    """
    x, y = np.array(data.x, np.float32), np.array(data.y)
    rows, count = target.rows, np.array(data.count)
    other_counts = count * (np.arange(len(count)) != target.client)
    records = x[rows].copy(), y[rows].copy()
    if canary == "class":
        y[y == classes - 1] = 0
        records = records[0], y[rows].copy()
    if canary == "loud":
        if target.is_client:
            count = count - other_counts
        else:
            x[:] = np.nan
    canary_data = _replace_records(
        data, x, y, count, rows, CANARIES[canary](*records, classes)
    )
    if not replace_one:
        if target.is_client:
            return canary_data, _replace_records(
                data, x, y, np.where(other_counts, count, 0), rows, records
            )
        blank_records = np.full_like(records[0], np.nan), records[1]
        return canary_data, _replace_records(data, x, y, count, rows, blank_records)
    replacement = records
    if canary == "loud":
        replacement = -np.asarray(canary_data.x)[rows], np.asarray(canary_data.y)[rows]
    return canary_data, _replace_records(data, x, y, count, rows, replacement)


def _replace_records(
    data: FederatedData,
    x: np.ndarray,
    y: np.ndarray,
    count: np.ndarray,
    rows: np.ndarray,
    records: Records,
) -> FederatedData:
    """The federation with inputs `x` and labels `y`, but `records` in these rows."""
    x, y = x.copy(), y.copy()
    x[rows], y[rows] = records
    labels = np.zeros_like(np.asarray(data.labels))
    for k, (start, number) in enumerate(zip(data.offset, count, strict=True)):
        np.add.at(labels[k], y[start : start + number], 1)
    return dataclasses.replace(data, x=x, y=y, count=count, labels=labels)
