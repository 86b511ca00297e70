"""The client of every unit: partition laws as pure NumPy functions.

A unit is a patient if the data name patients, else a record; it belongs to one client.
A law draws once and applies to every fixed split, so that a client's training and test
records follow the same law. The same seed gives the same assignment on any machine.

Shapes: U units, N clients, C classes, T tiers.
"""

import numpy as np
from jaxtyping import Float, Int

from fairjax.core import require

REDRAWS = 100
"""Draws of a Dirichlet partition before its assignment is repaired."""


def natural(keys: np.ndarray) -> tuple[Int[np.ndarray, "U"], tuple[str, ...]]:
    """One client per value of a column, in sorted order.

    Args:
        keys: the client's name of every unit, none of them empty.

    Returns:
        The client of every unit, and the names of clients.
    """
    names, client = np.unique(keys, return_inverse=True)
    return client.astype(np.int32), tuple(str(name) for name in names)


def iid(
    rng: np.random.Generator, split: Int[np.ndarray, "U"], clients: int
) -> Int[np.ndarray, "U"]:
    """Shuffles every split and divides it into parts of equal size, up to one unit.

    Args:
        rng: the source of draws.
        split: the fixed split of every unit.
        clients: N.
    """
    owner = np.empty(len(split), np.int32)
    for code in np.unique(split):
        members = rng.permutation(np.flatnonzero(split == code))
        owner[members] = np.arange(len(members)) % clients
    return owner


def dirichlet(
    rng: np.random.Generator,
    label: Int[np.ndarray, "U"],
    split: Int[np.ndarray, "U"],
    clients: int,
    *,
    alpha: float,
    counts: Int[np.ndarray, "U"],
    is_train: np.ndarray,
    min_size: int,
    train_fraction: float = 1.0,
) -> tuple[Int[np.ndarray, "U"], tuple[str, ...]]:
    """Disjoint Dirichlet label skew, class by class.

        p_c ~ Dir(alpha 1_N) for every class c

    Client j gets the share p_cj of the units of class c in every split, rounded by
    `largest_remainder`. The partition is drawn again, at most `REDRAWS` times, while a
    client has fewer than `min_size` training records. Then the last draw is repaired:
    among the clients that can spare a unit, the largest gives its smallest unit to the
    smallest client, until all have enough. If all labels are 0, sizes are skewed and
    contents are iid: "quantity skew".

    Args:
        rng: the source of draws.
        label: the class of every unit.
        split: the fixed split of every unit.
        clients: N.
        alpha: the concentration; small values are skewed, large ones near iid.
        counts: records of every unit.
        is_train: True for units whose records count as training records.
        min_size: training records that every client gets at least.
        train_fraction: the share of those records that a later cut leaves for training.

    Returns:
        The client of every unit, and notes on redraws and repairs.

    Raises:
        InputError: the clients cannot all have `min_size` training records.

    Source: Yurochkin et al., "Bayesian nonparametric federated learning of neural
    networks", ICML 2019, arXiv:1905.12022; Li et al., "Federated learning on non-IID
    data silos: an experimental study" (NIID-Bench), ICDE 2022, arXiv:2102.02079, also
    for quantity skew. Deviates: without the balancing step of their code, which changes
    the law.
    """
    classes = int(label.max()) + 1
    min_records = int(np.ceil(round(min_size / train_fraction, 9)))
    owner = np.zeros(len(label), np.int32)
    for attempt in range(REDRAWS):
        shares = rng.dirichlet(np.full(clients, alpha), classes)
        owner = _allocate(rng, label, split, shares)
        sizes = np.bincount(
            owner[is_train], weights=counts[is_train], minlength=clients
        ).astype(int)
        if sizes.min() >= min_records:
            notes = (f"partition drawn {attempt + 1} times",) if attempt else ()
            return owner, notes
    num_moved = _repair(owner, counts, is_train, clients, min_records)
    if num_moved is None:
        require.fail(
            "data.partition.min_size",
            f"at most what {clients} hospitals can all have",
            min_size,
        )
    note = (
        f"partition drawn {REDRAWS} times; then {num_moved} units moved from the "
        f"largest hospitals so that all have {min_size} training records"
    )
    return owner, (note,)


