"""Random numbers that depend on what is drawn, never on when or where.

Every draw has an address, `run key -> role -> round -> client id -> step -> example`,
and its key is the run key with the parts of that address folded in one by one. So a
client's batches do not change with its place in the cohort, with the batching, with the
number of devices, or with where a run was interrupted.
"""

import enum

import jax
from jaxtyping import Array, Int, Key


class Role(enum.IntEnum):
    """What a random number is for; the first part of its address."""

    INIT = 0
    COHORT = 1
    UNITS = 2
    LOCAL = 3
    RELEASE = 4
    EVALUATE = 5
    ATTACK = 6
    FAULT = 7


def at(key: Key[Array, ""], *address: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key at an address below `key`: `fold_in` of every part in turn."""
    for part in address:
        key = jax.random.fold_in(key, part)
    return key
