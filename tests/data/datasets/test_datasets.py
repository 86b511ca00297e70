"""Data sets by name: the embedded ones, and how a set is prepared."""

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
from fairjax.data import datasets
from fairjax.data.datasets import breast_cancer
from fairjax.data.table import FREE, TEST, TRAIN

pytestmark = pytest.mark.usefixtures("offline")


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
    """The draws have rank 16, are easy for neighbours and hard for a linear model."""
    table = datasets.load("mixtures")
    x = table.x.astype(np.float64)
    size = np.linalg.svd(np.arctanh(x), compute_uv=False)
    assert size[15] > 1e3 * size[16]
    is_train = table.split == TRAIN

    def accuracy(model):
        return model.fit(x[is_train], table.y[is_train]).score(
            x[~is_train], table.y[~is_train]
        )

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
    """The remains may have gigabytes, and TFDS removes them after exceptions only."""
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
