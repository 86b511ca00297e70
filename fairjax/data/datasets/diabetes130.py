"""Diabetes 130-US hospitals: is a patient with diabetes readmitted within 30 days?

Inpatient stays of 1 to 14 days with laboratory tests and drugs, over ten years (1999 to
2008), at 130 hospitals and networks of the USA. The file has 101,766 encounters of
71,518 patients; 50,727 encounters of 37,935 patients are read.

Left out: encounters of unknown specialty (49,949) and, as in Strack et al., those that
    ended in death or in a hospice (1,090 more), of which few led to a readmission.
    Strack et al. use the first encounter of every patient; here all stay ("Impact of
    HbA1c measurement on hospital readmission rates: analysis of 70,000 clinical
    database patient records", BioMed Research International 2014,
    doi:10.1155/2014/781670).
Client: the medical specialty of the admitting physician, because the file names no
    hospital. There are 72 specialties with 1 to 14,237 encounters; 16 of them have 500
    or more (47,291 together).
Patient: one in eleven is seen at several specialties. Every encounter belongs to its
    specialty, and all encounters of a patient are in one split, see `federation.build`.
Classes: readmitted within 30 days 5,561 (11 %), later or never 45,166.
Patient groups: sex, race, and age in the bands of Strack et al., cut at 30 and 60.

The official file is found in `data_dir` (or FAIRJAX_DATA_DIR), directly or in a folder
diabetes130, also packed with gzip, or is downloaded. The SHA-256 of the csv must be the
official one.
"""

import contextlib
import csv
import gzip
import io
import math
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float

from fairjax.core import require
from fairjax.data import groups
from fairjax.data.datasets import prepared
from fairjax.data.table import FREE, Table

SOURCE = (
    "Strack et al. 2014, Diabetes 130-US hospitals for years 1999-2008, "
    "doi:10.24432/C5230J, CC BY 4.0"
)
HOST = "archive.ics.uci.edu"
URL = f"https://{HOST}/ml/machine-learning-databases/00296/dataset_diabetes.zip"
FILE = "diabetic_data.csv"
SHA256 = "0689e7ec031237dc63031b938805c48377748761a3b26acab621567afa24df97"
CLASSES = ("later or never", "within 30 days")
AGE_CUTS = (30.0, 60.0)

# Codes are those of IDs_mapping.csv. A code that is not listed is unknown: "NULL", "Not
# Mapped" and the like, and a few rare ones (births, a court).
_DEATH_OR_HOSPICE_CODES = ("11", "13", "14", "19", "20", "21")
"""Discharges by death or to a hospice."""


def _codes(**levels: str) -> dict[str, str]:
    """Code -> level, from level -> codes with spaces between."""
    return {code: level for level, codes in levels.items() for code in codes.split()}


