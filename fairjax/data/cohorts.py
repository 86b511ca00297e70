"""The clients of a round: cohorts of fixed size, and Poisson cohorts."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from fairjax.core.types import Block, Cohort
from fairjax.data import partition
from fairjax.privacy import poisson as sampling


def slots(
    tiers: Int[np.ndarray, "N"], budgets: int, size: int, scheme: str
) -> tuple[int, ...]:
    """The slots that a cohort of `size` clients reserves for every tier.

    Args:
        tiers: the tier of every client.
        budgets: T, the number of tiers.
        size: K, the clients of a cohort.
        scheme: how slots are counted. "padded" reserves as many as the tier may ever
            fill, min(clients of the tier, K). "stratified" divides K in proportion to
            the clients of the tiers (`partition.tier_sizes`).

    Returns:
        T numbers, smallest tier first. They sum to K for "stratified" and to at least K
        for "padded".
    """
    clients = np.bincount(tiers, minlength=budgets)
    if scheme == "padded":
        return tuple(int(n) for n in np.minimum(clients, size))
    return tuple(int(n) for n in partition.tier_sizes(clients.astype(float), size))


def sample(
    key: Key[Array, ""],
    round: Int[Array, ""],
    tiers: Int[Block, "N"],
    size: int,
    *,
    slots: Sequence[int] | None = None,
    scheme: str = "padded",
) -> Cohort:
    """Draws the cohort of a round: `size` of N clients without replacement.

    The cohort depends on `key` and `round` alone, so a resumed run draws the same
    cohorts. With `size` N the cohort holds every client.

    Args:
        key: the key of all cohorts of the run.
        round: rounds finished.
        tiers: the tier of every client. "stratified" needs a concrete array.
        size: K, the clients of a cohort.
        slots: slots per tier, see the function `slots`. The cohort is then ordered by
            tier, smallest first, and ascends by client id within a tier. None orders
            the cohort by client id alone.
        scheme: how clients are drawn. "padded" draws K of all clients uniformly and
            marks the slots that a tier does not fill as invalid. "stratified" draws
            exactly `slots[t]` clients of every tier t, and every slot is valid.
    """
    key = jax.random.fold_in(key, round)
    tier_of = jnp.asarray(tiers, jnp.int32)
    if scheme == "stratified":
        assert slots is not None
        rows = []
        for tier, count in enumerate(slots):
            members = np.flatnonzero(np.asarray(tiers) == tier).astype(np.int32)
            indices = _draw(jax.random.fold_in(key, tier), len(members), count)
            rows.append(jnp.asarray(members)[indices])
        client = jnp.concatenate(rows)
        return Cohort(client, tier_of[client], jnp.ones((size,), bool))
    client = _draw(key, tiers.shape[0], size)
    if slots is None:
        return Cohort(client, tier_of[client], jnp.ones((size,), bool))
    rows, valid = [], []
    for tier, count in enumerate(slots):
        in_tier = tier_of[client] == tier
        # Clients of this tier come first, by id; the rest of the slots is padding.
        order = jnp.argsort(~in_tier, stable=True)[:count]
        rows.append(client[order])
        valid.append(in_tier[order])
    client = jnp.concatenate(rows)
    tier = jnp.repeat(jnp.arange(len(slots), dtype=jnp.int32), np.asarray(slots))
    return Cohort(client, tier, jnp.concatenate(valid))


def poisson(
    key: Key[Array, ""],
    round: Int[Array, ""],
    tiers: Int[Block, "N"],
    sampling_rate: float,
    slots: int | Sequence[int],
) -> Cohort:
    """Draws a Poisson cohort: every client joins independently with one probability.

    Slots that no client fills are padding. If more clients are drawn than there are
    slots, a uniform choice of them stays. The cohort is then no Poisson sample, so
    `slots` should make this case as unlikely as `privacy.poisson.capacity` does.

    Args:
        key: the key of all cohorts of the run.
        round: rounds finished.
        tiers: the tier of every client.
        sampling_rate: q, the probability that a client joins.
        slots: the capacity of the cohort. A number holds clients of all tiers,
            ascending by id. A sequence holds one number per tier, and the cohort is
            ordered by tier as in `sample`.
    """
    tier_of = jnp.asarray(tiers, jnp.int32)
    key = jax.random.fold_in(key, round)
    tier_slots = (
        [(tier_of >= 0, slots)]
        if isinstance(slots, int)
        else [(tier_of == tier, count) for tier, count in enumerate(slots)]
    )
    samples = [
        sampling.draw(
            jax.random.fold_in(key, i),
            is_eligible,
            sampling.threshold(sampling_rate),
            count,
        )
        for i, (is_eligible, count) in enumerate(tier_slots)
    ]
    client, valid = (jnp.concatenate(arrays) for arrays in zip(*samples, strict=True))
    tier = tier_of[client]
    if not isinstance(slots, int):
        tier = jnp.repeat(jnp.arange(len(slots), dtype=jnp.int32), np.asarray(slots))
    return Cohort(client, tier, valid)


def _draw(key: Key[Array, ""], clients: int, size: int) -> Int[Array, "size"]:
    """Draws `size` of the numbers below `clients` without replacement, ascending.

    The clients with the largest random numbers are drawn. A random number is 30 bits
    read as a positive normal float, so floats have the order of their bits. XLA finds
    the largest floats without sorting them all.
    """
    if size == clients:
        return jnp.arange(clients, dtype=jnp.int32)
    bits = (jax.random.bits(key, (clients,), jnp.uint32) >> 2) + jnp.uint32(1 << 23)
    indices = jax.lax.top_k(jax.lax.bitcast_convert_type(bits, jnp.float32), size)[1]
    return jnp.sort(indices).astype(jnp.int32)
