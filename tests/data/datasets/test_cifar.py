"""CIFAR: the binary archives, their byte order, and the archives that are refused."""

import hashlib
import io
import tarfile

import numpy as np
import pytest

from fairjax.core import require
from fairjax.data import datasets
from fairjax.data.datasets import cifar
from fairjax.data.table import TEST, TRAIN

pytestmark = pytest.mark.usefixtures("offline")

CLASSES = {"cifar10": 10, "cifar100": 100}
EACH = 3
"""Pictures per file."""


@pytest.fixture(params=CLASSES)
def archive(request, tmp_path, monkeypatch):
    """(name, archive, pictures, labels) of a few random pictures in the real layout."""
    name, rng = request.param, np.random.default_rng(0)
    layout = cifar.ARCHIVES[name]
    split_files = [
        file_name
        for split_files in layout.split_files.values()
        for file_name in split_files
    ]
    pictures = rng.integers(0, 256, (len(split_files), EACH, 3, 32, 32), np.uint8)
    labels = rng.integers(0, CLASSES[name], (len(split_files), EACH, 1), np.uint8)
    coarse = rng.integers(0, 20, (len(split_files), EACH, layout.labels - 1), np.uint8)
    rows = [coarse, labels, pictures.reshape(len(split_files), EACH, -1)]
    contents = [row.tobytes() for row in np.concatenate(rows, axis=2)]
    class_names = "".join(f"class {i}\n" for i in range(CLASSES[name])) + "\n"
    members = {layout.names: class_names.encode()} | dict(
        zip(split_files, contents, strict=True)
    )
    path = tmp_path / layout.file
    with tarfile.open(path, "w:gz") as file:
        for member, content in members.items():
            info = tarfile.TarInfo(f"{layout.folder}/{member}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.ARCHIVES, name, layout._replace(sha256=sha256))
    images = pictures.transpose(0, 1, 3, 4, 2).reshape(-1, 32, 32, 3)
    return name, path, images, labels.ravel()


def test_pictures_and_fine_labels_are_read_in_order(archive):
    name, path, pictures, labels = archive
    table = datasets.load(name, data_dir=str(path.parent))
    np.testing.assert_array_equal(table.x, pictures)
    np.testing.assert_array_equal(table.y, labels)
    trained = len(labels) - EACH
    assert table.split.tolist() == trained * [TRAIN] + EACH * [TEST]
    assert table.classes == tuple(f"class {i}" for i in range(CLASSES[name]))
    assert table.client is None
    # The prepared set has the names of classes, so the archive is not needed again.
    path.unlink()
    reloaded = datasets.load(name)
    assert reloaded.classes == table.classes
    np.testing.assert_array_equal(reloaded.x, table.x)


def test_an_altered_archive_is_refused_and_nothing_is_kept(archive):
    name, path, _, labels = archive
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(require.InputError, match="the official file, sha256") as e:
        datasets.load(name, data_dir=str(path.parent))
    assert str(e.value).startswith(f"data.data_dir {path}: ")
    path.write_bytes(content)
    assert len(datasets.load(name, data_dir=str(path.parent)).y) == len(labels)


def test_neither_archive_nor_network_is_one_line(tmp_path):
    with pytest.raises(require.InputError) as e:
        datasets.load("cifar10")
    for word in ("data.data_dir", "cifar-10-binary.tar.gz", "www.cs.toronto.edu"):
        assert word in str(e.value)
    with pytest.raises(require.InputError, match=r"expected cifar-100-binary\.tar\.gz"):
        datasets.load("cifar100", data_dir=str(tmp_path))


def test_downloads_have_the_checksums_that_are_verified():
    path = cifar.__file__.replace("cifar.py", "checksums.tsv")
    with open(path) as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    checksums = {url: sha256 for url, _, sha256, _ in rows}
    for archive in cifar.ARCHIVES.values():
        assert checksums[cifar.URL + archive.file] == archive.sha256
