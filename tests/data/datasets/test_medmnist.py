"""MedMNIST: the tables of official files, and the files that are refused."""

import hashlib
import pathlib
import socket

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fairjax.core import require
from fairjax.data import datasets, federation
from fairjax.data.datasets import medmnist
from fairjax.data.table import SPLITS

pytestmark = pytest.mark.usefixtures("offline")

NAMES = (*datasets.MEDMNIST, "bloodmnist/224", "organamnist/224")
"""All sets at 28 x 28, and a coloured and a grey one at 224 x 224."""
ROWS = {"train": 2, "val": 1, "test": 1}
"""Pictures of every class."""


def written(folder, name, monkeypatch):
    """A small file in the official layout that passes for the official one."""
    base, _, size = name.partition("/")
    card, size = medmnist.CARDS[base], int(size or 28)
    channels = () if card.channels == 1 else (3,)
    rng, arrays = np.random.default_rng(0), {}
    for split, count in ROWS.items():
        labels = rng.permutation(np.repeat(np.arange(len(card.classes)), count))
        shape = (len(labels), size, size, *channels)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    folder.mkdir(exist_ok=True)
    path = folder / (f"{base}.npz" if size == 28 else f"{base}_224.npz")
    np.savez(path, **arrays)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    size_index = medmnist.SIZES.index(size)
    other_md5 = card.md5[1 - size_index]
    digests = (md5, other_md5) if size_index == 0 else (other_md5, md5)
    monkeypatch.setitem(medmnist.CARDS, base, card._replace(md5=digests))
    return path, arrays


def test_the_names_are_those_of_the_cards():
    assert tuple(medmnist.CARDS) == datasets.MEDMNIST
    digests = [md5 for card in medmnist.CARDS.values() for md5 in card.md5]
    assert len(set(digests)) == 12
    assert all(len(md5) == 32 for md5 in digests)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_read_in_their_official_splits(name, tmp_path, monkeypatch):
    path, arrays = written(tmp_path, name, monkeypatch)
    table = datasets.load(name, data_dir=str(tmp_path))
    card = medmnist.CARDS[name.partition("/")[0]]
    side = 224 if "/" in name else 28
    assert table.name == name
    assert table.x.shape[1:] == (side, side, card.channels)
    assert table.x.dtype == np.uint8
    assert table.classes == card.classes
    assert table.scale == 255
    assert table.source.endswith(card.licence)
    assert table.client is table.patient is table.group is None
    for split, code in SPLITS.items():
        in_split = table.split == code
        images = arrays[f"{split}_images"]
        np.testing.assert_array_equal(
            table.x[in_split], images.reshape(*images.shape[:3], -1)
        )
        np.testing.assert_array_equal(
            table.y[in_split], arrays[f"{split}_labels"][:, 0]
        )
    # The set is prepared, so the file is not needed again.
    path.unlink()
    np.testing.assert_array_equal(datasets.load(name).x, table.x)


def test_official_splits_stay_when_hospitals_are_dealt(tmp_path, monkeypatch):
    written(tmp_path / "medmnist", "bloodmnist", monkeypatch)
    splits = federation.build(
        datasets.load("bloodmnist", data_dir=str(tmp_path)),
        partition="iid",
        num_clients=2,
        alpha=1.0,
        min_size=1,
        test_fraction=0.5,
        val_fraction=0.3,
        normalise="pooled",
        seed=0,
    )
    assert splits.rows == {split: 8 * count for split, count in ROWS.items()}


def test_an_altered_file_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    path, _ = written(tmp_path, "breastmnist", monkeypatch)
    content = path.read_bytes()
    path.write_bytes(content + b"0")
    with pytest.raises(
        require.InputError, match="expected the official file, md5"
    ) as e:
        datasets.load("breastmnist", data_dir=str(tmp_path))
    assert str(e.value).startswith(f"data.data_dir {path}: ")
    path.write_bytes(content)
    table = datasets.load("breastmnist", data_dir=str(tmp_path))
    assert len(table.y) == 8
    assert table.positive == "malignant"  # label 0 in the official file


def test_the_other_size_is_another_file(tmp_path, monkeypatch):
    written(tmp_path, "dermamnist", monkeypatch)
    with pytest.raises(require.InputError) as e:
        datasets.load("dermamnist/224", data_dir=str(tmp_path))
    places = "dermamnist_224.npz or medmnist/dermamnist_224.npz"
    assert str(e.value) == f"data.data_dir {tmp_path}: expected {places}; got 'none'"


def test_neither_file_nor_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRJAX_DATA_DIR", str(tmp_path))
    with pytest.raises(require.InputError) as e:
        datasets.load("pathmnist/224")
    words = ("data.data_dir", "pathmnist_224.npz", "FAIRJAX_DATA_DIR", "zenodo.org")
    for word in (*words, "is down"):
        assert word in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("altered", [False, True])
def test_without_a_file_the_official_one_is_downloaded(tmp_path, monkeypatch, altered):
    path, _ = written(tmp_path, "pneumoniamnist", monkeypatch)
    path.write_bytes(path.read_bytes() + altered * b"0")
    requests = []

    def download(_, url):
        requests.append(url)
        return path

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    if altered:
        with pytest.raises(require.InputError, match="expected the official file, md5"):
            datasets.load("pneumoniamnist")
    else:
        assert len(datasets.load("pneumoniamnist").y) == 8
    base = "https://zenodo.org/records/10519652/files/"
    assert requests == [f"{base}pneumoniamnist.npz?download=1"]
    assert pathlib.Path(requests[0]).name.startswith("pneumoniamnist.npz")
