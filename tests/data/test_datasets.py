"""The data sets by name: the official records, read without TensorFlow or a network."""

import hashlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets
import sklearn.linear_model
import sklearn.model_selection
import sklearn.neighbors
import tensorflow_datasets as tfds

from fairjax.core import require
from fairjax.data import datasets, federation
from fairjax.data.datasets import breast_cancer, heart_disease, pbc_blood28
from fairjax.data.table import FREE, SPLITS, TEST, TRAIN

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
ROWS = dict(zip(HOSPITALS, (303, 294, 123, 200), strict=True))
ILL = dict(zip(HOSPITALS, (139, 106, 115, 149), strict=True))
WHOLE = dict(zip(HOSPITALS, (303, 261, 46, 130), strict=True))
"""Records that miss nothing in FLamby's columns."""
FLAMBY = dict(zip(HOSPITALS, ((199, 104), (172, 89), (30, 16), (85, 45)), strict=True))
"""Training and test records of du Terrail et al. 2022."""

CELLS = {
    "train": (852, 2181, 1085, 2026, 849, 993, 2330, 1643),
    "val": (122, 312, 155, 290, 122, 143, 333, 235),
    "test": (244, 624, 311, 579, 243, 284, 666, 470),
}
"""Pictures of every class, those of BloodMNIST (Yang et al. 2023)."""

DATA_DIR = pathlib.Path(os.environ.get("FAIRJAX_DATA_DIR") or "absent")
OFFICIAL = DATA_DIR / "heart_disease"
SOURCES = ["generated", "official"] if OFFICIAL.is_dir() else ["generated"]
BLOOD = DATA_DIR / "pbc_blood28.npz"


pytestmark = pytest.mark.usefixtures("offline")


def generated_file(name: str) -> str:
    """Random records with the official numbers of rows, of the ill and of the whole.

    One whole record is healthy, so that Switzerland cannot be stratified, as in truth.
    """
    rng = np.random.default_rng(HOSPITALS.index(name))
    rows, ill, whole = ROWS[name], ILL[name], WHOLE[name]
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
    cells[np.arange(whole, rows), rng.integers(3, 10, rows - whole)] = "?"
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
    """The generated files, and the official ones where this machine has them."""
    if request.param == "official":
        return OFFICIAL
    return request.getfixturevalue("generated")


def raw(folder, name):
    """The 14 columns as they are written, NaN for "?"."""
    return np.genfromtxt(folder / f"processed.{name}.data", delimiter=",").T


def read(folder, name, reading):
    """(columns by name, label, split) of one hospital."""
    path = folder / f"processed.{name}.data"
    x, label, split = heart_disease.read(path, name, reading)
    names = heart_disease.feature_names(reading)
    return dict(zip(names, x.T, strict=True)), label, split


# ------------------------------------------------------------------------ embedded sets


def test_breast_cancer_is_scikit_learns_with_malignant_as_one(prepared_in):
    x, target = sklearn.datasets.load_breast_cancer(return_X_y=True)
    table = datasets.load("breast_cancer")
    assert table.x.shape == (569, 30)
    assert table.classes[1] == "malignant"
    assert table.y.sum() == 212
    np.testing.assert_array_equal(table.x, x.astype(np.float32))
    np.testing.assert_array_equal(table.y, 1 - target)
    assert len(set(table.features)) == 30
    assert set(table.split) == {FREE}
    assert list(prepared_in.rglob("*.array_record*"))


def test_digits_are_scikit_learns_with_a_channel():
    bunch = sklearn.datasets.load_digits()
    table = datasets.load("digits")
    assert table.x.shape == (1797, 8, 8, 1)
    assert table.x.dtype == np.uint8
    assert table.scale == table.x.max() == 16
    np.testing.assert_array_equal(table.x[..., 0], bunch.images)
    np.testing.assert_array_equal(table.y, bunch.target)
    assert table.classes == tuple("0123456789")


def test_mixtures_are_the_same_records_at_every_call():
    table = datasets.load("mixtures")
    assert table.x.shape == (12000, 64)
    assert table.x.dtype == np.float32
    for split, count in {TRAIN: 1000, TEST: 200}.items():
        np.testing.assert_array_equal(
            np.bincount(table.y[table.split == split]), 10 * [count]
        )
    first, last = [-0.20236683, 0.83808583], [-0.34521192, -0.45009357]
    np.testing.assert_allclose(table.x[[0, -1], :2], [first, last], rtol=1e-4)
    np.testing.assert_array_equal(table.x, datasets.load("mixtures").x)


