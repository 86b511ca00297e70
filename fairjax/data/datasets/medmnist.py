"""Six data sets of MedMNIST at 28 x 28 and at 224 x 224, in their official splits.

| name           | pictures                       | classes | train, val, test      |
|----------------|--------------------------------|---------|-----------------------|
| bloodmnist     | blood cells under a microscope | 8       | 11,959, 1,712, 3,421  |
| breastmnist    | ultrasound of the breast, grey | 2       | 546, 78, 156          |
| dermamnist     | dermatoscopy of skin, HAM10000 | 7       | 7,007, 1,003, 2,005   |
| organamnist    | axial slices of CT, LiTS, grey | 11      | 34,561, 6,491, 17,778 |
| pathmnist      | colon tissue, NCT-CRC-HE-100K  | 9       | 89,996, 10,004, 7,180 |
| pneumoniamnist | chest X-rays of children, grey | 2       | 4,708, 524, 624       |

"NAME" is 28 x 28, and "NAME/224" has the same pictures from MedMNIST+. Names, numbers
and MD5s are those of medmnist 3.0.2 (info.py). organamnist had 20 slices more before
version 3.

Client: the sets name none; a partition simulates clients. The test pictures of
    pathmnist come from another clinic than the others. Some lesions of dermamnist were
    photographed more than once and are in several splits, so its test figures are too
    good (Abhishek, Jain and Hamarneh, "Investigating the quality of DermaMNIST and
    Fitzpatrick17k dermatological image datasets", Scientific Data 2025,
    arXiv:2401.14497).
Licence: CC BY 4.0; dermamnist CC BY-NC 4.0.

The official files, such as bloodmnist.npz or bloodmnist_224.npz, are found in
`data_dir` (or FAIRJAX_DATA_DIR), directly or in a folder medmnist, or are downloaded.
At 224 they have 0.1 to 12 GB, and the federation takes 4 bytes per pixel and channel.
"""

import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fairjax.data.datasets import prepared
from fairjax.data.table import SPLITS, Table

SOURCE = (
    "Yang et al. 2023, MedMNIST v2, doi:10.1038/s41597-022-01721-8; files of "
    "doi:10.5281/zenodo.10519652"
)
HOST = "zenodo.org"
SIZES = (28, 224)


class Card(NamedTuple):
    """The facts of a data set."""

    classes: tuple[str, ...]
    channels: int
    md5: tuple[str, str]
    """The MD5 of the file of every size in `SIZES`."""
    licence: str = "CC BY 4.0"
    positive: str | None = None
    """The field of `Table`."""


CARDS = {
    "bloodmnist": Card(
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        3,
        ("7053d0359d879ad8a5505303e11de1dc", "b718ff6835fcbdb22ba9eacccd7b2601"),
    ),
    "breastmnist": Card(
        ("malignant", "normal, benign"),
        1,
        ("750601b1f35ba3300ea97c75c52ff8f6", "b56378a6eefa9fed602bb16d192d4c8b"),
        positive="malignant",  # the official label is 0
    ),
    "dermamnist": Card(
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        3,
        ("0744692d530f8e62ec473284d019b0c7", "8974907d8e169bef5f5b96bc506ae45d"),
        "CC BY-NC 4.0",
    ),
    "organamnist": Card(
        (
            "bladder",
            "femur-left",
            "femur-right",
            "heart",
            "kidney-left",
            "kidney-right",
            "liver",
            "lung-left",
            "lung-right",
            "pancreas",
            "spleen",
        ),
        1,
        ("68e3f8846a6bd62f0c9bf841c0d9eacc", "50747347e05c87dd3aaf92c49f9f3170"),
    ),
    "pathmnist": Card(
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        3,
        ("a8b06965200029087d5bd730944a56c1", "2c51a510bcdc9cf8ddb2af93af1eadec"),
    ),
    "pneumoniamnist": Card(
        ("normal", "pneumonia"),
        1,
        ("28209eda62fecd6e6a2d98b1501bb15f", "d6a3c71de1b945ea11211b03746c1fe1"),
    ),
}


class MedMnist(tfds.core.GeneratorBasedBuilder):
    """One data set at one size; pixels are from 0 to 255."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The files of MedMNIST 3."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=f"{name}_{size}", description=name)
        for name in CARDS
        for size in SIZES
    ]

    def __init__(self, *, path: pathlib.Path | None = None, **kwargs):
        """`path` is the file; None downloads it."""
        self._path = path
        super().__init__(**kwargs)

    @property
    def _name_and_size(self) -> tuple[str, int]:
        assert self.builder_config is not None
        name, _, size = self.builder_config.name.partition("_")
        return name, int(size)

    def _info(self) -> tfds.core.DatasetInfo:
        name, size = self._name_and_size
        card = CARDS[name]
        return tfds.core.DatasetInfo(
            builder=self,
            description=SOURCE,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(
                        shape=(size, size, card.channels), dtype=np.uint8
                    ),
                    "label": tfds.features.ClassLabel(names=list(card.classes)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        name, size = self._name_and_size
        path = self._path
        if path is None:
            prepared.need_network(HOST, file(name, size))
            path = pathlib.Path(dl_manager.download(url(name, size)))
        with path.open("rb") as stream:
            md5 = CARDS[name].md5[SIZES.index(size)]
            prepared.verify(stream, f"data.data_dir {path}", "md5", md5)
        return {split: self._generate_examples(path, split) for split in SPLITS}

    def _generate_examples(self, path, split):
        return prepared.pictures(path, split)


def file(name: str, size: int) -> str:
    """The official name of a file."""
    return f"{name}.npz" if size == SIZES[0] else f"{name}_{size}.npz"


def url(name: str, size: int) -> str:
    """The address of a file."""
    return f"https://{HOST}/records/10519652/files/{file(name, size)}?download=1"


def load(name: str, data_dir: str | None) -> Table:
    """Loads a set by its name; it names no client and fixes its splits.

    Args:
        name: the name in `data.name`, such as "bloodmnist" or "bloodmnist/224".
        data_dir: the folder with the official file, see `prepared.folder`.

    Raises:
        InputError: the file is not the official one, or there is neither a file nor a
            network.
    """
    dataset_name, _, size = name.partition("/")
    card, size = CARDS[dataset_name], int(size or SIZES[0])
    file_name = file(dataset_name, size)
    builder = MedMnist(
        config=f"{dataset_name}_{size}",
        path=prepared.find(data_dir, file_name, f"medmnist/{file_name}"),
        file_format=prepared.FILE_FORMAT,
    )
    return Table(
        name=name,
        **prepared.fixed_splits(prepared.prepare(builder)),
        classes=card.classes,
        positive=card.positive,
        source=f"{SOURCE}, {card.licence}",
        scale=255.0,
    )
