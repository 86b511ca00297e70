"""COVID-19 Radiography: 21,165 chest X-rays in 4 classes, from many collections.

Classes: COVID-19 3,616, lung opacity without COVID-19 6,012, normal 10,192, viral
    pneumonia 1,345.
Client: the set names none; a partition simulates clients. The collections that the
    pictures come from are no hospitals, and they nearly determine the class: COVID-19
    comes from several, lung opacity from RSNA's, viral pneumonia from one of children.
Splits: the set fixes none. They are cut stratified by class. Pictures that are equal
    pixel by pixel count as one patient, so they are in one split at one client. The set
    names no other patients.
Pictures: grey, 299 x 299, resized (Pillow, bicubic) to 28 x 28, or to 224 x 224 as
    "covid_radiography/224". Masks of the lungs are not read.

Nothing is downloaded. Unpack the archive of Kaggle (tawsifurrahman,
covid19-radiography-database) so that `data_dir` (or FAIRJAX_DATA_DIR) has, or is, its
folder COVID-19_Radiography_Dataset, with COVID/images/COVID-1.png and so on. No
checksum of the archive is published. A folder is refused if a class has another number
of pictures, or if a picture is no PNG of that size that passes its own checksums.
"""

import hashlib
import pathlib
from typing import NoReturn

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from fairjax.core import require
from fairjax.data.datasets import prepared
from fairjax.data.table import FREE, Table

SOURCE = (
    "Chowdhury et al. 2020, IEEE Access 8:132665, and Rahman et al. 2020, "
    "arXiv:2012.02238, COVID-19 Radiography Database; licences of its collections"
)
FOLDER = "COVID-19_Radiography_Dataset"
COUNTS = {"COVID": 3616, "Lung_Opacity": 6012, "Normal": 10192, "Viral Pneumonia": 1345}
"""Pictures of every class; a class is a folder."""
SIDE = 299
SIZES = (28, 224)


class CovidRadiography(tfds.core.GeneratorBasedBuilder):
    """One split, "records", class after class; pixels count from 0 to 255."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "21,165 records."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=str(size), description=f"{size} x {size}")
        for size in SIZES
    ]

    def __init__(self, *, path: pathlib.Path | None = None, **kwargs):
        """`path` is the folder; None if no setting names it."""
        self._path = path
        super().__init__(**kwargs)

    @property
    def _size(self) -> int:
        assert self.builder_config is not None
        return int(self.builder_config.name)

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (self._size, self._size, 1)
        return tfds.core.DatasetInfo(
            builder=self,
            description=SOURCE,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(shape=shape, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=list(COUNTS)),
                    "picture": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        if self._path is None:
            _fail_missing("data.data_dir")
        return {"records": self._generate_examples(files(self._path))}

    def _generate_examples(self, paths):
        for number, path in enumerate(paths):
            pixels = read_pixels(path)
            resized = PIL.Image.fromarray(pixels).resize(
                (self._size, self._size), PIL.Image.Resampling.BICUBIC
            )
            yield (
                number,
                {
                    "x": np.asarray(resized)[..., None],
                    "label": path.parent.parent.name,
                    "picture": hashlib.sha256(pixels.tobytes()).hexdigest()[:32],
                },
            )


def _fail_missing(field: str) -> NoReturn:
    require.fail(
        field,
        f"a folder with {FOLDER} (or FAIRJAX_DATA_DIR; nothing is downloaded), as the "
        "archive of kaggle.com/datasets/tawsifurrahman/covid19-radiography-database "
        "unpacks to",
        "none",
    )


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The paths of the pictures of all classes, by class and name.

    Raises:
        InputError: a class has another number of pictures, or one links elsewhere.
    """
    paths = []
    for name, count in COUNTS.items():
        class_folder = folder / name / "images"
        class_paths = sorted(class_folder.glob("*.png"))
        if len(class_paths) != count:
            require.fail(
                f"data.data_dir {class_folder}", f"{count} pictures", len(class_paths)
            )
        for path in class_paths:
            if not path.resolve().is_relative_to(class_folder.resolve()):
                requirement = "pictures in the folder itself"
                require.fail(f"data.data_dir {path}", requirement, str(path.resolve()))
        paths += class_paths
    return paths


def read_pixels(path: pathlib.Path) -> np.ndarray:
    """The grey pixels [SIDE, SIDE] of a picture.

    Raises:
        InputError: the file is no intact PNG of that size.
    """
    field, requirement = f"data.data_dir {path}", f"a PNG of {SIDE} x {SIDE}"
    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            if image.size != (SIDE, SIDE):
                require.fail(field, requirement, image.size)
            return np.asarray(image.convert("L"))
    except require.InputError:
        raise
    except Exception as error:  # Pillow raises SyntaxError for a broken chunk
        raise require.InputError(
            f"{field}: expected {requirement}; got {error}"
        ) from error


def _path(data_dir: str | None) -> pathlib.Path | None:
    """The folder of the classes; None if it is not where FAIRJAX_DATA_DIR says."""
    field, root = prepared.folder(data_dir)
    if root is not None:
        for folder in (root / FOLDER, root):
            if (folder / next(iter(COUNTS))).is_dir():
                return folder
    if data_dir:
        _fail_missing(f"{field} {root}")
    return None


def load(name: str, data_dir: str | None) -> Table:
    """Loads the set at the size of its name; it names no client and fixes no split.

    Raises:
        InputError: the folder is missing, or not as published.
    """
    size = name.partition("/")[2] or str(SIZES[0])
    builder = CovidRadiography(
        config=size, path=_path(data_dir), file_format=prepared.FILE_FORMAT
    )
    records = prepared.read_split(prepared.prepare(builder), "records")
    return Table(
        name=name,
        x=records["x"],
        y=records["label"].astype(np.int32),
        split=np.full(len(records["x"]), FREE, np.int8),
        classes=tuple(COUNTS),
        source=SOURCE,
        patient=records["picture"].astype(str),
        scale=255.0,
    )
