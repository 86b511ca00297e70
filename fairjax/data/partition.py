"""Who owns which unit: partition laws as pure NumPy functions.

A unit is what must not be torn apart, a patient where the data name patients, else a
record. A law draws once and is applied to every fixed split, so that a client's
training and test records follow the same law. The same seed gives the same assignment
on any machine.
"""

import numpy as np
from jaxtyping import Float, Int

from fairjax.core import require

REDRAWS = 100
"""Draws of a Dirichlet partition before the assignment is repaired."""


def natural(keys: np.ndarray) -> tuple[Int[np.ndarray, "U"], tuple[str, ...]]:
    """One client per value of a column, in sorted order.

    Args:
        keys: client names, none of them empty.

    Returns:
        (client of every unit, client names).
    """
    names, client = np.unique(keys, return_inverse=True)
    return client.astype(np.int32), tuple(str(name) for name in names)


def iid(
    rng: np.random.Generator, split: Int[np.ndarray, "U"], clients: int
) -> Int[np.ndarray, "U"]:
    """Every split shuffled and dealt into parts whose sizes differ by one at most."""
    owner = np.empty(len(split), np.int32)
    for part in np.unique(split):
        members = rng.permutation(np.flatnonzero(split == part))
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
    trains: np.ndarray,
    min_size: int,
    kept: float = 1.0,
) -> tuple[Int[np.ndarray, "U"], tuple[str, ...]]:
    """Class-wise Dirichlet label skew, disjoint.

    For every class c, p_c ~ Dir(alpha 1_N); client j gets the share p_cj of the units
    of class c in every split, counts rounded by largest remainder. A draw that leaves a
    client with fewer than `min_size` training records is drawn again, at most `REDRAWS`
    times; then the last draw is repaired: the client with the most that can spare one
    gives its smallest unit to the client with the fewest, until all have enough. Where
    all labels are 0, sizes are skewed and contents iid: "quantity skew".

    Args:
        rng: the source of draws.
        label: class of every unit.
        split: fixed split of every unit.
        clients: N.
        alpha: concentration; small is skewed, large is iid.
        counts: records of every unit.
        trains: True for units whose records count as training records.
        min_size: training records that every client must get.
        kept: the share of those records that a later cut leaves for training.

    Returns:
        (client of every unit, notes on what had to be done).

    Source: Yurochkin et al. 2019; Li et al. 2022 (NIID-Bench), of whom quantity skew is
    too, without their balancing step, which changes the law.
    """
    classes = int(label.max()) + 1
    least = int(np.ceil(round(min_size / kept, 9)))
    owner = np.zeros(len(label), np.int32)
    for attempt in range(REDRAWS):
        shares = rng.dirichlet(np.full(clients, alpha), classes)
        owner = _allot(rng, label, split, shares)
        sizes = np.bincount(
            owner[trains], weights=counts[trains], minlength=clients
        ).astype(int)
        if sizes.min() >= least:
            redrawn = (f"partition drawn {attempt + 1} times",) if attempt else ()
            return owner, redrawn
    moved = _repair(owner, counts, trains, clients, least)
    if moved is None:
        require.fail(
            "data.partition.min_size",
            f"at most what {clients} hospitals can all have",
            min_size,
        )
    note = (
        f"partition drawn {REDRAWS} times; then {moved} units moved from the largest "
        f"hospitals so that all have {min_size} training records"
    )
    return owner, (note,)


def shards(
    rng: np.random.Generator,
    label: Int[np.ndarray, "U"],
    split: Int[np.ndarray, "U"],
    clients: int,
    each: int,
) -> Int[np.ndarray, "U"]:
    """Units in order of their class, cut into shards of which every client gets some.

    There are N times `each` shards in every split; their sizes differ by one at most,
    so that no unit is left over. Shard number s of every split goes to the same client.

    Args:
        rng: the source of draws.
        label: class of every unit.
        split: fixed split of every unit.
        clients: N.
        each: shards of a client.

    Source: McMahan et al. 2017, section 3: 2 shards each.
    """
    owner = np.empty(len(label), np.int32)
    dealt = rng.permutation(clients * each) % clients
    for part in np.unique(split):
        members = rng.permutation(np.flatnonzero(split == part))
        members = members[np.argsort(label[members], kind="stable")]
        for who, shard in zip(dealt, np.array_split(members, len(dealt)), strict=True):
            owner[shard] = who
    return owner


def pathological(
    rng: np.random.Generator,
    label: Int[np.ndarray, "U"],
    split: Int[np.ndarray, "U"],
    clients: int,
    each: int,
) -> Int[np.ndarray, "U"]:
    """Every client has `each` classes, and shares each with the others that have it.

    Client j has class j mod C and others drawn at random; units of a class are dealt
    evenly to its clients. Where N < C, the classes that nobody has yet are drawn first,
    so that no unit is left over.

    Args:
        rng: the source of draws.
        label: class of every unit.
        split: fixed split of every unit.
        clients: N.
        each: classes of a client.

    Raises:
        InputError: more classes each than there are, or too few to have them all.

    Source: "#C = k" of Li et al. 2022 (NIID-Bench), whose classes that nobody draws are
    lost.
    """
    classes = int(label.max()) + 1
    where = "data.partition.classes"
    if each > classes:
        require.fail(where, f"at most the {classes} that there are", each)
    if clients * each < classes:
        what = f"at least {-(-classes // clients)} for {clients} hospitals to have all"
        require.fail(where, f"{what} {classes}", each)
    has = np.zeros((classes, clients), bool)
    has[np.arange(clients) % classes, np.arange(clients)] = True
    for client in rng.permutation(clients):
        others = rng.permutation(np.flatnonzero(~has[:, client]))
        nobodys = others[~has[others].any(axis=1)]
        drawn = [*nobodys, *np.setdiff1d(others, nobodys, assume_unique=True)]
        has[drawn[: each - 1], client] = True
    return _allot(rng, label, split, has / has.sum(axis=1, keepdims=True))


