"""Wisconsin diagnostic breast cancer: 569 biopsies, 30 measurements, 2 classes."""

from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds

from fairjax.data.datasets import prepared
from fairjax.data.table import FREE, Table

SOURCE = (
    "Wolberg, Mangasarian, Street and Street 1995, Breast Cancer Wisconsin "
    "(Diagnostic), doi:10.24432/C5DW2B, CC BY 4.0; the copy inside scikit-learn"
)


class BreastCancer(tfds.core.GeneratorBasedBuilder):
    """One split, "records"; label 1 is malignant, which scikit-learn codes as 0."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "569 records."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=SOURCE,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(shape=(30,), dtype=np.float32),
                    "label": tfds.features.ClassLabel(names=["benign", "malignant"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"records": self._generate_examples()}

    def _generate_examples(self):
        rows = zip(*sklearn.datasets.load_breast_cancer(return_X_y=True), strict=True)
        for i, (x, target) in enumerate(rows):
            yield i, {"x": x.astype(np.float32), "label": 1 - int(target)}


def load() -> Table:
    """Loads the table; it names no client and fixes no split."""
    bunch: Any = sklearn.datasets.load_breast_cancer()
    records = prepared.read_split(
        prepared.prepare(BreastCancer(file_format=prepared.FILE_FORMAT)), "records"
    )
    return Table(
        name="breast_cancer",
        x=records["x"],
        y=records["label"].astype(np.int32),
        split=np.full(len(records["x"]), FREE, np.int8),
        classes=("benign", "malignant"),
        source=SOURCE,
        features=tuple(bunch.feature_names.tolist()),
    )