def test_mixtures_are_many_gaussians_of_sixteen_dimensions():
    """What is drawn has the rank, and is hard and easy for whom it should be."""
    table = datasets.load("mixtures")
    x = table.x.astype(np.float64)
    size = np.linalg.svd(np.arctanh(x), compute_uv=False)
    assert size[15] > 1e3 * size[16]
    seen = table.split == TRAIN

    def accuracy(model):
        return model.fit(x[seen], table.y[seen]).score(x[~seen], table.y[~seen])

    assert accuracy(sklearn.neighbors.KNeighborsClassifier(1)) > 0.95
    assert accuracy(sklearn.linear_model.RidgeClassifier()) < 0.5


def test_what_is_prepared_is_read_and_not_made_again(monkeypatch):
    first = datasets.load("breast_cancer")
    monkeypatch.delattr(breast_cancer.BreastCancer, "_generate_examples")
    second = datasets.load("breast_cancer")
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.y, second.y)


def test_no_tensorflow_is_imported_and_tfds_only_when_asked_for(prepared_in):
    code = """
import sys
from fairjax.data import datasets
print(len(datasets.load("mixtures").y))
assert "tensorflow_datasets" not in sys.modules
for name in ("breast_cancer", "digits"):
    print(len(datasets.load(name).y))
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["12000", "569", "1797"]
    assert {path.name for path in prepared_in.iterdir()} >= {"breast_cancer", "digits"}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("brest_cancer", "breast_cancer"), ("heart_disease/all", "heart_disease")],
)
def test_an_unknown_name_is_refused(name, nearest):
    with pytest.raises(
        require.InputError, match=rf'^data\.name: .*Did you mean "{nearest}"'
    ):
        datasets.load(name)


# ---------------------------------------------------------------------------- preparing


def test_a_folder_that_cannot_be_written_is_refused(prepared_in):
    prepared_in.write_text("a file where the folder should be")
    with pytest.raises(require.InputError, match=r"^data\.name digits: .*Error") as e:
        datasets.load("digits")
    assert str(prepared_in) in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("reason", [(), ("two\nlines",)])
def test_an_error_while_preparing_is_one_line(monkeypatch, reason):
    def fail(*_):
        raise RuntimeError(*reason)

    monkeypatch.setattr(breast_cancer.BreastCancer, "_generate_examples", fail)
    with pytest.raises(require.InputError, match="got RuntimeError: ") as e:
        datasets.load("breast_cancer")
    assert "\n" not in str(e.value)


def test_who_comes_second_reads_what_the_first_prepared(monkeypatch):
    prepare = tfds.core.GeneratorBasedBuilder.download_and_prepare

    def lose_the_race(builder, **options):
        prepare(builder, **options)
        raise FileExistsError("prepared by another process")

    monkeypatch.setattr(
        breast_cancer.BreastCancer, "download_and_prepare", lose_the_race
    )
    assert len(datasets.load("breast_cancer").y) == 569


def test_a_signal_leaves_nothing_aside(prepared_in):
    """Of what may be gigabytes: TFDS would remove it where an exception came."""
    code = """
from fairjax.experiment.io import preemption
preemption.listen()
import os, signal, sys, time
from fairjax.data import datasets
from fairjax.data.datasets import breast_cancer
def generate(*_):
    [aside] = os.listdir(os.environ["TFDS_DATA_DIR"] + "/breast_cancer")
    print(aside[:11], file=sys.stderr)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
    yield
breast_cancer.BreastCancer._generate_examples = generate
print("begun")
datasets.load("breast_cancer")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (75, "begun\n")
    assert done.stderr == "incomplete.\n-c: stopped; the same command goes on\n"
    assert list((prepared_in / "breast_cancer").iterdir()) == []


# ----------------------------------------------------------- heart disease, the records


@pytest.mark.parametrize("name", HOSPITALS)
def test_every_record_is_read_with_its_label(folder, name):
    _, label, split = read(folder, name, "all")
    assert len(label) == ROWS[name]
    assert label.sum() == ILL[name]
    np.testing.assert_array_equal(label, raw(folder, name)[13] > 0)
    assert set(split) == {FREE}


