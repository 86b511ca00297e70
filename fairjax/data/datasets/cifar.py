"""CIFAR-10 and CIFAR-100: 60,000 photographs of 32 x 32 in 10 or 100 classes.

50,000 photographs are for training and 10,000 for testing, as published, with equal
numbers of every class in each split. Validation records are cut from the training
records. The classes of CIFAR-100 are its fine labels.

Client: the set names none; a partition simulates clients. The set is not medical and
    serves comparison with published figures.

The official archives of the binary version are found in `data_dir` (or
FAIRJAX_DATA_DIR), or are downloaded. They are not unpacked to disk.
"""

import io
import pathlib
import tarfile
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fairjax.data.datasets import prepared
from fairjax.data.table import Table

SOURCE = (
    "Krizhevsky 2009, Learning multiple layers of features from tiny images, "
    "www.cs.toronto.edu/~kriz/cifar.html; no licence is stated"
)
HOST = "www.cs.toronto.edu"
URL = f"https://{HOST}/~kriz/"
_PIXELS = 3 * 32 * 32


class Archive(NamedTuple):
    """The layout of an archive."""

    file: str
    sha256: str
    """The digest that tensorflow-datasets records."""
    folder: str
    split_files: dict[str, tuple[str, ...]]
    """Split -> its files."""
    names: str
    """The file with the names of classes, one a line."""
    labels: int
    """Bytes before every picture; the last of them is its class."""


ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-batches-bin",
        {
            "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        "batches.meta.txt",
        1,
    ),
    "cifar100": Archive(
        "cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        "fine_label_names.txt",
        2,
    ),
}


class CifarBinary(tfds.core.GeneratorBasedBuilder):
    """CIFAR-10 or CIFAR-100; pixels are from 0 to 255.

    The builders of tensorflow-datasets itself need TensorFlow to write pictures.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "60,000 records."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name, description=name) for name in ARCHIVES
    ]

    def __init__(self, *, path: pathlib.Path | None = None, **kwargs):
        """`path` is the archive; None downloads it."""
        self._path = path
        super().__init__(**kwargs)

    @property
    def _archive(self) -> Archive:
        assert self.builder_config is not None
        return ARCHIVES[self.builder_config.name]

    def _info(self) -> tfds.core.DatasetInfo:
        assert self.builder_config is not None
        classes = int(self.builder_config.name.removeprefix("cifar"))
        return tfds.core.DatasetInfo(
            builder=self,
            description=SOURCE,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=classes),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        archive, path = self._archive, self._path
        if path is None:
            prepared.need_network(HOST, archive.file)
            path = pathlib.Path(dl_manager.download(URL + archive.file))
        with path.open("rb") as file:
            prepared.verify(file, f"data.data_dir {path}", "sha256", archive.sha256)
        names = _read_member(path, archive, archive.names).decode().split("\n")
        features: Any = self.info.features
        features["label"].names = [name for name in names if name]
        return {
            split: self._generate_examples(path, split) for split in archive.split_files
        }

    def _generate_examples(self, path, split):
        archive, number = self._archive, 0
        for file_name in archive.split_files[split]:
            content = np.frombuffer(_read_member(path, archive, file_name), np.uint8)
            for row in content.reshape(-1, archive.labels + _PIXELS):
                pixels = row[archive.labels :].reshape(3, 32, 32).transpose(1, 2, 0)
                yield number, {"x": pixels, "label": int(row[archive.labels - 1])}
                number += 1


def _read_member(path: pathlib.Path, archive: Archive, name: str) -> bytes:
    with tarfile.open(path) as tar:
        return (tar.extractfile(f"{archive.folder}/{name}") or io.BytesIO()).read()


def load(name: str, data_dir: str | None) -> Table:
    """Loads a set; it names no client and fixes its test split.

    Raises:
        InputError: the archive is not the official one, or there is neither an archive
            nor a network.
    """
    builder = CifarBinary(
        config=name,
        path=prepared.find(data_dir, ARCHIVES[name].file),
        file_format=prepared.FILE_FORMAT,
    )
    columns = prepared.fixed_splits(prepared.prepare(builder))
    features: Any = builder.info.features
    return Table(
        name=name,
        **columns,
        classes=tuple(features["label"].names),
        source=SOURCE,
        scale=255.0,
    )
