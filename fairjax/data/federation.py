"""From one table to a federation: owners, splits, imputation and flat records.

Nothing is learned from records that are not training records: missing values, means and
deviations come from the training split alone.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, Int, Key

from fairjax.core import require
from fairjax.core.types import Block, Cohort, Federation
from fairjax.data import partition as laws
from fairjax.data import standardise
from fairjax.data.pixels import Pixels
from fairjax.data.table import FREE, SPLITS, TEST, TRAIN, VAL, Attribute, Table
from fairjax.privacy import poisson as sampling

LAWS = (
    "natural", "iid", "dirichlet", "dirichlet_overlap", "shards", "pathological",
    "quantity",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Splits:
    """A federation's three splits, with NumPy leaves, and what is known of them."""

    train: Federation
    val: Federation
    test: Federation
    patients: Int[np.ndarray, "E"]
    """Of every test record: its patient, from 0, numbered hospital after hospital; one
    who is seen at two is a patient of each."""
    shared: Mapping[tuple[int, ...], int]
    """Hospitals -> the training patients who are seen at all of them, and no others; of
    two hospitals and more."""
    clients: tuple[str, ...]
    groups: tuple[Attribute, ...]
    classes: tuple[str, ...]
    """Of two, the second is the positive one: `y` and the columns of `labels` are."""
    features: tuple[str, ...]
    rows: dict[str, int]
    hash: str
    """SHA-256 of who owns which record in which split, and of what decided it."""
    source: str
    notes: tuple[str, ...]
    pixels: Pixels | None
    """How inputs were made of bytes, where they were and all hospitals' alike."""

    @property
    def positive(self) -> str | None:
        """Name of the positive class; None with more than two."""
        return self.classes[1] if len(self.classes) == 2 else None


@dataclasses.dataclass(frozen=True)
class _Units:
    """Patients, or records where no patient is named."""

    of_record: Int[np.ndarray, "E"]
    count: Int[np.ndarray, "U"]
    label: Int[np.ndarray, "U"]
    split: Int[np.ndarray, "U"]


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
    """Deals a table to hospitals and cuts every hospital's records.

    Args:
        table: the records.
        partition: one of `LAWS`.
        num_clients: N of all laws but "natural".
        alpha: concentration of "dirichlet", "dirichlet_overlap" and "quantity".
        min_size: training records that every client of "dirichlet" and "quantity" must
            get; hospitals of "natural" with fewer records are left out.
        test_fraction: share of a hospital's records that are cut for testing,
            stratified by label, where the table fixes no test split.
        val_fraction: the same for validation; a fixed validation split is kept.
        normalise: "pooled", "client" or "none".
        seed: of every draw.
        shards: of a client, for "shards".
        classes: of a client, for "pathological".

    Raises:
        InputError: no column of hospitals for "natural", or none that is large enough,
            more clients than records or patients, a patient in two fixed splits, a
            hospital without training records, hospitals that overlap without a fixed
            test split.
    """
    rng = np.random.default_rng([seed, 0])
    overlapping = None
    if partition == "natural":
        table = _large_enough(table, min_size)
    if partition == "dirichlet_overlap":
        table, overlapping = _overlapping(
            rng, _validated(table, val_fraction, seed), num_clients, alpha
        )
    units = _units(table)
    cuts = {} if np.any(units.split == TEST) else {TEST: test_fraction}
    cuts |= {} if np.any(units.split == VAL) else {VAL: val_fraction}
    least = min_size if partition in ("dirichlet", "quantity") else 1
    if partition == "natural":
        assert table.client is not None
        owner, names = laws.natural(table.client)
        # A patient seen at two hospitals is cut with the first, so that no split is
        # crossed.
        unit_owner = owner[np.unique(units.of_record, return_index=True)[1]]
        notes: tuple[str, ...] = ()
    else:
        trains = np.isin(units.split, [TRAIN, FREE])
        records = int(units.count[trains].sum())
        if num_clients > trains.sum() or num_clients * least > records:
            whose = f" of {trains.sum()} patients" if table.patient is not None else ""
            require.fail(
                "data.partition.num_clients",
                f"at most what {records} training records{whose} allow",
                num_clients,
            )
        names = tuple(
            f"hospital_{i:0{len(str(num_clients - 1))}d}" for i in range(num_clients)
        )
        notes = ()
        of_labels = rng, units.label, units.split, num_clients
        if overlapping is not None:
            unit_owner = overlapping
        elif partition == "iid":
            unit_owner = laws.iid(rng, units.split, num_clients)
        elif partition == "shards":
            unit_owner = laws.shards(*of_labels, shards)
        elif partition == "pathological":
            unit_owner = laws.pathological(*of_labels, classes)
        else:
            alike = partition == "quantity"
            unit_owner, notes = laws.dirichlet(
                rng,
                np.zeros_like(units.label) if alike else units.label,
                units.split,
                num_clients,
                alpha=alpha,
                counts=units.count,
                trains=trains,
                min_size=min_size,
                kept=1.0 - sum(cuts.values()),
            )
        owner = unit_owner[units.of_record]
    split = _cut(units, unit_owner, len(names), cuts, least, seed)
    split = split[units.of_record]
    trained = np.bincount(owner[split == TRAIN], minlength=len(names))
    if trained.min() == 0:
        empty = [names[i] for i in np.flatnonzero(trained == 0)]
        require.fail(
            "data", "training records at every hospital", f"none at {empty[0]}"
        )

    x, pixels = standardise.standardised(table, owner, split, len(names), normalise)
    group = table.group
    if group is None:
        group = np.zeros((len(table.y), 0), np.int32)
    labels = np.zeros((len(names), len(table.classes)), np.int32)
    np.add.at(labels, (owner[split == TRAIN], table.y[split == TRAIN]), 1)
    parts = {
        name: _flat(x, table.y, group, owner, split == code, labels)
        for name, code in SPLITS.items()
    }
    shared = {}
    if table.patient is not None and np.any(table.patient != ""):
        trained = split == TRAIN
        parts["train"] = dataclasses.replace(
            parts["train"],
            patient=_within(_patients(units.of_record, owner, trained), parts["train"]),
        )
        shared = _shared(units.of_record[trained], owner[trained])
    digest = hashlib.sha256()
    decided = [
        partition,
        num_clients,
        alpha,
        min_size,
        test_fraction,
        val_fraction,
        seed,
        *{"shards": [shards], "pathological": [classes]}.get(partition, []),
    ]
    digest.update(json.dumps([table.name, *decided]).encode())
    digest.update(owner.astype("<i4").tobytes() + split.astype("<i4").tobytes())
    return Splits(
        **parts,
        patients=_patients(units.of_record, owner, split == TEST),
        shared=shared,
        clients=names,
        groups=table.groups,
        classes=table.classes,
        features=table.features,
        rows={name: int(np.sum(split == code)) for name, code in SPLITS.items()},
        hash=digest.hexdigest(),
        source=table.source,
        notes=(*table.notes, *notes),
        pixels=pixels,
    )