def shards(
    rng: np.random.Generator,
    label: Int[np.ndarray, "U"],
    split: Int[np.ndarray, "U"],
    clients: int,
    shards_per_client: int,
) -> Int[np.ndarray, "U"]:
    """Sorts units by class, cuts them into shards, and gives every client some shards.

    Every split is cut into N times `shards_per_client` shards. Their sizes differ by at
    most one, so no unit is left over. Shard number s of every split goes to the same
    client.

    Args:
        rng: the source of draws.
        label: the class of every unit.
        split: the fixed split of every unit.
        clients: N.
        shards_per_client: shards of a client.

    Source: McMahan et al., "Communication-efficient learning of deep networks from
    decentralized data", AISTATS 2017, arXiv:1602.05629, section 3, with 2 shards each.
    """
    owner = np.empty(len(label), np.int32)
    shard_owner = rng.permutation(clients * shards_per_client) % clients
    for code in np.unique(split):
        members = rng.permutation(np.flatnonzero(split == code))
        members = members[np.argsort(label[members], kind="stable")]
        for client, shard in zip(
            shard_owner, np.array_split(members, len(shard_owner)), strict=True
        ):
            owner[shard] = client
    return owner


def pathological(
    rng: np.random.Generator,
    label: Int[np.ndarray, "U"],
    split: Int[np.ndarray, "U"],
    clients: int,
    classes_per_client: int,
) -> Int[np.ndarray, "U"]:
    """Gives every client `classes_per_client` classes.

    Client j has class j mod C and other classes drawn at random. The clients that have
    a class share its units evenly. Classes that no client has yet are drawn first, so
    that no unit is left over if N < C.

    Args:
        rng: the source of draws.
        label: the class of every unit.
        split: the fixed split of every unit.
        clients: N.
        classes_per_client: classes of a client.

    Raises:
        InputError: `classes_per_client` is more than C, or too few for the clients to
            have all classes.

    Source: "#C = k" of NIID-Bench (see `dirichlet`). Deviates: their code loses the
    classes that no client draws.
    """
    classes = int(label.max()) + 1
    field = "data.partition.classes"
    if classes_per_client > classes:
        require.fail(field, f"at most the {classes} that there are", classes_per_client)
    if clients * classes_per_client < classes:
        requirement = (
            f"at least {-(-classes // clients)} for {clients} hospitals to have all"
        )
        require.fail(field, f"{requirement} {classes}", classes_per_client)
    has_class = np.zeros((classes, clients), bool)
    has_class[np.arange(clients) % classes, np.arange(clients)] = True
    for client in rng.permutation(clients):
        candidates = rng.permutation(np.flatnonzero(~has_class[:, client]))
        new_classes = candidates[~has_class[candidates].any(axis=1)]
        order = [
            *new_classes,
            *np.setdiff1d(candidates, new_classes, assume_unique=True),
        ]
        has_class[order[: classes_per_client - 1], client] = True
    return _allocate(
        rng, label, split, has_class / has_class.sum(axis=1, keepdims=True)
    )


