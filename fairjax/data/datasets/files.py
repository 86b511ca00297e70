"""The user's own data: an npz of arrays, or a csv with named columns.

Nothing in a file is executed: arrays are read without pickle, text as text. Nothing
that a file claims is believed: what it would take is known before it is read.
"""

import collections
import contextlib
import csv as csv_reader
import gzip
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fairjax.core import require
from fairjax.data import groups
from fairjax.data.table import FREE, MOST_CLASSES, SPLITS, Table

MISSING = frozenset({"", "?", "na", "nan", "null", "none"})
"""Cells that hold no value, whatever their case."""

MOST_BYTES = 2**34
"""Of all arrays of an npz together, unpacked."""
MOST_CHARACTERS = 2**30
"""Of a csv, unpacked; a cell takes about 60 bytes of memory."""
LONGEST_LINE = 2**24
"""Characters of a line of a csv."""
MOST_COLUMNS = 100_000
LONGEST_NAME = 200
"""Characters that name a hospital, patient, group or class."""

_HEADER = 2**14
"""Bytes that are read for an array's header; NumPy reads no longer one."""
_SHAPE_OF = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _file(path: str | None) -> pathlib.Path:
    if not path:
        require.fail("data.path", "the file to read", path)
    if not os.path.isfile(path):
        require.fail("data.path", "a file that exists", path)
    return pathlib.Path(path)


@contextlib.contextmanager
def _reading(path: str | None, what: str) -> Iterator[None]:
    """Whatever the libraries raise over broken bytes is one line."""
    try:
        yield
    except require.InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise require.InputError(
            f"data.path {path}: expected {what}; got {reason}"
        ) from error


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an npz, if all of them are what their headers say.

    The size of a member in the archive's directory bounds what unpacking it gives.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > MOST_BYTES:
            raise ValueError(f"{total} bytes, above {MOST_BYTES}")
        for member in members:
            with archive.open(member) as file:
                header = io.BytesIO(file.read(_HEADER))
            shape, _, dtype = _SHAPE_OF[np.lib.format.read_magic(header)](header)
            # Elements of no size would be free, however many.
            claimed = header.tell() + math.prod(shape) * max(dtype.itemsize, 1)
            if claimed != member.file_size:
                raise ValueError(
                    f"{member.filename} of {member.file_size} bytes, which claims "
                    f"{claimed}: {dtype}{list(shape)}"
                )
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def npz(path: str | None) -> Table:
    """Arrays of a .npz file.

    `{train,test}_images` [n, ...] and `{train,test}_labels` [n] or [n, 1] are required;
    `val_images`, `val_labels` and, for every split, `_client`, `_patient` and `_group`
    are optional; every value of `_group` is a patient group. Labels are integers from
    0. Pixels of type uint8 are divided by 255, and grey images [n, height, width] get a
    channel; in floats NaN is missing.

    Raises:
        InputError: an unreadable file, a missing array, arrays of objects, an array
            that is not as large as it says or all of them too large, labels that are
            no integers, infinite numbers, lengths or shapes that do not match.
    """
    found = _file(path)
    with _reading(path, "an npz of plain arrays"):
        arrays = _arrays(found)

    def column(name: str) -> np.ndarray:
        if name not in arrays:
            raise require.InputError(
                f"data.path {path}: expected an array {name!r}; got "
                f"{', '.join(arrays) or 'none'}{require.nearest(name, arrays)}"
            )
        return arrays[name]

    splits = ["train", "test"] + (["val"] if "val_images" in arrays else [])
    parts = {"x": [], "y": [], "split": []}
    for split in splits:
        images, labels = column(f"{split}_images"), column(f"{split}_labels")
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        where = f"data.path {path}: {split}_labels"
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            require.fail(where, "integers [n]", f"{labels.dtype}{list(labels.shape)}")
        real = images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)
        if images.ndim < 2 or not math.prod(images.shape[1:]) or not real:
            require.fail(
                f"data.path {path}: {split}_images",
                "uint8 or floats [n, ...]",
                f"{images.dtype}{list(images.shape)}",
            )
        if len(images) != len(labels):
            require.fail(where, f"{len(images)} labels, as images", len(labels))
        parts["x"].append(images)
        parts["y"].append(labels)
        parts["split"].append(np.full(len(images), SPLITS[split], np.int8))
    shapes = {part.shape[1:] for part in parts["x"]}
    if len(shapes) > 1:
        require.fail(f"data.path {path}", "images of one shape", sorted(shapes))
    if len({part.dtype == np.uint8 for part in parts["x"]}) > 1:
        require.fail(f"data.path {path}", "uint8 in all splits or in none", "both")
    x, y = np.concatenate(parts["x"]), np.concatenate(parts["y"])
    for label in (y.min(), y.max()) if len(y) else ():
        require.in_range(f"data.path {path}: labels", int(label), 0, MOST_CLASSES - 1)

    def names(suffix: str) -> np.ndarray | None:
        if f"train_{suffix}" not in arrays:
            return None
        values = [column(f"{split}_{suffix}") for split in splits]
        for split, part, images in zip(splits, values, parts["x"], strict=True):
            if part.shape != (len(images),):
                require.fail(
                    f"data.path {path}: {split}_{suffix}",
                    f"{len(images)} values",
                    list(part.shape),
                )
        with _reading(path, f"text in {suffix}"):  # of what Unicode has
            cells = [str(value) for part in values for value in part]
        return _names(f"data.path {path}: {suffix}", cells)

    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if np.isinf(x).any():
            require.fail(f"data.path {path}: images", "finite numbers", "infinity")
    elif x.ndim == 3:
        x = x[..., None]
    classes = tuple(str(label) for label in range(int(y.max()) + 1 if len(y) else 0))
    cells = names("group")
    group, attributes = groups.stacked(
        [] if cells is None else [groups.by_value("group", cells)]
    )
    return _with_known_clients(
        Table(
            name="npz",
            x=x,
            y=y.astype(np.int32),
            split=np.concatenate(parts["split"]),
            classes=classes,
            source=f"file {found.name}",
            client=names("client"),
            patient=names("patient"),
            group=group,
            groups=attributes,
            scale=255.0,
        )
    )