@pytest.mark.parametrize("name", HOSPITALS)
def test_categories_are_one_hot_without_their_first_level(folder, name):
    columns, *_ = read(folder, name, "all")
    levels = {"chest_pain": (2, 2, 3, 4), "resting_ecg": (6, 1, 2)}
    levels |= {"slope": (10, 2, 3), "thal": (12, 6, 7)}
    for column, (at, *others) in levels.items():
        cells = raw(folder, name)[at]
        assert sum(key.startswith(f"{column}=") for key in columns) == len(others)
        for level in others:
            hot = np.where(np.isnan(cells), np.nan, cells == level)
            np.testing.assert_array_equal(columns[f"{column}={level}"], hot)


@pytest.mark.parametrize("name", HOSPITALS)
def test_what_was_not_measured_is_missing_and_a_feature(folder, name):
    columns, *_ = read(folder, name, "all")
    cells = raw(folder, name)
    for at, column in (
        (3, "blood_pressure"),
        (4, "cholesterol"),
        (7, "max_heart_rate"),
    ):
        missing = np.isnan(cells[at]) | ((cells[at] == 0) & (at != 7))
        expected = np.where(missing, np.nan, cells[at]).astype(np.float32)
        np.testing.assert_array_equal(columns[column], expected)
        np.testing.assert_array_equal(columns[f"{column} missing"], missing)
    np.testing.assert_array_equal(columns["thal missing"], np.isnan(cells[12]))


@pytest.mark.parametrize("name", HOSPITALS)
def test_flamby_keeps_whole_records_of_its_columns(folder, name):
    columns, label, _ = read(folder, name, "flamby")
    cells = raw(folder, name)
    whole = ~np.isnan(cells[:10]).any(axis=0)
    assert len(label) == whole.sum() == WHOLE[name]
    assert len(columns) == 13
    assert not [c for c in columns if c.startswith(("slope", "vessels", "thal"))]
    assert not np.any(np.isnan(np.stack(list(columns.values()))))
    np.testing.assert_array_equal(label, cells[13, whole] > 0)
    # A zero stays a zero.
    np.testing.assert_array_equal(columns["cholesterol"], cells[4, whole])


@pytest.mark.parametrize("name", HOSPITALS)
def test_flamby_has_its_fixed_split(folder, name):
    _, label, split = read(folder, name, "flamby")
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
        columns, label, split = read(folder, name, reading[1:] or "all")
        mine = table.client == name
        x = np.stack(list(columns.values()), axis=1)
        np.testing.assert_array_equal(table.x[mine], x)
        np.testing.assert_array_equal(table.y[mine], label)
        np.testing.assert_array_equal(table.split[mine], split)


