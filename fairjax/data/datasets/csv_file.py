"""A user's table as a csv file with named columns, packed by gzip or not."""

import collections
import csv
import gzip
import io
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fairjax.core import require
from fairjax.data import groups
from fairjax.data.datasets import files
from fairjax.data.datasets.files import MISSING
from fairjax.data.table import FREE, MOST_CLASSES, Table

MOST_CHARACTERS = 2**30
"""Characters of a file, unpacked; a cell takes about 60 bytes of memory."""
LONGEST_LINE = 2**24
"""Characters of a line."""
MOST_COLUMNS = 100_000


class _Cells(NamedTuple):
    """The cells of a file as text."""

    path: str | None
    index: dict[str, int]
    """Column name -> its number, in the order of the header."""
    lines: tuple[int, ...]
    """The line of every record in the file, for messages."""
    rows: tuple[list[str], ...]

    def column(self, name: str) -> list[str]:
        """The cells of a column without surrounding spaces."""
        return [row[self.index[name]].strip() for row in self.rows]

    def place(self, name: str, line: int) -> str:
        """The name of a cell in messages."""
        return f"data.path {self.path} column {name} line {line}"


def load(
    path: str | None,
    *,
    label: str | None,
    client: str | None = None,
    patient: str | None = None,
    group: Sequence[str] = (),
) -> Table:
    """Reads a table with a header line from a .csv or .csv.gz file.

    Columns without a role are features and must be numeric; `?`, NA, nan and empty
    cells are missing. Classes are the sorted values of the label column, by number if
    all are numbers. A record without a client belongs to none and is left out.

    An entry of `group` names a column of text, or of at most 12 different numbers, and
    makes a patient group of every value, in sorted order. An entry "age:40:60" cuts a
    column of numbers into "under 40", "40 to under 60" and "60 and over". A missing
    value is in no group. Grouped columns of numbers stay features, so that looking at
    groups changes no model.

    Args:
        path: the file.
        label: the column of the class.
        client: the column of the client, if there is one.
        patient: the column of the patient, if there is one.
        group: columns of patient groups.

    Raises:
        InputError: an unreadable file, or one beyond the bounds of this module; a
            missing column, a cell that is no number, a record without a label, or rows
            of unequal length; see also `groups.split_entry` and `groups.from_cells`.
    """
    file_path = files.existing_file(path)
    cells = _read(path, file_path)
    header = list(cells.index)
    roles = _roles(cells, label=label, client=client, patient=patient)
    group_columns, text_columns = _group_columns(cells, group)
    index, attributes = groups.stack(group_columns)
    non_features = {*roles.values(), *text_columns}
    features = [name for name in header if name not in non_features]
    if not features:
        require.fail(f"data.path {path}", "at least one feature column", header)
    y, classes = _classes(cells, roles["label"])
    names = {
        role: files.names(f"data.{role} {name}", cells.column(name))
        for role, name in roles.items()
        if role != "label"
    }
    return files.drop_unknown_clients(
        Table(
            name="csv",
            x=np.stack([_values(cells, name) for name in features], axis=1),
            y=y,
            split=np.full(len(cells.rows), FREE, np.int8),
            classes=classes,
            source=f"file {file_path.name}",
            features=tuple(features),
            group=index,
            groups=attributes,
            client=names.get("client"),
            patient=names.get("patient"),
        )
    )


