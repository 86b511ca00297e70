"""Peripheral blood cells: 17,092 pictures of 28 x 28, 8 classes, one hospital.

The pictures are those of BloodMNIST, with the same classes and split sizes. The split
of a picture may differ, because MedMNIST does not publish it. `data.name=npz` reads
bloodmnist.npz itself.

The file was made from the 17,092 JPEGs of the source. Each is cropped to its central
200 x 200 and resized to 28 x 28 (Pillow, bicubic). Pictures of a class are ordered by
the MD5 of the JPEG: the first n_train, the next n_val and the rest are the splits.
"""

import pathlib
from typing import NoReturn

import numpy as np
import tensorflow_datasets as tfds

from fairjax.core import require
from fairjax.data.datasets import prepared
from fairjax.data.table import SPLITS, Table

SOURCE = (
    "Acevedo et al. 2020, peripheral blood cell images, doi:10.17632/snkd93bnjr.1, "
    "CC BY 4.0; cropped and resized to 28 x 28"
)
FILE = "pbc_blood28.npz"
MD5 = "ab5be6b63a4bb3202a908adf39e0f8f6"
CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)


class PbcBlood28(tfds.core.GeneratorBasedBuilder):
    """The fixed splits "train", "val" and "test"; pixels are from 0 to 255."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "17,092 records."}  # noqa: RUF012

    def __init__(self, *, path: pathlib.Path | None = None, **kwargs):
        """`path` is the file; None if no setting names it."""
        self._path = path
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=SOURCE,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(shape=(28, 28, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        if self._path is None:
            _fail_missing("data.data_dir")
        with self._path.open("rb") as file:
            prepared.verify(file, f"data.data_dir {self._path}", "md5", MD5)
        return {split: self._generate_examples(self._path, split) for split in SPLITS}

    def _generate_examples(self, path, split):
        return prepared.pictures(path, split)


def _fail_missing(field: str) -> NoReturn:
    require.fail(
        field,
        f"a folder with {FILE} (or FAIRJAX_DATA_DIR; nothing is downloaded), the "
        "pictures of doi:10.17632/snkd93bnjr.1 at 28 x 28, see "
        "fairjax/data/datasets/pbc_blood28.py",
        "none",
    )


def _path(data_dir: str | None) -> pathlib.Path | None:
    """The file; None if it is not where FAIRJAX_DATA_DIR says."""
    field, root = prepared.folder(data_dir)
    if root is not None and (root / FILE).is_file():
        return root / FILE
    if data_dir:
        _fail_missing(f"{field} {root}")
    return None


def load(data_dir: str | None) -> Table:
    """Loads the set; it names no client and fixes its splits."""
    builder = PbcBlood28(path=_path(data_dir), file_format=prepared.FILE_FORMAT)
    return Table(
        name="pbc_blood28",
        **prepared.fixed_splits(prepared.prepare(builder)),
        classes=CLASSES,
        source=SOURCE,
        scale=255.0,
    )
