"""Secure sums, simulated: exact sums of integers that arrive masked.

A client sends integers modulo 2^32,

    x_i = round(v_i / step),    step = bound / L,    L = 2^(bits - 1) - 1,
    y_i = x_i + s_i + sum_{j > i} s_ij - sum_{j < i} s_ij       over the cohort,

with v_i saturated at +-bound, s_ij drawn from a seed that i and j share and s_i from
one of its own. The pairwise masks cancel in the sum. Of clients that drop out before
they send, the masks that others share with them are left; the server is told those
seeds, and the own seeds of the clients that did send, and subtracts them. As n slots of
at most L stay below 2^31, the sum is exact, in any order.

What a simulation protects: nothing. All seeds follow from the run's key, the same
process holds every client's vector, there are no key agreement, no secret shares and no
network. What it shows is the arithmetic of the protocol: that training on quantised
sums works, what a drop-out costs, and which parts of a model have too few holders to be
summed in secret at all. Even the real protocol hides single changes, not what the sum
says, and not who holds what: masks of sub-models, and weights by loss, are sent in the
clear (but not under client_dp, see `client_level.central`). Sums of overlapping cohorts
can be subtracted from each other; only noise helps.

Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving
machine learning", without its cryptography.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from fairjax.core import aggregate, require, rng, trees
from fairjax.core.types import Cohort, Member, Protection, Sent

MODES = ("off", "quantized", "masked")

Rounding = Callable[[Float[Array, "..."]], Float[Array, "..."]]
Bounds = tuple[float | Float[Array, ""], ...]

_OWN, _PAIR = 8, 9  # addresses below the round's key that no noise is drawn at


def levels(bits: int) -> int:
    """L: an addend is a whole number from -L to L."""
    return 2 ** (bits - 1) - 1


def check_room(bits: int, clients: int) -> None:
    """Refuses sums that could wrap: n L < 2^31 proves that none does."""
    require.in_range("privacy.secure.bits", bits, 2, 24)
    if clients * levels(bits) >= 2**31:
        most = (2**31 - 1) // levels(bits)
        what = f"bits such that {clients} clients stay below 2^31; {bits} carry {most}"
        require.fail("privacy.secure.bits", what, bits)


def quantise(
    tree: PyTree[Float[Array, "..."]],
    bound: float | Float[Array, ""],
    bits: int,
    rounding: Rounding = jnp.round,
) -> PyTree[UInt32[Array, "..."]]:
    """Numbers in [-bound, bound] as integers modulo 2^32; what is outside saturates.

    Rounding to the nearest is off by half a step at most, so a sum of n by n / 2 steps;
    towards zero (`jnp.trunc`) by a step, but then no number grows, and no norm.
    """

    def one(leaf: Array) -> Array:
        share = jnp.clip(leaf.astype(jnp.float32), -bound, bound) / bound
        whole = rounding(share * levels(bits))
        return jax.lax.bitcast_convert_type(whole.astype(jnp.int32), jnp.uint32)

    return jax.tree.map(one, tree)


def restore(
    tree: PyTree[UInt32[Array, "..."]], bound: float | Float[Array, ""], bits: int
) -> PyTree[Float[Array, "..."]]:
    """The sum that integers stand for, in float32."""
    step = bound / levels(bits)

    def one(leaf: Array) -> Array:
        whole = jax.lax.bitcast_convert_type(leaf, jnp.int32)
        return whole.astype(jnp.float32) * step

    return jax.tree.map(one, tree)


def mask(
    key: Key[Array, ""],
    cohort: Cohort,
    client: Int[Array, ""],
    vector: PyTree[UInt32[Array, "..."]],
) -> PyTree[Array]:
    """What a client sends of its integers: y_i."""
    others = _pairs(key, cohort, client, cohort.valid, vector)
    own = _bits(rng.at(key, _OWN, client), vector)
    return jax.tree.map(lambda x, s, pairs: x + s + pairs, vector, own, others)


def unmask(
    key: Key[Array, ""],
    cohort: Cohort,
    arrived: Bool[Array, "K"],
    total: PyTree[UInt32[Array, "..."]],
) -> PyTree[Array]:
    """The sum of x_i over those who sent, from the sum of their y_i.

    Args:
        key: that the seeds hang below.
        cohort: everybody who agreed on masks.
        arrived: who of them sent.
        total: sum of what arrived, modulo 2^32.
    """
    dropped = cohort.valid & ~arrived

    def left(client: Array, sent: Array) -> PyTree[Array]:
        own = _bits(rng.at(key, _OWN, client), total)
        pairs = _pairs(key, cohort, client, dropped, total)
        both = jax.tree.map(jnp.add, own, pairs)
        return jax.tree.map(lambda leaf: jnp.where(sent, leaf, 0), both)

    def subtract(rest: PyTree, at: tuple[Array, Array]) -> tuple[PyTree, None]:
        return trees.subtract(rest, left(*at)), None

    return jax.lax.scan(subtract, total, (cohort.client, arrived))[0]


def _pairs(
    key: Key[Array, ""],
    cohort: Cohort,
    client: Int[Array, ""],
    among: Bool[Array, "K"],
    like: PyTree[Array],
) -> PyTree[Array]:
    """The sum of a client's pairwise masks with those slots of the cohort."""

    def add(sums: PyTree, at: tuple[Array, Array]) -> tuple[PyTree, None]:
        other, counts = at
        low, high = jnp.minimum(client, other), jnp.maximum(client, other)
        drawn = _bits(rng.at(key, _PAIR, low, high), like)
        counts = counts & (other != client)

        def one(total: Array, bits: Array) -> Array:
            signed = jnp.where(client < other, bits, jnp.uint32(0) - bits)
            return total + jnp.where(counts, signed, jnp.uint32(0))

        return jax.tree.map(one, sums, drawn), None

    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.uint32), like)
    return jax.lax.scan(add, zero, (cohort.client, among))[0]


