"""The user's npz: the tables read from it, and the message for each mistake."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from fairjax.data.datasets import npz_file
from fairjax.data.table import TEST, TRAIN, VAL
from tests.data.federations import refused


def arrays(**changes):
    """6 training and 4 test images; None removes an array."""
    rng = np.random.default_rng(0)
    complete = {
        "train_images": rng.integers(0, 256, (6, 4, 4, 3)).astype(np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": rng.integers(0, 256, (4, 4, 4, 3)).astype(np.uint8),
        "test_labels": np.array([0, 1, 1, 0]),
    }
    return {name: a for name, a in (complete | changes).items() if a is not None}


@pytest.fixture
def npz(tmp_path):
    """Writes arrays and reads them as a table."""

    def write_and_load(**changes):
        np.savez(tmp_path / "mine.npz", **arrays(**changes))
        return npz_file.load(str(tmp_path / "mine.npz"))

    return write_and_load


def test_npz_splits_are_fixed_and_pixels_stay_bytes(npz):
    table, source = npz(), arrays()
    assert table.x.dtype == np.uint8
    assert table.scale == 255
    assert table.classes == ("0", "1", "2")
    assert table.source == "file mine.npz"
    for name, code in (("train", TRAIN), ("test", TEST)):
        in_split = table.split == code
        np.testing.assert_array_equal(table.x[in_split], source[f"{name}_images"])
        np.testing.assert_array_equal(table.y[in_split], source[f"{name}_labels"])
    assert VAL not in table.split
    assert table.client is table.patient is table.group is None
    assert table.groups == ()


def test_npz_validation_is_read_where_it_is_given(npz):
    images = np.full((2, 4, 4, 3), 7, np.uint8)
    table = npz(val_images=images, val_labels=np.array([2, 2]))
    np.testing.assert_array_equal(table.x[table.split == VAL], images)
    np.testing.assert_array_equal(table.y[table.split == VAL], 2)
    assert len(table.y) == 12


def test_npz_floats_are_read_as_they_are(npz):
    values = np.linspace(-3, 3, 60).reshape(10, 6)
    values[0, 0] = np.nan
    table = npz(train_images=values[:6], test_images=values[6:].astype(np.float16))
    assert table.x.dtype == np.float32
    np.testing.assert_allclose(table.x, values, rtol=1e-3)


def test_npz_grey_images_get_a_channel(npz):
    grey = {name: array[..., 0] for name, array in arrays().items() if "images" in name}
    assert npz(**grey).x.shape == (10, 4, 4, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_npz_labels_may_be_a_column(npz, dtype):
    labels = arrays()["train_labels"][:, None].astype(dtype)
    table = npz(train_labels=labels, test_labels=np.zeros((4, 1), dtype))
    np.testing.assert_array_equal(table.y, [0, 1, 2, 0, 1, 2, 0, 0, 0, 0])


def test_npz_names_hospitals_patients_and_groups(npz):
    table = npz(
        train_client=np.array(["b", "a", "a", "b", "b", "a"]),
        test_client=np.array(["a", "a", "b", "b"]),
        train_patient=np.arange(6),
        test_patient=np.arange(6, 10),
        train_group=np.array(["f", "m", "", "nan", "f", "f"]),
        test_group=np.array(["f", "f", "m", "m"]),
    )
    assert "".join(table.client) == "baabbaaabb"
    assert table.patient.tolist() == [str(i) for i in range(10)]
    assert table.groups == (("group", ("f", "m")),)
    assert table.group[:, 0].tolist() == [0, 1, -1, -1, 0, 0, 0, 0, 1, 1]


def test_npz_records_without_a_hospital_are_left_out(npz):
    table = npz(
        train_client=np.array(["a", "", "b", "NA", "a", "b"]),
        test_client=np.array(["a", "b", "?", "b"]),
        train_patient=np.arange(6),
        test_patient=np.arange(6, 10),
    )
    assert table.patient.tolist() == [str(i) for i in (0, 2, 4, 5, 6, 7, 9)]
    assert len(table.x) == len(table.y) == len(table.split) == 7
    assert table.notes == ("3 records name no client and are left out",)


class Bomb:
    """Unpickling it would fail the test."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


