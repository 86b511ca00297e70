"""Handwritten digits: 1,797 grey images of 8 x 8, embedded in scikit-learn."""

from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds

from fairjax.data.datasets import prepared
from fairjax.data.table import FREE, Table

SOURCE = (
    "Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, "
    "doi:10.24432/C50P49, CC BY 4.0; the copy inside scikit-learn"
)


class Digits(tfds.core.GeneratorBasedBuilder):
    """One split, "records"; pixels are numbers from 0 to 16."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "1,797 records."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=SOURCE,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"records": self._generate_examples()}

    def _generate_examples(self):
        bunch: Any = sklearn.datasets.load_digits()
        for i, (image, target) in enumerate(
            zip(bunch.images, bunch.target, strict=True)
        ):
            yield i, {"x": image[..., None].astype(np.uint8), "label": int(target)}


def load() -> Table:
    """Loads the set; it names no client and fixes no split."""
    records = prepared.read_split(
        prepared.prepare(Digits(file_format=prepared.FILE_FORMAT)), "records"
    )
    return Table(
        name="digits",
        x=records["x"],
        y=records["label"].astype(np.int32),
        split=np.full(len(records["x"]), FREE, np.int8),
        classes=tuple(str(digit) for digit in range(10)),
        source=SOURCE,
        scale=16.0,
    )
