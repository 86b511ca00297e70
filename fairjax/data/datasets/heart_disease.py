"""UCI Heart Disease: four hospitals, 920 patients, the smallest natural federation.

A client is a hospital. The official files are found in `data_dir` (or
FAIRJAX_DATA_DIR), directly or in a folder heart_disease, or are downloaded. Their
SHA-256 must be the official one, because many copies of these tables are recoded.
"""

import os
import pathlib

import numpy as np
import sklearn.model_selection
import tensorflow_datasets as tfds

from fairjax.core import require
from fairjax.data import groups
from fairjax.data.datasets import prepared
from fairjax.data.table import FREE, TEST, TRAIN, Table

SOURCE = (
    "Janosi, Steinbrunn, Pfisterer and Detrano 1989, UCI Heart Disease, "
    "doi:10.24432/C52P4X, CC BY 4.0"
)
HOST = "archive.ics.uci.edu"
URL = f"https://{HOST}/ml/machine-learning-databases/heart-disease/"
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
SHA256 = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}

_COLUMNS: tuple[str, ...] = (
    "age",
    "sex",
    "chest_pain",
    "blood_pressure",
    "cholesterol",
    "fasting_sugar",
    "resting_ecg",
    "max_heart_rate",
    "exercise_angina",
    "oldpeak",
    "slope",
    "vessels",
    "thal",
)
_LEVELS = {"chest_pain": (1, 2, 3, 4), "resting_ecg": (0, 1, 2), "slope": (1, 2, 3)}
_LEVELS["thal"] = (3, 6, 7)
_ZERO_IS_MISSING = ("blood_pressure", "cholesterol")
_MAY_MISS = _COLUMNS[3:]
_FLAMBY_COLUMNS = _COLUMNS[:10]
AGE_CUTS = (45.0, 55.0)
"""The ages in years from which age is a coronary risk factor of men and of women:
National Cholesterol Education Program, "Executive summary of the third report" (Adult
Treatment Panel III), JAMA 2001, doi:10.1001/jama.285.19.2486."""


class HeartDisease(tfds.core.GeneratorBasedBuilder):
    """The four hospitals in two readings.

    `all` has every record. A blood pressure or cholesterol of 0 means "not measured".
    Whether a value was measured is a feature beside the imputed value.
    `flamby` is the protocol of FLamby. It leaves out slope, vessels and thal and the
    records that miss a value, and fixes a split per hospital.

    In both readings, categories are one-hot without their first level, and the label is
    "diagnosis above 0".

    Source: du Terrail et al., "FLamby: datasets and benchmarks for cross-silo federated
    learning in realistic healthcare settings", NeurIPS 2022, arXiv:2210.04620.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "What was not measured is a feature."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="all", description="920 records."),
        tfds.core.BuilderConfig(name="flamby", description="FLamby's 740 records."),
    ]

    def __init__(self, *, folder: str | None = None, **kwargs):
        """`folder` has the official files; None downloads them."""
        self._folder = folder
        super().__init__(**kwargs)

    @property
    def _reading(self) -> str:
        assert self.builder_config is not None
        return self.builder_config.name

    def _info(self) -> tfds.core.DatasetInfo:
        width = len(feature_names(self._reading))
        return tfds.core.DatasetInfo(
            builder=self,
            description=SOURCE,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(shape=(width,), dtype=np.float32),
                    "label": tfds.features.ClassLabel(names=["healthy", "ill"]),
                    "hospital": tfds.features.ClassLabel(names=list(HOSPITALS)),
                    "split": tfds.features.Scalar(dtype=np.int32),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        if self._folder is None:
            names = ", ".join(_file_name(name) for name in HOSPITALS)
            prepared.need_network(HOST, names)
            paths = dl_manager.download(
                {name: URL + _file_name(name) for name in HOSPITALS}
            )
        else:
            folder = pathlib.Path(self._folder)
            paths = {name: folder / _file_name(name) for name in HOSPITALS}
        return {"records": self._generate_examples(paths)}

    def _generate_examples(self, paths):
        config = self._reading
        for number, name in enumerate(HOSPITALS):
            x, label, split = read_file(paths[name], name, config)
            for i in range(len(x)):
                record = {"x": x[i], "label": label[i], "split": int(split[i])}
                yield number * 10_000 + i, record | {"hospital": number}


def _file_name(hospital: str) -> str:
    return f"processed.{hospital}.data"


def feature_names(config: str) -> tuple[str, ...]:
    """The names of the encoded features of a reading."""
    names: list[str] = []
    for column in _FLAMBY_COLUMNS if config == "flamby" else _COLUMNS:
        names += [f"{column}={level}" for level in _LEVELS.get(column, ())[1:]] or [
            column
        ]
    if config == "all":
        names += [f"{column} missing" for column in _MAY_MISS]
    return tuple(names)


def read_file(
    path: os.PathLike[str], hospital: str, config: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the file of one hospital.

    Args:
        path: the file.
        hospital: one of `HOSPITALS`.
        config: the reading, "all" or "flamby".

    Returns:
        The features [n, F], NaN where missing; the labels [n]; and the splits [n].

    Raises:
        InputError: the file is not the official one.
    """
    with open(path, "rb") as file:
        field = f"data.data_dir {path}"
        prepared.verify(file, field, "sha256", SHA256[hospital])
        content = file.read()
    cells = [line.split(",") for line in content.decode().splitlines() if line]
    raw = np.array(
        [[np.nan if cell == "?" else float(cell) for cell in row] for row in cells]
    )
    label = (raw[:, 13] > 0).astype(np.int32)
    columns = dict(zip(_COLUMNS, raw.T, strict=False))
    split = np.full(len(raw), FREE)
    if config == "flamby":
        columns = {name: columns[name] for name in _FLAMBY_COLUMNS}
        is_complete = ~np.isnan(np.stack(list(columns.values()))).any(axis=0)
        columns = {name: values[is_complete] for name, values in columns.items()}
        label = label[is_complete]
        split = _flamby_split(label)
    else:
        for name in _ZERO_IS_MISSING:
            columns[name] = np.where(columns[name] == 0, np.nan, columns[name])
    features = []
    for name, values in columns.items():
        if name not in _LEVELS:
            features.append(values)
            continue
        for level in _LEVELS[name][1:]:
            one_hot = (values == level).astype(float)
            features.append(np.where(np.isnan(values), np.nan, one_hot))
    if config == "all":
        features += [np.isnan(columns[name]).astype(float) for name in _MAY_MISS]
    return np.stack(features, axis=1).astype(np.float32), label, split


