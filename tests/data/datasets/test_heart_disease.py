"""UCI Heart Disease: the records of both readings, and the files that are refused."""

import hashlib
import os
import pathlib
import shutil
import socket

import numpy as np
import pytest
import sklearn.model_selection
import tensorflow_datasets as tfds

from fairjax.core import require
from fairjax.data import datasets
from fairjax.data.datasets import heart_disease
from fairjax.data.table import FREE, TEST, TRAIN

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
ROWS = dict(zip(HOSPITALS, (303, 294, 123, 200), strict=True))
ILL = dict(zip(HOSPITALS, (139, 106, 115, 149), strict=True))
WHOLE = dict(zip(HOSPITALS, (303, 261, 46, 130), strict=True))
"""Records without a missing value in FLamby's columns."""
FLAMBY = dict(zip(HOSPITALS, ((199, 104), (172, 89), (30, 16), (85, 45)), strict=True))
"""Training and test records of du Terrail et al. 2022."""


DATA_DIR = pathlib.Path(os.environ.get("FAIRJAX_DATA_DIR") or "absent")
OFFICIAL = DATA_DIR / "heart_disease"
SOURCES = ["generated", "official"] if OFFICIAL.is_dir() else ["generated"]


pytestmark = pytest.mark.usefixtures("offline")


def generated_file(name: str) -> str:
    """Random records with the official numbers of rows, ill, and complete records.

    One complete record is healthy, so that Switzerland cannot be stratified, as in the
    official data.
    """
    rng = np.random.default_rng(HOSPITALS.index(name))
    rows, ill, complete = ROWS[name], ILL[name], WHOLE[name]
    columns = [
        rng.integers(30, 77, rows),
        rng.integers(0, 2, rows),
        rng.integers(1, 5, rows),
        rng.integers(90, 200, rows) * (rng.random(rows) > 0.1),
        rng.integers(100, 400, rows) * (rng.random(rows) > 0.2),
        rng.integers(0, 2, rows),
        rng.integers(0, 3, rows),
        rng.integers(60, 200, rows),
        rng.integers(0, 2, rows),
        rng.integers(-20, 60, rows) / 10,
        rng.integers(1, 4, rows),
        rng.integers(0, 4, rows),
        rng.choice([3, 6, 7], rows),
        np.r_[0, rng.integers(1, 5, ill), np.zeros(rows - ill - 1, int)],
    ]
    cells = np.stack([[f"{cell:g}" for cell in column] for column in columns], axis=1)
    cells[np.arange(complete, rows), rng.integers(3, 10, rows - complete)] = "?"
    cells[:, 10:13][rng.random((rows, 3)) < 0.3] = "?"
    return "".join(",".join(row) + "\n" for row in rng.permutation(cells))


@pytest.fixture
def generated(tmp_path, monkeypatch):
    """A folder of generated files that pass for the official ones."""
    folder = tmp_path / "generated"
    folder.mkdir()
    for name in HOSPITALS:
        content = generated_file(name).encode()
        (folder / f"processed.{name}.data").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(heart_disease.SHA256, name, digest)
    return folder


@pytest.fixture(params=SOURCES)
def folder(request):
    """The generated files, and the official ones if this machine has them."""
    if request.param == "official":
        return OFFICIAL
    return request.getfixturevalue("generated")


def raw(folder, name):
    """The 14 columns of a file, NaN for "?"."""
    return np.genfromtxt(folder / f"processed.{name}.data", delimiter=",").T


def read_hospital(folder, name, reading):
    """(columns by name, label, split) of one hospital."""
    path = folder / f"processed.{name}.data"
    x, label, split = heart_disease.read_file(path, name, reading)
    names = heart_disease.feature_names(reading)
    return dict(zip(names, x.T, strict=True)), label, split


# ----------------------------------------------------------- heart disease, the records


@pytest.mark.parametrize("name", HOSPITALS)
def test_every_record_is_read_with_its_label(folder, name):
    _, label, split = read_hospital(folder, name, "all")
    assert len(label) == ROWS[name]
    assert label.sum() == ILL[name]
    np.testing.assert_array_equal(label, raw(folder, name)[13] > 0)
    assert set(split) == {FREE}


