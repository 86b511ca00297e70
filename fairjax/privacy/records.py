"""DP-SGD inside a hospital: no record moves a step by more than the noise hides.

Or no patient does, however many of the records are theirs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core import rng, trees
from fairjax.core.types import Batch, Examples
from fairjax.privacy import clip as clipping
from fairjax.privacy import noise, poisson

_UNITS, _CHOICE = range(2)


def _patients(examples: Examples, longest: int) -> Int[Array, "longest"]:
    """Whose the hospital's records are, and -1 beyond them."""
    assert examples.patient is not None
    row = jnp.arange(longest, dtype=jnp.int32)
    valid = row < examples.count
    index = examples.offset + jnp.where(valid, row, 0)
    return jnp.where(valid, examples.patient[index], -1)


def _of_patients(
    key: Key[Array, ""],
    examples: Examples,
    longest: int,
    patient: Int[Array, "slots"],
    where: Bool[Array, "slots"],
    most: int,
) -> tuple[Int[Array, "rows"], Bool[Array, "rows"]]:
    """Numbers of at most so many records of every drawn patient, and which rows count.

    One sort by (patient, random) puts the records of each together in random order.
    """
    whose = _patients(examples, longest)
    order = jax.random.bits(key, (longest,), jnp.uint32)
    record = jnp.arange(longest, dtype=jnp.int32)
    whose, _, record = jax.lax.sort((whose, order, record), num_keys=2)
    first = jnp.searchsorted(whose, patient)[:, None]
    at = first + jnp.arange(most)
    inside, at = at < longest, jnp.minimum(at, longest - 1)
    theirs = inside & (whose[at] == patient[:, None])
    # A row too many repeats a record of the same patient: what others hold, were it no
    # number, would reach the gradient through any mask.
    index = record[jnp.where(theirs, at, first)]
    return index.ravel(), (where[:, None] & theirs).ravel()


Loss = Callable[[PyTree, Batch], tuple[Float[Array, ""], Any]]


