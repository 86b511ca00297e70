"""Assignment: names of clients, and records that a partition drops or repeats."""

import itertools

import numpy as np
import pytest

from fairjax.core import require
from fairjax.data.table import TEST, TRAIN
from tests.data.federations import (
    HOSPITALS,
    build,
    by_split,
    fixed,
    grouped,
    numbers,
    table,
)


def test_natural_clients_are_the_hospitals_and_others_are_numbered():
    assert build(table()).clients == HOSPITALS
    clients = build(table(), partition="iid", num_clients=11).clients
    assert clients[0] == "hospital_00"
    assert clients[-1] == "hospital_10"


def test_overlapping_hospitals_repeat_records_inside_their_split():
    records = table(client=None, split=fixed(240, TRAIN, TEST))
    splits = build(records, partition="dirichlet_overlap")
    records_of = {name: set(numbers(data)) for name, data in by_split(splits).items()}
    assert all(records_of.values())
    for left, right in itertools.combinations(records_of.values(), 2):
        assert not left & right
    occurrences = np.concatenate([numbers(data) for data in by_split(splits).values()])
    (note,) = splits.notes
    repeats = len(occurrences) - len(set(occurrences))
    unassigned = 240 - len(set(occurrences))
    assert (
        note
        == f"hospitals overlap: {repeats} records twice, {unassigned} at no hospital"
    )
    assert repeats > 0
    np.testing.assert_array_equal(splits.train.y, records.y[numbers(splits.train)])


@pytest.mark.parametrize(
    "columns", [{}, {"split": fixed(240, TRAIN, TEST), "patient": np.arange(240) // 2}]
)
def test_hospitals_do_not_overlap_where_a_test_record_could_be_trained_on(columns):
    message = r"^data\.partition\.name: expected dirichlet: hospitals that overlap"
    with pytest.raises(require.InputError, match=message):
        build(table(**columns), partition="dirichlet_overlap")


def test_natural_leaves_out_hospitals_with_fewer_records_than_min_size():
    client = np.repeat(["bonn", "ulm", "wien"], [120, 70, 50])
    records = grouped(client=client)
    assert build(records, min_size=50).clients == HOSPITALS
    splits = build(records, min_size=51)
    assert splits.clients == ("bonn", "ulm")
    remaining = np.sort(
        np.concatenate([numbers(data) for data in by_split(splits).values()])
    )
    np.testing.assert_array_equal(remaining, np.arange(190))
    for data in by_split(splits).values():
        np.testing.assert_array_equal(data.group, records.group[numbers(data)])
    (note,) = splits.notes
    assert note == "1 hospital with fewer than 51 records left out: 50 records"


def test_what_small_hospitals_hold_is_not_learned_from():
    client = np.repeat(["bonn", "ulm", "wien"], [120, 70, 50])
    records = table(client=client)
    records.x[190:, 1:] = 1e6
    splits = build(records, min_size=51, normalise="pooled")
    np.testing.assert_allclose(splits.train.x.std(0), 1, atol=1e-4)


def test_notes_of_the_table_and_of_the_partition_are_kept():
    records = table(notes=("said before",))
    assert build(records).notes == ("said before",)
    notes = build(records, partition="dirichlet", num_clients=30, alpha=1e-3).notes
    assert notes[0] == "said before"
    assert "units moved" in notes[1]


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (
            table(4, client=None),
            {"partition": "iid", "num_clients": 5},
            r"^data\.partition\.num_clients: .* 4 training records allow; got 5$",
        ),
        (
            table(patient=(np.arange(240) % 3).astype(str)),
            {"partition": "iid"},
            r"^data\.partition\.num_clients: .* 240 training records of 3 patients",
        ),
        (
            table(split=fixed(240, TEST)),
            {"partition": "iid"},
            r"^data\.partition\.num_clients: .* 0 training records",
        ),
        (
            table(),
            {"partition": "dirichlet", "min_size": 61},
            r"^data\.partition\.num_clients: .* 240 training records",
        ),
        (
            table(),
            {"partition": "dirichlet", "min_size": 50},
            r"^data\.partition\.min_size: .* 4 hospitals can all have; got 50$",
        ),
        (table(client=None), {}, r"^data\.partition\.name: .*got 'natural'$"),
        (
            table(client=np.array(240 * ["ulm"])),
            {"min_size": 241},
            r"^data\.partition\.min_size: .* at most the 240 records of .*; got 241$",
        ),
        (
            table(
                split=np.r_[TEST, np.full(239, TRAIN)].astype(np.int8),
                client=np.array(["aachen"] + 239 * ["ulm"]),
            ),
            {"min_size": 1},
            r"^data: expected training records at every hospital; got 'none at aachen'",
        ),
    ],
    ids=[
        "clients",
        "patients",
        "test only",
        "sizes",
        "after the cut",
        "names",
        "small",
        "empty",
    ],
)
def test_what_cannot_be_dealt_is_refused(records, options, message):
    with pytest.raises(require.InputError, match=message) as refusal:
        build(records, **options)
    assert "\n" not in str(refusal.value)
