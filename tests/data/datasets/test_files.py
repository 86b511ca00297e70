"""What both readers of the user's files refuse."""

import pytest

from fairjax.data.datasets import csv_file, npz_file
from tests.data.federations import refused


@pytest.mark.parametrize(
    "read",
    [npz_file.load, lambda path: csv_file.load(path, label="y")],
    ids=["npz", "csv"],
)
def test_an_absent_file_is_refused(tmp_path, read):
    for path in (str(tmp_path / "absent"), str(tmp_path), "a" * 5000, "\0"):
        assert refused(read, path).startswith("data.path: expected a file that exists")
    assert refused(read, None) == "data.path: expected the file to read; got None"