def _bits(key: Key[Array, ""], like: PyTree[Array]) -> PyTree[Array]:
    leaves, structure = jax.tree.flatten(like)
    drawn = [
        jax.random.bits(rng.at(key, i), leaf.shape, jnp.uint32)
        for i, leaf in enumerate(leaves)
    ]
    return structure.unflatten(drawn)


class Sums(NamedTuple):
    """Vectors of a cohort, summed in secret; each a tuple of trees with bounds."""

    mode: str
    """"quantized" or "masked", of the same bytes."""
    bits: int
    """Of an addend."""
    minimum: int
    """Holders without whom a coordinate is not summed."""
    rounding: Rounding = jnp.round

    def sent(
        self,
        key: Key[Array, ""],
        cohort: Cohort,
        client: Int[Array, ""],
        valid: Bool[Array, ""],
        vector: tuple[PyTree[Array], ...],
        bounds: Bounds,
    ) -> tuple[PyTree[Array], ...]:
        """What arrives from a client: nothing if it does not count."""
        whole = tuple(
            quantise(tree, bound, self.bits, self.rounding)
            for tree, bound in zip(vector, bounds, strict=True)
        )
        if self.mode == "masked":
            whole = mask(key, cohort, client, whole)
        counts = valid.astype(jnp.uint32)
        return jax.tree.map(lambda leaf: leaf * counts, whole)

    def summed(
        self,
        key: Key[Array, ""],
        cohort: Cohort,
        arrived: Bool[Array, "K"],
        total: tuple[PyTree[Array], ...],
        bounds: Bounds,
    ) -> tuple[PyTree[Array], ...]:
        """The sum of the vectors of those who sent, from that of what arrived."""
        if self.mode == "masked":
            total = unmask(key, cohort, arrived, total)
        return tuple(
            restore(tree, bound, self.bits)
            for tree, bound in zip(total, bounds, strict=True)
        )

    def sum_of(
        self,
        key: Key[Array, ""],
        cohort: Cohort,
        rows: Float[Array, "K n"],
        bound: float,
    ) -> Float[Array, "n"]:
        """The sum of short vectors that the whole cohort sends."""

        def one(client: Array, valid: Array, row: Array) -> tuple[Any, ...]:
            return self.sent(key, cohort, client, valid, (row,), (bound,))

        total = trees.sum_first(jax.vmap(one)(cohort.client, cohort.valid, rows))
        return self.summed(key, cohort, cohort.valid, total, (bound,))[0]


def secure(
    inner: Protection, *, mode: str, bound: float, bits: int, minimum: int
) -> Protection:
    """A protection whose sums over the cohort are secure ones.

    A coordinate with fewer than `minimum` holders who sent is skipped: its num and den
    are 0, and its value stays. A cohort smaller than that thus leaves the model as it
    was. "masked" gives the same bytes as "quantized", which leaves the masks out.

    Args:
        inner: what a client does before it sends; it sends (num, den).
        mode: "quantized" or "masked".
        bound: largest entry of num that does not saturate; den, shares of the cohort,
            are at most 1.
        bits: of an addend.
        minimum: holders of a coordinate.
    """
    require.one_of("privacy.secure_sum", mode, MODES[1:])
    require.positive("privacy.secure.bound", bound)
    require.in_range("privacy.secure.bits", bits, 2, 24)
    require.in_range("privacy.secure.minimum", minimum, 2)
    secret, bounds = Sums(mode, bits, minimum), (bound, 1.0)

    def protect(
        key: Key[Array, ""],
        state: Any,
        cohort: Cohort,
        member: Member,
        sent: Sent,
        weight: Float[Array, ""],
        base: Float[Array, ""],
    ) -> tuple[Any, Any]:
        vector = _split(inner.protect(key, state, cohort, member, sent, weight, base))
        vector = secret.sent(key, cohort, member.client, member.valid, vector, bounds)
        counts = member.valid.astype(jnp.uint32)
        held = jax.tree.map(
            lambda leaf: (leaf > 0).astype(jnp.uint32) * counts, _split(sent)[1]
        )
        return vector, held

    def release(
        key: Key[Array, ""],
        state: Any,
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: tuple[Any, Any],
        public: Sent | None,
    ) -> tuple[Sent, Any]:
        total, held = sums
        num, den = secret.summed(key, cohort, valid, total, bounds)
        enough = jax.tree.map(lambda holders: holders >= minimum, held)
        num, den = (
            jax.tree.map(
                lambda ok, leaf: jnp.where(ok, leaf, jnp.zeros_like(leaf)), enough, tree
            )
            for tree in (num, den)
        )
        tiers = {path: (num[1][path], den[1][path]) for path in num[1]}
        return inner.release(
            key, state, cohort, valid, Sent(num[0], den[0], tiers), public
        )

    return inner._replace(protect=protect, release=release)


def _split(sent: Sent) -> tuple[Any, Any]:
    """All numerators and all denominators."""
    dens = {path: den for path, (_, den) in sent.tiers.items()}
    return aggregate.change(sent), (sent.den, dens)