class Records(NamedTuple):
    """Differential privacy of a hospital's local steps, for its records or patients.

        g_i = grad of the objective on unit i alone, over the trained coordinates
        g   = (sum_i g_i min(1, C / |g_i|) + N(0, (sigma C)^2)) / L,    L = min(B, n)

    with B the batch size asked for and n the hospital's units, both public. A unit is a
    record; or it is a patient, and g_i is the gradient of the mean over at most
    `per_patient` of the patient's records at this hospital, drawn anew for every step.
    Clipping takes place per unit, so the objective must be a mean over records.

    Guarantees: one unit moves the sum by at most C, in every step that it is part of,
        whatever its records are and how many of them it has; a unit whose gradient is
        not finite is part of none. What follows from the steps (momentum, the
        hospital's upload, the plain model) costs nothing more.

    Source: DP-SGD, Abadi et al. 2016, algorithm 1, with its lots as batches. Of
    patients as the sampled and clipped unit: what McMahan et al. 2018, "Learning
    differentially private recurrent language models", do with users, in their FedSGD.
    """

    clip: float | Float[Array, ""]
    """C."""
    noise_multiplier: float | Float[Array, ""]
    """sigma."""
    batch_size: int
    """B."""
    slots: int | None
    """Units of a Poisson batch, in which every one is with probability B / n in every
    step; None: batches cut from shuffled epochs, in which a record is once per epoch
    and which may not claim amplification by sampling."""
    microbatch: int
    """Units whose gradients are in memory at once."""
    per_patient: int | None = None
    """Most records of a patient in a step; None: the unit is the record. Batches of
    patients are Poisson ones."""

    def units(self, examples: Examples, longest: int) -> Int[Array, ""]:
        """The hospital's records, or its patients if those are protected: n.

        Args:
            examples: the hospital's view of the flat records.
            longest: records of the largest hospital.
        """
        if self.per_patient is None:
            return examples.count
        return jnp.max(_patients(examples, longest), initial=-1) + 1

    def batch(self, key: Key[Array, ""], examples: Examples, longest: int) -> Batch:
        """A Poisson batch: `slots` rows of records, or of patients' records.

        Of patients it has slots * per_patient rows, a patient's one after the other. A
        patient of more records is in it with a random choice of them, alike for all; of
        one with fewer, and of slots that are not filled, rows have `where` False.

        Args:
            key: of the step.
            examples: the hospital's view of the flat records.
            longest: records of the largest hospital.

        Edge cases: `slots` of None has no such batch.
        """
        assert self.slots is not None
        number = self.units(examples, longest)
        size = jnp.asarray(self.batch_size, jnp.uint32)
        count = jnp.maximum(number, 1).astype(jnp.uint32)
        all_bits = jnp.uint32(2**32 - 1)
        # Whole numbers, so that the rate is at most B / n.
        below = jnp.where(size < count, all_bits // count * size, all_bits)
        member = jnp.arange(longest) < number
        index, where = poisson.draw(rng.at(key, _UNITS), member, below, self.slots)
        index = jnp.where(where, index, 0)
        if self.per_patient is not None:
            index, where = _of_patients(
                rng.at(key, _CHOICE), examples, longest, index, where, self.per_patient
            )
        index = examples.offset + index
        group = None if examples.group is None else examples.group[index]
        return Batch(examples.x[index], examples.y[index], where, group)

    def gradient(
        self,
        key: Key[Array, ""],
        loss_of: Loss,
        tree: PyTree[Array],
        records: Batch,
        trained: PyTree[Array],
        count: Int[Array, ""],
    ) -> tuple[tuple[Float[Array, ""], Any], PyTree[Array]]:
        """What `jax.value_and_grad` gives, privately.

        Args:
            key: of the noise.
            loss_of: (tree, batch) -> (loss, what else to report).
            tree: what is trained.
            records: the batch; rows with `where` False do not count.
            trained: 0/1 tree; gradients are clipped over, and noised on, what it holds.
            count: n.

        Returns:
            ((loss, report), gradient); the first two are plain means over the units
            that count, for the simulator's eyes alone.
        """
        each = self.per_patient or 1

        def one(unit: Batch) -> tuple[Any, Any, Any]:
            # A slot that is empty is computed too, from rows that are somebody's.
            empty = ~jnp.any(unit.where)
            alone = unit._replace(where=unit.where | empty)
            (loss, report), grads = jax.value_and_grad(loss_of, has_aux=True)(
                tree, alone
            )
            grads = trees.multiply(grads, trained)
            counts = ~empty & trees.all_finite(grads) & jnp.isfinite(loss)
            zero = jax.tree.map(jnp.zeros_like, (grads, (loss, report)))
            grads, told = trees.select(counts, (grads, (loss, report)), zero)
            clipped, _ = clipping.to_norm(grads, self.clip)
            return clipped, told, counts.astype(jnp.int32)

        def addend(rows: Batch) -> tuple[Any, Any, Any]:
            return trees.sum_first(jax.vmap(one)(rows))

        def add(sums: Any, rows: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, addend(rows)), None

        number = records.where.shape[0] // each
        size = min(self.microbatch, number)
        short = -number % size * each

        def cut(leaf: Array) -> Array:
            padded = jnp.pad(leaf, [(0, short)] + [(0, 0)] * (leaf.ndim - 1))
            return padded.reshape(-1, size, each, *leaf.shape[1:])

        parts = jax.tree.map(cut, records)
        zero = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(addend, trees.pick(parts, 0)),
        )
        (total, told, number), _ = jax.lax.scan(add, zero, parts)
        noisy = noise.gaussian(key, total, self.noise_multiplier * self.clip)
        lot = jnp.maximum(jnp.minimum(count, self.batch_size), 1)
        grads = jax.tree.map(
            lambda leaf, t: leaf * t.astype(leaf.dtype) / lot.astype(leaf.dtype),
            noisy,
            trained,
        )
        mean = jax.tree.map(
            lambda value: value / jnp.maximum(number, 1).astype(value.dtype), told
        )
        return mean, grads
