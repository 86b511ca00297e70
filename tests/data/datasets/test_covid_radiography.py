"""COVID-19 Radiography: the unpacked folder, equal pictures, and refusals."""

import numpy as np
import PIL.Image
import pytest

from fairjax.core import require
from fairjax.data import datasets, federation
from fairjax.data.datasets import covid_radiography
from fairjax.data.table import FREE

pytestmark = pytest.mark.usefixtures("offline")

COUNTS = {"COVID": 8, "Lung_Opacity": 6, "Normal": 12, "Viral Pneumonia": 4}
CLASS_OF = np.repeat(np.arange(4), list(COUNTS.values()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A few pictures with masks; every second picture of a class equals the first."""
    monkeypatch.setattr(covid_radiography, "COUNTS", COUNTS)
    root = tmp_path / "COVID-19_Radiography_Dataset"
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
        (root / f"{name}.metadata.xlsx").write_bytes(b"not read")
        for i in range(count):
            if i % 2 == 0:
                pixels = rng.integers(0, 256, (13, 13), np.uint8)
                pixels = np.kron(pixels, np.ones((23, 23), np.uint8))
            mode = "RGB" if i % 2 else "L"  # some official pictures have 3 channels
            image = PIL.Image.fromarray(pixels).convert(mode)
            image.save(root / name / "images" / f"{name}-{i + 1}.png")
            mask = root / name / "masks" / f"{name}-{i + 1}.png"
            PIL.Image.new("L", (256, 256)).save(mask)
    (root / "README.md.txt").write_text("about")
    return root


@pytest.mark.parametrize("name", ["covid_radiography", "covid_radiography/224"])
@pytest.mark.parametrize("inside", [False, True])
def test_pictures_are_read_by_class_without_masks(folder, name, inside):
    table = datasets.load(name, data_dir=str(folder if inside else folder.parent))
    side = 224 if "/" in name else 28
    assert table.x.shape == (30, side, side, 1)
    assert table.classes == ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    np.testing.assert_array_equal(table.y, CLASS_OF)
    assert set(table.split) == {FREE}
    first = PIL.Image.open(folder / "COVID" / "images" / "COVID-1.png")
    expected = first.resize((side, side), PIL.Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(table.x[0, :, :, 0], expected)
    assert table.x.max() > 200


def test_splits_are_stratified_and_the_same_picture_is_in_one(folder):
    table = datasets.load("covid_radiography", data_dir=str(folder))
    assert len(np.unique(table.patient)) == 15
    splits = federation.build(
        table,
        partition="iid",
        num_clients=1,
        alpha=1.0,
        min_size=1,
        test_fraction=0.5,
        val_fraction=0.2,
        normalise="none",
        seed=0,
    )
    splits_of = {}
    for name in ("train", "val", "test"):
        data = getattr(splits, name)
        for picture in data.x:
            splits_of.setdefault(picture.tobytes(), set()).add(name)
    assert len(splits_of) == 15
    assert all(len(names) == 1 for names in splits_of.values())
    counts = np.bincount(splits.test.y, minlength=4)
    np.testing.assert_allclose(counts, np.array(list(COUNTS.values())) / 2, atol=2)


def test_a_folder_with_another_number_of_pictures_is_refused(folder):
    (folder / "Normal" / "images" / "Normal-3.png").unlink()
    with pytest.raises(require.InputError) as e:
        datasets.load("covid_radiography", data_dir=str(folder))
    images = folder / "Normal" / "images"
    assert str(e.value) == f"data.data_dir {images}: expected 12 pictures; got 11"


def broken(path):
    content = bytearray(path.read_bytes())
    content[-30] ^= 1  # inside the pixels, so that the checksum of their chunk fails
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (broken, "expected a PNG of 299 x 299; got "),
        (
            lambda path: path.write_bytes(path.read_bytes()[:60]),
            "expected a PNG of 299",
        ),
        (
            lambda path: PIL.Image.new("L", (30, 30)).save(path),
            r"expected a PNG of 299 x 299; got \(30, 30\)",
        ),
        (
            lambda path: PIL.Image.new("L", (299, 299)).save(path, format="jpeg"),
            "expected a PNG of 299 x 299; got cannot identify",
        ),
    ],
    ids=["broken", "cut", "size", "format"],
)
def test_an_altered_picture_is_refused_and_nothing_is_kept(folder, alter, words):
    path = folder / "Viral Pneumonia" / "images" / "Viral Pneumonia-1.png"
    content = path.read_bytes()
    alter(path)
    with pytest.raises(require.InputError, match=words) as e:
        datasets.load("covid_radiography", data_dir=str(folder))
    assert str(e.value).startswith(f"data.data_dir {path}: ")
    path.write_bytes(content)
    assert len(datasets.load("covid_radiography", data_dir=str(folder)).y) == 30


def test_a_picture_that_lies_elsewhere_is_refused(folder, tmp_path):
    path = folder / "COVID" / "images" / "COVID-1.png"
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(require.InputError, match="expected pictures in the folder"):
        datasets.load("covid_radiography", data_dir=str(folder))


@pytest.mark.parametrize("where", ["nowhere", "data.data_dir"])
def test_without_the_folder_one_line_says_what_it_is(tmp_path, where):
    with pytest.raises(require.InputError) as e:
        datasets.load(
            "covid_radiography/224",
            data_dir=str(tmp_path) if where == "data.data_dir" else None,
        )
    words = (
        "COVID-19_Radiography_Dataset",
        "FAIRJAX_DATA_DIR",
        "nothing is downloaded",
    )
    for word in words:
        assert word in str(e.value)
    assert str(e.value).startswith("data.data_dir")
    assert "\n" not in str(e.value)
