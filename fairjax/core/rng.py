"""Random numbers that depend on what is drawn, never on when or where.

Every draw has an address, `run key -> role -> round -> client id -> step -> example`,
and its key is the run key with the parts of that address folded in one by one. So a
client's batches depend neither on its place in the cohort, nor on the batching of
clients, nor on the number of devices, nor on where a run was interrupted.
"""

import enum

import jax
from jaxtyping import Array, Int, Key


class Role(enum.IntEnum):
    """What a random number is for: the first part of its address below the run key."""

    INIT = 0
    COHORT = 1
    UNITS = 2
    LOCAL = 3
    RELEASE = 4
    EVALUATE = 5
    ATTACK = 6
    FAULT = 7


def fold_in(key: Key[Array, ""], *address: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key at an address below `key`: `jax.random.fold_in` of every part in turn.

    Args:
        key: the key that the address starts from; it is not consumed.
        *address: non-negative integers, which may be traced.

    Example:
        >>> key, round = jax.random.key(0), 3
        >>> by_parts = fold_in(fold_in(key, Role.LOCAL), round)
        >>> bool(fold_in(key, Role.LOCAL, round) == by_parts)
        True
    """
    for component in address:
        key = jax.random.fold_in(key, component)
    return key
