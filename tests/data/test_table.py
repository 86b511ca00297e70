"""A table that does not fit itself is refused."""

import numpy as np
import pytest

from fairjax.core import require
from tests.data.federations import (
    SEX,
    table,
)


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
