"""Units: which records stay together, and how splits are cut."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fairjax.core import require
from fairjax.data import units
from fairjax.data.table import FREE, TEST, TRAIN, VAL
from tests.data.federations import (
    HOSPITALS,
    build,
    fixed,
    split_of,
    table,
)


def test_fractions_are_cut_from_every_class_at_every_hospital():
    records = table(400)
    splits = build(records, test_fraction=0.3, val_fraction=0.2)
    code = split_of(splits, 400)
    for hospital in HOSPITALS:
        for c in range(3):
            cell = code[(records.client == hospital) & (records.y == c)]
            assert abs(np.sum(cell == TEST) - 0.3 * len(cell)) < 1.5
            assert abs(np.sum(cell == VAL) - 0.2 * len(cell)) < 2.5
        client_code = code[records.client == hospital]
        assert np.sum(client_code == TEST) == round(0.3 * len(client_code))
        assert np.sum(client_code == VAL) == round(0.2 * len(client_code))


def test_the_cut_does_not_follow_the_order_of_the_records():
    code = split_of(build(table(1000), val_fraction=0.0), 1000)
    gaps = np.diff(np.flatnonzero(code == TEST))
    assert np.std(gaps) > 2


@pytest.mark.parametrize(
    ("codes", "free_to"),
    [
        ((TRAIN, VAL, TEST), {TRAIN}),
        ((TRAIN, TEST), {TRAIN, VAL}),
        ((TRAIN, VAL), {TRAIN, TEST}),
        ((FREE, TEST), {TRAIN, VAL}),
    ],
)
def test_fixed_splits_stay_and_missing_ones_are_cut_from_training(codes, free_to):
    before = fixed(400, *codes)
    after = split_of(build(table(400, split=before)), 400)
    for code in (VAL, TEST):
        np.testing.assert_array_equal(after[before == code], code)
    assert set(after[(before == TRAIN) | (before == FREE)]) == free_to


def test_a_validation_fraction_of_zero_cuts_nothing():
    splits = build(table(), val_fraction=0.0)
    assert splits.rows["val"] == 0
    assert splits.val.x.shape == (0, 3)
    assert not np.any(splits.val.count)


def test_the_last_training_record_is_never_cut():
    splits = build(
        table(8), partition="iid", num_clients=8, test_fraction=0.9, val_fraction=0.05
    )
    np.testing.assert_array_equal(splits.train.count, 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1))
def test_a_patient_s_class_is_the_most_frequent_one_and_of_equals_the_first(records):
    unit, label = np.array(records, np.int64).T
    unit = np.unique(unit, return_inverse=True)[1]
    votes = np.zeros((unit.max() + 1, 3), int)
    np.add.at(votes, (unit, label), 1)
    got = units.majority(unit, label.astype(np.int32), 3)
    np.testing.assert_array_equal(got, votes.argmax(1))


@pytest.mark.parametrize(
    ("rows", "codes", "test", "val", "min_size"),
    [
        (240, (FREE,), 0.25, 0.1, 8),
        (20, (FREE,), 0.3, 0.3, 2),  # both fractions of 5 are rounded up
        (240, (FREE,), 0.5, 0.25, 7),
        (240, (TRAIN, TEST), 0.25, 0.4, 11),
        (240, (TRAIN, VAL, TEST), 0.25, 0.1, 8),
    ],
)
def test_min_size_counts_training_records_after_the_cut(
    rows, codes, test, val, min_size
):
    records = table(rows, split=fixed(rows, *codes))
    for seed in range(5):
        splits = build(
            records,
            partition="dirichlet",
            alpha=0.1,
            min_size=min_size,
            test_fraction=test,
            val_fraction=val,
            seed=seed,
        )
        assert splits.train.count.min() >= min_size


def test_min_size_counts_records_of_patients():
    """10 patients with 24 records each are enough for 4 clients with 30."""
    splits = build(
        table(patient=np.repeat(np.arange(10), 24).astype(str)),
        partition="dirichlet",
        min_size=30,
    )
    assert splits.train.count.min() >= 30


def test_fractions_of_patients_are_cut_at_their_hospital():
    client = np.repeat(["ulm", "bonn", "ulm", "wien"], 60)
    patient = (np.arange(240) // 3).astype(str)
    code = split_of(build(table(client=client, patient=patient)), 240)
    for hospital, patients in (("bonn", 20), ("ulm", 40), ("wien", 20)):
        assert np.sum(code[client == hospital] == TEST) == 3 * patients // 4
        assert np.sum(code[client == hospital] == VAL) == 3 * patients // 10


def test_fixed_splits_of_patients_hold_for_all_their_records():
    patient = np.arange(240) // 4
    before = fixed(60, TRAIN, TEST)[patient]
    after = split_of(build(table(split=before, patient=patient.astype(str))), 240)
    np.testing.assert_array_equal(after == TEST, before == TEST)


@pytest.mark.parametrize("other", [TEST, FREE])
def test_a_patient_in_two_fixed_splits_is_refused(other):
    split = np.full(240, TRAIN, np.int8)
    split[7] = other
    patient = np.arange(240).astype(str)
    patient[200] = patient[7]
    with pytest.raises(require.InputError, match=r"^data\.patient: .* one split each"):
        build(table(split=split, patient=patient))


def test_a_record_that_names_no_patient_is_a_patient_of_its_own():
    patient = np.where(np.arange(240) < 120, "", "somebody")
    code = split_of(build(table(patient=patient), partition="iid"), 240)
    assert set(code[:120]) == {TRAIN, VAL, TEST}
    assert len(set(code[120:])) == 1
