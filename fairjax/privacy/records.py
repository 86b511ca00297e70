"""DP-SGD inside a client: no record moves a step by more than the noise hides.

With patients as the unit, no patient does, however many records the patient has.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core import rng, trees
from fairjax.core.types import Batch, ClientData
from fairjax.privacy import clip as clipping
from fairjax.privacy import noise, poisson

_UNITS, _CHOICE = range(2)


def _patient_ids(examples: ClientData, longest: int) -> Int[Array, "longest"]:
    """The patient of each of the client's records, and -1 beyond the records."""
    assert examples.patient is not None
    row = jnp.arange(longest, dtype=jnp.int32)
    valid = row < examples.count
    index = examples.offset + jnp.where(valid, row, 0)
    return jnp.where(valid, examples.patient[index], -1)


def _patient_rows(
    key: Key[Array, ""],
    examples: ClientData,
    longest: int,
    patient: Int[Array, "slots"],
    where: Bool[Array, "slots"],
    per_patient: int,
) -> tuple[Int[Array, "rows"], Bool[Array, "rows"]]:
    """At most `per_patient` records of every drawn patient, and which rows count.

    One sort by (patient, random bits) puts the records of each patient together in
    random order.
    """
    patient_ids = _patient_ids(examples, longest)
    random_bits = jax.random.bits(key, (longest,), jnp.uint32)
    record = jnp.arange(longest, dtype=jnp.int32)
    patient_ids, _, record = jax.lax.sort(
        (patient_ids, random_bits, record), num_keys=2
    )
    first = jnp.searchsorted(patient_ids, patient)[:, None]
    position = first + jnp.arange(per_patient)
    in_range, position = position < longest, jnp.minimum(position, longest - 1)
    same_patient = in_range & (patient_ids[position] == patient[:, None])
    # A surplus row repeats a record of the same patient: a record of another patient
    # that is NaN would reach the gradient through any mask.
    index = record[jnp.where(same_patient, position, first)]
    return index.ravel(), (where[:, None] & same_patient).ravel()


Loss = Callable[[PyTree, Batch], tuple[Float[Array, ""], Any]]


