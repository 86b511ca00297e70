"""Diabetes 130-US hospitals: included encounters, their coding, and splits."""

import csv
import gzip
import hashlib
import io
import os
import pathlib
import socket
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fairjax.core import require
from fairjax.data import datasets, federation
from fairjax.data.datasets import diabetes130
from fairjax.data.table import FREE

DATA_DIR = pathlib.Path(os.environ.get("FAIRJAX_DATA_DIR") or "absent")
OFFICIAL = DATA_DIR / "diabetes130" / "diabetic_data.csv.gz"

HEADER = (
    "encounter_id,patient_nbr,race,gender,age,weight,admission_type_id,"
    "discharge_disposition_id,admission_source_id,time_in_hospital,payer_code,"
    "medical_specialty,num_lab_procedures,num_procedures,num_medications,"
    "number_outpatient,number_emergency,number_inpatient,diag_1,diag_2,diag_3,"
    "number_diagnoses,max_glu_serum,A1Cresult,metformin,repaglinide,nateglinide,"
    "chlorpropamide,glimepiride,acetohexamide,glipizide,glyburide,tolbutamide,"
    "pioglitazone,rosiglitazone,acarbose,miglitol,troglitazone,tolazamide,examide,"
    "citoglipton,insulin,glyburide-metformin,glipizide-metformin,"
    "glimepiride-pioglitazone,metformin-rosiglitazone,metformin-pioglitazone,change,"
    "diabetesMed,readmitted"
).split(",")
SPECIALTIES = ("Cardiology", "Family/GeneralPractice", "Urology")
GONE = (11, 13, 14, 19, 20, 21)
ROWS = 400


pytestmark = pytest.mark.usefixtures("offline")


