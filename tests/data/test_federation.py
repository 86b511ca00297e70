"""From a table to a federation: whole, disjoint, and blind to what is not training."""

import itertools
import json

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from federations import HOSPITALS, build, fixed, numbers, owners, parts, split_of, table
from hypothesis import given

from fairjax.core import require
from fairjax.data import federation
from fairjax.data.table import FREE, SPLITS, TEST, TRAIN, VAL, Attribute, Table

seeds = st.integers(0, 2**31 - 1)

DISJOINT = [law for law in federation.LAWS if law != "dirichlet_overlap"]


# ------------------------------------------------------------------------- flat records


@pytest.mark.parametrize("law", DISJOINT)
def test_offsets_counts_and_labels_describe_the_flat_records(law):
    records = table()
    splits = build(records, partition=law)
    sizes = 3 * [len(splits.clients)]
    assert sizes == [len(part.count) for part in parts(splits).values()]
    assert sum(splits.rows.values()) == len(records.y)
    for name, part in parts(splits).items():
        assert splits.rows[name] == len(part.y) == part.count.sum()
        np.testing.assert_array_equal(part.offset, [0, *np.cumsum(part.count)[:-1]])
        np.testing.assert_array_equal(part.x, records.x[numbers(part)])
        np.testing.assert_array_equal(part.y, records.y[numbers(part)])
        for k, (start, count) in enumerate(zip(part.offset, part.count, strict=True)):
            mine = numbers(part)[start : start + count]
            assert np.all(np.diff(mine) > 0)
            if law == "natural":
                assert set(records.client[mine]) <= {HOSPITALS[k]}
            of_training = splits.train.y[owners(splits.train) == k]
            np.testing.assert_array_equal(
                part.labels[k], np.bincount(of_training, None, 3)
            )


def test_natural_clients_are_the_hospitals_and_others_are_numbered():
    assert build(table()).clients == HOSPITALS
    many = build(table(), partition="iid", num_clients=11).clients
    assert many[0] == "hospital_00"
    assert many[-1] == "hospital_10"


@pytest.mark.parametrize("law", DISJOINT)
def test_every_record_is_in_one_split_at_one_hospital(law):
    split_of(build(table(), partition=law), 240)


def test_overlapping_hospitals_repeat_records_inside_their_split():
    records = table(client=None, split=fixed(240, TRAIN, TEST))
    splits = build(records, partition="dirichlet_overlap")
    kept = {name: set(numbers(part)) for name, part in parts(splits).items()}
    assert all(kept.values())
    for one, other in itertools.combinations(kept.values(), 2):
        assert not one & other
    every = np.concatenate([numbers(part) for part in parts(splits).values()])
    (note,) = splits.notes
    twice, nobodys = len(every) - len(set(every)), 240 - len(set(every))
    assert note == f"hospitals overlap: {twice} records twice, {nobodys} at no hospital"
    assert twice > 0
    np.testing.assert_array_equal(splits.train.y, records.y[numbers(splits.train)])


@pytest.mark.parametrize(
    "columns", [{}, {"split": fixed(240, TRAIN, TEST), "patient": np.arange(240) // 2}]
)
def test_hospitals_do_not_overlap_where_a_test_record_could_be_trained_on(columns):
    message = r"^data\.partition\.name: expected dirichlet: hospitals that overlap"
    with pytest.raises(require.InputError, match=message):
        build(table(**columns), partition="dirichlet_overlap")


def test_the_hash_tells_apart_how_many_shards_or_classes_there_were():
    hashes = [
        build(table(), partition=law, **more).hash
        for law in ("shards", "pathological")
        for more in ({}, {"shards": 3, "classes": 3})
    ]
    assert len(set(hashes)) == 4
    assert (
        build(table(), partition="iid").hash
        == build(table(), partition="iid", shards=3).hash
    )


SEX, AGE = Attribute("sex", ("f", "m")), Attribute("age", ("young", "middle", "old"))


def grouped(**columns) -> Table:
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(-1, 2, 240), rng.integers(-1, 3, 240)], 1)
    return table(group=index, groups=(SEX, AGE), **columns)


@pytest.mark.parametrize("law", DISJOINT)
def test_every_record_keeps_its_groups(law):
    records = grouped()
    splits = build(records, partition=law)
    assert splits.groups == (SEX, AGE)
    for part in parts(splits).values():
        np.testing.assert_array_equal(part.group, records.group[numbers(part)])
        assert part.group.dtype == np.int32


def test_without_attributes_the_groups_have_no_column():
    splits = build(table())
    assert splits.groups == ()
    assert splits.train.group.shape == (splits.rows["train"], 0)


# ----------------------------------------------------------------- what a hospital has


