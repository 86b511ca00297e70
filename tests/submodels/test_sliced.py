"""A masked sub-model and its dense network train alike, whatever the method."""

import itertools
import json

import pytest

from fairjax import names
from tests.submodels import matrix

# What has no network of a smaller size, or is no method of its own.
UNSTRUCTURED = {"fiarse"}
COVER = matrix.cover()


@pytest.mark.parametrize("case", COVER, ids="-".join)
def test_masked_is_sliced(case):
    difference, change = matrix.gap(*case)
    assert difference < 1e-9
    assert change > 1e-3


def test_the_cover_and_the_tables_are_whole():
    """Every two values that can meet do; every named method is there."""
    covered = {case for case in matrix.CASES if case[0] not in matrix.VARIANTS}
    for one, other in itertools.combinations(range(4), 2):
        met = {(case[one], case[other]) for case in COVER}
        assert met == {(case[one], case[other]) for case in covered}
    assert set(matrix.VARIANTS) < set(matrix.METHODS)
    short = {"federated_dropout": "dropout"}
    named = {short.get(name, name) for name in names.METHODS}
    assert named - UNSTRUCTURED <= set(matrix.METHODS)


@pytest.mark.slow
def test_the_committed_table_is_whole_and_small():
    table = json.loads(matrix.RESULTS.read_text())
    cases = [
        (row["method"], row["model"], row["optimizer"], row["clip"])
        for row in table["rows"]
    ]
    assert cases == matrix.CASES
    assert table["largest_difference"] == max(r["difference"] for r in table["rows"])
    assert table["largest_difference"] < 1e-9
    assert all(row["change"] > 1e-3 for row in table["rows"])
