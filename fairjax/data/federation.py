"""From one table to a federation: clients, splits, imputation and flat records.

The moments that impute missing values and normalise inputs come from training records
alone.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fairjax.core import require
from fairjax.core.types import FederatedData
from fairjax.data import standardise
from fairjax.data.assignment import PARTITIONS, Assignment, Settings
from fairjax.data.pixels import Pixels
from fairjax.data.table import SPLITS, TEST, TRAIN, Attribute, Table
from fairjax.data.units import assign_splits, cut_fractions


@dataclasses.dataclass(frozen=True)
class Splits:
    """The three splits of a federation, with NumPy leaves, and their description."""

    train: FederatedData
    val: FederatedData
    test: FederatedData
    patients: Int[np.ndarray, "E"]
    """The patient of every test record. Numbers start at 0 and ascend over clients; a
    patient of two clients has a number at each."""
    shared: Mapping[tuple[int, ...], int]
    """Sets of two or more clients -> the training patients whom exactly these clients
    have."""
    clients: tuple[str, ...]
    groups: tuple[Attribute, ...]
    classes: tuple[str, ...]
    """The names of classes, in the order of `y` and of the columns of `labels`. The
    second of two classes is the positive one."""
    features: tuple[str, ...]
    rows: dict[str, int]
    """Split -> its number of records."""
    hash: str
    """SHA-256 of the client and split of every record, and of the settings."""
    source: str
    notes: tuple[str, ...]
    pixels: Pixels | None
    """How inputs follow from bytes; None if they do not, or differ by client."""

    @property
    def positive(self) -> str | None:
        """The name of the positive class; None unless there are two classes."""
        return self.classes[1] if len(self.classes) == 2 else None


def build(
    table: Table,
    *,
    partition: str,
    num_clients: int,
    alpha: float,
    min_size: int,
    test_fraction: float,
    val_fraction: float,
    normalise: str,
    seed: int,
    shards: int = 2,
    classes: int = 2,
) -> Splits:
    """Divides a table among clients and cuts the records of every client into splits.

    Args:
        table: the records.
        partition: a name of `assignment.PARTITIONS`.
        num_clients: N; "natural" takes N from the table instead.
        alpha: the concentration of "dirichlet", "dirichlet_overlap" and "quantity".
        min_size: training records that "dirichlet" and "quantity" give every client at
            least; "natural" leaves out clients with fewer records.
        test_fraction: the share of a client's records that is cut for testing,
            stratified by label, if the table fixes no test split.
        val_fraction: the same for validation and a fixed validation split.
        normalise: "pooled", "client" or "none", see `standardise.fit_transform`.
        seed: the seed of all draws.
        shards: shards of a client, for "shards".
        classes: classes of a client, for "pathological".

    Raises:
        InputError: "natural" without a column of clients or without a client that is
            large enough, more clients than records or patients, a patient in two fixed
            splits, a client without training records, or "dirichlet_overlap" with
            patients or without a fixed test split.
    """
    settings = Settings(
        num_clients=num_clients,
        alpha=alpha,
        min_size=min_size,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        seed=seed,
        shards=shards,
        classes=classes,
    )
    rng = np.random.default_rng([seed, 0])
    assignment = PARTITIONS[partition](rng, table, settings)
    split = _split_records(assignment, settings)
    table, names = assignment.table, assignment.names
    x, pixels = standardise.fit_transform(
        table, assignment.owner, split, len(names), normalise
    )
    by_split, shared = _flat_splits(x, assignment, split)
    return Splits(
        **by_split,
        patients=_patients(
            assignment.units.unit_of_record, assignment.owner, split == TEST
        ),
        shared=shared,
        clients=names,
        groups=table.groups,
        classes=table.classes,
        features=table.features,
        rows={name: int(np.sum(split == code)) for name, code in SPLITS.items()},
        hash=_hash(partition, settings, assignment, split),
        source=table.source,
        notes=(*table.notes, *assignment.notes),
        pixels=pixels,
    )


def with_positive(splits: Splits, positive: str | None) -> Splits:
    """The same records in the same splits, with `positive` as the second class.

    Args:
        splits: the federation.
        positive: the name of one of two classes; None returns `splits` unchanged.

    Raises:
        InputError: the federation has not two classes, or none of that name.
    """
    if positive is None:
        return splits
    field, classes = "data.positive", splits.classes
    if len(classes) != 2:
        require.fail(field, f"none with {len(classes)} classes", positive)
    require.one_of(field, positive, classes)
    if positive == classes[1]:
        return splits

    def flip_labels(data: FederatedData) -> FederatedData:
        y, labels = np.asarray(data.y), np.asarray(data.labels)
        return dataclasses.replace(data, y=1 - y, labels=labels[:, ::-1].copy())

    by_split = {name: flip_labels(getattr(splits, name)) for name in SPLITS}
    return dataclasses.replace(splits, classes=classes[::-1], **by_split)


def _split_records(assignment: Assignment, settings: Settings) -> Int[np.ndarray, "E"]:
    """The split of every record, with training records at every client.

    Raises:
        InputError: a client has no training record.
    """
    units, names = assignment.units, assignment.names
    split = assign_splits(
        units,
        assignment.unit_owner,
        len(names),
        split_fractions=cut_fractions(
            units, settings.test_fraction, settings.val_fraction
        ),
        min_records=assignment.min_records,
        seed=settings.seed,
    )
    split = split[units.unit_of_record]
    train_counts = np.bincount(assignment.owner[split == TRAIN], minlength=len(names))
    if train_counts.min() == 0:
        empty_client = names[np.flatnonzero(train_counts == 0)[0]]
        require.fail(
            "data", "training records at every hospital", f"none at {empty_client}"
        )
    return split


def _flat_splits(
    x: Float[np.ndarray, "E ..."], assignment: Assignment, split: Int[np.ndarray, "E"]
) -> tuple[dict[str, FederatedData], dict[tuple[int, ...], int]]:
    """The records of every split by its name, and `Splits.shared`."""
    table, owner = assignment.table, assignment.owner
    group, is_train = table.group, split == TRAIN
    if group is None:
        group = np.zeros((len(table.y), 0), np.int32)
    labels = np.zeros((len(assignment.names), len(table.classes)), np.int32)
    np.add.at(labels, (owner[is_train], table.y[is_train]), 1)
    by_split = {
        name: _flatten(x, table.y, group, owner, split == code, labels)
        for name, code in SPLITS.items()
    }
    if table.patient is None or not np.any(table.patient != ""):
        return by_split, {}
    unit = assignment.units.unit_of_record
    patient = _renumber_patients(_patients(unit, owner, is_train), by_split["train"])
    by_split["train"] = dataclasses.replace(by_split["train"], patient=patient)
    return by_split, _shared(unit[is_train], owner[is_train])


def _hash(
    partition: str,
    settings: Settings,
    assignment: Assignment,
    split: Int[np.ndarray, "E"],
) -> str:
    """`Splits.hash`."""
    digest = hashlib.sha256()
    fields: list[Any] = [
        assignment.table.name,
        partition,
        settings.num_clients,
        settings.alpha,
        settings.min_size,
        settings.test_fraction,
        settings.val_fraction,
        settings.seed,
    ]
    # Only the partition that reads them: other hashes must not depend on them.
    if partition == "shards":
        fields.append(settings.shards)
    if partition == "pathological":
        fields.append(settings.classes)
    digest.update(json.dumps(fields).encode())
    owner = assignment.owner.astype("<i4").tobytes()
    digest.update(owner + split.astype("<i4").tobytes())
    return digest.hexdigest()


def _flatten(
    x: Float[np.ndarray, "E ..."],
    y: Int[np.ndarray, "E"],
    group: Int[np.ndarray, "E A"],
    owner: Int[np.ndarray, "E"],
    where: np.ndarray,
    labels: Int[np.ndarray, "N C"],
) -> FederatedData:
    """The records of a split, ordered by client and then as in the table."""
    index = np.flatnonzero(where)
    index = index[np.argsort(owner[index], kind="stable")]
    count = np.bincount(owner[index], minlength=len(labels)).astype(np.int32)
    offset = (np.cumsum(count) - count).astype(np.int32)
    return FederatedData(
        x[index],
        y[index].astype(np.int32),
        group[index].astype(np.int32),
        offset,
        count,
        labels,
    )


def _patients(
    unit: Int[np.ndarray, "E"], owner: Int[np.ndarray, "E"], where: np.ndarray
) -> Int[np.ndarray, "n"]:
    """The patient of every record where `where`, in the order of `_flatten`."""
    index = np.flatnonzero(where)
    index = index[np.argsort(owner[index], kind="stable")]
    pairs = np.stack([owner[index], unit[index]], axis=1)
    _, number = np.unique(pairs, axis=0, return_inverse=True)
    return number.reshape(-1).astype(np.int32)


def _renumber_patients(
    number: Int[np.ndarray, "n"], data: FederatedData
) -> Int[np.ndarray, "n"]:
    """Patients numbered from 0 at every client.

    `number` has the numbers of `_patients`, which ascend over clients.
    """
    owner = np.repeat(np.arange(len(data.count)), data.count)
    first = np.full(len(data.count), len(number))
    np.minimum.at(first, owner, number)
    return (number - first[owner]).astype(np.int32)


def _shared(
    unit: Int[np.ndarray, "n"], owner: Int[np.ndarray, "n"]
) -> dict[tuple[int, ...], int]:
    """`Splits.shared`."""
    pairs = np.unique(np.stack([unit, owner], axis=1), axis=0)
    _, start, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    client_sets = collections.Counter(
        tuple(pairs[offset : offset + length, 1].tolist())
        for offset, length in zip(start[count > 1], count[count > 1], strict=True)
    )
    return dict(client_sets)


def records_per_patient(
    train: FederatedData,
) -> list[Int[np.ndarray, "patients"]]:
    """Training records of every patient, one array per client.

    Args:
        train: a training split whose records name patients.
    """
    assert train.patient is not None
    ends = np.cumsum(train.count)
    return [
        np.bincount(patient_ids)
        for patient_ids in np.split(np.asarray(train.patient), ends[:-1])
    ]


def client_summaries(
    splits: Splits, tiers: Int[np.ndarray, "N"]
) -> list[dict[str, Any]]:
    """Records of every client per split, and training records per class and group.

    A record whose value is unknown is in no group. Only a simulation can list this: the
    server of a real federation does not know these counts.

    Args:
        splits: the federation.
        tiers: the tier of every client.

    Returns:
        One dict per client, ready for JSON.
    """
    by_split = {name: getattr(splits, name) for name in SPLITS}
    train = by_split["train"]
    clients = len(splits.clients)
    owner = np.repeat(np.arange(clients), train.count)
    groups = {}
    for (name, values), index in zip(splits.groups, train.group.T, strict=True):
        counts = np.zeros((clients, len(values)), int)
        np.add.at(counts, (owner[index >= 0], index[index >= 0]), 1)
        groups[name] = values, counts
    return [
        {
            "client": client,
            "tier": int(tiers[k]),
            **{name: int(data.count[k]) for name, data in by_split.items()},
            "classes": dict(zip(splits.classes, train.labels[k].tolist(), strict=True)),
            "groups": {
                name: dict(zip(values, counts[k].tolist(), strict=True))
                for name, (values, counts) in groups.items()
            },
        }
        for k, client in enumerate(splits.clients)
    ]
