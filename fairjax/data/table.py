"""A data set on the host, before it becomes a federation."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int8, Num, UInt8

from fairjax.core import require

TRAIN, VAL, TEST = range(3)
FREE = -1
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}
MOST_RECORDS = 2**31 - 1
"""Record indices are int32 on a device."""
MOST_CLASSES = 1000
"""The summary of every client has an entry per class."""


class Attribute(NamedTuple):
    """An attribute by which patients are grouped: sex, an age band, ..."""

    name: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """The records of a data set as NumPy arrays, with their origin.

    Columns of names are arrays of str, "" where unknown. They are None if the data set
    has no such column.

    Shapes: E records, F features, A attributes.

    Raises:
        InputError: no record, too many records or classes, columns of different
            lengths, or a label or group index out of range.
    """

    name: str
    x: Float[np.ndarray, "E F"] | UInt8[np.ndarray, "E ..."] | Num[np.ndarray, "E ..."]
    """Features, NaN where missing, or uint8 images."""
    y: Int[np.ndarray, "E"]
    split: Int8[np.ndarray, "E"]
    """TRAIN, VAL or TEST if the data set fixes the split, else FREE."""
    classes: tuple[str, ...]
    """The second of two classes is positive unless `positive` names the first."""
    source: str
    """Citation and licence in one line."""
    client: np.ndarray | None = None
    patient: np.ndarray | None = None
    group: Int[np.ndarray, "E A"] | None = None
    """The index of every record's value in `groups[a].values`, -1 where unknown."""
    groups: tuple[Attribute, ...] = ()
    features: tuple[str, ...] = ()
    scale: float = 1.0
    """The divisor of pixels."""
    notes: tuple[str, ...] = ()
    positive: str | None = None
    """The positive one of two classes, if it is not the second."""

    def __post_init__(self) -> None:
        rows = len(self.x)
        if not rows:
            require.fail(f"data {self.name}", "at least one record", 0)
        require.in_range(f"data {self.name} records", rows, 1, MOST_RECORDS)
        require.in_range(
            f"data {self.name} classes", len(self.classes), 1, MOST_CLASSES
        )
        for field in ("y", "split", "client", "patient", "group"):
            column = getattr(self, field)
            if column is not None and len(column) != rows:
                require.fail(f"data {self.name} {field}", f"{rows} values", len(column))
        self._check_groups(rows)
        if self.y.min() < 0 or self.y.max() >= len(self.classes):
            require.fail(
                f"data {self.name} labels",
                f"0 to {len(self.classes) - 1}",
                (int(self.y.min()), int(self.y.max())),
            )

    def _check_groups(self, rows: int) -> None:
        shape = None if self.group is None else self.group.shape
        expected = (rows, len(self.groups))
        if self.group is None and not self.groups:
            return
        if self.group is None or shape != expected:
            require.fail(f"data {self.name} group", f"shape {expected}", shape)
        for (name, values), index in zip(self.groups, self.group.T, strict=True):
            if index.min() < -1 or index.max() >= len(values):
                require.fail(
                    f"data {self.name} group {name}",
                    f"-1 to {len(values) - 1}",
                    (int(index.min()), int(index.max())),
                )

    def rows(self, index: np.ndarray) -> "Table":
        """The table with the records of an index array or a boolean mask."""
        columns = {
            field: column[index]
            for field in ("x", "y", "split", "client", "patient", "group")
            if (column := getattr(self, field)) is not None
        }
        return dataclasses.replace(self, **columns)
