"""A user's images or features as arrays of an npz file.

Arrays are read without pickle, so nothing in the file is executed. The reader checks
what an array claims to be before it asks for memory.
"""

import io
import math
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int8, Shaped

from fairjax.core import require
from fairjax.data import groups
from fairjax.data.datasets import files
from fairjax.data.table import MOST_CLASSES, SPLITS, Table

MOST_BYTES = 2**34
"""Bytes of all arrays of a file together, unpacked."""

_HEADER = 2**14
"""Bytes that are read for the header of an array; NumPy accepts no longer header."""
_SHAPE_OF = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _Archive(NamedTuple):
    """The arrays of a file by name."""

    path: str | None
    arrays: dict[str, np.ndarray]

    @property
    def splits(self) -> list[str]:
        return ["train", "test"] + (["val"] if "val_images" in self.arrays else [])

    def array(self, name: str) -> np.ndarray:
        """The array of that name.

        Raises:
            InputError: there is none.
        """
        if name not in self.arrays:
            raise require.InputError(
                f"data.path {self.path}: expected an array {name!r}; got "
                f"{', '.join(self.arrays) or 'none'}"
                f"{require.suggestion(name, self.arrays)}"
            )
        return self.arrays[name]


class _Records(NamedTuple):
    """The records of all splits, split after split."""

    x: Shaped[np.ndarray, "E ..."]
    y: Int[np.ndarray, "E"]
    split: Int8[np.ndarray, "E"]
    rows: list[int]
    """Records of every split of the archive."""


def load(path: str | None) -> Table:
    """Reads the arrays of an npz file as a table.

    `{train,test}_images` [n, ...] and `{train,test}_labels` [n] or [n, 1] are required.
    `val_images` and `val_labels` are optional, as are `_client`, `_patient` and
    `_group` [n] of every split; every value of `_group` is a patient group. Labels are
    integers from 0. uint8 pixels are divided by 255, and grey images [n, height, width]
    get a channel. NaN is missing in images of floats.

    Raises:
        InputError: an unreadable file, a missing array, an array of objects, an array
            of another size than it claims, arrays beyond `MOST_BYTES` in total, labels
            that are no integers, infinite numbers, or lengths or shapes that do not
            match.
    """
    file_path = files.existing_file(path)
    with files.convert_errors(path, "an npz of plain arrays"):
        archive = _Archive(path, _arrays(file_path))
    records = _records(archive)
    x, y = _inputs(path, records.x), records.y
    classes = tuple(str(label) for label in range(int(y.max()) + 1 if len(y) else 0))
    cells = _names(archive, "group", records.rows)
    group, attributes = groups.stack(
        [] if cells is None else [groups.by_value("group", cells)]
    )
    return files.drop_unknown_clients(
        Table(
            name="npz",
            x=x,
            y=y.astype(np.int32),
            split=records.split,
            classes=classes,
            source=f"file {file_path.name}",
            client=_names(archive, "client", records.rows),
            patient=_names(archive, "patient", records.rows),
            group=group,
            groups=attributes,
            scale=255.0,
        )
    )


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an npz, if every array has the size that its header claims.

    The archive's directory bounds the bytes that unpacking a member gives.
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
            # Elements of size 0 count as one byte: any number of them would fit.
            claimed_size = header.tell() + math.prod(shape) * max(dtype.itemsize, 1)
            if claimed_size != member.file_size:
                raise ValueError(
                    f"{member.filename} of {member.file_size} bytes, which claims "
                    f"{claimed_size}: {dtype}{list(shape)}"
                )
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _records(archive: _Archive) -> _Records:
    """The records of all splits.

    Raises:
        InputError: splits of different shapes or kinds, or a label out of range.
    """
    path = archive.path
    images, labels = zip(
        *(_split_arrays(archive, split) for split in archive.splits), strict=True
    )
    shapes = {array.shape[1:] for array in images}
    if len(shapes) > 1:
        require.fail(f"data.path {path}", "images of one shape", sorted(shapes))
    if len({array.dtype == np.uint8 for array in images}) > 1:
        require.fail(f"data.path {path}", "uint8 in all splits or in none", "both")
    x, y = np.concatenate(images), np.concatenate(labels)
    for label in (y.min(), y.max()) if len(y) else ():
        require.in_range(f"data.path {path}: labels", int(label), 0, MOST_CLASSES - 1)
    rows = [len(array) for array in images]
    codes = np.array([SPLITS[split] for split in archive.splits], np.int8)
    return _Records(x, y, np.repeat(codes, rows), rows)


def _split_arrays(archive: _Archive, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images [n, ...] and labels [n] of a split.

    Raises:
        InputError: an array is missing, of another kind, or of another length.
    """
    images, labels = archive.array(f"{split}_images"), archive.array(f"{split}_labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    field = f"data.path {archive.path}: {split}_labels"
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        require.fail(field, "integers [n]", f"{labels.dtype}{list(labels.shape)}")
    is_numeric = images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)
    if images.ndim < 2 or not math.prod(images.shape[1:]) or not is_numeric:
        require.fail(
            f"data.path {archive.path}: {split}_images",
            "uint8 or floats [n, ...]",
            f"{images.dtype}{list(images.shape)}",
        )
    if len(images) != len(labels):
        require.fail(field, f"{len(images)} labels, as images", len(labels))
    return images, labels


def _inputs(path: str | None, x: np.ndarray) -> np.ndarray:
    """Bytes with a channel axis, or finite float32.

    Raises:
        InputError: a number is infinite, also after the conversion to float32.
    """
    if x.dtype == np.uint8:
        return x[..., None] if x.ndim == 3 else x
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if np.isinf(x).any():
        require.fail(f"data.path {path}: images", "finite numbers", "infinity")
    return x


def _names(archive: _Archive, suffix: str, rows: list[int]) -> np.ndarray | None:
    """The optional arrays `{split}_{suffix}` as one column of names.

    Args:
        archive: the arrays.
        suffix: "client", "patient" or "group".
        rows: records of every split.

    Raises:
        InputError: an array of another length, or text that is no Unicode.
    """
    if f"train_{suffix}" not in archive.arrays:
        return None
    values = [archive.array(f"{split}_{suffix}") for split in archive.splits]
    for split, array, length in zip(archive.splits, values, rows, strict=True):
        if array.shape != (length,):
            require.fail(
                f"data.path {archive.path}: {split}_{suffix}",
                f"{length} values",
                list(array.shape),
            )
    with files.convert_errors(archive.path, f"text in {suffix}"):
        cells = [str(value) for array in values for value in array]
    return files.names(f"data.path {archive.path}: {suffix}", cells)
