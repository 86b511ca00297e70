"""Data sets by name, each as a `Table`.

Importing this package imports no data set. `load` imports the module of the data set
that it reads, and with it TFDS and scikit-learn.
"""

from collections.abc import Sequence

from fairjax.core import require
from fairjax.data.datasets import csv_file, npz_file
from fairjax.data.table import Table

MEDMNIST = (
    "bloodmnist",
    "breastmnist",
    "dermamnist",
    "organamnist",
    "pathmnist",
    "pneumoniamnist",
)
PICTURES = (*MEDMNIST, "covid_radiography")
"""Sets of images of 28 x 28; "NAME/224" has the same images at 224 x 224."""
CIFAR = ("cifar10", "cifar100")
OWN = ("npz", "csv")
"""Files of the user."""
DATASETS = (
    "breast_cancer",
    "heart_disease",
    "heart_disease/flamby",
    "diabetes130",
    "digits",
    "mixtures",
    "pbc_blood28",
    *PICTURES,
    *(f"{name}/224" for name in PICTURES),
    *CIFAR,
    *OWN,
)


def load(
    name: str,
    *,
    data_dir: str | None = None,
    path: str | None = None,
    label: str | None = None,
    client: str | None = None,
    patient: str | None = None,
    group: Sequence[str] = (),
) -> Table:
    """Loads a data set by its name.

    Args:
        name: one of `DATASETS`.
        data_dir: the folder with official files, for sets that are not embedded. None
            takes FAIRJAX_DATA_DIR, and downloads the files if that is not set and the
            set has an official address.
        path: the file of "npz" and "csv".
        label: the csv column of the class.
        client: the csv column of the client.
        patient: the csv column of the patient.
        group: the csv columns of patient groups, see `csv_file.load`.

    Raises:
        InputError: an unknown name, or a file that is missing, altered or malformed.
    """
    require.one_of("data.name", name, DATASETS)
    if name == "npz":
        return npz_file.load(path)
    if name == "csv":
        return csv_file.load(
            path, label=label, client=client, patient=patient, group=group
        )
    if name == "breast_cancer":
        from fairjax.data.datasets import breast_cancer

        return breast_cancer.load()
    if name == "digits":
        from fairjax.data.datasets import digits

        return digits.load()
    if name == "mixtures":
        from fairjax.data.datasets import mixtures

        return mixtures.load()
    if name == "diabetes130":
        from fairjax.data.datasets import diabetes130

        return diabetes130.load(data_dir)
    if name == "pbc_blood28":
        from fairjax.data.datasets import pbc_blood28

        return pbc_blood28.load(data_dir)
    if name.partition("/")[0] in MEDMNIST:
        from fairjax.data.datasets import medmnist

        return medmnist.load(name, data_dir)
    if name.startswith("covid_radiography"):
        from fairjax.data.datasets import covid_radiography

        return covid_radiography.load(name, data_dir)
    if name in CIFAR:
        from fairjax.data.datasets import cifar

        return cifar.load(name, data_dir)
    from fairjax.data.datasets import heart_disease

    return heart_disease.load(name.partition("/")[2] or "all", data_dir)