def _flamby_split(label: np.ndarray) -> np.ndarray:
    """66 % for training, stratified if every class has more than two records."""
    counts = np.bincount(label, minlength=2)
    train, _ = sklearn.model_selection.train_test_split(
        np.arange(len(label)),
        test_size=0.34,
        train_size=0.66,
        random_state=43,
        shuffle=True,
        stratify=label if counts.min() > 2 else None,
    )
    split = np.full(len(label), TEST)
    split[train] = TRAIN
    return split


def _folder(data_dir: str | None) -> str | None:
    """The folder with all four files; None if they are to be downloaded."""
    field, root = prepared.folder(data_dir)
    if root is None:
        return None
    for folder in (root / "heart_disease", root):
        present = [name for name in HOSPITALS if (folder / _file_name(name)).is_file()]
        if len(present) == len(HOSPITALS):
            return str(folder)
        if present:
            missing = [_file_name(name) for name in HOSPITALS if name not in present]
            require.fail(f"{field} {folder}", f"also {', '.join(missing)}", "none")
    if data_dir:
        require.fail(
            f"{field} {root}", f"{_file_name('cleveland')} and its three kin", "none"
        )
    return None


def load(config: str, data_dir: str | None) -> Table:
    """Loads the table of four hospitals in the reading "all" or "flamby".

    Patient groups are sex and age band. Both are known for every patient, and sex and
    age are also features.
    """
    builder = HeartDisease(
        config=config, file_format=prepared.FILE_FORMAT, folder=_folder(data_dir)
    )
    records = prepared.read_split(prepared.prepare(builder), "records")
    x, features = records["x"], feature_names(config)
    age, male = (x[:, features.index(name)] for name in ("age", "sex"))
    group, attributes = groups.stack(
        [
            groups.by_value("sex", np.where(male == 1, "male", "female")),
            groups.by_band("age", age, AGE_CUTS),
        ]
    )
    return Table(
        name="heart_disease" if config == "all" else f"heart_disease/{config}",
        x=x,
        y=records["label"].astype(np.int32),
        split=records["split"].astype(np.int8),
        classes=("healthy", "ill"),
        source=SOURCE,
        client=np.array(HOSPITALS)[records["hospital"]],
        group=group,
        groups=attributes,
        features=features,
    )