def test_hospitals_are_counted_by_split_class_and_group():
    records = grouped()
    splits = build(records)
    told = split_of(splits, 240)
    book = federation.hospitals(splits, np.array([1, 0, 2]))
    assert [row["client"] for row in book] == list(HOSPITALS)
    assert [row["tier"] for row in book] == [1, 0, 2]
    for row in book:
        mine = records.client == row["client"]
        for name, code in SPLITS.items():
            assert row[name] == np.sum(mine & (told == code))
        mine &= told == TRAIN
        for c, name in enumerate("abc"):
            assert row["classes"][name] == np.sum(mine & (records.y == c))
        for a, (attribute, values) in enumerate((SEX, AGE)):
            for v, value in enumerate(values):
                expected = np.sum(mine & (records.group[:, a] == v))
                assert row["groups"][attribute][value] == expected
        known = records.group[mine, 0] >= 0
        assert sum(row["groups"]["sex"].values()) == known.sum() < mine.sum()
    assert json.loads(json.dumps(book)) == book


def test_hospitals_without_attributes_have_no_groups():
    book = federation.hospitals(build(table()), np.zeros(3, int))
    assert [row["groups"] for row in book] == [{}, {}, {}]
    splits = ("train", "val", "test")
    assert list(book[0]) == ["client", "tier", *splits, "classes", "groups"]


# ------------------------------------------------------------------- small hospitals