def with_positive(splits: Splits, positive: str | None) -> Splits:
    """The same records in the same splits, with the named class as the second of two.

    Args:
        splits: the federation.
        positive: name of a class; None: as it is.

    Raises:
        InputError: there are not two classes, or none of that name.
    """
    if positive is None:
        return splits
    where, classes = "data.positive", splits.classes
    if len(classes) != 2:
        require.fail(where, f"none with {len(classes)} classes", positive)
    require.one_of(where, positive, classes)
    if positive == classes[1]:
        return splits

    def turned(part: Federation) -> Federation:
        y, labels = np.asarray(part.y), np.asarray(part.labels)
        return dataclasses.replace(part, y=1 - y, labels=labels[:, ::-1].copy())

    parts = {name: turned(getattr(splits, name)) for name in SPLITS}
    return dataclasses.replace(splits, classes=classes[::-1], **parts)


def _validated(table: Table, fraction: float, seed: int) -> Table:
    """With a validation split that is cut before records repeat.

    No record is then one to validate on here and one to train on there.
    """
    if table.patient is not None or np.any(table.split == VAL):
        return table
    units = _units(table)
    nobodys = np.zeros(len(units.split), np.int32)
    split = _cut(units, nobodys, 1, {VAL: fraction}, 1, seed)
    return dataclasses.replace(table, split=split.astype(table.split.dtype))


def _overlapping(
    rng: np.random.Generator, table: Table, clients: int, alpha: float
) -> tuple[Table, Int[np.ndarray, "M"]]:
    """A table that repeats the records which hospitals share, and the owner of each."""
    if table.patient is not None or not np.any(table.split == TEST):
        what = "dirichlet: hospitals that overlap need data that name no patients, and "
        what += "a fixed test split that nothing is trained on"
        require.fail("data.partition.name", what, "dirichlet_overlap")
    rows, owner = laws.dirichlet_overlap(
        rng, table.y, table.split, clients, alpha=alpha
    )
    shared = len(rows) - len(np.unique(rows))
    left = len(table.y) - len(np.unique(rows))
    note = f"hospitals overlap: {shared} records twice, {left} at no hospital"
    return dataclasses.replace(table.rows(rows), notes=(*table.notes, note)), owner