def encounters() -> dict[str, np.ndarray]:
    """Random cells of every official column; patients have a few encounters."""
    rng = np.random.default_rng(0)

    def draw(*values):
        return rng.choice(np.array(values, dtype=str), ROWS)

    columns = {name: draw("No", "Steady", "Up", "Down") for name in HEADER}
    return columns | {
        "encounter_id": np.arange(ROWS).astype(str),
        "patient_nbr": rng.integers(0, ROWS // 3, ROWS).astype(str),
        "race": draw("Caucasian", "AfricanAmerican", "Asian", "Hispanic", "Other", "?"),
        "gender": draw("Female", "Male", "Unknown/Invalid"),
        "age": draw(*(f"[{10 * i}-{10 * i + 10})" for i in range(10))),
        "weight": draw("?", "[75-100)"),
        "admission_type_id": draw(*range(1, 9)),
        "discharge_disposition_id": draw(*range(1, 31)),
        "admission_source_id": draw(*range(1, 15), 17, 20, 22, 25),
        "time_in_hospital": draw(*range(1, 15)),
        "payer_code": draw("?", "MC"),
        "medical_specialty": draw(*SPECIALTIES, "?"),
        "num_lab_procedures": draw(*range(1, 100)),
        "num_procedures": draw(*range(7)),
        "num_medications": draw(*range(1, 40)),
        "number_outpatient": draw(*range(5)),
        "number_emergency": draw(*range(5)),
        "number_inpatient": draw(*range(5)),
        **{f"diag_{i}": draw("428", "250.83", "V57", "276", "?") for i in (1, 2, 3)},
        "number_diagnoses": draw(*range(1, 10)),
        "max_glu_serum": draw("None", "Norm", ">200", ">300"),
        "A1Cresult": draw("None", "Norm", ">7", ">8"),
        "change": draw("No", "Ch"),
        "diabetesMed": draw("No", "Yes"),
        "readmitted": draw("NO", ">30", "<30"),
    }


def packed(columns) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(HEADER)
    writer.writerows(zip(*(columns[name] for name in HEADER), strict=True))
    return text.getvalue().encode()


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes columns as a file that passes for the official one; returns its folder."""
    folder = tmp_path / "generated"
    folder.mkdir()

    def write(columns):
        content = packed(columns)
        (folder / "diabetic_data.csv").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setattr(diabetes130, "SHA256", digest)
        return folder

    return write


@pytest.fixture
def folder(written):
    return written(encounters())


def staying(columns):
    stays = columns["medical_specialty"] != "?"
    discharge = columns["discharge_disposition_id"].astype(int)
    stays &= ~np.isin(discharge, GONE)
    return {name: cells[stays] for name, cells in columns.items()}


def coded(columns):
    """The features of `encode` by name, for columns as they are in the file."""
    cleaned = {
        name: np.where(np.isin(cells, ("?", "Unknown/Invalid")), "", cells)
        for name, cells in columns.items()
    }
    x = diabetes130.encode(cleaned)
    return dict(zip(diabetes130.feature_names(), x.T, strict=True))


def load(data_dir=None):
    return datasets.load("diabetes130", data_dir=data_dir and str(data_dir))


# ------------------------------------------------------------------------- the records


def test_known_specialties_stay_and_those_who_cannot_come_back_do_not(folder):
    table, expected = load(folder), staying(encounters())
    assert 0 < len(table.y) == len(expected["readmitted"]) < ROWS
    np.testing.assert_array_equal(table.y, expected["readmitted"] == "<30")
    assert table.classes[1] == "within 30 days"
    np.testing.assert_array_equal(table.client, expected["medical_specialty"])
    assert set(table.client) == set(SPECIALTIES)
    np.testing.assert_array_equal(table.patient, expected["patient_nbr"])
    x = np.stack(list(coded(expected).values()), 1)
    np.testing.assert_array_equal(table.x, x)
    assert table.x.dtype == np.float32
    assert table.features == diabetes130.feature_names()
    assert len(set(table.features)) == table.x.shape[1]
    assert set(table.split) == {FREE}


def test_groups_are_sex_age_band_and_race_and_the_unknown_is_in_none(folder):
    table, columns = load(folder), staying(encounters())
    ages = ("under 30", "30 to under 60", "60 and over")
    races = ("AfricanAmerican", "Asian", "Caucasian", "Hispanic", "Other")
    assert table.groups == (
        ("sex", ("female", "male")),
        ("age", ages),
        ("race", races),
    )
    sex, age, race = table.group.T
    numbers = {"Unknown/Invalid": -1, "Female": 0, "Male": 1}
    assert sex.tolist() == [numbers[cell] for cell in columns["gender"]]
    decade = np.array([int(cell[1]) for cell in columns["age"]])
    np.testing.assert_array_equal(age, (decade >= 3).astype(int) + (decade >= 6))
    numbers = {"?": -1} | {name: i for i, name in enumerate(races)}
    assert race.tolist() == [numbers[cell] for cell in columns["race"]]


def test_no_patient_crosses_a_split_and_encounters_stay_where_they_were(folder):
    table = load(folder)
    table.x[:, 0] = np.arange(len(table.y))
    splits = federation.build(
        table,
        partition="natural",
        num_clients=1,
        alpha=1.0,
        min_size=1,
        test_fraction=0.25,
        val_fraction=0.1,
        normalise="none",
        seed=0,
    )
    assert splits.clients == SPECIALTIES
    split_of = {}
    for name in ("train", "val", "test"):
        data = getattr(splits, name)
        record = data.x[:, 0].astype(int)
        owner = np.repeat(np.arange(3), data.count)
        np.testing.assert_array_equal(
            np.array(SPECIALTIES)[owner], table.client[record]
        )
        for patient in table.patient[record]:
            split_of.setdefault(patient, set()).add(name)
    assert all(len(names) == 1 for names in split_of.values())
    places = {
        patient: set(table.client[table.patient == patient]) for patient in split_of
    }
    assert sum(len(names) > 1 for names in places.values()) > 10


# -------------------------------------------------------------------------- the coding


def test_what_came_after_or_only_names_somebody_is_no_feature():
    columns = encounters()
    excluded = {"readmitted", "encounter_id", "patient_nbr", "medical_specialty"}
    excluded |= {"payer_code", "weight"}
    reversed_features = coded(
        columns | {name: columns[name][::-1] for name in excluded}
    )
    for name, values in coded(columns).items():
        np.testing.assert_array_equal(values, reversed_features[name])


def test_numbers_are_years_counts_and_logarithms_of_visits():
    columns = encounters()
    x = coded(columns)
    decade = np.array([int(cell[1]) for cell in columns["age"]])
    np.testing.assert_array_equal(x["age"], 10 * decade + 5)
    for name in ("time_in_hospital", "num_lab_procedures", "number_diagnoses"):
        np.testing.assert_array_equal(x[name], columns[name].astype(int))
    for name in ("number_outpatient", "number_emergency", "number_inpatient"):
        expected = np.log(1 + columns[name].astype(int))
        np.testing.assert_allclose(x[name], expected, rtol=1e-6)
    unknown = columns["gender"] == "Unknown/Invalid"
    expected = np.where(unknown, np.nan, columns["gender"] == "Male")
    np.testing.assert_array_equal(x["male"], expected)


@pytest.mark.parametrize(
    ("column", "levels"),
    [
        ("race", {"Asian": ["Asian"], "": ["?"]}),
        (
            "admission_type_id",
            {"emergency": ["1", "7"], "urgent": ["2"], "": ["4", "5", "6", "8"]},
        ),
        (
            "admission_source_id",
            {
                "emergency_room": ["7"],
                "transfer": ["4", "5", "6", "10", "22", "25"],
                "": ["8", "9", "11", "12", "13", "14", "17", "20"],
            },
        ),
        (
            "discharge_disposition_id",
            {
                "home_care": ["6", "8"],
                "nursing_care": ["3", "4", "15", "24"],
                "": ["11", "13", "14", "18", "19", "20", "21", "25", "26"],
            },
        ),
        ("insulin", {"Up": ["Up"], "Down": ["Down"], "Steady": ["Steady"], "": []}),
        ("A1Cresult", {">7": [">7"], ">8": [">8"], "Norm": ["Norm"], "": []}),
    ],
)
def test_categories_are_one_hot_and_nan_where_unknown(column, levels):
    columns = encounters()
    x, cells = coded(columns), columns[column]
    unknown = np.isin(cells, levels.pop(""))
    for level, values in levels.items():
        expected = np.where(unknown, np.nan, np.isin(cells, values))
        np.testing.assert_array_equal(x[f"{column}={level}"], expected)
    if unknown.any():
        np.testing.assert_array_equal(x[f"{column} missing"], unknown)


@pytest.mark.parametrize(
    "reference",
    [
        "race=Caucasian",
        "admission_type_id=elective",
        "admission_source_id=referral",
        "discharge_disposition_id=home",
        "diag_1=other",
        "max_glu_serum=None",
        "insulin=No",
    ],
)
def test_the_first_level_of_a_category_has_no_feature(reference):
    assert reference not in diabetes130.feature_names()


@pytest.mark.parametrize(
    ("group", "codes"),
    [
        ("circulatory", ["390", "428", "459", "785"]),
        ("respiratory", ["460", "486", "519", "786", "519.8"]),
        ("digestive", ["520", "579", "787"]),
        ("diabetes", ["250", "250.01", "250.83"]),
        ("injury", ["800", "996", "999"]),
        ("musculoskeletal", ["710", "715", "739"]),
        ("genitourinary", ["580", "629", "788"]),
        ("neoplasms", ["140", "239"]),
        ("other", ["8", "139", "240", "249", "251", "276", "389", "630", "709", "740"]),
        ("other", ["780", "784", "789", "799", "E888", "V45", "V57"]),
    ],
)
@pytest.mark.parametrize("column", ["diag_1", "diag_2", "diag_3"])
def test_diagnoses_are_the_nine_groups_of_strack_et_al(group, codes, column):
    columns = {name: cells[: len(codes) + 1] for name, cells in encounters().items()}
    x = coded(columns | {column: np.array([*codes, "?"])})
    hot = {name: values for name, values in x.items() if name.startswith(f"{column}=")}
    assert len(hot) == 8
    for name, values in hot.items():
        assert values[:-1].tolist() == len(codes) * [name == f"{column}={group}"]
        assert np.isnan(values[-1])


def test_drugs_are_taken_or_not_and_rare_ones_are_left_out():
    columns = encounters()
    x = coded(columns)
    for name in ("metformin", "glipizide", "repaglinide"):
        np.testing.assert_array_equal(x[name], columns[name] != "No")
    np.testing.assert_array_equal(x["change"], columns["change"] == "Ch")
    np.testing.assert_array_equal(x["diabetesMed"], columns["diabetesMed"] == "Yes")
    assert not {"examide", "acarbose", "nateglinide"} & set(x)


# --------------------------------------------------------------------------- the file


if OFFICIAL.is_file():

    def test_the_official_file_has_the_counts_of_the_data_card():
        columns = diabetes130.read_columns(OFFICIAL)
        assert len(columns["patient_nbr"]) == 50_727
        assert len(set(columns["patient_nbr"])) == 37_935
        assert np.sum(columns["readmitted"] == "<30") == 5_561
        names, count = np.unique(columns["medical_specialty"], return_counts=True)
        assert (len(names), count.max(), count.min()) == (72, 14_237, 1)
        assert (np.sum(count >= 500), count[count >= 500].sum()) == (16, 47_291)
        for name in diabetes130._DRUGS:
            assert np.mean(columns[name] != "No") >= 0.01
        x = diabetes130.encode(columns)
        assert not np.any(np.isinf(x))
        assert np.isnan(x).mean() < 0.02
        # Every level occurs, and often enough that its deviation is not tiny.
        assert np.nanmin(np.nanmean(x, 0)) > 0.001


def test_the_file_is_found_in_a_folder_of_its_name_and_packed(folder, prepared_in):
    direct = load(folder)
    content = (folder / "diabetic_data.csv").read_bytes()
    subfolder = folder.parent / "root" / "diabetes130"
    subfolder.mkdir(parents=True)
    (subfolder / "diabetic_data.csv.gz").write_bytes(gzip.compress(content))
    prepared_in.rename(prepared_in.with_name("before"))
    reloaded = load(subfolder.parent)
    np.testing.assert_array_equal(reloaded.x, direct.x)
    np.testing.assert_array_equal(reloaded.group, direct.group)


def test_the_file_is_found_by_the_environment_and_read_once(folder, monkeypatch):
    monkeypatch.setenv("FAIRJAX_DATA_DIR", str(folder))
    first = load()
    monkeypatch.delattr(diabetes130.Diabetes130, "_generate_examples")
    np.testing.assert_array_equal(load().x, first.x)


def test_an_altered_file_is_refused_and_nothing_is_kept(folder):
    path = folder / "diabetic_data.csv"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Urology", b"Oncolog", 1))
    with pytest.raises(
        require.InputError, match="expected the official file, sha"
    ) as e:
        load(folder)
    assert str(e.value).startswith(f"data.data_dir {path}: ")
    assert "\n" not in str(e.value)
    path.write_bytes(content)
    assert len(load(folder).y) == len(staying(encounters())["age"])


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"x" * 999, mtime=0)[:-12]],
    ids=["other", "cut"],
)
def test_a_packed_file_that_cannot_be_unpacked_is_refused(tmp_path, content):
    (tmp_path / "diabetic_data.csv.gz").write_bytes(content)
    with pytest.raises(
        require.InputError, match="expected the official file; got"
    ) as e:
        load(tmp_path)
    assert "\n" not in str(e.value)


def test_a_data_dir_without_the_file_is_refused(tmp_path):
    with pytest.raises(require.InputError) as e:
        load(tmp_path)
    assert str(e.value) == (
        f"data.data_dir {tmp_path}: expected diabetic_data.csv or "
        "diabetic_data.csv.gz; got 'none'"
    )


def test_neither_file_nor_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRJAX_DATA_DIR", str(tmp_path))
    with pytest.raises(require.InputError) as e:
        load()
    for word in (
        "data.data_dir",
        "diabetic_data.csv",
        "archive.ics.uci.edu",
        "is down",
    ):
        assert word in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("altered", [False, True])
def test_without_a_file_the_official_archive_is_downloaded(
    folder, monkeypatch, altered
):
    content = (folder / "diabetic_data.csv").read_bytes() + altered * b"\n"
    archive = folder / "0123.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("dataset_diabetes/IDs_mapping.csv", "1,Emergency")
        file.writestr("dataset_diabetes/diabetic_data.csv", content)
    requests = []

    def download(_, url):
        requests.append(url)
        return archive

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    if altered:
        with pytest.raises(require.InputError, match="expected the official file, sha"):
            load()
    else:
        assert set(load().client) == set(SPECIALTIES)
    base = "https://archive.ics.uci.edu/ml/machine-learning-databases/00296/"
    assert requests == [f"{base}dataset_diabetes.zip"]
