"""Secure sums, simulated: exact sums of integers that arrive masked.

A client sends integers modulo 2^32,

    x_i = round(v_i / step),    step = bound / L,    L = 2^(bits - 1) - 1,
    y_i = x_i + s_i + sum_{j > i} s_ij - sum_{j < i} s_ij       over the cohort,

with v_i saturated at +-bound, s_ij drawn from a seed that i and j share and s_i from
the client's own seed. The pairwise masks cancel in the sum. If a client drops out
before it sends, the masks that others share with it remain in the sum. The server
learns the seeds of those masks and the own seeds of the clients that did send, and
subtracts all these masks. As n slots of at most L stay below 2^31, the sum is exact, in
any order.

This simulation protects nothing. All seeds follow from the run's key, and the same
process has every client's vector. There are no key agreement, no secret shares and no
network. The simulation shows the arithmetic of the protocol: that training on quantised
sums works, what a drop-out costs, and which parts of a model have too few holders to be
summed in secret at all. Even the real protocol hides single changes only. It does not
hide what the sum says, nor which client has which coordinates: masks of sub-models, and
weights by loss, are sent in the clear (but not under client_dp, see
`client_level.central`). Sums of overlapping cohorts can be subtracted from each other;
only noise helps.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine
learning", CCS 2017, doi:10.1145/3133956.3133982, without its cryptography.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from fairjax.core import aggregate, require, rng, trees
from fairjax.core.protocols import Protection
from fairjax.core.types import ClientView, Cohort, Upload

MODES = ("off", "quantized", "masked")

Rounding = Callable[[Float[Array, "..."]], Float[Array, "..."]]
Bounds = tuple[float | Float[Array, ""], ...]

# Addresses below the round's key at which no noise is drawn.
_SELF, _PAIR = 8, 9


def levels(bits: int) -> int:
    """L: an addend is an integer from -L to L."""
    return 2 ** (bits - 1) - 1


def check_capacity(bits: int, clients: int) -> None:
    """Refuses sums that could wrap: n L < 2^31 proves that none does.

    Args:
        bits: of an addend, 2 to 24.
        clients: n.

    Raises:
        InputError: the bits are out of range, or too many for n clients.
    """
    require.in_range("bits", bits, 2, 24)
    if clients * levels(bits) >= 2**31:
        max_clients = (2**31 - 1) // levels(bits)
        requirement = (
            f"bits such that {clients} clients stay below 2^31; "
            f"{bits} carry {max_clients}"
        )
        require.fail("bits", requirement, bits)


def quantise(
    tree: PyTree[Float[Array, "..."]],
    bound: float | Float[Array, ""],
    bits: int,
    rounding: Rounding = jnp.round,
) -> PyTree[UInt32[Array, "..."]]:
    """Numbers in [-bound, bound] as integers modulo 2^32; numbers outside saturate.

    Rounding to the nearest is off by half a step at most, so a sum of n numbers is off
    by n / 2 steps. Rounding towards zero (`jnp.trunc`) is off by a step at most, but no
    number grows by it, and no norm.

    Args:
        tree: the numbers.
        bound: the largest number that does not saturate.
        bits: of an addend.
        rounding: to integers.
    """

    def per_leaf(leaf: Array) -> Array:
        fraction = jnp.clip(leaf.astype(jnp.float32), -bound, bound) / bound
        integers = rounding(fraction * levels(bits))
        return jax.lax.bitcast_convert_type(integers.astype(jnp.int32), jnp.uint32)

    return jax.tree.map(per_leaf, tree)


def dequantise(
    tree: PyTree[UInt32[Array, "..."]], bound: float | Float[Array, ""], bits: int
) -> PyTree[Float[Array, "..."]]:
    """The sum that integers stand for, in float32.

    Args:
        tree: sums of integers modulo 2^32, as of `quantise`.
        bound: as for `quantise`.
        bits: as for `quantise`.
    """
    step = bound / levels(bits)

    def per_leaf(leaf: Array) -> Array:
        integers = jax.lax.bitcast_convert_type(leaf, jnp.int32)
        return integers.astype(jnp.float32) * step

    return jax.tree.map(per_leaf, tree)


def mask(
    key: Key[Array, ""],
    cohort: Cohort,
    client: Int[Array, ""],
    vector: PyTree[UInt32[Array, "..."]],
) -> PyTree[Array]:
    """y_i: what a client sends in place of its integers.

    Args:
        key: the seeds follow from it.
        cohort: the clients that agreed on masks.
        client: i.
        vector: x_i.
    """
    pair_masks = _pair_masks(key, cohort, client, cohort.valid, vector)
    self_mask = _random_bits(rng.fold_in(key, _SELF, client), vector)
    return jax.tree.map(
        lambda x, s, pairs: x + s + pairs, vector, self_mask, pair_masks
    )


def unmask(
    key: Key[Array, ""],
    cohort: Cohort,
    has_sent: Bool[Array, "K"],
    total: PyTree[UInt32[Array, "..."]],
) -> PyTree[Array]:
    """The sum of x_i over the clients that sent, from the sum of their y_i.

    Args:
        key: the seeds follow from it.
        cohort: the clients that agreed on masks.
        has_sent: which of them sent.
        total: the sum of the y_i that arrived, modulo 2^32.
    """
    has_dropped = cohort.valid & ~has_sent

    def residual_mask(client: Array, client_sent: Array) -> PyTree[Array]:
        self_mask = _random_bits(rng.fold_in(key, _SELF, client), total)
        pair_masks = _pair_masks(key, cohort, client, has_dropped, total)
        masks = jax.tree.map(jnp.add, self_mask, pair_masks)
        return jax.tree.map(lambda leaf: jnp.where(client_sent, leaf, 0), masks)

    def subtract(remainder: PyTree, slot: tuple[Array, Array]) -> tuple[PyTree, None]:
        return trees.subtract(remainder, residual_mask(*slot)), None

    return jax.lax.scan(subtract, total, (cohort.client, has_sent))[0]


def _pair_masks(
    key: Key[Array, ""],
    cohort: Cohort,
    client: Int[Array, ""],
    where: Bool[Array, "K"],
    template: PyTree[Array],
) -> PyTree[Array]:
    """The sum of a client's pairwise masks with the cohort's slots in `where`."""

    def add(sums: PyTree, slot: tuple[Array, Array]) -> tuple[PyTree, None]:
        peer, is_counted = slot
        low, high = jnp.minimum(client, peer), jnp.maximum(client, peer)
        pair_bits = _random_bits(rng.fold_in(key, _PAIR, low, high), template)
        is_counted = is_counted & (peer != client)

        def per_leaf(total: Array, bits: Array) -> Array:
            signed = jnp.where(client < peer, bits, jnp.uint32(0) - bits)
            return total + jnp.where(is_counted, signed, jnp.uint32(0))

        return jax.tree.map(per_leaf, sums, pair_bits), None

    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.uint32), template)
    return jax.lax.scan(add, zero, (cohort.client, where))[0]


def _random_bits(key: Key[Array, ""], template: PyTree[Array]) -> PyTree[Array]:
    leaves, structure = jax.tree.flatten(template)
    random_bits = [
        jax.random.bits(rng.fold_in(key, i), leaf.shape, jnp.uint32)
        for i, leaf in enumerate(leaves)
    ]
    return structure.unflatten(random_bits)


class SecureSum(NamedTuple):
    """Secret sums of a cohort's vectors; a vector is a tuple of trees with bounds."""

    mode: str
    """"quantized" or "masked"; both give the same sums, bit by bit."""
    bits: int
    """The bits of an addend."""
    minimum: int
    """The fewest holders with whom a coordinate is summed."""
    rounding: Rounding = jnp.round
    """How numbers are rounded to integers, see `quantise`."""

    def encode(
        self,
        key: Key[Array, ""],
        cohort: Cohort,
        client: Int[Array, ""],
        valid: Bool[Array, ""],
        vector: tuple[PyTree[Array], ...],
        bounds: Bounds,
    ) -> tuple[PyTree[Array], ...]:
        """What arrives from a client; 0 if the client does not count.

        Args:
            key: of the round; the masks' seeds follow from it.
            cohort: the clients that agreed on masks.
            client: the sender.
            valid: whether the sender counts.
            vector: the sender's vector.
            bounds: the bound of each tree.
        """
        integers = tuple(
            quantise(tree, bound, self.bits, self.rounding)
            for tree, bound in zip(vector, bounds, strict=True)
        )
        if self.mode == "masked":
            integers = mask(key, cohort, client, integers)
        is_valid = valid.astype(jnp.uint32)
        return jax.tree.map(lambda leaf: leaf * is_valid, integers)

    def decode(
        self,
        key: Key[Array, ""],
        cohort: Cohort,
        has_sent: Bool[Array, "K"],
        total: tuple[PyTree[Array], ...],
        bounds: Bounds,
    ) -> tuple[PyTree[Array], ...]:
        """The sum of the senders' vectors, from the sum of what arrived.

        Args:
            key: as for `encode`.
            cohort: as for `encode`.
            has_sent: which clients of the cohort sent.
            total: the sum of what arrived, modulo 2^32.
            bounds: as for `encode`.
        """
        if self.mode == "masked":
            total = unmask(key, cohort, has_sent, total)
        return tuple(
            dequantise(tree, bound, self.bits)
            for tree, bound in zip(total, bounds, strict=True)
        )

    def sum_rows(
        self,
        key: Key[Array, ""],
        cohort: Cohort,
        rows: Float[Array, "K n"],
        bound: float,
    ) -> Float[Array, "n"]:
        """The sum of short vectors that the whole cohort sends.

        Args:
            key: as for `encode`.
            cohort: the senders.
            rows: the vectors.
            bound: of every entry.
        """

        def per_client(client: Array, valid: Array, row: Array) -> tuple[Any, ...]:
            return self.encode(key, cohort, client, valid, (row,), (bound,))

        total = trees.sum_first(jax.vmap(per_client)(cohort.client, cohort.valid, rows))
        return self.decode(key, cohort, cohort.valid, total, (bound,))[0]


