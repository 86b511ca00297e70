"""Poisson samples in arrays of static length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, UInt32

from fairjax.core import require

OVERFLOW = 1e-18
"""Probability per sample that more are drawn than there is room for. The accountant is
told of it; up to epsilon 10 it costs less than a millionth."""


def room(members: int, rate: float) -> tuple[int, float]:
    """Slots for a Poisson sample of `members` at `rate`, and its overflow probability.

    The smallest K with P(Binomial(members, rate) > K) <= `OVERFLOW`.
    """
    from scipy.stats import binom

    require.in_range("sampling rate", rate, 0, 1)
    slots = max(1, int(binom.isf(OVERFLOW, members, rate))) if members else 0
    return slots, float(binom.sf(slots, members, rate))


def threshold(rate: float) -> int:
    """The number of 32 random bits below which a member is drawn: at most `rate`."""
    return min(int(rate * 2**32), 2**32 - 1)


def draw(
    key: Key[Array, ""],
    member: Bool[Array, "n"],
    below: int | UInt32[Array, ""],
    slots: int,
) -> tuple[Int[Array, "slots"], Bool[Array, "slots"]]:
    """Numbers of the drawn members, ascending, and which slots are filled.

    Each is drawn where its random bits are below `below`. Where more are drawn than
    there are slots, the lowest bits stay: a uniform choice.

    Edge cases: a slot that is not filled holds the number of somebody, who may have
    been drawn elsewhere.
    """
    bits = jax.random.bits(key, member.shape, jnp.uint32)
    bits = jnp.where(member, bits, jnp.uint32(2**32 - 1))
    count = member.shape[0]
    index = jnp.argsort(bits)[: min(slots, count)].astype(jnp.int32)
    index = jnp.pad(index, (0, max(slots - count, 0)))
    filled = (bits[index] < jnp.asarray(below, jnp.uint32)) & member[index]
    filled = filled & (jnp.arange(slots) < count)
    order = jnp.argsort(jnp.where(filled, index, count))
    return index[order], filled[order]
