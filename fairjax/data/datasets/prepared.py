"""TFDS without TensorFlow: prepare once to ArrayRecord, read back as NumPy columns."""

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
"""The one format that TFDS 4.9 writes and reads whole without TensorFlow."""


def folder(data_dir: str | None) -> tuple[str, pathlib.Path | None]:
    """What names the folder of official files, and the folder; None if nothing does.

    Args:
        data_dir: from the config; None: FAIRJAX_DATA_DIR.

    Raises:
        InputError: it cannot be read.
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
    """The first place that there is, of a file or folder; None: it is to be downloaded.

    Args:
        data_dir: as for `folder`.
        places: below it, as paths.

    Raises:
        InputError: there is none in the folder that the config names.
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


def verify(file: Any, where: str, algorithm: str, digest: str) -> None:
    """Refuses a file whose content is not the published one, block by block.

    What passes is that of its publisher, and may be read whole; `file` is back at its
    start.

    Args:
        file: of bytes, at its start; or what unpacks one.
        where: it is, for the message.
        algorithm: of the digest, as `hashlib` names it.
        digest: that was published, as hexadecimal digits.

    Raises:
        InputError: the digest is another one.
    """
    hashed = hashlib.new(algorithm, usedforsecurity=False)
    while block := file.read(2**20):
        hashed.update(block)
    if hashed.hexdigest() != digest:
        what = f"the official file, {algorithm} {digest}"
        require.fail(where, what, hashed.hexdigest())
    file.seek(0)


def need_network(host: str, files: str, timeout: float = 5.0) -> None:
    """Fails at once where TFDS would retry for minutes.

    Raises:
        InputError: the host cannot be reached; it says which files to give instead.
    """
    try:
        socket.create_connection((host, 443), timeout=timeout).close()
    except OSError as error:
        raise require.InputError(
            f"data.data_dir: expected a folder with {files} (or FAIRJAX_DATA_DIR), or "
            f"a network to fetch them from {host}; got {error}"
        ) from error


def read(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, np.ndarray]:
    """All records of a split, one array per feature, in the order of writing."""
    as_data_source: Any = builder.as_data_source  # its decorator hides its arguments
    source = as_data_source(split=split)
    records: list[dict[str, Any]] = source.__getitems__(range(len(source)))
    return {name: np.stack([r[name] for r in records]) for name in records[0]}


def pictures(path: pathlib.Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Examples of a split of an npz of `{split}_images` and `{split}_labels` [n, 1].

    The file is one that `verify` has passed. Grey images get a channel.
    """
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    if images.ndim == 3:
        images = images[..., None]
    for i, (image, label) in enumerate(zip(images, labels[:, 0], strict=True)):
        yield i, {"x": image, "label": int(label)}


def fixed_splits(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """`x`, `y` and `split` of a `Table` of a prepared data set, split after split."""
    names = [name for name in SPLITS if name in builder.info.splits]
    parts = [read(builder, name) for name in names]
    rows = [len(part["label"]) for part in parts]
    return {
        "x": np.concatenate([part["x"] for part in parts]),
        "y": np.concatenate([part["label"] for part in parts]).astype(np.int32),
        "split": np.repeat([SPLITS[name] for name in names], rows).astype(np.int8),
    }


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Downloads and writes the data set unless it is prepared already.

    Two processes may prepare at once: TFDS writes aside and renames, and the one that
    comes second reads what the first has written.

    Raises:
        InputError: the folder cannot be written, or the builder refused its files.
    """
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    try:
        # It announces itself on the terminal, which belongs to the run.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            preemption.leaving(lambda: _remove_aside(builder)),
        ):
            builder.download_and_prepare(download_config=config)
    except require.InputError:
        raise
    except Exception as error:
        if _is_prepared(builder):
            return builder
        said = str(error).strip() or "no reason given"
        raise require.InputError(
            f"data.name {builder.name}: expected to prepare it in {builder.data_dir}; "
            f"got {type(error).__name__}: {said.splitlines()[-1]}"
        ) from error
    return builder


def _remove_aside(builder: tfds.core.DatasetBuilder) -> None:
    """Removes what a builder writes aside; that is its folder until it is renamed."""
    path = pathlib.Path(builder.data_dir)
    if path.name.startswith("incomplete."):
        shutil.rmtree(path, ignore_errors=True)


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    return os.path.exists(os.path.join(str(builder.data_dir), "dataset_info.json"))
