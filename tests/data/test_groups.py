"""Patient groups by value or by band; unknown values are in no group."""

import numpy as np
import pytest

from fairjax.core import require
from fairjax.data import groups

HEADER = ("sex", "age", "a:b", "y")


@pytest.mark.parametrize(
    ("cells", "values", "index"),
    [
        ("m f m", ("f", "m"), [1, 0, 1]),
        ("10 9 100 9", ("9", "10", "100"), [1, 0, 2, 0]),
        ("1 01 1.0 0", ("0", "1"), [1, 1, 1, 0]),
        ("10 9 x", ("10", "9", "x"), [0, 1, 2]),
        ("-1.5 0.25 1e6", ("-1.5", "0.25", "1000000"), [0, 1, 2]),
        ("m _ f _", ("f", "m"), [1, -1, 0, -1]),
        ("2 _ 1 2", ("1", "2"), [1, -1, 0, 1]),
    ],
    ids=["text", "numbers", "equal", "mixed", "signs", "unknown text", "unknown"],
)
def test_values_are_groups_in_sorted_order(cells, values, index):
    texts = np.array(["" if cell == "_" else cell for cell in cells.split()])
    attribute, group_index = groups.by_value("g", texts)
    assert attribute == ("g", values)
    assert group_index.tolist() == index
    assert group_index.dtype == np.int32


def test_a_cut_belongs_to_the_band_above_it():
    age = np.array([39.9, 40, 59, 60, 100, np.nan, -1])
    attribute, index = groups.by_band("age", age, (40.0, 60.0))
    assert attribute.name == "age"
    assert attribute.values == ("under 40", "40 to under 60", "60 and over")
    assert index.tolist() == [0, 1, 1, 2, 2, -1, 0]


def test_one_cut_makes_two_bands_and_an_empty_band_stays():
    assert groups.by_band("a", np.array([1.0]), (0.5,)).attribute.values == (
        "under 0.5",
        "0.5 and over",
    )
    attribute, index = groups.by_band("a", np.array([5.0, 1.0]), (1234567.0, 1234568.0))
    assert attribute.values[1] == "1234567 to under 1234568"
    assert index.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("sex", ("sex", ())),
        ("age:40:60", ("age", (40.0, 60.0))),
        ("age:-0.5", ("age", (-0.5,))),
        ("a:b", ("a:b", ())),
    ],
)
def test_an_entry_names_a_column_and_its_cuts(entry, expected):
    assert groups.split_entry(entry, HEADER) == expected


@pytest.mark.parametrize(
    "entry",
    ["age:", "age:40:", "age:60:40", "age:40:40", "age:nan", "age:40:inf", "age:old"],
)
def test_malformed_cuts_are_refused_in_one_line(entry):
    with pytest.raises(require.InputError) as e:
        groups.split_entry(entry, HEADER)
    assert str(e.value) == (
        'data.group: expected ascending numbers to cut at, as in "age:40:60"; '
        f"got {entry!r}"
    )


@pytest.mark.parametrize("entry", ["agee", "agee:40:60"])
def test_an_unknown_column_is_refused(entry):
    with pytest.raises(
        require.InputError, match=r'^data\.group: .*Did you mean "age"\?$'
    ):
        groups.split_entry(entry, HEADER)


def test_a_column_of_few_numbers_needs_no_cuts_and_one_of_many_does():
    twelve = [str(i % 12) for i in range(40)]
    thirteen = np.array([*twelve, "12", ""])
    assert len(groups.from_cells("age", np.array(twelve), ()).attribute.values) == 12
    with pytest.raises(require.InputError) as e:
        groups.from_cells("age", thirteen, ())
    assert str(e.value) == (
        'data.group age: expected cuts, as in "age:40:60", above 12 different numbers; '
        "got 13"
    )
    column = groups.from_cells("age", thirteen, (6.0,))
    assert np.bincount(column.index[:-1]).tolist() == [22, 19]
    assert column.index[-1] == -1


def test_many_texts_are_as_many_groups():
    texts = [f"ward {i:02d}" for i in range(40)]
    assert groups.from_cells("ward", np.array(texts), ()).attribute.values == tuple(
        texts
    )


def test_texts_are_no_groups_if_there_are_too_many():
    texts = np.array([f"{i:03d}x" for i in range(101)])
    assert len(groups.by_value("ward", texts[:100]).attribute.values) == 100
    with pytest.raises(require.InputError, match="at most 100 values; got 101"):
        groups.from_cells("ward", texts, ())


@pytest.mark.parametrize(
    ("cells", "cuts", "message"),
    [
        (["f", "m"], (40.0,), "expected numbers, to be cut; got 'text'"),
        (["", ""], (), "expected at least one value; got 'none'"),
        (["", ""], (4.0,), "expected at least one value; got 'none'"),
    ],
)
def test_a_column_that_makes_no_groups_is_refused(cells, cuts, message):
    with pytest.raises(require.InputError, match=rf"^data\.group g: {message}$"):
        groups.from_cells("g", np.array(cells), cuts)
