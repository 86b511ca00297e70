"""Poisson samples in arrays of static length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, UInt32

from fairjax.core import require

OVERFLOW = 1e-18
"""The probability per sample that more members are drawn than there are slots. The
accountant accounts for it; up to epsilon 10 it costs less than a millionth."""


def capacity(members: int, sampling_rate: float) -> tuple[int, float]:
    """(K, overflow probability): the slots of a Poisson sample.

    K is the smallest number with P(Binomial(members, rate) > K) <= `OVERFLOW`.

    Args:
        members: the number of members.
        sampling_rate: the probability with which each is drawn.
    """
    from scipy.stats import binom

    require.in_range("sampling_rate", sampling_rate, 0, 1)
    slots = max(1, int(binom.isf(OVERFLOW, members, sampling_rate))) if members else 0
    return slots, float(binom.sf(slots, members, sampling_rate))


def threshold(sampling_rate: float) -> int:
    """The cutoff on 32 random bits below which a member is drawn.

    The probability of a draw is at most the sampling rate.

    Args:
        sampling_rate: in [0, 1].
    """
    return min(int(sampling_rate * 2**32), 2**32 - 1)


def draw(
    key: Key[Array, ""],
    is_member: Bool[Array, "n"],
    cutoff: int | UInt32[Array, ""],
    slots: int,
) -> tuple[Int[Array, "slots"], Bool[Array, "slots"]]:
    """Indices of the drawn members, ascending, and which slots are filled.

    A member is drawn where its random bits are below `cutoff`. Where more are drawn
    than there are slots, those with the lowest bits stay, which is a uniform choice.

    Args:
        key: of the draw.
        is_member: which of n indices can be drawn.
        cutoff: as of `threshold`.
        slots: the length of the result.

    Edge cases: an empty slot has some index, which may also be drawn in another slot.
    """
    bits = jax.random.bits(key, is_member.shape, jnp.uint32)
    bits = jnp.where(is_member, bits, jnp.uint32(2**32 - 1))
    count = is_member.shape[0]
    index = jnp.argsort(bits)[: min(slots, count)].astype(jnp.int32)
    index = jnp.pad(index, (0, max(slots - count, 0)))
    is_filled = (bits[index] < jnp.asarray(cutoff, jnp.uint32)) & is_member[index]
    is_filled = is_filled & (jnp.arange(slots) < count)
    order = jnp.argsort(jnp.where(is_filled, index, count))
    return index[order], is_filled[order]