def _large_enough(table: Table, least: int) -> Table:
    """Without hospitals that have fewer than `least` records; a note counts them.

    Records of all splits count, before any cut.
    """
    if table.client is None:
        require.fail(
            "data.partition.name", "iid or dirichlet: no hospitals named", "natural"
        )
    _, client, count = np.unique(table.client, return_inverse=True, return_counts=True)
    small = count < least
    if small.all():
        what = f"at most the {count.max()} records of the largest hospital"
        require.fail("data.partition.min_size", what, least)
    if not small.any():
        return table
    left = "1 hospital" if small.sum() == 1 else f"{small.sum()} hospitals"
    records = f"{count[small].sum()} records"
    note = f"{left} with fewer than {least} records left out: {records}"
    kept = table.rows(~small[client])
    return dataclasses.replace(kept, notes=(*table.notes, note))


def _units(table: Table) -> _Units:
    if table.patient is None:
        of_record = np.arange(len(table.y))
    else:
        # A record without a patient's name is a patient of its own.
        alone = np.array([f"\0{i}" for i in range(len(table.y))])
        keys = np.where(table.patient == "", alone, table.patient)
        of_record = np.unique(keys, return_inverse=True)[1]
    first = np.unique(of_record, return_index=True)[1]
    count = np.bincount(of_record)
    split = table.split[first].astype(np.int32)
    if np.any(split[of_record] != table.split):
        require.fail("data.patient", "patients in one split each", "one in two")
    label = _majority(of_record, table.y, len(table.classes))
    return _Units(of_record, count, label, split)


def _majority(
    unit: Int[np.ndarray, "E"], label: Int[np.ndarray, "E"], classes: int
) -> Int[np.ndarray, "U"]:
    """The most frequent class of every unit, of equally frequent ones the first.

    Without a table of all units by all classes, most of whose cells are 0.
    """
    pairs, votes = np.unique(unit * classes + label, return_counts=True)
    who, what = np.divmod(pairs, classes)
    order = np.lexsort((what, -votes, who))
    first = np.unique(who[order], return_index=True)[1]
    return what[order[first]]


def _cut(
    units: _Units,
    owner: Int[np.ndarray, "U"],
    clients: int,
    cuts: dict[int, float],
    least: int,
    seed: int,
) -> Int[np.ndarray, "U"]:
    """The split of every unit; what the table fixes stays.

    A split that the table does not fix is cut from every client's training units:
    `cuts` has its share of them. They are ordered by label, shuffled within, and every
    n-th is taken: stratified to one unit. Nothing is taken that would leave fewer than
    `least` training records.
    """
    split = units.split.copy()
    split[split == FREE] = TRAIN
    if not cuts:
        return split
    train = np.flatnonzero(split == TRAIN)
    train = train[np.argsort(owner[train], kind="stable")]
    ends = np.cumsum(np.bincount(owner[train], minlength=clients))
    for client, members in enumerate(np.split(train, ends[:-1])):
        rng = np.random.default_rng([seed, 1, client])
        members = rng.permutation(members)
        members = members[np.argsort(units.label[members], kind="stable")]
        total = len(members)
        for code, fraction in cuts.items():
            for take in range(min(round(fraction * total), len(members)), 0, -1):
                step = np.arange(len(members) + 1) * take // len(members)
                taken = step[1:] > step[:-1]
                if units.count[members[~taken]].sum() >= least:
                    split[members[taken]] = code
                    members = members[~taken]
                    break
    return split