_LEVEL_OF = {
    "admission_type_id": _codes(elective="3", emergency="1 7", urgent="2"),
    "admission_source_id": _codes(
        referral="1 2 3", emergency_room="7", transfer="4 5 6 10 18 22 25 26"
    ),
    "discharge_disposition_id": _codes(
        home="1",
        home_care="6 8",
        nursing_care="3 4 15 24",
        other="2 5 7 9 10 12 16 17 22 23 27 28 29 30",
    ),
}
_ICD9 = {
    "circulatory": ((390, 459), (785, 785)),
    "respiratory": ((460, 519), (786, 786)),
    "digestive": ((520, 579), (787, 787)),
    "diabetes": ((250, 250),),
    "injury": ((800, 999),),
    "musculoskeletal": ((710, 739),),
    "genitourinary": ((580, 629), (788, 788)),
    "neoplasms": ((140, 239),),
}
"""The groups of table 2 of Strack et al.; all other codes, such as E and V codes, are
"other"."""
_LEVELS = {
    "race": ("Caucasian", "AfricanAmerican", "Asian", "Hispanic", "Other"),
    **{name: tuple(dict.fromkeys(codes.values())) for name, codes in _LEVEL_OF.items()},
    **{f"diag_{i}": ("other", *_ICD9) for i in (1, 2, 3)},
    "max_glu_serum": ("None", "Norm", ">200", ">300"),
    "A1Cresult": ("None", "Norm", ">7", ">8"),
    "insulin": ("No", "Down", "Steady", "Up"),
}
"""Categories; the first level has no feature."""
_MAY_MISS = ("race", *_LEVEL_OF)
"""Categories whose absence is a feature. The number of diagnoses mostly shows whether a
second or third is absent; sex and first diagnosis are unknown in 13 encounters."""
_COUNTS = (
    "time_in_hospital",
    "num_lab_procedures",
    "num_procedures",
    "num_medications",
    "number_diagnoses",
)
_VISITS = ("number_outpatient", "number_emergency", "number_inpatient")
_DRUGS = (
    "metformin",
    "repaglinide",
    "glimepiride",
    "glipizide",
    "glyburide",
    "pioglitazone",
    "rosiglitazone",
)
"""Drugs other than insulin that are taken in at least 1 % of the encounters."""


class Diabetes130(tfds.core.GeneratorBasedBuilder):
    """One split, "records", in the order of the file.

    Features: age (the middle of its decade in years), sex, and counts as they are;
    visits in the year before as log(1 + n); categories one-hot without their first
    level; diagnoses in the nine groups of Strack et al.; the change of the insulin
    dose; whether another drug was taken, if at least 1 % take it; and whether race,
    admission and discharge are unknown.

    No features: ids, weight (97 % unknown), payer, and the specialty, which is the
    client.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "50,727 encounters."}  # noqa: RUF012

    def __init__(self, *, path: pathlib.Path | None = None, **kwargs):
        """`path` is the file; None downloads it."""
        self._path = path
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        width = len(feature_names())
        return tfds.core.DatasetInfo(
            builder=self,
            description=SOURCE,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(shape=(width,), dtype=np.float32),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                    "specialty": tfds.features.Text(),
                    "patient": tfds.features.Text(),
                    "race": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        path = self._path
        if path is None:
            prepared.need_network(HOST, FILE)
            path = pathlib.Path(dl_manager.download(URL))
        return {"records": self._generate_examples(path)}

    def _generate_examples(self, path):
        columns = read_columns(path)
        x, label = encode(columns), columns["readmitted"] == "<30"
        names = [columns[c] for c in ("medical_specialty", "patient_nbr", "race")]
        for i in range(len(x)):
            specialty, patient, race = (str(cells[i]) for cells in names)
            record = {"x": x[i], "label": int(label[i]), "specialty": specialty}
            yield i, record | {"patient": patient, "race": race}


def feature_names() -> tuple[str, ...]:
    """The names of the encoded features."""
    return (
        "age",
        "male",
        *_COUNTS,
        *_VISITS,
        *(
            f"{name}={level}"
            for name, levels in _LEVELS.items()
            for level in levels[1:]
        ),
        *_DRUGS,
        "change",
        "diabetesMed",
        *(f"{name} missing" for name in _MAY_MISS),
    )


def read_columns(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The columns of the file as text, "" where unknown; without encounters left out.

    Raises:
        InputError: the file is not the official one.
    """
    field = f"data.data_dir {path}"
    try:
        with _unpacked(path) as file:
            prepared.verify(file, field, "sha256", SHA256)
            content = file.read()
    except require.InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise require.InputError(
            f"{field}: expected the official file; got {error}"
        ) from error
    header, *rows = csv.reader(io.StringIO(content.decode()))
    column_index = {name: i for i, name in enumerate(header)}
    specialty, discharge = (
        column_index["medical_specialty"],
        column_index["discharge_disposition_id"],
    )
    included_rows = [
        r
        for r in rows
        if r[specialty] != "?" and r[discharge] not in _DEATH_OR_HOSPICE_CODES
    ]
    cells = np.array(included_rows)
    is_missing = np.isin(cells, ("?", "Unknown/Invalid"))
    return dict(zip(header, np.where(is_missing, "", cells).T, strict=True))


