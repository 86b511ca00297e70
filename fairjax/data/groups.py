"""Patient groups from columns: by value, or by bands of a number.

Cells are arrays of str, "" where unknown. A record with an unknown value has the index
-1 and belongs to no group.
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
"""Different numbers that may each be a group; a column with more needs cuts."""
MOST_VALUES = 100
"""Different values that may each be a group; figures have a row for each group."""


class Column(NamedTuple):
    """One attribute, and the index of every record's value in `attribute.values`."""

    attribute: Attribute
    index: Int[np.ndarray, "E"]


def by_value(name: str, cells: np.ndarray) -> Column:
    """A group for every different text, in sorted order.

    If all cells are numbers, groups are sorted by number, and equal numbers are one
    value however they are written.

    Raises:
        InputError: there are more than `MOST_VALUES` values.
    """
    numbers = parse_numbers(cells)
    if numbers is None:
        has_value = cells != ""
        values, index = np.unique(cells[has_value], return_inverse=True)
        labels = tuple(str(value) for value in values)
    else:
        has_value = ~np.isnan(numbers)
        values, index = np.unique(numbers[has_value], return_inverse=True)
        labels = tuple(f"{value:.15g}" for value in values)
    if len(labels) > MOST_VALUES:
        require.fail(f"data.group {name}", f"at most {MOST_VALUES} values", len(labels))
    group_index = np.full(len(has_value), -1, np.int32)
    group_index[has_value] = index
    return Column(Attribute(name, labels), group_index)


def by_band(name: str, values: Float[np.ndarray, "E"], cuts: Sequence[float]) -> Column:
    """A group for every band between ascending cuts; a cut belongs to its upper band.

    Cuts at 40 and 60 name "under 40", "40 to under 60" and "60 and over". A band
    without records stays, so that names do not depend on the records.

    Args:
        name: the name of the attribute.
        values: the number of every record, NaN where unknown.
        cuts: ascending numbers, at least one.
    """
    texts = [f"{cut_point:.15g}" for cut_point in cuts]
    middle_labels = (
        f"{low} to under {high}" for low, high in itertools.pairwise(texts)
    )
    labels = (f"under {texts[0]}", *middle_labels, f"{texts[-1]} and over")
    index = np.searchsorted(np.asarray(cuts, float), values, side="right")
    index = np.where(np.isnan(values), -1, index).astype(np.int32)
    return Column(Attribute(name, labels), index)


def parse_numbers(cells: Iterable[str]) -> Float[np.ndarray, "E"] | None:
    """The cells as numbers, NaN for ""; None if any other cell is no number."""
    try:
        return np.array([float(cell) if cell else math.nan for cell in cells])
    except ValueError:
        return None


def split_entry(entry: str, header: Sequence[str]) -> tuple[str, tuple[float, ...]]:
    """An entry of `data.group` as (column, cuts): "age:40:60" is ("age", (40, 60)).

    An entry that equals a column's name is that column, even with colons.

    Raises:
        InputError: there is no such column, or the cuts are not ascending and finite.
    """
    if entry in header:
        return entry, ()
    name, *texts = entry.split(":")
    require.one_of("data.group", name, header)
    cuts = parse_numbers(texts)
    if cuts is not None and np.all(np.isfinite(cuts)) and np.all(np.diff(cuts) > 0):
        return name, tuple(cuts.tolist())
    requirement = 'ascending numbers to cut at, as in "age:40:60"'
    require.fail("data.group", requirement, entry)


def from_cells(name: str, cells: np.ndarray, cuts: Sequence[float]) -> Column:
    """The groups of a csv column: bands if there are cuts, else a group per value.

    Raises:
        InputError: cuts for a column of text, no cuts for a column of more than
            `MOST_NUMBERS` different numbers, or a column without a value.
    """
    numbers = parse_numbers(cells)
    if not np.any(cells != ""):
        require.fail(f"data.group {name}", "at least one value", "none")
    if cuts:
        if numbers is None:
            require.fail(f"data.group {name}", "numbers, to be cut", "text")
        return by_band(name, numbers, cuts)
    if numbers is not None:
        num_values = len(np.unique(numbers[~np.isnan(numbers)]))
        if num_values > MOST_NUMBERS:
            requirement = (
                f'cuts, as in "{name}:40:60", above {MOST_NUMBERS} different numbers'
            )
            require.fail(f"data.group {name}", requirement, num_values)
    return by_value(name, cells)


def stack(
    columns: Sequence[Column],
) -> tuple[Int[np.ndarray, "E A"] | None, tuple[Attribute, ...]]:
    """The fields `group` and `groups` of a `Table`; (None, ()) without columns."""
    if not columns:
        return None, ()
    attributes, indices = zip(*columns, strict=True)
    return np.stack(indices, 1), attributes
