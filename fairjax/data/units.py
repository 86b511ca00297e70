"""Units, the records that stay together, and the split of every unit."""

import dataclasses

import numpy as np
from jaxtyping import Int

from fairjax.core import require
from fairjax.data.table import FREE, TEST, TRAIN, VAL, Table


@dataclasses.dataclass(frozen=True)
class Units:
    """Patients, or single records where the table names no patient.

    Shapes: E records, U units.
    """

    unit_of_record: Int[np.ndarray, "E"]
    count: Int[np.ndarray, "U"]
    """Records of every unit."""
    label: Int[np.ndarray, "U"]
    """The most frequent class of every unit."""
    split: Int[np.ndarray, "U"]
    """The split that the table fixes, else FREE."""


def group_records(table: Table) -> Units:
    """Groups the records of a table into units.

    A record without a patient's name is a unit of its own.

    Raises:
        InputError: the table fixes two splits for one patient.
    """
    if table.patient is None:
        unit_of_record = np.arange(len(table.y))
    else:
        unique_names = np.array([f"\0{i}" for i in range(len(table.y))])
        keys = np.where(table.patient == "", unique_names, table.patient)
        unit_of_record = np.unique(keys, return_inverse=True)[1]
    first_index = np.unique(unit_of_record, return_index=True)[1]
    count = np.bincount(unit_of_record)
    split = table.split[first_index].astype(np.int32)
    if np.any(split[unit_of_record] != table.split):
        require.fail("data.patient", "patients in one split each", "one in two")
    label = majority(unit_of_record, table.y, len(table.classes))
    return Units(unit_of_record, count, label, split)


def majority(
    unit: Int[np.ndarray, "E"], label: Int[np.ndarray, "E"], classes: int
) -> Int[np.ndarray, "U"]:
    """The most frequent class of every unit; the smallest class wins ties.

    The function builds no table of units by classes, because most of its cells are 0.

    Args:
        unit: the unit of every record; every number from 0 to U - 1 occurs.
        label: the class of every record.
        classes: C.
    """
    pairs, votes = np.unique(unit * classes + label, return_counts=True)
    pair_unit, pair_class = np.divmod(pairs, classes)
    order = np.lexsort((pair_class, -votes, pair_unit))
    first_index = np.unique(pair_unit[order], return_index=True)[1]
    return pair_class[order[first_index]]


def cut_fractions(
    units: Units, test_fraction: float, val_fraction: float
) -> dict[int, float]:
    """The splits that the table does not fix, with the share that each is to get."""
    fractions = {} if np.any(units.split == TEST) else {TEST: test_fraction}
    return fractions | ({} if np.any(units.split == VAL) else {VAL: val_fraction})


def assign_splits(
    units: Units,
    owner: Int[np.ndarray, "U"],
    clients: int,
    *,
    split_fractions: dict[int, float],
    min_records: int,
    seed: int,
) -> Int[np.ndarray, "U"]:
    """The split of every unit; a split that the table fixes stays.

    A split that the table does not fix is cut from the training units of every client.
    These units are shuffled and sorted by label, and every n-th of them is taken, so
    that the cut is stratified to one unit.

    Args:
        units: the units of the table.
        owner: the client of every unit.
        clients: N.
        split_fractions: split code -> its share of a client's training units.
        min_records: training records that a client keeps; a cut that would leave fewer
            becomes smaller.
        seed: the seed of the shuffles.
    """
    split = units.split.copy()
    split[split == FREE] = TRAIN
    if not split_fractions:
        return split
    train = np.flatnonzero(split == TRAIN)
    train = train[np.argsort(owner[train], kind="stable")]
    ends = np.cumsum(np.bincount(owner[train], minlength=clients))
    for client, members in enumerate(np.split(train, ends[:-1])):
        rng = np.random.default_rng([seed, 1, client])
        members = rng.permutation(members)
        members = members[np.argsort(units.label[members], kind="stable")]
        total = len(members)
        for code, fraction in split_fractions.items():
            for size in range(min(round(fraction * total), len(members)), 0, -1):
                quota = np.arange(len(members) + 1) * size // len(members)
                in_split = quota[1:] > quota[:-1]
                if units.count[members[~in_split]].sum() >= min_records:
                    split[members[in_split]] = code
                    members = members[~in_split]
                    break
    return split