@contextlib.contextmanager
def _unpacked(path: pathlib.Path) -> Iterator[Any]:
    """The csv file, unpacked from gzip or from the downloaded archive if need be."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(FILE))
            with archive.open(name) as file:
                yield file
    else:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            yield file


def encode(columns: dict[str, np.ndarray]) -> Float[np.ndarray, "E F"]:
    """The features of `feature_names` [E, F], NaN where unknown."""
    by_name: dict[str, np.ndarray] = {}
    # A cell reads "[60-70)".
    decades = [int(cell[1:].partition("-")[0]) for cell in columns["age"]]
    by_name["age"] = np.array(decades) + 5
    by_name["male"] = _one_hot(columns["gender"], "Male")
    for name in _COUNTS:
        by_name[name] = columns[name].astype(float)
    for name in _VISITS:
        by_name[name] = np.log1p(columns[name].astype(float))
    for name, levels in _LEVELS.items():
        cells = columns[name]
        if name in _LEVEL_OF:
            cells = np.array([_LEVEL_OF[name].get(code, "") for code in cells])
        elif name.startswith("diag_"):
            cells = np.array([_icd9_group(code) for code in cells])
        for level in levels[1:]:
            by_name[f"{name}={level}"] = _one_hot(cells, level)
        if name in _MAY_MISS:
            by_name[f"{name} missing"] = cells == ""
    for name in _DRUGS:
        by_name[name] = columns[name] != "No"
    by_name["change"] = columns["change"] == "Ch"
    by_name["diabetesMed"] = columns["diabetesMed"] == "Yes"
    return np.stack([by_name[name] for name in feature_names()], 1).astype(np.float32)


def _one_hot(cells: np.ndarray, level: str) -> np.ndarray:
    return np.where(cells == "", math.nan, cells == level)


def _icd9_group(code: str) -> str:
    """The group of a diagnosis, such as "diabetes" for "250.83"; "" for ""."""
    if not code or code[0] in "EV":
        return "other" if code else ""
    number = int(code.partition(".")[0])
    for group, ranges in _ICD9.items():
        if any(low <= number <= high for low, high in ranges):
            return group
    return "other"


def _path(data_dir: str | None) -> pathlib.Path | None:
    """The path of the file; None if it is to be downloaded."""
    field, root = prepared.folder(data_dir)
    if root is None:
        return None
    for folder in (root / "diabetes130", root):
        for name in (FILE, f"{FILE}.gz"):
            if (folder / name).is_file():
                return folder / name
    if data_dir:
        require.fail(f"{field} {root}", f"{FILE} or {FILE}.gz", "none")
    return None


def load(data_dir: str | None) -> Table:
    """Loads the encounters; clients are specialties, and no split is fixed."""
    builder = Diabetes130(path=_path(data_dir), file_format=prepared.FILE_FORMAT)
    records = prepared.read_split(prepared.prepare(builder), "records")
    x, features = records["x"], feature_names()
    age, male = (x[:, features.index(name)] for name in ("age", "male"))
    sex = np.where(np.isnan(male), "", np.where(male == 1, "male", "female"))
    group, attributes = groups.stack(
        [
            groups.by_value("sex", sex),
            groups.by_band("age", age, AGE_CUTS),
            groups.by_value("race", records["race"].astype(str)),
        ]
    )
    return Table(
        name="diabetes130",
        x=x,
        y=records["label"].astype(np.int32),
        split=np.full(len(x), FREE, np.int8),
        classes=CLASSES,
        source=SOURCE,
        client=records["specialty"].astype(str),
        patient=records["patient"].astype(str),
        group=group,
        groups=attributes,
        features=features,
    )