@pytest.mark.parametrize("name", HOSPITALS)
def test_categories_are_one_hot_without_their_first_level(folder, name):
    columns, *_ = read_hospital(folder, name, "all")
    levels = {"chest_pain": (2, 2, 3, 4), "resting_ecg": (6, 1, 2)}
    levels |= {"slope": (10, 2, 3), "thal": (12, 6, 7)}
    for column, (number, *levels_with_feature) in levels.items():
        cells = raw(folder, name)[number]
        assert sum(key.startswith(f"{column}=") for key in columns) == len(
            levels_with_feature
        )
        for level in levels_with_feature:
            hot = np.where(np.isnan(cells), np.nan, cells == level)
            np.testing.assert_array_equal(columns[f"{column}={level}"], hot)


@pytest.mark.parametrize("name", HOSPITALS)
def test_what_was_not_measured_is_missing_and_a_feature(folder, name):
    columns, *_ = read_hospital(folder, name, "all")
    cells = raw(folder, name)
    for number, column in (
        (3, "blood_pressure"),
        (4, "cholesterol"),
        (7, "max_heart_rate"),
    ):
        missing = np.isnan(cells[number]) | ((cells[number] == 0) & (number != 7))
        expected = np.where(missing, np.nan, cells[number]).astype(np.float32)
        np.testing.assert_array_equal(columns[column], expected)
        np.testing.assert_array_equal(columns[f"{column} missing"], missing)
    np.testing.assert_array_equal(columns["thal missing"], np.isnan(cells[12]))


@pytest.mark.parametrize("name", HOSPITALS)
def test_flamby_keeps_whole_records_of_its_columns(folder, name):
    columns, label, _ = read_hospital(folder, name, "flamby")
    cells = raw(folder, name)
    is_complete = ~np.isnan(cells[:10]).any(axis=0)
    assert len(label) == is_complete.sum() == WHOLE[name]
    assert len(columns) == 13
    assert not [c for c in columns if c.startswith(("slope", "vessels", "thal"))]
    assert not np.any(np.isnan(np.stack(list(columns.values()))))
    np.testing.assert_array_equal(label, cells[13, is_complete] > 0)
    # Here 0 does not mean "not measured".
    np.testing.assert_array_equal(columns["cholesterol"], cells[4, is_complete])


@pytest.mark.parametrize("name", HOSPITALS)
def test_flamby_has_its_fixed_split(folder, name):
    _, label, split = read_hospital(folder, name, "flamby")
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(label)),
        test_size=0.34,
        train_size=0.66,
        random_state=43,
        shuffle=True,
        stratify=label if min(np.bincount(label)) > 2 else None,
    )
    assert (len(train), len(test)) == FLAMBY[name]
    np.testing.assert_array_equal(np.flatnonzero(split == TRAIN), np.sort(train))
    np.testing.assert_array_equal(np.flatnonzero(split == TEST), np.sort(test))


@pytest.mark.parametrize(
    ("reading", "width", "rows"),
    [("", 28, ROWS), ("/flamby", 13, WHOLE)],
    ids=["all", "flamby"],
)
def test_the_federation_has_four_hospitals(folder, reading, width, rows):
    table = datasets.load(f"heart_disease{reading}", data_dir=str(folder))
    assert table.name == f"heart_disease{reading}"
    assert table.x.shape == (sum(rows.values()), width)
    assert len(table.features) == width
    assert {name: np.sum(table.client == name) for name in HOSPITALS} == rows
    for name in HOSPITALS:
        columns, label, split = read_hospital(folder, name, reading[1:] or "all")
        in_client = table.client == name
        x = np.stack(list(columns.values()), axis=1)
        np.testing.assert_array_equal(table.x[in_client], x)
        np.testing.assert_array_equal(table.y[in_client], label)
        np.testing.assert_array_equal(table.split[in_client], split)


@pytest.mark.parametrize("reading", ["", "/flamby"])
def test_the_groups_of_a_patient_are_sex_and_age_band(folder, reading):
    table = datasets.load(f"heart_disease{reading}", data_dir=str(folder))
    ages = ("under 45", "45 to under 55", "55 and over")
    assert table.groups == (("sex", ("female", "male")), ("age", ages))
    for name in HOSPITALS:
        cells = raw(folder, name)
        is_complete = slice(None) if not reading else ~np.isnan(cells[:10]).any(axis=0)
        sex, age = table.group[table.client == name].T
        np.testing.assert_array_equal(sex, cells[1, is_complete])
        expected = (cells[0, is_complete] >= 45).astype(int) + (
            cells[0, is_complete] >= 55
        )
        np.testing.assert_array_equal(age, expected)