def csv(
    path: str | None,
    *,
    label: str | None,
    client: str | None = None,
    patient: str | None = None,
    group: Sequence[str] = (),
) -> Table:
    """A table with a header line; .csv or .csv.gz.

    Columns that are not named are features and must be numeric; `?`, NA, nan and empty
    cells are missing. Classes are the sorted values of the label column, by number
    where all are numbers. A record without a client belongs to none and is left out.

    An entry of `group` is a column of text or of at most 12 different numbers, with a
    patient group per value in sorted order; or "age:40:60", a column of numbers cut
    into "under 40", "40 to under 60" and "60 and over". A missing value is in no group.
    Numbers stay features as if they were not named: looking at groups changes no model.

    Raises:
        InputError: an unreadable file, or one beyond the bounds above; a column that is
            not there, a cell that is no number, a record without a label, rows of
            unequal length, and see `data/groups.py`.
    """
    found = _file(path)
    opener = gzip.open if found.suffix == ".gz" else open
    with (
        _reading(path, "a csv file"),
        opener(found, "rt", newline="", encoding="utf-8-sig") as file,
    ):
        reader = csv_reader.reader(_lines(file))
        lines = [(reader.line_num, line) for line in reader if line]
    if len(lines) < 2:
        require.fail(
            f"data.path {path}", "a header and at least one record", len(lines)
        )
    header = [name.strip() for name in lines[0][1]]
    numbers, rows = zip(*lines[1:], strict=True)
    if len(header) > MOST_COLUMNS:
        require.fail(
            f"data.path {path}", f"at most {MOST_COLUMNS} columns", len(header)
        )
    at = {name: i for i, name in enumerate(header)}
    if len(at) < len(header):
        twice = [name for name, n in collections.Counter(header).items() if n > 1]
        require.fail(f"data.path {path}", "columns of different names", twice)
    if not label:
        require.fail("data.label", f"one of the columns {', '.join(header)}", label)
    roles = {"label": label, "client": client, "patient": patient}
    roles = {role: column for role, column in roles.items() if column}
    for role, column in roles.items():
        require.one_of(f"data.{role}", column, header)
    for number, row in zip(numbers, rows, strict=True):
        if len(row) != len(header):
            require.fail(
                f"data.path {path} line {number}", f"{len(header)} cells", len(row)
            )

    def column(name: str) -> list[str]:
        return [row[at[name]].strip() for row in rows]

    grouped: dict[str, groups.Column] = {}
    no_features = set(roles.values())
    for entry in group:
        name, cuts = groups.split_entry(entry, header)
        if name in grouped:
            require.fail("data.group", "every column once", tuple(group))
        cells = _names(f"data.group {name}", column(name))
        grouped[name] = groups.of_cells(name, cells, cuts)
        if groups.numbers_of(cells) is None:
            no_features.add(name)
    index, attributes = groups.stacked(list(grouped.values()))
    features = [name for name in header if name not in no_features]
    if not features:
        require.fail(f"data.path {path}", "at least one feature column", header)
    y, classes = _classes(path, label, column(label), numbers)
    named: dict[str, Any] = {
        role: _names(f"data.{role} {name}", column(name))
        for role, name in roles.items()
        if role != "label"
    }
    return _with_known_clients(
        Table(
            name="csv",
            x=np.stack(
                [_values(path, name, column(name), numbers) for name in features],
                axis=1,
            ),
            y=y,
            split=np.full(len(rows), FREE, np.int8),
            classes=classes,
            source=f"file {found.name}",
            features=tuple(features),
            group=index,
            groups=attributes,
            **named,
        )
    )


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a text that is bounded; csv itself takes a line of any length."""
    read = 0
    while line := file.readline(LONGEST_LINE + 1):
        read += len(line)
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line above {LONGEST_LINE} characters")
        if read > MOST_CHARACTERS:
            raise ValueError(f"more than {MOST_CHARACTERS} characters")
        yield line


def _values(
    path: str | None, name: str, cells: Sequence[str], lines: Sequence[int]
) -> np.ndarray:
    values = np.empty(len(cells), np.float32)
    most = float(np.finfo(np.float32).max)
    for i, (cell, line) in enumerate(zip(cells, lines, strict=True)):
        try:
            value = math.nan if cell.lower() in MISSING else float(cell)
        except ValueError:
            require.fail(_cell(path, name, line), "a number", cell)
        if abs(value) > most:
            require.fail(_cell(path, name, line), "a finite number", cell)
        values[i] = value
    return values


def _cell(path: str | None, name: str, line: int) -> str:
    return f"data.path {path} column {name} line {line}"


def _classes(
    path: str | None, name: str, cells: Sequence[str], lines: Sequence[int]
) -> tuple[np.ndarray, tuple[str, ...]]:
    for cell, line in zip(cells, lines, strict=True):
        if cell.lower() in MISSING:
            require.fail(_cell(path, name, line), "a label", cell)
    different = set(_short(f"data.label {name}", cells))
    if len(different) > MOST_CLASSES:
        what = f"at most {MOST_CLASSES} classes"
        require.fail(f"data.label {name}", what, len(different))
    try:
        classes = sorted(different, key=lambda cell: (float(cell), cell))
    except ValueError:
        classes = sorted(different)
    if len(classes) < 2:
        require.fail(f"data.label {name}", "at least two classes", classes)
    index = {value: i for i, value in enumerate(classes)}
    return np.array([index[cell] for cell in cells], np.int32), tuple(classes)


def _names(where: str, cells: Sequence[str]) -> np.ndarray:
    # The array gives every name the room of the longest.
    cells = _short(where, cells)
    return np.array(["" if cell.lower() in MISSING else cell for cell in cells])


def _short(where: str, names: Sequence[str]) -> Sequence[str]:
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        what = f"names of at most {LONGEST_NAME} characters"
        require.fail(where, what, longest)
    return names


def _with_known_clients(table: Table) -> Table:
    if table.client is None or np.all(table.client != ""):
        return table
    known = table.client != ""
    if not known.any():
        require.fail("data.client", "a column that names hospitals", "none named")
    left_out = int(np.sum(~known))
    kept = table.rows(known)
    note = f"{left_out} records name no client and are left out"
    return Table(**{**vars(kept), "notes": (*kept.notes, note)})
