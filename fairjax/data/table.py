"""One data set on the host, before it becomes a federation."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Int8, Num, UInt8

from fairjax import checks

TRAIN, VAL, TEST = range(3)
FREE = -1
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}


@dataclasses.dataclass(frozen=True)
class Table:
    """Records as NumPy arrays with what is known of their origin.

    Columns of names are arrays of str, "" where unknown, or None where the data set has
    no such column.
    """

    name: str
    x: Float[np.ndarray, "E F"] | UInt8[np.ndarray, "E ..."] | Num[np.ndarray, "E ..."]
    """Features, NaN where missing, or uint8 images."""
    y: Int[np.ndarray, "E"]
    split: Int8[np.ndarray, "E"]
    """TRAIN, VAL or TEST where the data set fixes it, else FREE."""
    classes: tuple[str, ...]
    source: str
    """Citation and licence, one line."""
    client: np.ndarray | None = None
    patient: np.ndarray | None = None
    group: np.ndarray | None = None
    features: tuple[str, ...] = ()
    scale: float = 1.0
    """Pixels are divided by it."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = len(self.x)
        if not rows:
            checks.fail(f"data {self.name}", "at least one record", 0)
        for field in ("y", "split", "client", "patient", "group"):
            column = getattr(self, field)
            if column is not None and len(column) != rows:
                checks.fail(f"data {self.name} {field}", f"{rows} values", len(column))
        if self.y.min() < 0 or self.y.max() >= len(self.classes):
            checks.fail(
                f"data {self.name} labels",
                f"0 to {len(self.classes) - 1}",
                (int(self.y.min()), int(self.y.max())),
            )

    def rows(self, index: np.ndarray) -> "Table":
        """The records of an index or a boolean mask."""
        columns = {
            field: column[index]
            for field in ("x", "y", "split", "client", "patient", "group")
            if (column := getattr(self, field)) is not None
        }
        return dataclasses.replace(self, **columns)