def _read(path: str | None, file_path: pathlib.Path) -> _Cells:
    """The header and the cells of a file.

    Raises:
        InputError: no csv file, no record, too many columns, or two of one name.
    """
    opener = gzip.open if file_path.suffix == ".gz" else open
    with (
        files.convert_errors(path, "a csv file"),
        opener(file_path, "rt", newline="", encoding="utf-8-sig") as file,
    ):
        reader = csv.reader(_lines(file))
        lines = [(reader.line_num, line) for line in reader if line]
    if len(lines) < 2:
        require.fail(
            f"data.path {path}", "a header and at least one record", len(lines)
        )
    header = [name.strip() for name in lines[0][1]]
    if len(header) > MOST_COLUMNS:
        require.fail(
            f"data.path {path}", f"at most {MOST_COLUMNS} columns", len(header)
        )
    index = {name: i for i, name in enumerate(header)}
    if len(index) < len(header):
        duplicates = [name for name, n in collections.Counter(header).items() if n > 1]
        require.fail(f"data.path {path}", "columns of different names", duplicates)
    numbers, rows = zip(*lines[1:], strict=True)
    return _Cells(path, index, numbers, rows)


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a file within bounds; the csv reader alone takes any length."""
    num_characters = 0
    while line := file.readline(LONGEST_LINE + 1):
        num_characters += len(line)
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line above {LONGEST_LINE} characters")
        if num_characters > MOST_CHARACTERS:
            raise ValueError(f"more than {MOST_CHARACTERS} characters")
        yield line


def _roles(
    cells: _Cells, *, label: str | None, client: str | None, patient: str | None
) -> dict[str, str]:
    """The column of every role that has one: "label", "client", "patient".

    Raises:
        InputError: no label, a missing column, or a row of another length.
    """
    header = list(cells.index)
    if not label:
        require.fail("data.label", f"one of the columns {', '.join(header)}", label)
    roles = {"label": label, "client": client, "patient": patient}
    roles = {role: column for role, column in roles.items() if column}
    for role, column in roles.items():
        require.one_of(f"data.{role}", column, header)
    for line, row in zip(cells.lines, cells.rows, strict=True):
        if len(row) != len(header):
            require.fail(
                f"data.path {cells.path} line {line}", f"{len(header)} cells", len(row)
            )
    return roles


def _group_columns(
    cells: _Cells, group: Sequence[str]
) -> tuple[list[groups.Column], set[str]]:
    """The patient groups of every entry, and the names of the columns of text.

    Raises:
        InputError: a column twice, and see `groups`.
    """
    columns: dict[str, groups.Column] = {}
    text_columns: set[str] = set()
    header = list(cells.index)
    for entry in group:
        name, cuts = groups.split_entry(entry, header)
        if name in columns:
            require.fail("data.group", "every column once", tuple(group))
        values = files.names(f"data.group {name}", cells.column(name))
        columns[name] = groups.from_cells(name, values, cuts)
        if groups.parse_numbers(values) is None:
            text_columns.add(name)
    return list(columns.values()), text_columns


def _classes(cells: _Cells, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of every record [E], and the names of classes.

    Raises:
        InputError: a record without a label, one class, or more than `MOST_CLASSES`.
    """
    column = cells.column(name)
    for cell, line in zip(column, cells.lines, strict=True):
        if cell.lower() in MISSING:
            require.fail(cells.place(name, line), "a label", cell)
    labels = set(files.check_lengths(f"data.label {name}", column))
    if len(labels) > MOST_CLASSES:
        requirement = f"at most {MOST_CLASSES} classes"
        require.fail(f"data.label {name}", requirement, len(labels))
    try:
        classes = sorted(labels, key=lambda cell: (float(cell), cell))
    except ValueError:
        classes = sorted(labels)
    if len(classes) < 2:
        require.fail(f"data.label {name}", "at least two classes", classes)
    index = {value: i for i, value in enumerate(classes)}
    return np.array([index[cell] for cell in column], np.int32), tuple(classes)


def _values(cells: _Cells, name: str) -> np.ndarray:
    """The numbers of a column [E] as float32, NaN where missing.

    Raises:
        InputError: a cell that is no number, or is beyond float32.
    """
    column = cells.column(name)
    values = np.empty(len(column), np.float32)
    max_float = float(np.finfo(np.float32).max)
    for i, (cell, line) in enumerate(zip(column, cells.lines, strict=True)):
        try:
            value = math.nan if cell.lower() in MISSING else float(cell)
        except ValueError:
            require.fail(cells.place(name, line), "a number", cell)
        if abs(value) > max_float:
            require.fail(cells.place(name, line), "a finite number", cell)
        values[i] = value
    return values
