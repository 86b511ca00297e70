"""scripts/prepare_data.py: its description of a data set, and its early failures."""

import numpy as np
import pytest

from fairjax.data import datasets
from fairjax.data.table import TEST, TRAIN, Table
from fairjax.experiment import cli
from scripts import prepare_data

pytestmark = pytest.mark.usefixtures("offline")


def test_records_are_counted_by_split_and_class_and_hospitals_by_record():
    table = Table(
        name="toy",
        x=np.zeros((5, 2, 2, 1), np.uint8),
        y=np.array([0, 1, 1, 1, 0]),
        split=np.array([TRAIN, TRAIN, TRAIN, TEST, TEST], np.int8),
        classes=("no", "yes"),
        source="nobody",
        client=np.array(["b", "a", "b", "b", "b"]),
        patient=np.array(["1", "1", "2", "3", "3"]),
    )
    assert prepare_data.summary_lines(table) == [
        "toy: 5 records of 2 x 2 x 1 numbers",
        "nobody",
        "train: 3 records: 1 no; 2 yes",
        "test: 2 records: 1 no; 1 yes",
        "patients: 3",
        "hospitals: 2: 1 a; 4 b",
    ]


def test_it_prints_what_is_prepared(capsys):
    argv = ["prepare_data.py", "--name=mixtures"]
    cli.run(prepare_data.main, prepare_data.define, argv)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mixtures: 12,000 records of 64 numbers"
    assert lines[2].startswith("train: 10,000 records: 1,000 0; 1,000 1; ")
    assert lines[-1].startswith("hospitals: none named")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bloodmnist/224", "bloodmnist_224.npz (or FAIRJAX_DATA_DIR)"),
        ("cifar100", "cifar-100-binary.tar.gz (or FAIRJAX_DATA_DIR)"),
        ("covid_radiography", "COVID-19_Radiography_Dataset (or FAIRJAX_DATA_DIR"),
        ("pbc_blood28", "pbc_blood28.npz (or FAIRJAX_DATA_DIR"),
        ("heart_disease", "processed.va.data (or FAIRJAX_DATA_DIR)"),
        ("blodmnist", 'Did you mean "bloodmnist"?'),
        ("csv", "--name: expected one of breast_cancer, "),
    ],
)
def test_without_files_and_network_it_names_them_at_once(capsys, name, words):
    argv = ["prepare_data.py", f"--name={name}"]
    with pytest.raises(SystemExit) as stop:
        cli.run(prepare_data.main, prepare_data.define, argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_every_data_set_but_the_users_own_can_be_prepared():
    assert {*prepare_data.NAMES, "npz", "csv"} == set(datasets.DATASETS)