# ------------------------------------------------------------- heart disease, the files


def load(data_dir=None):
    return datasets.load("heart_disease", data_dir=data_dir and str(data_dir))


def test_files_are_found_in_the_folder_or_in_one_named_heart_disease(
    generated, tmp_path, prepared_in
):
    direct = load(generated)
    shutil.rmtree(prepared_in)
    shutil.move(generated, tmp_path / "root" / "heart_disease")
    np.testing.assert_array_equal(load(tmp_path / "root").x, direct.x)


def test_files_are_found_by_the_environment(generated, monkeypatch):
    monkeypatch.setenv("FAIRJAX_DATA_DIR", str(generated))
    assert len(load().y) == 920


def test_data_dir_comes_before_the_environment(generated, monkeypatch):
    monkeypatch.setenv("FAIRJAX_DATA_DIR", "/nowhere")
    assert len(load(generated).y) == 920


def test_an_altered_file_is_refused_and_nothing_is_kept(generated):
    path = generated / "processed.va.data"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1", b"2", 1))
    with pytest.raises(require.InputError, match="expected the official file") as e:
        load(generated)
    assert str(e.value).startswith(f"data.data_dir {path}: ")
    assert "\n" not in str(e.value)
    path.write_bytes(content)
    assert len(load(generated).y) == 920


def test_a_folder_with_some_of_the_files_is_refused(generated):
    (generated / "processed.va.data").unlink()
    (generated / "processed.cleveland.data").unlink()
    with pytest.raises(
        require.InputError, match=r"processed\.cleveland\.data, processed\.va\.data"
    ) as e:
        load(generated)
    assert "switzerland" not in str(e.value)


def test_a_data_dir_without_the_files_is_refused(tmp_path):
    with pytest.raises(require.InputError, match=r"^data\.data_dir .*cleveland"):
        load(tmp_path)


@pytest.mark.parametrize("where", ["data.data_dir", "FAIRJAX_DATA_DIR"])
@pytest.mark.parametrize("what", ["absent", "a file", "unreadable"])
def test_a_folder_that_cannot_be_read_is_refused(generated, monkeypatch, what, where):
    data_dir = generated / "absent"
    if what == "a file":
        data_dir = generated / "processed.va.data"
    elif what == "unreadable":
        data_dir = generated
        monkeypatch.setattr(os, "access", lambda path, mode: path != generated)
    if where == "FAIRJAX_DATA_DIR":
        monkeypatch.setenv(where, str(data_dir))
    with pytest.raises(require.InputError) as e:
        load(data_dir if where == "data.data_dir" else None)
    assert (
        str(e.value)
        == f"{where}: expected a folder that can be read; got {str(data_dir)!r}"
    )


@pytest.mark.parametrize("elsewhere", [False, True])
def test_neither_folder_nor_network_is_one_line(tmp_path, monkeypatch, elsewhere):
    if elsewhere:
        monkeypatch.setenv("FAIRJAX_DATA_DIR", str(tmp_path))
    with pytest.raises(require.InputError) as e:
        load()
    for word in ("data.data_dir", "FAIRJAX_DATA_DIR", "archive.ics.uci.edu", "is down"):
        assert word in str(e.value)
    assert "\n" not in str(e.value)


def test_without_a_folder_the_official_files_are_downloaded(generated, monkeypatch):
    requests = {}

    def download(_, urls):
        requests.update(urls)
        return {name: generated / pathlib.Path(url).name for name, url in urls.items()}

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    monkeypatch.setenv("FAIRJAX_DATA_DIR", str(generated.parent / "other"))
    (generated.parent / "other").mkdir()
    assert len(load().y) == 920
    base = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"
    assert requests == {name: f"{base}processed.{name}.data" for name in HOSPITALS}


def test_a_downloaded_file_is_checked_too(generated, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download",
        lambda _, urls: dict.fromkeys(urls, generated / "processed.va.data"),
    )
    with pytest.raises(require.InputError, match="expected the official file"):
        load()