@pytest.mark.parametrize("reading", ["", "/flamby"])
def test_the_groups_of_a_patient_are_sex_and_age_band(folder, reading):
    table = datasets.load(f"heart_disease{reading}", data_dir=str(folder))
    ages = ("under 45", "45 to under 55", "55 and over")
    assert table.groups == (("sex", ("female", "male")), ("age", ages))
    for name in HOSPITALS:
        cells = raw(folder, name)
        whole = slice(None) if not reading else ~np.isnan(cells[:10]).any(axis=0)
        sex, age = table.group[table.client == name].T
        np.testing.assert_array_equal(sex, cells[1, whole])
        expected = (cells[0, whole] >= 45).astype(int) + (cells[0, whole] >= 55)
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
    given = generated / "absent"
    if what == "a file":
        given = generated / "processed.va.data"
    elif what == "unreadable":
        given = generated
        monkeypatch.setattr(os, "access", lambda path, mode: path != generated)
    if where == "FAIRJAX_DATA_DIR":
        monkeypatch.setenv(where, str(given))
    with pytest.raises(require.InputError) as e:
        load(given if where == "data.data_dir" else None)
    assert (
        str(e.value)
        == f"{where}: expected a folder that can be read; got {str(given)!r}"
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
    asked = {}

    def download(_, urls):
        asked.update(urls)
        return {name: generated / pathlib.Path(url).name for name, url in urls.items()}

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    monkeypatch.setenv("FAIRJAX_DATA_DIR", str(generated.parent / "other"))
    (generated.parent / "other").mkdir()
    assert len(load().y) == 920
    base = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"
    assert asked == {name: f"{base}processed.{name}.data" for name in HOSPITALS}


def test_a_downloaded_file_is_checked_too(generated, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download",
        lambda _, urls: dict.fromkeys(urls, generated / "processed.va.data"),
    )
    with pytest.raises(require.InputError, match="expected the official file"):
        load()


# ------------------------------------------------------------------------ blood cells


def few_cells(split: str) -> tuple[int, ...]:
    """Two pictures of every class, and twice as many of one, another in every split."""
    return tuple(4 if label == SPLITS[split] else 2 for label in range(8))


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A folder with a few random pictures that pass for the real ones."""
    rng, arrays = np.random.default_rng(0), {}
    for split in SPLITS:
        labels = rng.permutation(np.repeat(np.arange(8), few_cells(split)))
        shape = (len(labels), 28, 28, 3)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
        arrays[f"{split}_source"] = np.array([f"BA_{i}" for i in range(len(labels))])
    folder = tmp_path / "cells"
    folder.mkdir()
    np.savez_compressed(folder / "pbc_blood28.npz", **arrays)
    content = (folder / "pbc_blood28.npz").read_bytes()
    monkeypatch.setattr(pbc_blood28, "MD5", hashlib.md5(content).hexdigest())
    return folder


REAL = [pytest.param("real", marks=pytest.mark.slow)] if BLOOD.is_file() else []


@pytest.fixture(params=["generated", *REAL])
def blood(request):
    """(folder, split -> pictures per class), also of the real file if it is here."""
    if request.param == "real":
        return DATA_DIR, CELLS.get
    return request.getfixturevalue("cells"), few_cells


def blood_of(data_dir=None):
    return datasets.load("pbc_blood28", data_dir=data_dir and str(data_dir))


def test_blood_cells_are_those_of_the_file_in_its_splits(blood):
    folder, counts = blood
    table = blood_of(folder)
    assert table.x.dtype == np.uint8
    assert len(table.classes) == 8
    with np.load(folder / "pbc_blood28.npz", allow_pickle=False) as arrays:
        for split, code in SPLITS.items():
            mine = table.split == code
            np.testing.assert_array_equal(table.x[mine], arrays[f"{split}_images"])
            np.testing.assert_array_equal(
                table.y[mine], arrays[f"{split}_labels"][:, 0]
            )
            np.testing.assert_array_equal(np.bincount(table.y[mine]), counts(split))
    assert not np.any(table.split == FREE)


def test_blood_cells_keep_their_splits_when_they_are_dealt(cells):
    splits = federation.build(
        blood_of(cells),
        partition="dirichlet",
        num_clients=3,
        alpha=100.0,
        min_size=1,
        test_fraction=0.25,
        val_fraction=0.1,
        normalise="pooled",
        seed=0,
    )
    for split in SPLITS:
        part = getattr(splits, split)
        np.testing.assert_array_equal(np.bincount(part.y), few_cells(split))
        assert np.all(part.count > 0)
    np.testing.assert_allclose(splits.train.x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(splits.train.x.std((0, 1, 2)), 1, atol=1e-5)


def test_blood_cells_are_found_by_the_environment(cells, monkeypatch):
    monkeypatch.setenv("FAIRJAX_DATA_DIR", str(cells))
    first = blood_of()
    # Prepared once, the file is not needed any more.
    monkeypatch.delenv("FAIRJAX_DATA_DIR")
    np.testing.assert_array_equal(blood_of().x, first.x)


def test_an_altered_file_of_blood_cells_is_refused_and_nothing_is_kept(cells):
    path = cells / "pbc_blood28.npz"
    content = path.read_bytes()
    path.write_bytes(content + b"0")
    with pytest.raises(
        require.InputError, match="expected the official file, md5"
    ) as e:
        blood_of(cells)
    assert str(e.value).startswith(f"data.data_dir {path}: ")
    assert "\n" not in str(e.value)
    path.write_bytes(content)
    assert len(blood_of(cells).y) == 3 * 18


@pytest.mark.parametrize("where", ["nowhere", "data.data_dir", "FAIRJAX_DATA_DIR"])
def test_without_the_file_of_blood_cells_one_line_says_what_it_is(
    tmp_path, monkeypatch, where
):
    if where == "FAIRJAX_DATA_DIR":
        monkeypatch.setenv(where, str(tmp_path))
    with pytest.raises(require.InputError) as e:
        blood_of(tmp_path if where == "data.data_dir" else None)
    line = str(e.value)
    assert line.startswith("data.data_dir")
    assert (str(tmp_path) in line) == (where == "data.data_dir")
    for word in ("pbc_blood28.npz", "FAIRJAX_DATA_DIR", "10.17632/snkd93bnjr.1"):
        assert word in line
    assert "\n" not in line