def dirichlet_overlap(
    rng: np.random.Generator,
    label: Int[np.ndarray, "U"],
    split: Int[np.ndarray, "U"],
    clients: int,
    *,
    alpha: float,
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """Label skew by client in which clients share units: no partition.

    Client j has floor(U / N) units of a split, by q_j ~ Dir(alpha 1_C) over classes:
    floor(q_jc n) of class c, what is left of the last class, each drawn from all units
    of the class, whoever else has them; fewer where the class has no more. Units may be
    nobody's.

    Returns:
        (units, client of each), a unit once for every client that has it.

    Source: the released code of DynamicFL (Zhang et al. 2025), whose figures rest on
    it, with a generator that is seeded. For comparison with them alone: `dirichlet` is
    the disjoint law.
    """
    classes = int(label.max()) + 1
    shares = rng.dirichlet(np.full(classes, alpha), clients)
    units, owner = [], []
    for part in np.unique(split):
        pools = [np.flatnonzero((split == part) & (label == c)) for c in range(classes)]
        size = sum(map(len, pools)) // clients
        for client, share in enumerate(shares):
            counts = np.floor(share * size).astype(int)
            counts[-1] = size - counts[:-1].sum()
            for pool, count in zip(pools, counts, strict=True):
                units.append(rng.permutation(pool)[:count])
                owner.append(np.full(len(units[-1]), client, np.int32))
    return np.concatenate(units), np.concatenate(owner)


def _allot(
    rng: np.random.Generator,
    label: Int[np.ndarray, "U"],
    split: Int[np.ndarray, "U"],
    shares: Float[np.ndarray, "C N"],
) -> Int[np.ndarray, "U"]:
    owner = np.empty(len(label), np.int32)
    for part in np.unique(split):
        for c, share in enumerate(shares):
            members = np.flatnonzero((split == part) & (label == c))
            counts = largest_remainder(share, len(members))
            owner[rng.permutation(members)] = np.repeat(np.arange(len(share)), counts)
    return owner


def _repair(
    owner: Int[np.ndarray, "U"],
    counts: Int[np.ndarray, "U"],
    trains: np.ndarray,
    clients: int,
    least: int,
) -> int | None:
    """Moves training units, in place, from the largest client to the smallest.

    Returns how many, or None if no client can spare one before all have `least`.
    """
    sizes = np.bincount(owner[trains], weights=counts[trains], minlength=clients)
    moved = 0
    while sizes.min() < least:
        spare = np.flatnonzero(trains & (sizes[owner] - counts >= least))
        if not len(spare):
            return None
        givers = owner[spare]
        poor, rich = int(sizes.argmin()), int(givers[sizes[givers].argmax()])
        of_rich = spare[givers == rich]
        unit = of_rich[counts[of_rich].argmin()]
        owner[unit] = poor
        sizes[rich] -= counts[unit]
        sizes[poor] += counts[unit]
        moved += 1
    return moved


def largest_remainder(
    share: Float[np.ndarray, "n"], total: int
) -> Int[np.ndarray, "n"]:
    """Whole numbers in proportion to `share` that add up to `total`.

    Every part gets the floor of its quota; what is left goes to the largest remainders,
    ties to the first.
    """
    quota = np.asarray(share, float) / np.sum(share) * total
    counts = np.floor(quota).astype(int)
    order = np.argsort(counts - quota, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def per_tier(share: Float[np.ndarray, "T"], total: int) -> Int[np.ndarray, "T"]:
    """Places of every tier, smallest tier first: the richest one is never empty.

    As `largest_remainder`, but that no tier with a share is left without a place while
    another has two. Where there are fewer places than tiers with a share, ties go to
    the richer tiers, and the richest has a place whatever its share: somebody then
    holds the whole model.

    Args:
        share: of every tier, as a ratio, some above 0.
        total: places, at least 1.
    """
    share = np.asarray(share, float)
    wanted = np.flatnonzero(share)
    few = total < len(wanted)
    turn = slice(None, None, -1 if few else 1)
    counts = largest_remainder(share[turn], total)[turn].copy()
    quota = share / share.sum() * total
    for tier in wanted[::-1]:
        if counts[tier] == 0 and counts.max() > 1:
            counts[counts.argmax()] -= 1
            counts[tier] += 1
        elif counts[tier] == 0 and tier == wanted[-1]:
            # Of those with a place, who is furthest above its quota.
            counts[np.where(counts > 0, counts - quota, -np.inf).argmax()] -= 1
            counts[tier] += 1
    return counts
