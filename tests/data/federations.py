"""Tables with distinguishable records, and federations of them."""

import numpy as np
import pytest

from fairjax.core import require
from fairjax.data import federation
from fairjax.data.table import FREE, TEST, TRAIN, VAL, Attribute, Table

HOSPITALS = ("bonn", "ulm", "wien")


def table(rows=240, seed=0, **columns) -> Table:
    """Records of three clients; the first feature is the record's number."""
    rng = np.random.default_rng(seed)
    x = rng.normal([0, 3, -1], [1, 2, 0.5], (rows, 3)).astype(np.float32)
    x[:, 0] = np.arange(rows)
    fields = {
        "name": "toy",
        "x": x,
        "y": rng.choice(3, rows, p=[0.6, 0.3, 0.1]),
        "split": np.full(rows, FREE, np.int8),
        "classes": ("a", "b", "c"),
        "source": "made",
        "client": rng.choice(HOSPITALS, rows, p=[0.6, 0.3, 0.1]),
    }
    return Table(**fields | columns)


def build(records, *, partition="natural", **overrides) -> federation.Splits:
    options = {
        "num_clients": 4,
        "alpha": 0.5,
        "min_size": 2,
        "test_fraction": 0.25,
        "val_fraction": 0.1,
        "normalise": "none",
        "seed": 0,
    }
    return federation.build(records, partition=partition, **options | overrides)


def by_split(splits):
    return {name: getattr(splits, name) for name in ("train", "val", "test")}


def numbers(data):
    """The numbers of records in `table`; valid without normalisation only."""
    return data.x[:, 0].astype(int)


def owners(data):
    return np.repeat(np.arange(len(data.count)), data.count)


def split_of(splits, rows):
    """The split of every record of `table`."""
    code = np.full(rows, FREE)
    for value, data in zip((TRAIN, VAL, TEST), by_split(splits).values(), strict=True):
        assert np.all(code[numbers(data)] == FREE)
        code[numbers(data)] = value
    assert np.all(code != FREE)
    return code


def fixed(rows, *codes, seed=0):
    return np.random.default_rng(seed).choice(codes, rows).astype(np.int8)


SEX, AGE = Attribute("sex", ("f", "m")), Attribute("age", ("young", "middle", "old"))


def grouped(**columns) -> Table:
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(-1, 2, 240), rng.integers(-1, 3, 240)], 1)
    return table(group=index, groups=(SEX, AGE), **columns)


def refused(reader, *args, **options) -> str:
    """The one-line message that refuses an input."""
    with pytest.raises(require.InputError) as refusal:
        reader(*args, **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)
