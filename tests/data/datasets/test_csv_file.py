"""The user's csv: the tables read from it, and the message for each mistake."""

import gzip
import tracemalloc

import numpy as np
import pytest

from fairjax.data.datasets import csv_file, files
from fairjax.data.table import FREE
from tests.data.federations import refused

CSV = """\
age, site ,who,sex,bmi,outcome
50,ulm,p1,f,21.5,ill
61,bonn,p2,m,,well
?,ulm,p1,f,30,well
44,NA,p3,,28e0,ill

39,bonn,p4,m,nan,ill
"""


@pytest.fixture
def csv(tmp_path):
    """Writes a text and reads it as a table."""

    def write_and_load(text=CSV, label="outcome", **roles):
        (tmp_path / "mine.csv").write_text(text)
        return csv_file.load(str(tmp_path / "mine.csv"), label=label, **roles)

    return write_and_load


ROLES = {"client": "site", "patient": "who", "group": ("sex",)}


def test_csv_columns_that_are_not_named_are_features(csv):
    table = csv(**ROLES)
    assert table.features == ("age", "bmi")
    assert table.x.dtype == np.float32
    np.testing.assert_array_equal(
        table.x, [[50, 21.5], [61, np.nan], [np.nan, 30], [39, np.nan]]
    )
    assert table.classes == ("ill", "well")
    assert table.y.tolist() == [0, 1, 1, 0]
    assert set(table.split) == {FREE}
    assert table.client.tolist() == ["ulm", "bonn", "ulm", "bonn"]
    assert table.patient.tolist() == ["p1", "p2", "p1", "p4"]
    assert table.groups == (("sex", ("f", "m")),)
    assert table.group.tolist() == [[0], [1], [0], [1]]
    assert table.notes == ("1 records name no client and are left out",)
    assert table.source == "file mine.csv"


def test_csv_without_a_column_of_hospitals_keeps_all_records(csv):
    table = csv(CSV.replace(",NA,", ",va,"), **ROLES)
    assert table.group[:, 0].tolist() == [0, 1, 0, -1, 1]
    assert table.notes == ()
    assert csv("a,b\n1,2\n3,4\n", label="b").client is None


def test_csv_columns_of_several_groups(csv):
    """Grouped numbers stay features, so that groups change no model."""
    roles = {"client": "site", "patient": "who"}
    table = csv(**roles, group=("age:40:60", "sex"))
    assert [attribute.name for attribute in table.groups] == ["age", "sex"]
    assert table.groups[0].values == ("under 40", "40 to under 60", "60 and over")
    assert table.group.tolist() == [[1, 0], [2, 1], [-1, 0], [0, 1]]
    assert table.features == ("age", "bmi")
    by_label = csv(**ROLES | {"group": ("sex", "outcome")})
    assert by_label.features == ("age", "bmi")


@pytest.mark.parametrize("missing", ["", "?", "NA", "nan", "NaN", "null", "None", " "])
def test_csv_cells_without_a_value_are_missing(csv, missing):
    table = csv(f"a,b,y\n1,{missing},0\n2,3,1\n", label="y")
    np.testing.assert_array_equal(table.x, [[1, np.nan], [2, 3]])


@pytest.mark.parametrize(
    ("cells", "classes", "y"),
    [
        ("10 9 100 9", ("9", "10", "100"), [1, 0, 2, 0]),
        ("b a c a", ("a", "b", "c"), [1, 0, 2, 0]),
        ("1 0.5 -2 1", ("-2", "0.5", "1"), [2, 1, 0, 2]),
        ("10 9 x 9", ("10", "9", "x"), [0, 1, 2, 1]),
        ("1.0 1 0 01", ("0", "01", "1", "1.0"), [3, 2, 0, 1]),
    ],
    ids=["numbers", "words", "signs", "mixed", "equal numbers"],
)
def test_csv_classes_are_ordered_by_number_or_by_name(csv, cells, classes, y):
    rows = "".join(f"1,{cell}\n" for cell in cells.split())
    table = csv("a,y\n" + rows, label="y")
    assert table.classes == classes
    assert table.y.tolist() == y


def test_csv_may_be_compressed_and_start_with_a_mark(tmp_path):
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfa,y\r\n1,x\r\n2,z\r\n"))
    table = csv_file.load(str(path), label="y")
    assert table.features == ("a",)
    assert table.classes == ("x", "z")


def test_csv_cells_may_be_quoted(csv):
    table = csv('"a, b",y\n"1","x, ""z"""\n2,w\n', label="y")
    assert table.features == ("a, b",)
    assert table.classes == ("w", 'x, "z"')


