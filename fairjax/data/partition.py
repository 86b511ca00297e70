"""Who owns which unit: partition laws as pure NumPy functions.

A unit is what must not be torn apart, a patient where the data name patients, else a
record. A law draws once and is applied to every fixed split, so that a client's
training and test records follow the same law. The same seed gives the same assignment
on any machine.
"""

import numpy as np
from jaxtyping import Float, Int

from fairjax import checks

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
    gives its smallest unit to the client with the fewest, until all have enough.

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

    Source: Hsu, Qi and Brown 2019; the class-wise form of Li et al. 2022 (NIID-Bench)
    without its balancing step, which changes the law.
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
        checks.fail(
            "data.partition.min_size",
            f"at most what {clients} hospitals can all have",
            min_size,
        )
    note = (
        f"partition drawn {REDRAWS} times; then {moved} units moved from the largest "
        f"hospitals so that all have {min_size} training records"
    )
    return owner, (note,)


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