def secure(
    inner: Protection, *, mode: str, bound: float, bits: int, minimum: int
) -> Protection:
    """A protection whose sums over the cohort are secure sums.

    A coordinate with fewer than `minimum` holders who sent is skipped: its num and den
    are 0, and its value stays. So a cohort smaller than `minimum` leaves the model as
    it was. "masked" gives the same bytes as "quantized", which leaves the masks out.

    Args:
        inner: what a client does before it sends (num, den).
        mode: "quantized" or "masked".
        bound: the largest entry of num that does not saturate. The entries of den are
            shares of the cohort and at most 1.
        bits: of an addend, 2 to 24.
        minimum: the fewest holders with whom a coordinate is summed, at least 2.

    Raises:
        InputError: an argument is out of range.
    """
    require.one_of("mode", mode, MODES[1:])
    require.positive("bound", bound)
    require.in_range("bits", bits, 2, 24)
    require.in_range("minimum", minimum, 2)
    secure_sum, bounds = SecureSum(mode, bits, minimum), (bound, 1.0)

    def protect(
        key: Key[Array, ""],
        state: Any,
        cohort: Cohort,
        client: ClientView,
        upload: Upload,
        weight: Float[Array, ""],
        denominator_weight: Float[Array, ""],
    ) -> tuple[Any, Any]:
        vector = _num_and_den(
            inner.protect(
                key, state, cohort, client, upload, weight, denominator_weight
            )
        )
        vector = secure_sum.encode(
            key, cohort, client.client, client.valid, vector, bounds
        )
        is_valid = client.valid.astype(jnp.uint32)
        holder_counts = jax.tree.map(
            lambda leaf: (leaf > 0).astype(jnp.uint32) * is_valid,
            _num_and_den(upload)[1],
        )
        return vector, holder_counts

    def release(
        key: Key[Array, ""],
        state: Any,
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: tuple[Any, Any],
        public_sums: Upload | None,
    ) -> tuple[Upload, Any]:
        total, holder_counts = sums
        num, den = secure_sum.decode(key, cohort, valid, total, bounds)
        has_enough = jax.tree.map(lambda holders: holders >= minimum, holder_counts)
        num, den = (
            jax.tree.map(
                lambda ok, leaf: jnp.where(ok, leaf, jnp.zeros_like(leaf)),
                has_enough,
                tree,
            )
            for tree in (num, den)
        )
        tiers = {path: (num[1][path], den[1][path]) for path in num[1]}
        return inner.release(
            key, state, cohort, valid, Upload(num[0], den[0], tiers), public_sums
        )

    return inner._replace(protect=protect, release=release)


def _num_and_den(upload: Upload) -> tuple[Any, Any]:
    """All numerators and all denominators."""
    dens = {path: den for path, (_, den) in upload.tiers.items()}
    return aggregate.update(upload), (upload.den, dens)