def _flat(
    x: Float[np.ndarray, "E ..."],
    y: Int[np.ndarray, "E"],
    group: Int[np.ndarray, "E A"],
    owner: Int[np.ndarray, "E"],
    where: np.ndarray,
    labels: Int[np.ndarray, "N C"],
) -> Federation:
    """The records of a split, hospital after hospital, in the table's order within."""
    index = np.flatnonzero(where)
    index = index[np.argsort(owner[index], kind="stable")]
    count = np.bincount(owner[index], minlength=len(labels)).astype(np.int32)
    offset = (np.cumsum(count) - count).astype(np.int32)
    return Federation(
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
    """`Splits.patients`, in the order of `_flat`."""
    index = np.flatnonzero(where)
    index = index[np.argsort(owner[index], kind="stable")]
    pairs = np.stack([owner[index], unit[index]], axis=1)
    _, number = np.unique(pairs, axis=0, return_inverse=True)
    return number.reshape(-1).astype(np.int32)


def _within(number: Int[np.ndarray, "n"], data: Federation) -> Int[np.ndarray, "n"]:
    """Numbers of patients, hospital after hospital, as ones that begin at 0 in each."""
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
    several = collections.Counter(
        tuple(pairs[at : at + number, 1].tolist())
        for at, number in zip(start[count > 1], count[count > 1], strict=True)
    )
    return dict(several)


def patients(train: Federation) -> list[Int[np.ndarray, "patients"]]:
    """Of every hospital, how many training records each of its patients has."""
    assert train.patient is not None
    ends = np.cumsum(train.count)
    return [
        np.bincount(each) for each in np.split(np.asarray(train.patient), ends[:-1])
    ]


def hospitals(splits: Splits, tiers: Int[np.ndarray, "N"]) -> list[dict[str, Any]]:
    """Records of every hospital per split; training records per class and per group.

    A record of unknown value is in no group. It is the simulator's own book: no server
    of a real federation could keep it.
    """
    parts = {name: getattr(splits, name) for name in SPLITS}
    train = parts["train"]
    clients = len(splits.clients)
    owner = np.repeat(np.arange(clients), train.count)
    groups = {}
    for (name, values), index in zip(splits.groups, train.group.T, strict=True):
        counts = np.zeros((clients, len(values)), int)
        np.add.at(counts, (owner[index >= 0], index[index >= 0]), 1)
        groups[name] = values, counts
    return [
        {
            "client": hospital,
            "tier": int(tiers[k]),
            **{name: int(part.count[k]) for name, part in parts.items()},
            "classes": dict(zip(splits.classes, train.labels[k].tolist(), strict=True)),
            "groups": {
                name: dict(zip(values, counts[k].tolist(), strict=True))
                for name, (values, counts) in groups.items()
            },
        }
        for k, hospital in enumerate(splits.clients)
    ]


# -------------------------------------------------------------------- tiers and cohorts


def assign_tiers(
    counts: Int[np.ndarray, "N"],
    labels: Int[np.ndarray, "N C"],
    *,
    share: Sequence[float],
    assign: str,
    seed: int,
    correlation: float = 1.0,
) -> Int[np.ndarray, "N"]:
    """The budget tier of every hospital.

    Args:
        counts: training records of every hospital.
        labels: training records of every class.
        share: hospitals per tier as a ratio, smallest tier first; rounded by
            `partition.per_tier`, so that somebody is in the richest tier with a share.
        assign: which hospitals are poor: "random"; "by_size": those with the fewest
            records; "by_label": those with the smallest share of the last class.
        seed: of the random order.
        correlation: rho of "by_size" and "by_label". Hospitals are sorted by
            rho z + sqrt(1 - rho^2) e, with z the normal score of their rank and e
            standard normal: 1 is the strict order, 0 a random one.
    """
    clients = len(counts)
    sizes = laws.per_tier(np.asarray(share, float), clients)
    shuffled = np.random.default_rng([seed, 2]).permutation(clients)
    order = shuffled
    if assign != "random":
        last = labels[:, -1] / np.maximum(labels.sum(1), 1)
        by = counts if assign == "by_size" else last
        order = shuffled[np.argsort(by[shuffled], kind="stable")]
        score = scipy.special.ndtri((np.arange(clients) + 0.5) / clients)
        noise = np.random.default_rng([seed, 5]).standard_normal(clients)
        mixed = correlation * score + np.sqrt(1 - correlation**2) * noise
        order = order[np.argsort(mixed, kind="stable")]
    tiers = np.empty(clients, np.int32)
    tiers[order] = np.repeat(np.arange(len(sizes)), sizes)
    return tiers


def by_size(tiers: Int[np.ndarray, "N"], counts: Int[Block, "N"]) -> float | None:
    """Spearman's correlation of tiers with records; None if either is all alike."""
    if min(len(np.unique(tiers)), len(np.unique(counts))) < 2:
        return None
    ranks = []
    for each in (tiers, counts):
        # Tied ones share the mean of their ranks. (scipy.stats takes half a second of
        # every start.)
        _, of, times = np.unique(each, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(times) - (times - 1) / 2)[of])
    return float(np.corrcoef(ranks)[0, 1])