class DPSGD(NamedTuple):
    """Differential privacy of a client's local steps, for its records or patients.

        g_i = grad of the objective on unit i alone, over the trained coordinates
        g   = (sum_i g_i min(1, C / |g_i|) + N(0, (sigma C)^2)) / L,    L = min(B, n)

    with B the batch size asked for and n the number of the client's units, both public.
    A unit is a record, or it is a patient. g_i of a patient is the gradient of the mean
    over at most `per_patient` of the patient's records at this client, drawn anew for
    every step. Clipping takes place per unit, so the objective must be a mean over
    records.

    Guarantees: one unit moves the sum by at most C, in every step that it is part of,
        whatever its records are and how many of them it has; a unit whose gradient is
        not finite is part of none. What follows from the steps (momentum, the client's
        upload, the plain model) costs nothing more.

    Sources: DP-SGD, Abadi et al., "Deep learning with differential privacy", CCS 2016,
    arXiv:1607.00133, algorithm 1, with its lots as batches. Patients are the sampled
    and clipped unit as users are in the FedSGD of McMahan et al., "Learning
    differentially private recurrent language models", ICLR 2018, arXiv:1710.06963.
    """

    clip: float | Float[Array, ""]
    """C."""
    noise_multiplier: float | Float[Array, ""]
    """sigma."""
    batch_size: int
    """B."""
    slots: int | None
    """The most units of a Poisson batch. Every unit is in it with probability B / n in
    every step. None: batches cut from shuffled epochs, in which a record is once per
    epoch. These may not claim amplification by sampling."""
    microbatch: int
    """Units whose gradients are in memory at once."""
    per_patient: int | None = None
    """The most records of a patient in a step; None: the unit is the record. Batches of
    patients are always Poisson batches."""

    def units(self, examples: ClientData, max_records: int) -> Int[Array, ""]:
        """n: the number of the client's records, or of its patients if they are units.

        Args:
            examples: the client's view of the flat records.
            max_records: records of the largest client.
        """
        if self.per_patient is None:
            return examples.count
        return jnp.max(_patient_ids(examples, max_records), initial=-1) + 1

    def batch(
        self, key: Key[Array, ""], examples: ClientData, max_records: int
    ) -> Batch:
        """A Poisson batch: `slots` rows of records, or of patients' records.

        A batch of patients has slots * per_patient rows, and the rows of a patient are
        adjacent. A patient with more records takes part with a uniformly random choice
        of them. Surplus rows of a patient with fewer records, and rows of empty slots,
        have `where` False.

        Args:
            key: of the step.
            examples: the client's view of the flat records.
            max_records: records of the largest client.

        Edge cases: with `slots` of None there is no such batch.
        """
        assert self.slots is not None
        num_units = self.units(examples, max_records)
        size = jnp.asarray(self.batch_size, jnp.uint32)
        count = jnp.maximum(num_units, 1).astype(jnp.uint32)
        all_bits = jnp.uint32(2**32 - 1)
        # Integer division rounds down, so that the rate is at most B / n.
        cutoff = jnp.where(size < count, all_bits // count * size, all_bits)
        is_unit = jnp.arange(max_records) < num_units
        index, where = poisson.draw(
            rng.fold_in(key, _UNITS), is_unit, cutoff, self.slots
        )
        index = jnp.where(where, index, 0)
        if self.per_patient is not None:
            index, where = _patient_rows(
                rng.fold_in(key, _CHOICE),
                examples,
                max_records,
                index,
                where,
                self.per_patient,
            )
        index = examples.offset + index
        group = None if examples.group is None else examples.group[index]
        return Batch(examples.x[index], examples.y[index], where, group)

    def gradient(
        self,
        key: Key[Array, ""],
        loss_fn: Loss,
        tree: PyTree[Array],
        records: Batch,
        trainable_mask: PyTree[Array],
        count: Int[Array, ""],
    ) -> tuple[tuple[Float[Array, ""], Any], PyTree[Array]]:
        """The private counterpart of `jax.value_and_grad`.

        Args:
            key: of the noise.
            loss_fn: (tree, batch) -> (loss, report).
            tree: the trained parameters.
            records: the batch; rows with `where` False do not count.
            trainable_mask: 0/1 tree of the coordinates over which gradients are clipped
                and which get noise.
            count: n.

        Returns:
            ((loss, report), gradient). Loss and report are means without noise over the
            units that count, for the simulator's eyes alone.
        """
        rows_per_unit = self.per_patient or 1

        def unit_gradient(unit: Batch) -> tuple[Any, Any, Any]:
            # An empty slot is computed too, from the records that its rows repeat.
            is_empty = ~jnp.any(unit.where)
            nonempty_unit = unit._replace(where=unit.where | is_empty)
            (loss, report), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                tree, nonempty_unit
            )
            grads = trees.multiply(grads, trainable_mask)
            is_counted = ~is_empty & trees.all_finite(grads) & jnp.isfinite(loss)
            zero = jax.tree.map(jnp.zeros_like, (grads, (loss, report)))
            grads, outputs = trees.select(is_counted, (grads, (loss, report)), zero)
            clipped, _ = clipping.to_norm(grads, self.clip)
            return clipped, outputs, is_counted.astype(jnp.int32)

        def addend(rows: Batch) -> tuple[Any, Any, Any]:
            return trees.sum_first(jax.vmap(unit_gradient)(rows))

        def add(sums: Any, rows: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, addend(rows)), None

        num_units = records.where.shape[0] // rows_per_unit
        size = min(self.microbatch, num_units)
        padding = -num_units % size * rows_per_unit

        def to_microbatches(leaf: Array) -> Array:
            padded = jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1))
            return padded.reshape(-1, size, rows_per_unit, *leaf.shape[1:])

        microbatches = jax.tree.map(to_microbatches, records)
        zero = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(addend, trees.pick(microbatches, 0)),
        )
        (total, outputs, num_units), _ = jax.lax.scan(add, zero, microbatches)
        noisy = noise.gaussian(key, total, self.noise_multiplier * self.clip)
        lot = jnp.maximum(jnp.minimum(count, self.batch_size), 1)
        grads = jax.tree.map(
            lambda leaf, t: leaf * t.astype(leaf.dtype) / lot.astype(leaf.dtype),
            noisy,
            trainable_mask,
        )
        mean = jax.tree.map(
            lambda value: value / jnp.maximum(num_units, 1).astype(value.dtype), outputs
        )
        return mean, grads
