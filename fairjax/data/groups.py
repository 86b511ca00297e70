"""Patient groups from columns: by value, or by bands of a number.

Cells are arrays of str, "" where unknown. A record whose value is unknown has the index
-1, which is never a group of its own.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fairjax.core import require
from fairjax.data.table import Attribute

MOST_NUMBERS = 12
"""Different numbers that may be a group each; a column with more is cut into bands."""
MOST_VALUES = 100
"""Different texts that may be a group each: every figure of a run has a row of them."""


class Column(NamedTuple):
    """One attribute, and the index of every record's value in `attribute.values`."""

    attribute: Attribute
    index: Int[np.ndarray, "E"]


def by_value(name: str, cells: np.ndarray) -> Column:
    """A group per different text, sorted; by number where all are numbers.

    Equal numbers are one value however they are written.

    Raises:
        InputError: there are more than `MOST_VALUES`.
    """
    numbers = numbers_of(cells)
    if numbers is None:
        known = cells != ""
        values, index = np.unique(cells[known], return_inverse=True)
        labels = tuple(str(value) for value in values)
    else:
        known = ~np.isnan(numbers)
        values, index = np.unique(numbers[known], return_inverse=True)
        labels = tuple(f"{value:.15g}" for value in values)
    if len(labels) > MOST_VALUES:
        require.fail(f"data.group {name}", f"at most {MOST_VALUES} values", len(labels))
    found = np.full(len(known), -1, np.int32)
    found[known] = index
    return Column(Attribute(name, labels), found)


def by_band(name: str, values: Float[np.ndarray, "E"], cuts: Sequence[float]) -> Column:
    """A group per band between ascending cuts, a cut being the least of its upper band.

    NaN is unknown. Cuts at 40 and 60 name "under 40", "40 to under 60", "60 and over".
    A band without records stays in place: the names do not depend on the records.
    """
    texts = [f"{cut:.15g}" for cut in cuts]
    inner = (f"{low} to under {high}" for low, high in itertools.pairwise(texts))
    labels = (f"under {texts[0]}", *inner, f"{texts[-1]} and over")
    index = np.searchsorted(np.asarray(cuts, float), values, side="right")
    index = np.where(np.isnan(values), -1, index).astype(np.int32)
    return Column(Attribute(name, labels), index)


def numbers_of(cells: Iterable[str]) -> Float[np.ndarray, "E"] | None:
    """The cells as numbers, NaN for ""; None if one of them is no number."""
    try:
        return np.array([float(cell) if cell else math.nan for cell in cells])
    except ValueError:
        return None


def split_entry(entry: str, header: Sequence[str]) -> tuple[str, tuple[float, ...]]:
    """An entry of `data.group` as (column, cuts): "age:40:60" is ("age", (40, 60)).

    An entry that is a column's name is that column, colons or not.

    Raises:
        InputError: no such column, or cuts that are no ascending finite numbers.
    """
    if entry in header:
        return entry, ()
    name, *texts = entry.split(":")
    require.one_of("data.group", name, header)
    cuts = numbers_of(texts)
    if cuts is not None and np.all(np.isfinite(cuts)) and np.all(np.diff(cuts) > 0):
        return name, tuple(cuts.tolist())
    what = 'ascending numbers to cut at, as in "age:40:60"'
    require.fail("data.group", what, entry)


def of_cells(name: str, cells: np.ndarray, cuts: Sequence[float]) -> Column:
    """The groups of a csv column: bands if there are cuts, else by value.

    Raises:
        InputError: cuts for a column of text, no cuts for a column of more than
            `MOST_NUMBERS` different numbers, or a column without a value.
    """
    numbers = numbers_of(cells)
    if not np.any(cells != ""):
        require.fail(f"data.group {name}", "at least one value", "none")
    if cuts:
        if numbers is None:
            require.fail(f"data.group {name}", "numbers, to be cut", "text")
        return by_band(name, numbers, cuts)
    if numbers is not None:
        different = len(np.unique(numbers[~np.isnan(numbers)]))
        if different > MOST_NUMBERS:
            what = f'cuts, as in "{name}:40:60", above {MOST_NUMBERS} different numbers'
            require.fail(f"data.group {name}", what, different)
    return by_value(name, cells)


def stacked(
    columns: Sequence[Column],
) -> tuple[Int[np.ndarray, "E A"] | None, tuple[Attribute, ...]]:
    """`group` and `groups` of a `Table`; (None, ()) without columns."""
    if not columns:
        return None, ()
    attributes, indices = zip(*columns, strict=True)
    return np.stack(indices, 1), attributes