def slots(
    tiers: Int[np.ndarray, "N"], budgets: int, size: int, law: str
) -> tuple[int, ...]:
    """Slots that a cohort of `size` reserves for every tier, see `sample`.

    Args:
        tiers: tier of every client.
        budgets: T.
        size: K.
        law: "stratified": in proportion to the tiers' clients, see
            `partition.per_tier`; "padded": as many as a tier may ever fill.
    """
    clients = np.bincount(tiers, minlength=budgets)
    if law == "padded":
        return tuple(int(n) for n in np.minimum(clients, size))
    return tuple(int(n) for n in laws.per_tier(clients.astype(float), size))


def sample(
    key: Key[Array, ""],
    round: Int[Array, ""],
    tiers: Int[Block, "N"],
    size: int,
    *,
    slots: Sequence[int] | None = None,
    law: str = "padded",
) -> Cohort:
    """The cohort of a round: `size` of N clients without replacement.

    It depends on `key` and `round` alone, so a continued run draws the same cohorts.
    `size` N takes everybody.

    Args:
        key: of all cohorts of the run.
        round: rounds finished.
        tiers: tier of every client; concrete for "stratified".
        size: K.
        slots: slots of every tier; the cohort is then laid in runs of one tier each,
            smallest first, ascending by id within; None: ascending by id.
        law: "padded": any `size` clients alike, and slots that a tier does not fill are
            not valid; "stratified": `slots[t]` clients of tier t, always.
    """
    key = jax.random.fold_in(key, round)
    tier_of = jnp.asarray(tiers, jnp.int32)
    if law == "stratified":
        assert slots is not None
        rows = []
        for tier, count in enumerate(slots):
            members = np.flatnonzero(np.asarray(tiers) == tier).astype(np.int32)
            drawn = _draw(jax.random.fold_in(key, tier), len(members), count)
            rows.append(jnp.asarray(members)[drawn])
        client = jnp.concatenate(rows)
        return Cohort(client, tier_of[client], jnp.ones((size,), bool))
    client = _draw(key, tiers.shape[0], size)
    if slots is None:
        return Cohort(client, tier_of[client], jnp.ones((size,), bool))
    rows, valid = [], []
    for tier, count in enumerate(slots):
        mine = tier_of[client] == tier
        # Those of this tier first, by id; what follows is padding.
        order = jnp.argsort(~mine, stable=True)[:count]
        rows.append(client[order])
        valid.append(mine[order])
    client = jnp.concatenate(rows)
    tier = jnp.repeat(jnp.arange(len(slots), dtype=jnp.int32), np.asarray(slots))
    return Cohort(client, tier, jnp.concatenate(valid))


def poisson(
    key: Key[Array, ""],
    round: Int[Array, ""],
    tiers: Int[Block, "N"],
    rate: float,
    slots: int | Sequence[int],
) -> Cohort:
    """A cohort in which every client is with probability `rate`, apart from the others.

    Slots that nobody fills are padding. Of more clients than slots a random choice
    stays: that is no Poisson sample any more, and `slots` should make it as unlikely as
    `privacy.poisson.room` does.

    Args:
        key: of all cohorts of the run.
        round: rounds finished.
        tiers: tier of every client.
        rate: q.
        slots: of the cohort, ascending by id; or of every tier, the cohort then being
            laid in runs as by `sample`.
    """
    tier_of = jnp.asarray(tiers, jnp.int32)
    key = jax.random.fold_in(key, round)
    runs = (
        [(tier_of >= 0, slots)]
        if isinstance(slots, int)
        else [(tier_of == tier, count) for tier, count in enumerate(slots)]
    )
    drawn = [
        sampling.draw(jax.random.fold_in(key, i), of, sampling.threshold(rate), count)
        for i, (of, count) in enumerate(runs)
    ]
    client, valid = (jnp.concatenate(part) for part in zip(*drawn, strict=True))
    tier = tier_of[client]
    if not isinstance(slots, int):
        tier = jnp.repeat(jnp.arange(len(slots), dtype=jnp.int32), np.asarray(slots))
    return Cohort(client, tier, valid)


def _draw(key: Key[Array, ""], clients: int, size: int) -> Int[Array, "size"]:
    """`size` of `clients` numbers without replacement, ascending.

    Those of the largest random numbers: 30 random bits each, read as normal floats,
    whose order is theirs and of which XLA finds the largest without sorting them all.
    """
    if size == clients:
        return jnp.arange(clients, dtype=jnp.int32)
    bits = (jax.random.bits(key, (clients,), jnp.uint32) >> 2) + jnp.uint32(1 << 23)
    drawn = jax.lax.top_k(jax.lax.bitcast_convert_type(bits, jnp.float32), size)[1]
    return jnp.sort(drawn).astype(jnp.int32)
