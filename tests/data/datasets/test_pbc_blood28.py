"""Peripheral blood cells: the pictures of the file, and the files that are refused."""

import hashlib
import os
import pathlib

import numpy as np
import pytest

from fairjax.core import require
from fairjax.data import datasets, federation
from fairjax.data.datasets import pbc_blood28
from fairjax.data.table import FREE, SPLITS

CELLS = {
    "train": (852, 2181, 1085, 2026, 849, 993, 2330, 1643),
    "val": (122, 312, 155, 290, 122, 143, 333, 235),
    "test": (244, 624, 311, 579, 243, 284, 666, 470),
}
"""Pictures of every class, as in BloodMNIST (Yang et al. 2023)."""


DATA_DIR = pathlib.Path(os.environ.get("FAIRJAX_DATA_DIR") or "absent")
BLOOD = DATA_DIR / "pbc_blood28.npz"


pytestmark = pytest.mark.usefixtures("offline")


def few_cells(split: str) -> tuple[int, ...]:
    """Two pictures of every class, and four of one class that differs by split."""
    return tuple(4 if label == SPLITS[split] else 2 for label in range(8))


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A folder with a few random pictures that pass for the official ones."""
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
    """(folder, split -> pictures per class), also for the official file if present."""
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
            in_split = table.split == code
            np.testing.assert_array_equal(table.x[in_split], arrays[f"{split}_images"])
            np.testing.assert_array_equal(
                table.y[in_split], arrays[f"{split}_labels"][:, 0]
            )
            np.testing.assert_array_equal(np.bincount(table.y[in_split]), counts(split))
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
        data = getattr(splits, split)
        np.testing.assert_array_equal(np.bincount(data.y), few_cells(split))
        assert np.all(data.count > 0)
    np.testing.assert_allclose(splits.train.x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(splits.train.x.std((0, 1, 2)), 1, atol=1e-5)


def test_blood_cells_are_found_by_the_environment(cells, monkeypatch):
    monkeypatch.setenv("FAIRJAX_DATA_DIR", str(cells))
    first = blood_of()
    # The set is prepared, so the file is not needed again.
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
