"""From a table to a federation: records, clients, splits, patients and the hash."""

import json

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given

from fairjax.core import require
from fairjax.data import assignment, federation
from fairjax.data.table import SPLITS, TEST, TRAIN, VAL
from tests.data.federations import (
    AGE,
    HOSPITALS,
    SEX,
    build,
    by_split,
    grouped,
    numbers,
    owners,
    split_of,
    table,
)

seeds = st.integers(0, 2**31 - 1)

DISJOINT = [law for law in assignment.PARTITIONS if law != "dirichlet_overlap"]


# ------------------------------------------------------------------------- flat records


@pytest.mark.parametrize("law", DISJOINT)
def test_offsets_counts_and_labels_describe_the_flat_records(law):
    records = table()
    splits = build(records, partition=law)
    sizes = 3 * [len(splits.clients)]
    assert sizes == [len(data.count) for data in by_split(splits).values()]
    assert sum(splits.rows.values()) == len(records.y)
    for name, data in by_split(splits).items():
        assert splits.rows[name] == len(data.y) == data.count.sum()
        np.testing.assert_array_equal(data.offset, [0, *np.cumsum(data.count)[:-1]])
        np.testing.assert_array_equal(data.x, records.x[numbers(data)])
        np.testing.assert_array_equal(data.y, records.y[numbers(data)])
        for k, (start, count) in enumerate(zip(data.offset, data.count, strict=True)):
            client_records = numbers(data)[start : start + count]
            assert np.all(np.diff(client_records) > 0)
            if law == "natural":
                assert set(records.client[client_records]) <= {HOSPITALS[k]}
            of_training = splits.train.y[owners(splits.train) == k]
            np.testing.assert_array_equal(
                data.labels[k], np.bincount(of_training, None, 3)
            )


@pytest.mark.parametrize("law", DISJOINT)
def test_every_record_is_in_one_split_at_one_hospital(law):
    split_of(build(table(), partition=law), 240)


def test_the_hash_tells_apart_how_many_shards_or_classes_there_were():
    hashes = [
        build(table(), partition=law, **overrides).hash
        for law in ("shards", "pathological")
        for overrides in ({}, {"shards": 3, "classes": 3})
    ]
    assert len(set(hashes)) == 4
    assert (
        build(table(), partition="iid").hash
        == build(table(), partition="iid", shards=3).hash
    )


@pytest.mark.parametrize("law", DISJOINT)
def test_every_record_keeps_its_groups(law):
    records = grouped()
    splits = build(records, partition=law)
    assert splits.groups == (SEX, AGE)
    for data in by_split(splits).values():
        np.testing.assert_array_equal(data.group, records.group[numbers(data)])
        assert data.group.dtype == np.int32


def test_without_attributes_the_groups_have_no_column():
    splits = build(table())
    assert splits.groups == ()
    assert splits.train.group.shape == (splits.rows["train"], 0)


# ------------------------------------------------------------------ client summaries


def test_hospitals_are_counted_by_split_class_and_group():
    records = grouped()
    splits = build(records)
    code_of = split_of(splits, 240)
    summaries = federation.client_summaries(splits, np.array([1, 0, 2]))
    assert [summary["client"] for summary in summaries] == list(HOSPITALS)
    assert [summary["tier"] for summary in summaries] == [1, 0, 2]
    for summary in summaries:
        in_client = records.client == summary["client"]
        for name, code in SPLITS.items():
            assert summary[name] == np.sum(in_client & (code_of == code))
        in_client &= code_of == TRAIN
        for c, name in enumerate("abc"):
            assert summary["classes"][name] == np.sum(in_client & (records.y == c))
        for a, (attribute, values) in enumerate((SEX, AGE)):
            for v, value in enumerate(values):
                expected = np.sum(in_client & (records.group[:, a] == v))
                assert summary["groups"][attribute][value] == expected
        has_value = records.group[in_client, 0] >= 0
        assert (
            sum(summary["groups"]["sex"].values()) == has_value.sum() < in_client.sum()
        )
    assert json.loads(json.dumps(summaries)) == summaries


def test_hospitals_without_attributes_have_no_groups():
    summaries = federation.client_summaries(build(table()), np.zeros(3, int))
    assert [summary["groups"] for summary in summaries] == [{}, {}, {}]
    splits = ("train", "val", "test")
    assert list(summaries[0]) == ["client", "tier", *splits, "classes", "groups"]


# ------------------------------------------------------------------ positive class