VAL_IMAGES = {"val_images": np.zeros((2, 4, 4, 3), np.uint8)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels": None}, ["'train_labels'", 'Did you mean "train_images"?']),
        (
            {"test_labels": None, "test_label": np.zeros(4, int)},
            ["'test_labels'", 'Did you mean "test_label"?'],
        ),
        (VAL_IMAGES, ["'val_labels'"]),
        ({"train_client": np.zeros(6, int)}, ["'test_client'"]),
        ({"train_images": np.array([Bomb()] * 6)}, ["npz of plain arrays"]),
        ({"train_labels": np.zeros(5, int)}, ["train_labels", "6 labels", "got 5"]),
        ({"train_labels": np.zeros(6)}, ["train_labels", "integers", "float64[6]"]),
        ({"train_labels": np.zeros(6, bool)}, ["train_labels", "integers", "bool[6]"]),
        ({"test_labels": np.zeros((4, 2), int)}, ["test_labels", "int64[4, 2]"]),
        ({"test_labels": np.array([0, 1, -1, 0])}, ["labels", "in [0, 999]", "got -1"]),
        (
            {"test_images": np.zeros((4, 5, 4, 3), np.uint8)},
            ["one shape", "(4, 4, 3), (5, 4, 3)"],
        ),
        ({"test_images": np.zeros((4, 4, 4, 3))}, ["uint8 in all splits or in none"]),
        ({"train_images": np.zeros((6, 9), int)}, ["train_images", "int64[6, 9]"]),
        ({"train_images": np.zeros(6)}, ["train_images", "float64[6]"]),
        ({"train_images": np.array(0.5)}, ["train_images", "float64[]"]),
        (
            {"train_images": np.full((6, 2), np.inf), "test_images": np.ones((4, 2))},
            ["finite", "infinity"],
        ),
        (
            {"train_client": np.zeros(6, int), "test_client": np.zeros(3, int)},
            ["test_client", "4 values", "got [3]"],
        ),
        (
            {"train_client": np.full(6, ""), "test_client": np.full(4, "?")},
            ["data.client", "none named"],
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_npz_that_cannot_be_used_is_refused(npz, changes, words):
    message = refused(npz, **changes)
    assert message.startswith("data.")
    for word in words:
        assert word in message


def single_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def corrupt(path):
    np.savez_compressed(path, train_images=np.arange(10_000))
    content = bytearray(path.read_bytes())
    content[80:120] = 40 * b"\xff"
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    [
        single_array,
        corrupt,
        lambda path: path.write_text("not an npz"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 cut off"),
        lambda path: path.write_bytes(pickle.dumps(Bomb())),
    ],
    ids=["npy", "corrupt", "text", "empty", "cut", "pickle"],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path, write):
    path = tmp_path / "mine.npz"
    write(path)
    assert refused(npz_file.load, str(path)).startswith(
        f"data.path {path}: expected an npz"
    )


def member(shape, descr="<i8", content=b"", version=(2, 0)):
    """An .npy file whose header may claim another size than its content has."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    written = file.getvalue()
    return written[:6] + bytes(version) + written[8:] + content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (member((10**15,)), "claims 8000000000000128: int64[1000000000000000]"),
        (member((10**6, 10**6, 10**6)), "claims 8000000000000000128"),
        (member((4,), content=bytes(40)), "of 168 bytes, which claims 160: int64[4]"),
        (member((-1,), content=bytes(8)), "claims 120: int64[-1]"),
        (member((10**15,), "<U0"), "claims 1000000000000128: <U0"),
        (member((10**15,), "|O", pickle.dumps(Bomb())), "object[1000000000000000]"),
        (member((1,), version=(9, 9)), "KeyError: (9, 9)"),
        (b"plain text", "the magic string is not correct"),
        (
            b"\x93NUMPY\x02\0\xff\xff\xff\x7f" + bytes(10**5),
            "EOF: reading array header",
        ),
        (b"\x93NUMPY\x01\0\x06\0(((((\n", "npz of plain arrays"),
    ],
    ids="vast vaster less negative unsized object version text long cut".split(),
)
def test_an_array_that_is_not_what_it_claims_is_refused(tmp_path, content, words):
    """The refusal precedes the allocation; no machine has this petabyte."""
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", content)
    assert words in refused(npz_file.load, str(path))


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train_images.npy", "more.npy"):
            archive.writestr(name, bytes(600_000))
    monkeypatch.setattr(npz_file, "MOST_BYTES", 10**6)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    assert path.stat().st_size < 10_000
    assert "1200000 bytes, above 1000000" in refused(npz_file.load, str(path))


def test_members_are_names_and_no_paths(tmp_path):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../train_images.npy", "/etc/train_labels.npy"):
            archive.writestr(name, member((1,), content=bytes(8)))
    before = sorted(tmp_path.parent.rglob("*"))
    assert "expected an array 'train_images'" in refused(npz_file.load, str(path))
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels": np.full(6, 2**40)}, ["labels", "in [0, 999]"]),
        ({"train_labels": np.full(6, 2**64 - 1, np.uint64)}, ["labels", "in [0, 999]"]),
        ({"train_images": np.zeros((6, 0))}, ["train_images", "float64[6, 0]"]),
        ({"train_client": np.full(6, "x" * 201)}, ["at most 200 characters"]),
        (
            {"train_client": np.full(6, 2**31 - 1, np.int32).view("<U1")},
            ["text in client"],
        ),
    ],
    ids=["label", "uint64", "nothing", "long", "no text"],
)
def test_what_an_npz_holds_is_bounded(npz, changes, words):
    if "train_client" in changes:
        changes = changes | {"test_client": np.full(4, "a")}
    message = refused(npz, **changes)
    for word in words:
        assert word in message


def test_an_npz_without_records_is_refused(npz):
    empty = {name: array[:0] for name, array in arrays().items()}
    assert "at least one record" in refused(npz, **empty)
