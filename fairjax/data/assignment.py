"""The client of every record, by the name of a partition.

A partition of `PARTITIONS` prepares the table, applies a law of `partition` to its
units, and returns an `Assignment`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from fairjax.core import require
from fairjax.data import partition as laws
from fairjax.data.table import FREE, TEST, TRAIN, VAL, Table
from fairjax.data.units import Units, assign_splits, cut_fractions, group_records


class Settings(NamedTuple):
    """The settings of all partitions; `federation.build` describes them."""

    num_clients: int
    alpha: float
    min_size: int
    test_fraction: float
    val_fraction: float
    seed: int
    shards: int
    classes: int


class Assignment(NamedTuple):
    """The clients of a federation and the records of each."""

    table: Table
    """The records that are assigned: "natural" drops some, "dirichlet_overlap" repeats
    some."""
    units: Units
    owner: Int[np.ndarray, "E"]
    """The client of every record."""
    unit_owner: Int[np.ndarray, "U"]
    """The client with which every unit is cut into splits."""
    names: tuple[str, ...]
    min_records: int = 1
    """Training records that a client keeps when splits are cut."""
    notes: tuple[str, ...] = ()


Partition = Callable[[np.random.Generator, Table, Settings], Assignment]
"""(source of draws, table, settings) -> assignment."""


def _natural(rng: np.random.Generator, table: Table, settings: Settings) -> Assignment:
    """`partition.natural` without the clients that are too small; draws nothing."""
    table = _drop_small_clients(table, settings.min_size)
    units = group_records(table)
    assert table.client is not None
    owner, names = laws.natural(table.client)
    # The client of its first record cuts a patient of several clients, so that the
    # patient is in one split.
    unit_owner = owner[np.unique(units.unit_of_record, return_index=True)[1]]
    return Assignment(table, units, owner, unit_owner, names)


def _iid(rng: np.random.Generator, table: Table, settings: Settings) -> Assignment:
    """`partition.iid`."""
    units = _divisible_units(table, settings)
    owner = laws.iid(rng, units.split, settings.num_clients)
    return _simulated(table, units, owner, settings)


def _dirichlet(
    rng: np.random.Generator, table: Table, settings: Settings
) -> Assignment:
    """`partition.dirichlet`."""
    units = _divisible_units(table, settings, settings.min_size)
    return _dirichlet_by(rng, table, units, units.label, settings)


def _quantity(rng: np.random.Generator, table: Table, settings: Settings) -> Assignment:
    """`partition.dirichlet` of one class: quantity skew."""
    units = _divisible_units(table, settings, settings.min_size)
    return _dirichlet_by(rng, table, units, np.zeros_like(units.label), settings)


def _dirichlet_by(
    rng: np.random.Generator,
    table: Table,
    units: Units,
    label: Int[np.ndarray, "U"],
    settings: Settings,
) -> Assignment:
    """`partition.dirichlet` with skew by `label`."""
    fractions = cut_fractions(units, settings.test_fraction, settings.val_fraction)
    owner, notes = laws.dirichlet(
        rng,
        label,
        units.split,
        settings.num_clients,
        alpha=settings.alpha,
        counts=units.count,
        is_train=_is_train(units),
        min_size=settings.min_size,
        train_fraction=1.0 - sum(fractions.values()),
    )
    return _simulated(
        table, units, owner, settings, min_records=settings.min_size, notes=notes
    )


def _shards(rng: np.random.Generator, table: Table, settings: Settings) -> Assignment:
    """`partition.shards`."""
    units = _divisible_units(table, settings)
    owner = laws.shards(
        rng, units.label, units.split, settings.num_clients, settings.shards
    )
    return _simulated(table, units, owner, settings)


def _pathological(
    rng: np.random.Generator, table: Table, settings: Settings
) -> Assignment:
    """`partition.pathological`."""
    units = _divisible_units(table, settings)
    owner = laws.pathological(
        rng, units.label, units.split, settings.num_clients, settings.classes
    )
    return _simulated(table, units, owner, settings)


def _dirichlet_overlap(
    rng: np.random.Generator, table: Table, settings: Settings
) -> Assignment:
    """`partition.dirichlet_overlap`, which lets clients share records."""
    table = _with_validation_split(table, settings.val_fraction, settings.seed)
    table, owner = _with_overlap(rng, table, settings.num_clients, settings.alpha)
    return _simulated(table, _divisible_units(table, settings), owner, settings)


PARTITIONS: dict[str, Partition] = {
    "natural": _natural,
    "iid": _iid,
    "dirichlet": _dirichlet,
    "dirichlet_overlap": _dirichlet_overlap,
    "shards": _shards,
    "pathological": _pathological,
    "quantity": _quantity,
}


def _is_train(units: Units) -> np.ndarray:
    """True for units whose records count as training records before any cut."""
    return np.isin(units.split, [TRAIN, FREE])


def _divisible_units(table: Table, settings: Settings, min_records: int = 1) -> Units:
    """The units of a table that has enough of them for `num_clients` clients.

    Raises:
        InputError: fewer training units than clients, or fewer training records than
            `min_records` for every client.
    """
    units, num_clients = group_records(table), settings.num_clients
    is_train = _is_train(units)
    records = int(units.count[is_train].sum())
    if num_clients > is_train.sum() or num_clients * min_records > records:
        qualifier = (
            f" of {is_train.sum()} patients" if table.patient is not None else ""
        )
        require.fail(
            "data.partition.num_clients",
            f"at most what {records} training records{qualifier} allow",
            num_clients,
        )
    return units


def _simulated(
    table: Table,
    units: Units,
    unit_owner: Int[np.ndarray, "U"],
    settings: Settings,
    *,
    min_records: int = 1,
    notes: tuple[str, ...] = (),
) -> Assignment:
    """The assignment of simulated clients, whose names are numbered."""
    num_clients = settings.num_clients
    digits = len(str(num_clients - 1))
    names = tuple(f"hospital_{i:0{digits}d}" for i in range(num_clients))
    owner = unit_owner[units.unit_of_record]
    return Assignment(table, units, owner, unit_owner, names, min_records, notes)


def _with_validation_split(table: Table, fraction: float, seed: int) -> Table:
    """The table with a validation split, cut before any record repeats.

    Otherwise one client could train on a record on which another validates.
    """
    if table.patient is not None or np.any(table.split == VAL):
        return table
    units = group_records(table)
    owner = np.zeros(len(units.split), np.int32)
    split = assign_splits(
        units, owner, 1, split_fractions={VAL: fraction}, min_records=1, seed=seed
    )
    return dataclasses.replace(table, split=split.astype(table.split.dtype))


def _with_overlap(
    rng: np.random.Generator, table: Table, clients: int, alpha: float
) -> tuple[Table, Int[np.ndarray, "M"]]:
    """A table that repeats the records that clients share, and the owner of each.

    Raises:
        InputError: the table names patients, or fixes no test split.
    """
    if table.patient is not None or not np.any(table.split == TEST):
        requirement = (
            "dirichlet: hospitals that overlap need data that name no patients, and "
            "a fixed test split that nothing is trained on"
        )
        require.fail("data.partition.name", requirement, "dirichlet_overlap")
    rows, owner = laws.dirichlet_overlap(
        rng, table.y, table.split, clients, alpha=alpha
    )
    num_repeated = len(rows) - len(np.unique(rows))
    num_unassigned = len(table.y) - len(np.unique(rows))
    note = (
        f"hospitals overlap: {num_repeated} records twice, {num_unassigned} at no "
        "hospital"
    )
    return dataclasses.replace(table.rows(rows), notes=(*table.notes, note)), owner


def _drop_small_clients(table: Table, min_records: int) -> Table:
    """The table without the clients that have fewer than `min_records` records.

    Records of all splits count, before any cut. A note counts what is left out.

    Raises:
        InputError: the table names no clients, or none is large enough.
    """
    if table.client is None:
        require.fail(
            "data.partition.name", "iid or dirichlet: no hospitals named", "natural"
        )
    _, client, count = np.unique(table.client, return_inverse=True, return_counts=True)
    is_small = count < min_records
    if is_small.all():
        requirement = f"at most the {count.max()} records of the largest hospital"
        require.fail("data.partition.min_size", requirement, min_records)
    if not is_small.any():
        return table
    dropped_clients = (
        "1 hospital" if is_small.sum() == 1 else f"{is_small.sum()} hospitals"
    )
    note = (
        f"{dropped_clients} with fewer than {min_records} records left out: "
        f"{count[is_small].sum()} records"
    )
    subset = table.rows(~is_small[client])
    return dataclasses.replace(subset, notes=(*table.notes, note))
