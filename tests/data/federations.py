"""Tables whose records can be told apart, and federations of them."""

import numpy as np

from fairjax.data import federation
from fairjax.data.table import FREE, TEST, TRAIN, VAL, Table

HOSPITALS = ("bonn", "ulm", "wien")


def table(rows=240, seed=0, **columns) -> Table:
    """Records whose first feature is their number, at three hospitals."""
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


def build(records, *, partition="natural", **more) -> federation.Splits:
    options = {
        "num_clients": 4,
        "alpha": 0.5,
        "min_size": 2,
        "test_fraction": 0.25,
        "val_fraction": 0.1,
        "normalise": "none",
        "seed": 0,
    }
    return federation.build(records, partition=partition, **options | more)


def parts(splits):
    return {name: getattr(splits, name) for name in ("train", "val", "test")}


def numbers(part):
    """Which records of `table` these are; only where nothing is normalised."""
    return part.x[:, 0].astype(int)


def owners(part):
    return np.repeat(np.arange(len(part.count)), part.count)


def split_of(splits, rows):
    """The split of every record of `table`."""
    code = np.full(rows, FREE)
    for value, part in zip((TRAIN, VAL, TEST), parts(splits).values(), strict=True):
        assert np.all(code[numbers(part)] == FREE)
        code[numbers(part)] = value
    assert np.all(code != FREE)
    return code


def fixed(rows, *codes, seed=0):
    return np.random.default_rng(seed).choice(codes, rows).astype(np.int8)
