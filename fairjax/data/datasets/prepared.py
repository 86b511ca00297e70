"""TFDS without TensorFlow: data are prepared once and read as NumPy columns."""

import contextlib
import hashlib
import io
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fairjax.core import require
from fairjax.data.table import SPLITS
from fairjax.experiment.io import preemption

FILE_FORMAT = "array_record"
"""The only format that TFDS 4.9 writes and reads without TensorFlow."""


def folder(data_dir: str | None) -> tuple[str, pathlib.Path | None]:
    """The setting that names the folder of official files, and the folder.

    Args:
        data_dir: the folder of the config; None takes FAIRJAX_DATA_DIR.

    Returns:
        The name of the setting, and the folder or None if neither is set.

    Raises:
        InputError: the folder cannot be read.
    """
    field = "data.data_dir" if data_dir else "FAIRJAX_DATA_DIR"
    data_dir = data_dir or os.environ.get("FAIRJAX_DATA_DIR")
    if not data_dir:
        return field, None
    root = pathlib.Path(data_dir)
    if not os.path.isdir(root) or not os.access(root, os.R_OK | os.X_OK):
        require.fail(field, "a folder that can be read", data_dir)
    return field, root


def find(data_dir: str | None, *places: str) -> pathlib.Path | None:
    """The first of `places` that exists; None if the files are to be downloaded.

    Args:
        data_dir: the folder of the config, see `folder`.
        *places: paths of a file or folder, relative to that folder.

    Raises:
        InputError: the config names a folder that has none of the places.
    """
    field, root = folder(data_dir)
    if root is None:
        return None
    for place in places:
        if (root / place).exists():
            return root / place
    if data_dir:
        require.fail(f"{field} {root}", " or ".join(places), "none")
    return None


def verify(file: Any, field: str, algorithm: str, digest: str) -> None:
    """Refuses a file whose content is not the published one, block by block.

    A file that passes is its publisher's and may be read whole. `file` is at its start
    again.

    Args:
        file: a binary file at its start, possibly one that unpacks another.
        field: the name of the file in messages.
        algorithm: the name of the digest in `hashlib`.
        digest: the published digest as hexadecimal digits.

    Raises:
        InputError: the digests differ.
    """
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    while block := file.read(2**20):
        hasher.update(block)
    if hasher.hexdigest() != digest:
        requirement = f"the official file, {algorithm} {digest}"
        require.fail(field, requirement, hasher.hexdigest())
    file.seek(0)


def need_network(host: str, files: str, timeout: float = 5.0) -> None:
    """Fails at once if a host cannot be reached; TFDS would retry for minutes.

    Args:
        host: the host of the files.
        files: the names of the files, for the message.
        timeout: seconds to wait for a connection.

    Raises:
        InputError: the host cannot be reached. The message names the files that the
            user can provide instead.
    """
    try:
        socket.create_connection((host, 443), timeout=timeout).close()
    except OSError as error:
        raise require.InputError(
            f"data.data_dir: expected a folder with {files} (or FAIRJAX_DATA_DIR), or "
            f"a network to fetch them from {host}; got {error}"
        ) from error


def read_split(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, np.ndarray]:
    """All records of a split, one array per feature, in the order they were written."""
    # The decorator of the method hides its arguments from a type checker.
    as_data_source: Any = builder.as_data_source
    source = as_data_source(split=split)
    records: list[dict[str, Any]] = source.__getitems__(range(len(source)))
    return {name: np.stack([r[name] for r in records]) for name in records[0]}


def pictures(path: pathlib.Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The examples of a split of an npz file that `verify` has passed.

    The file has arrays `{split}_images` [n, ...] and `{split}_labels` [n, 1]. Grey
    images get a channel.
    """
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    if images.ndim == 3:
        images = images[..., None]
    for i, (image, label) in enumerate(zip(images, labels[:, 0], strict=True)):
        yield i, {"x": image, "label": int(label)}


def fixed_splits(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """The fields `x`, `y` and `split` of a `Table`, split after split."""
    names = [name for name in SPLITS if name in builder.info.splits]
    split_records = [read_split(builder, name) for name in names]
    rows = [len(records["label"]) for records in split_records]
    return {
        "x": np.concatenate([records["x"] for records in split_records]),
        "y": np.concatenate([records["label"] for records in split_records]).astype(
            np.int32
        ),
        "split": np.repeat([SPLITS[name] for name in names], rows).astype(np.int8),
    }


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Downloads and writes the data set unless it is prepared already.

    Two processes may prepare at once. TFDS writes to a temporary folder and renames it,
    and the second process reads what the first has written.

    Raises:
        InputError: the folder cannot be written, or the builder refuses its files.
    """
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    try:
        # TFDS prints progress to the terminal, which belongs to the run.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            preemption.leaving(lambda: _remove_incomplete(builder)),
        ):
            builder.download_and_prepare(download_config=config)
    except require.InputError:
        raise
    except Exception as error:
        if _is_prepared(builder):
            return builder
        reason = str(error).strip() or "no reason given"
        raise require.InputError(
            f"data.name {builder.name}: expected to prepare it in {builder.data_dir}; "
            f"got {type(error).__name__}: {reason.splitlines()[-1]}"
        ) from error
    return builder


def _remove_incomplete(builder: tfds.core.DatasetBuilder) -> None:
    """Removes the temporary folder of a builder, its folder until the renaming."""
    path = pathlib.Path(builder.data_dir)
    if path.name.startswith("incomplete."):
        shutil.rmtree(path, ignore_errors=True)


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    return os.path.exists(os.path.join(str(builder.data_dir), "dataset_info.json"))