def dirichlet_overlap(
    rng: np.random.Generator,
    label: Int[np.ndarray, "U"],
    split: Int[np.ndarray, "U"],
    clients: int,
    *,
    alpha: float,
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """Label skew by client in which clients share units, so it is no partition.

        q_j ~ Dir(alpha 1_C),  n = floor(U / N)

    Client j draws floor(q_jc n) units of every class c but the last in every split of U
    units, and the rest of its n units from the last class. It draws from all units of a
    class, whichever other clients have them, and gets fewer if the class has no more.
    A unit may belong to no client.

    Args:
        rng: the source of draws.
        label: the class of every unit.
        split: the fixed split of every unit.
        clients: N.
        alpha: the concentration; small values are skewed, large ones near iid.

    Returns:
        The units and the client of each [M]; a unit occurs once for every client that
        has it.

    Source: the released code of DynamicFL (Zhang et al. 2025, see
    `fairjax.submodels.dynamicfl`), on which its figures rest. Deviates: the generator
    is seeded. Use this law for comparison with those figures alone; `dirichlet` is the
    disjoint law.
    """
    classes = int(label.max()) + 1
    shares = rng.dirichlet(np.full(classes, alpha), clients)
    units, owner = [], []
    for code in np.unique(split):
        pools = [np.flatnonzero((split == code) & (label == c)) for c in range(classes)]
        size = sum(map(len, pools)) // clients
        for client, share in enumerate(shares):
            counts = np.floor(share * size).astype(int)
            counts[-1] = size - counts[:-1].sum()
            for pool, count in zip(pools, counts, strict=True):
                units.append(rng.permutation(pool)[:count])
                owner.append(np.full(len(units[-1]), client, np.int32))
    return np.concatenate(units), np.concatenate(owner)


def _allocate(
    rng: np.random.Generator,
    label: Int[np.ndarray, "U"],
    split: Int[np.ndarray, "U"],
    shares: Float[np.ndarray, "C N"],
) -> Int[np.ndarray, "U"]:
    """The client of every unit, by the share of every class that a client gets."""
    owner = np.empty(len(label), np.int32)
    for code in np.unique(split):
        for c, share in enumerate(shares):
            members = np.flatnonzero((split == code) & (label == c))
            counts = largest_remainder(share, len(members))
            owner[rng.permutation(members)] = np.repeat(np.arange(len(share)), counts)
    return owner


def _repair(
    owner: Int[np.ndarray, "U"],
    counts: Int[np.ndarray, "U"],
    is_train: np.ndarray,
    clients: int,
    min_records: int,
) -> int | None:
    """Moves training units, in place, from the largest client to the smallest.

    Returns:
        The number of moved units, or None if no client can spare a unit before all have
        `min_records`.
    """
    sizes = np.bincount(owner[is_train], weights=counts[is_train], minlength=clients)
    num_moved = 0
    while sizes.min() < min_records:
        spare_units = np.flatnonzero(is_train & (sizes[owner] - counts >= min_records))
        if not len(spare_units):
            return None
        spare_owner = owner[spare_units]
        recipient, donor = (
            int(sizes.argmin()),
            int(spare_owner[sizes[spare_owner].argmax()]),
        )
        candidates = spare_units[spare_owner == donor]
        unit = candidates[counts[candidates].argmin()]
        owner[unit] = recipient
        sizes[donor] -= counts[unit]
        sizes[recipient] += counts[unit]
        num_moved += 1
    return num_moved


def largest_remainder(
    proportions: Float[np.ndarray, "n"], total: int
) -> Int[np.ndarray, "n"]:
    """Whole numbers in proportion to `proportions` that add up to `total`.

    Every entry gets the floor of its quota. The rest goes to the largest remainders,
    and ties go to the first entries.

    Args:
        proportions: non-negative numbers, not all 0.
        total: the sum of the result.
    """
    quota = np.asarray(proportions, float) / np.sum(proportions) * total
    counts = np.floor(quota).astype(int)
    order = np.argsort(counts - quota, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def tier_sizes(proportions: Float[np.ndarray, "T"], total: int) -> Int[np.ndarray, "T"]:
    """Places of every tier, smallest tier first; the richest tier is never empty.

    The places follow `largest_remainder` with two changes. A tier with a share has a
    place as long as another tier has two. If there are fewer places than tiers with a
    share, ties go to the richer tiers, and the richest of them has a place whatever its
    share, so that some client has the whole model.

    Args:
        proportions: the share of every tier as a ratio; at least one is above 0.
        total: places, at least 1.
    """
    proportions = np.asarray(proportions, float)
    active_tiers = np.flatnonzero(proportions)
    is_scarce = total < len(active_tiers)
    direction = slice(None, None, -1 if is_scarce else 1)
    counts = largest_remainder(proportions[direction], total)[direction].copy()
    quota = proportions / proportions.sum() * total
    for tier in active_tiers[::-1]:
        if counts[tier] == 0 and counts.max() > 1:
            counts[counts.argmax()] -= 1
            counts[tier] += 1
        elif counts[tier] == 0 and tier == active_tiers[-1]:
            # The tier with a place that is furthest above its quota gives it up.
            counts[np.where(counts > 0, counts - quota, -np.inf).argmax()] -= 1
            counts[tier] += 1
    return counts
