"""COVID-19 Radiography: 21,165 chest X-rays in 4 classes, of many collections.

Classes: COVID-19 3,616, lung opacity without it 6,012, normal 10,192, viral pneumonia
    1,345.
Client: none is named; a partition simulates hospitals. The collections that the
    pictures come from are no hospitals and nearly tell the class: COVID-19 is of
    several, lung opacity of RSNA's, viral pneumonia of one of children.
Splits: none is fixed. They are cut stratified by class, and what is the same picture
    twice, pixel by pixel, is one patient: it is in one split, at one hospital. Patients
    are not named otherwise.
Pictures are grey, 299 x 299, here resized (Pillow, bicubic) to 28 x 28, or to 224 x 224
    as "covid_radiography/224". Masks of the lungs are not read.

Nothing is downloaded: unpack the archive of Kaggle (tawsifurrahman,
covid19-radiography-database) so that `data_dir` (or FAIRJAX_DATA_DIR) has, or is, its
folder COVID-19_Radiography_Dataset, with COVID/images/COVID-1.png and so on. No
checksum of it is published: a folder is refused if a class has another number of
pictures or one is no PNG of that size, whole by the checksums inside.
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
"""Pictures of every class, which are folders."""
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
        """`path` is the folder; None if nobody said where it is."""
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
            _missing("data.data_dir")
        return {"records": self._generate_examples(files(self._path))}

    def _generate_examples(self, paths):
        for number, path in enumerate(paths):
            pixels = read(path)
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


def _missing(where: str) -> NoReturn:
    require.fail(
        where,
        f"a folder with {FOLDER} (or FAIRJAX_DATA_DIR; nothing is downloaded), as the "
        "archive of kaggle.com/datasets/tawsifurrahman/covid19-radiography-database "
        "unpacks to",
        "none",
    )


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The pictures of all classes, by class and name.

    Raises:
        InputError: a class has another number of them, or one lies elsewhere.
    """
    paths = []
    for name, count in COUNTS.items():
        own = folder / name / "images"
        found = sorted(own.glob("*.png"))
        if len(found) != count:
            require.fail(f"data.data_dir {own}", f"{count} pictures", len(found))
        for path in found:
            if not path.resolve().is_relative_to(own.resolve()):
                what = "pictures in the folder itself"
                require.fail(f"data.data_dir {path}", what, str(path.resolve()))
        paths += found
    return paths


def read(path: pathlib.Path) -> np.ndarray:
    """The grey pixels [SIDE, SIDE] of a picture.

    Raises:
        InputError: it is no whole PNG of that size.
    """
    where, what = f"data.data_dir {path}", f"a PNG of {SIDE} x {SIDE}"
    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            if image.size != (SIDE, SIDE):
                require.fail(where, what, image.size)
            return np.asarray(image.convert("L"))
    except require.InputError:
        raise
    except Exception as error:  # Pillow raises SyntaxError for a broken chunk
        raise require.InputError(f"{where}: expected {what}; got {error}") from error


def _path(data_dir: str | None) -> pathlib.Path | None:
    field, root = prepared.folder(data_dir)
    if root is not None:
        for folder in (root / FOLDER, root):
            if (folder / next(iter(COUNTS))).is_dir():
                return folder
    if data_dir:
        _missing(f"{field} {root}")
    return None


def load(name: str, data_dir: str | None) -> Table:
    """The whole set at the size of its name; no client is named, no split fixed.

    Raises:
        InputError: the folder is not there, or not as published.
    """
    size = name.partition("/")[2] or str(SIZES[0])
    builder = CovidRadiography(
        config=size, path=_path(data_dir), file_format=prepared.FILE_FORMAT
    )
    records = prepared.read(prepared.prepare(builder), "records")
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