def test_the_positive_class_is_the_second_and_decides_nothing_else():
    two = table(classes=("healthy", "ill"), y=np.arange(240) % 3 // 2)
    plain = build(two)
    turned = federation.with_positive(plain, "healthy")
    assert (plain.positive, turned.positive) == ("ill", "healthy")
    assert turned.classes == ("ill", "healthy")
    assert turned.hash == plain.hash
    for ours, theirs in zip(*(parts(s).values() for s in (turned, plain)), strict=True):
        np.testing.assert_array_equal(ours.x, theirs.x)
        np.testing.assert_array_equal(ours.y, 1 - theirs.y)
        np.testing.assert_array_equal(ours.labels, theirs.labels[:, ::-1])
    tiers = np.zeros(3, int)
    kept = [federation.hospitals(splits, tiers) for splits in (plain, turned)]
    assert kept[0] == kept[1]  # by name
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


def test_natural_leaves_out_hospitals_with_fewer_records_than_min_size():
    client = np.repeat(["bonn", "ulm", "wien"], [120, 70, 50])
    records = grouped(client=client)
    assert build(records, min_size=50).clients == HOSPITALS
    splits = build(records, min_size=51)
    assert splits.clients == ("bonn", "ulm")
    kept = np.sort(np.concatenate([numbers(part) for part in parts(splits).values()]))
    np.testing.assert_array_equal(kept, np.arange(190))
    for part in parts(splits).values():
        np.testing.assert_array_equal(part.group, records.group[numbers(part)])
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
    more = build(records, partition="dirichlet", num_clients=30, alpha=1e-3).notes
    assert more[0] == "said before"
    assert "units moved" in more[1]


# ------------------------------------------------------------------------------- splits


def test_fractions_are_cut_from_every_class_at_every_hospital():
    records = table(400)
    splits = build(records, test_fraction=0.3, val_fraction=0.2)
    code = split_of(splits, 400)
    for hospital in HOSPITALS:
        for c in range(3):
            cell = code[(records.client == hospital) & (records.y == c)]
            assert abs(np.sum(cell == TEST) - 0.3 * len(cell)) < 1.5
            assert abs(np.sum(cell == VAL) - 0.2 * len(cell)) < 2.5
        mine = code[records.client == hospital]
        assert np.sum(mine == TEST) == round(0.3 * len(mine))
        assert np.sum(mine == VAL) == round(0.2 * len(mine))


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
    got = federation._majority(unit, label.astype(np.int32), 3)
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
    """10 patients with 24 records each are enough for 4 hospitals with 30."""
    splits = build(
        table(patient=np.repeat(np.arange(10), 24).astype(str)),
        partition="dirichlet",
        min_size=30,
    )
    assert splits.train.count.min() >= 30


# ----------------------------------------------------------------------------- patients


@given(
    st.lists(st.integers(0, 15), min_size=40, max_size=80),
    st.sampled_from(["iid", "dirichlet"]),
    seeds,
)
def test_no_patient_is_in_two_splits_or_at_two_simulated_hospitals(who, law, seed):
    who = [*range(16), *who]
    splits = build(
        table(len(who), patient=np.asarray(who).astype(str)),
        partition=law,
        num_clients=3,
        alpha=5.0,
        min_size=1,
        seed=seed,
    )
    places = {}
    for name, part in parts(splits).items():
        for number, owner in zip(numbers(part), owners(part), strict=True):
            places.setdefault(who[number], set()).add((name, owner))
    assert len(places) == 16
    assert all(len(place) == 1 for place in places.values())


def test_a_patient_seen_at_two_hospitals_stays_in_one_split():
    records = table(patient=(np.arange(240) // 4).astype(str))
    code = split_of(build(records), 240).reshape(-1, 4)
    assert {TRAIN, VAL, TEST} == set(code.ravel())
    np.testing.assert_array_equal(code, code[:, :1] * np.ones(4, int))


def test_test_records_know_their_patients_hospital_by_hospital():
    """Patient 0 is seen at both hospitals, and is then one of each."""
    patient = np.arange(240) // 3
    patient[-3:] = 0
    client = np.repeat(["ulm", "bonn"], 120)
    split = np.where(np.isin(patient, range(0, 80, 2)), TEST, TRAIN).astype(np.int8)
    records = table(client=client, patient=patient.astype(str), split=split)
    made = build(records)
    count, rows = made.test.count, np.split(made.patients, [made.test.count[0]])
    assert len(made.patients) == count.sum()
    # 20 of bonn's own and patient 0; then ulm's 20.
    np.testing.assert_array_equal(np.bincount(rows[0]), [3] * 21)
    np.testing.assert_array_equal(np.unique(rows[1]), np.arange(21, 41))
    alone = build(table())
    np.testing.assert_array_equal(alone.patients, np.arange(len(alone.test.y)))


@pytest.mark.parametrize("law", ["natural", "iid"])
def test_training_records_know_their_patients_within_the_hospital(law):
    """Some are at several hospitals, and are then one of each; "" is nobody's name."""
    rng = np.random.default_rng(3)
    patient = rng.integers(0, 90, 240).astype(str)
    patient[patient == "7"] = ""
    records = table(patient=patient)
    made = build(records, partition=law)
    alone = np.where(patient == "", [f"alone {i}" for i in range(240)], patient)
    mine, whose = numbers(made.train), made.train.patient
    at: dict[str, set[int]] = {}
    held = federation.patients(made.train)
    for k in range(len(made.clients)):
        here = owners(made.train) == k
        names, numbered = alone[mine[here]], whose[here]
        assert len(set(zip(names, numbered, strict=True))) == len(set(names))
        assert set(numbered) == set(range(len(set(names)))) == set(range(len(held[k])))
        np.testing.assert_array_equal(held[k], np.bincount(numbered))
        for name in names:
            at.setdefault(name, set()).add(k)
    several = [tuple(sorted(places)) for places in at.values() if len(places) > 1]
    assert made.shared == {places: several.count(places) for places in several}
    assert bool(several) == (law == "natural")


@pytest.mark.parametrize("names", [None, np.full(240, "")])
def test_without_names_of_patients_no_record_is_a_patients(names):
    made = build(table(patient=names))
    assert made.train.patient is None
    assert made.shared == {}


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
    same = {"partition": "dirichlet"}
    assert build(table(), **same).hash != build(table(), **same | change).hash


def test_the_hash_changes_with_one_record():
    moved = table()
    moved.client[5] = "ulm" if moved.client[5] != "ulm" else "bonn"
    assert build(table()).hash != build(moved).hash
    assert build(table()).hash != build(table(name="other")).hash


def test_the_hash_is_of_the_assignment_not_of_the_numbers():
    assert build(table()).hash == build(table(), normalise="client").hash


def test_the_hash_of_a_seed_is_the_recorded_one():
    assert build(table(), partition="dirichlet").hash[:16] == "0429332f59ee7cf1"
    assert build(table()).hash[:16] == "b5347a739e91a352"


# ----------------------------------------------------------------------------- refusals


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


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"client": np.array(["a"])}, "toy client: expected 240 values; got 1"),
        ({"y": np.full(240, 3)}, r"toy labels: expected 0 to 2; got \(3, 3\)"),
        ({"y": np.full(240, -1)}, r"toy labels: expected 0 to 2; got \(-1, -1\)"),
        ({"classes": tuple("c" * 1001)}, r"toy classes: .* \[1, 1000\]; got 1001$"),
        ({"groups": (SEX,)}, r"toy group: expected shape \(240, 1\); got None"),
        (
            {"group": np.zeros((240, 1), int)},
            r"toy group: .* \(240, 0\); got \(240, 1\)",
        ),
        (
            {"group": np.full((240, 1), 2), "groups": (SEX,)},
            r"toy group sex: expected -1 to 1; got \(2, 2\)",
        ),
        (
            {"group": np.full((240, 1), -2), "groups": (SEX,)},
            r"toy group sex: expected -1 to 1; got \(-2, -2\)",
        ),
    ],
    ids="names high low classes groups attributes above below".split(),
)
def test_a_table_that_does_not_fit_itself_is_refused(columns, message):
    with pytest.raises(require.InputError, match=message):
        table(**columns)


def test_a_table_without_records_is_refused():
    with pytest.raises(require.InputError, match="toy: expected at least one record"):
        table().rows(np.zeros(240, bool))