def test_the_positive_class_is_the_second_and_decides_nothing_else():
    two = table(classes=("healthy", "ill"), y=np.arange(240) % 3 // 2)
    plain = build(two)
    turned = federation.with_positive(plain, "healthy")
    assert (plain.positive, turned.positive) == ("ill", "healthy")
    assert turned.classes == ("ill", "healthy")
    assert turned.hash == plain.hash
    for turned_data, plain_data in zip(
        *(by_split(s).values() for s in (turned, plain)), strict=True
    ):
        np.testing.assert_array_equal(turned_data.x, plain_data.x)
        np.testing.assert_array_equal(turned_data.y, 1 - plain_data.y)
        np.testing.assert_array_equal(turned_data.labels, plain_data.labels[:, ::-1])
    tiers = np.zeros(3, int)
    summaries = [
        federation.client_summaries(splits, tiers) for splits in (plain, turned)
    ]
    assert summaries[0] == summaries[1]  # counts are by class name
    assert federation.with_positive(plain, "ill") is plain
    assert federation.with_positive(plain, None) is plain


@pytest.mark.parametrize(
    ("classes", "name", "message"),
    [
        (("healthy", "ill"), "il", r"one of healthy, ill; got 'il'\. .*\"ill\""),
        (("a", "b", "c"), "a", "none with 3 classes; got 'a'"),
    ],
)
def test_a_positive_class_that_cannot_be_is_refused(classes, name, message):
    y = np.arange(240) % len(classes)
    with pytest.raises(
        require.InputError, match=rf"^data\.positive: expected {message}"
    ):
        federation.with_positive(build(table(classes=classes, y=y)), name)


# ----------------------------------------------------------------------------- patients


@given(
    st.lists(st.integers(0, 15), min_size=40, max_size=80),
    st.sampled_from(["iid", "dirichlet"]),
    seeds,
)
def test_no_patient_is_in_two_splits_or_at_two_simulated_hospitals(patients, law, seed):
    patients = [*range(16), *patients]
    splits = build(
        table(len(patients), patient=np.asarray(patients).astype(str)),
        partition=law,
        num_clients=3,
        alpha=5.0,
        min_size=1,
        seed=seed,
    )
    places = {}
    for name, data in by_split(splits).items():
        for number, owner in zip(numbers(data), owners(data), strict=True):
            places.setdefault(patients[number], set()).add((name, owner))
    assert len(places) == 16
    assert all(len(place) == 1 for place in places.values())


def test_a_patient_seen_at_two_hospitals_stays_in_one_split():
    records = table(patient=(np.arange(240) // 4).astype(str))
    code = split_of(build(records), 240).reshape(-1, 4)
    assert {TRAIN, VAL, TEST} == set(code.ravel())
    np.testing.assert_array_equal(code, code[:, :1] * np.ones(4, int))


def test_test_records_know_their_patients_hospital_by_hospital():
    """Patient 0 is seen at both clients and counts at each."""
    patient = np.arange(240) // 3
    patient[-3:] = 0
    client = np.repeat(["ulm", "bonn"], 120)
    split = np.where(np.isin(patient, range(0, 80, 2)), TEST, TRAIN).astype(np.int8)
    records = table(client=client, patient=patient.astype(str), split=split)
    splits = build(records)
    count, rows = splits.test.count, np.split(splits.patients, [splits.test.count[0]])
    assert len(splits.patients) == count.sum()
    # Bonn has 20 patients and patient 0; the 20 patients of Ulm follow.
    np.testing.assert_array_equal(np.bincount(rows[0]), [3] * 21)
    np.testing.assert_array_equal(np.unique(rows[1]), np.arange(21, 41))
    without_patients = build(table())
    np.testing.assert_array_equal(
        without_patients.patients, np.arange(len(without_patients.test.y))
    )


@pytest.mark.parametrize("law", ["natural", "iid"])
def test_training_records_know_their_patients_within_the_hospital(law):
    """A patient of several clients counts at each; "" is no name."""
    rng = np.random.default_rng(3)
    patient = rng.integers(0, 90, 240).astype(str)
    patient[patient == "7"] = ""
    records = table(patient=patient)
    splits = build(records, partition=law)
    unique_name = np.where(patient == "", [f"alone {i}" for i in range(240)], patient)
    record, patient_number = numbers(splits.train), splits.train.patient
    clients_of: dict[str, set[int]] = {}
    record_counts = federation.records_per_patient(splits.train)
    for k in range(len(splits.clients)):
        in_client = owners(splits.train) == k
        names, numbered = unique_name[record[in_client]], patient_number[in_client]
        assert len(set(zip(names, numbered, strict=True))) == len(set(names))
        assert (
            set(numbered)
            == set(range(len(set(names))))
            == set(range(len(record_counts[k])))
        )
        np.testing.assert_array_equal(record_counts[k], np.bincount(numbered))
        for name in names:
            clients_of.setdefault(name, set()).add(k)
    several = [
        tuple(sorted(places)) for places in clients_of.values() if len(places) > 1
    ]
    assert splits.shared == {places: several.count(places) for places in several}
    assert bool(several) == (law == "natural")


@pytest.mark.parametrize("names", [None, np.full(240, "")])
def test_without_names_of_patients_no_record_is_a_patients(names):
    splits = build(table(patient=names))
    assert splits.train.patient is None
    assert splits.shared == {}


# --------------------------------------------------------------------------------- hash


def test_equal_input_has_an_equal_hash_and_equal_records():
    first, second = (build(table(), partition="dirichlet") for _ in range(2))
    assert first.hash == second.hash
    assert all(map(np.array_equal, *map(jax.tree.leaves, (first.test, second.test))))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"alpha": 0.6},
        {"num_clients": 5},
        {"test_fraction": 0.5},
        {"val_fraction": 0.2},
        {"partition": "iid"},
    ],
    ids=str,
)
def test_the_hash_changes_with_what_decides_the_assignment(change):
    options = {"partition": "dirichlet"}
    assert build(table(), **options).hash != build(table(), **options | change).hash


def test_the_hash_changes_with_one_record():
    changed_table = table()
    changed_table.client[5] = "ulm" if changed_table.client[5] != "ulm" else "bonn"
    assert build(table()).hash != build(changed_table).hash
    assert build(table()).hash != build(table(name="other")).hash


def test_the_hash_is_of_the_assignment_not_of_the_numbers():
    assert build(table()).hash == build(table(), normalise="client").hash


def test_the_hash_of_a_seed_is_the_recorded_one():
    assert build(table(), partition="dirichlet").hash[:16] == "0429332f59ee7cf1"
    assert build(table()).hash[:16] == "b5347a739e91a352"