@pytest.mark.parametrize(
    ("text", "roles", "words"),
    [
        (CSV, {"label": None}, ["data.label", "age, site, who, sex, bmi, outcome"]),
        (CSV, {"label": "outcom"}, ["data.label", 'Did you mean "outcome"?']),
        (CSV, {"client": "sites"}, ["data.client", 'Did you mean "site"?']),
        (CSV, {"patient": "whom"}, ["data.patient", 'Did you mean "who"?']),
        (CSV, {"group": ("sexe",)}, ["data.group", 'Did you mean "sex"?']),
        (CSV, {"group": ("age:60:40",)}, ["data.group", "ascending", "'age:60:40'"]),
        (CSV, {"group": ("sex:1",)}, ["data.group sex", "numbers", "'text'"]),
        (CSV, {"group": ("age", "age:50")}, ["data.group", "every column once"]),
        (CSV, {}, ["column site line 2", "a number", "got 'ulm'"]),
        ("a,y\n1,0\n\n2\n", {"label": "y"}, ["line 4", "2 cells", "got 1"]),
        ("a,y\n1,0\n2,1,3\n", {"label": "y"}, ["line 3", "2 cells", "got 3"]),
        ("a,y\n1,0\n\n\nx,1\n", {"label": "y"}, ["column a line 5", "got 'x'"]),
        ("a,y\n1,0\ninf,1\n", {"label": "y"}, ["column a line 3", "finite", "'inf'"]),
        ("a,y\n1,0\n1e40,1\n", {"label": "y"}, ["line 3", "finite", "'1e40'"]),
        ("a,y\n1,0\n\n2,?\n", {"label": "y"}, ["column y line 4", "a label", "'?'"]),
        ("a,y\n1,0\n2,0\n", {"label": "y"}, ["data.label y", "two classes", "['0']"]),
        ("a,a,y\n1,2,3\n", {"label": "y"}, ["different names"]),
        ("a,y\n", {"label": "y"}, ["a header and at least one record", "got 1"]),
        ("", {"label": "y"}, ["a header and at least one record", "got 0"]),
        ("c,y\n1,0\n2,1\n", {"label": "y", "client": "c"}, ["one feature column"]),
        ("c,a,y\n?,1,0\n,2,1\n", {"label": "y", "client": "c"}, ["none named"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_csv_that_cannot_be_used_is_refused(csv, text, roles, words):
    message = refused(csv, text, **roles)
    assert message.startswith("data.")
    for word in words:
        assert word in message


# The time stamp is fixed, because workers of a parallel run must collect equal bytes.
PACKED = gzip.compress(b"a,y\n" + 50 * b"1,2\n3,4\n", mtime=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.csv", b"a,y\n1,\xe9\n2,b\n"),
        ("plain.csv.gz", b"a,y\n1,2\n3,4\n"),
        ("cut.csv.gz", PACKED[:-12]),
        ("corrupt.csv.gz", PACKED[:10] + 20 * b"\xff" + PACKED[30:]),
    ],
    ids=["latin", "not packed", "cut", "corrupt"],
)
def test_a_file_that_is_no_csv_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(csv_file.load, str(path), label="y")
    assert message.startswith(f"data.path {path}: expected a csv file; got ")


@pytest.mark.parametrize(
    ("limit", "text", "words"),
    [
        ("LONGEST_LINE", "a,y\n1,22222222222222\n3,4\n", "a line above 12 characters"),
        ("MOST_CHARACTERS", "a,y\n1,2\n3,4\n5,6\n", "more than 12 characters"),
        ("MOST_COLUMNS", 13 * "a," + "y\n", "at most 12 columns; got 14"),
        ("LONGEST_NAME", "a,y\n1,2\n3,4444444444444\n", "at most 12 characters"),
        (
            "MOST_CLASSES",
            "y,a\n" + "".join(f"{i},1\n" for i in range(13)),
            "12 classes",
        ),
    ],
)
def test_what_a_csv_holds_is_bounded(csv, monkeypatch, limit, text, words):
    assert csv("a,y\n1,2\n3,4\n", label="y").classes == ("2", "4")
    module = files if limit == "LONGEST_NAME" else csv_file
    monkeypatch.setattr(module, limit, 12)
    assert words in refused(csv, text + "1,2\n" * (limit == "MOST_COLUMNS"), label="y")


def test_a_line_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    """The reader refuses the line after its first characters."""
    monkeypatch.setattr(csv_file, "LONGEST_LINE", 2**16)
    path = tmp_path / "mine.csv.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    assert "a line above 65536 characters" in refused(
        csv_file.load, str(path), label="y"
    )
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_wide_csv_is_read_in_time_that_grows_with_its_cells(csv):
    names = [f"c{i}" for i in range(20_000)]
    rows = [",".join(names), *(",".join(["1"] * len(names)) for _ in range(2))]
    rows[1] += "0"
    table = csv("\n".join(rows) + "\n", label=names[-1])
    assert table.x.shape == (2, 19_999)
