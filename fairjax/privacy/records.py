"""DP-SGD inside a hospital: no record moves a step by more than the noise hides."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from fairjax import trees
from fairjax.privacy import clip as clipping
from fairjax.privacy import noise, poisson
from fairjax.types import Batch, Examples


class Records(NamedTuple):
    """Record-level differential privacy of a hospital's local steps.

        g_i = grad of the objective on record i alone, over the trained coordinates
        g   = (sum_i g_i min(1, C / |g_i|) + N(0, (sigma C)^2)) / L,    L = min(B, n)

    with B the batch size asked for and n the hospital's records, both public. Clipping
    takes place per record, so the objective must be a mean over records.

    Guarantees: one record moves the sum by at most C, in every step that it is part of;
        a record whose gradient is not finite is part of none. What follows from the
        steps (momentum, the hospital's upload, the plain model) costs nothing more.

    Source: DP-SGD, Abadi et al. 2016, algorithm 1, with its lots as batches.
    """

    clip: float | Float[Array, ""]
    """C."""
    noise_multiplier: float | Float[Array, ""]
    """sigma."""
    batch_size: int
    """B."""
    slots: int | None
    """Rows of a Poisson batch, in which every record is with probability B / n in every
    step; None: batches cut from shuffled epochs, in which it is once per epoch and
    which may not claim amplification by sampling."""
    microbatch: int
    """Records whose gradients are in memory at once."""


def batch(key: Key[Array, ""], examples: Examples, longest: int, dp: Records) -> Batch:
    """A Poisson batch of the hospital's records.

    Args:
        key: of the step.
        examples: the hospital's view of the flat records.
        longest: records of the largest hospital.
        dp: with `slots`.
    """
    assert dp.slots is not None
    size = jnp.asarray(dp.batch_size, jnp.uint32)
    count = jnp.maximum(examples.count, 1).astype(jnp.uint32)
    all_bits = jnp.uint32(2**32 - 1)
    # Whole numbers, so that the rate is at most B / n.
    below = jnp.where(size < count, all_bits // count * size, all_bits)
    member = jnp.arange(longest) < examples.count
    index, where = poisson.draw(key, member, below, dp.slots)
    index = examples.offset + jnp.where(where, index, 0)
    group = None if examples.group is None else examples.group[index]
    return Batch(examples.x[index], examples.y[index], where, group)


Loss = Callable[[PyTree, Batch], tuple[Float[Array, ""], Any]]


def gradient(
    key: Key[Array, ""],
    loss_of: Loss,
    tree: PyTree[Array],
    records: Batch,
    trained: PyTree[Array],
    count: Int[Array, ""],
    dp: Records,
) -> tuple[tuple[Float[Array, ""], Any], PyTree[Array]]:
    """What `jax.value_and_grad` gives, privately.

    Args:
        key: of the noise.
        loss_of: (tree, batch) -> (loss, what else to report).
        tree: what is trained.
        records: the batch; rows with `where` False do not count.
        trained: 0/1 tree; gradients are clipped over, and noised on, what it holds.
        count: n.
        dp: the settings.

    Returns:
        ((loss, report), gradient); the first two are plain means over the records that
        count, for the simulator's eyes alone.
    """

    def one(row: Batch) -> tuple[Any, Any, Any]:
        alone = jax.tree.map(lambda leaf: leaf[None], row)
        alone = alone._replace(where=jnp.ones(1, bool))
        (loss, report), grads = jax.value_and_grad(loss_of, has_aux=True)(tree, alone)
        grads = trees.multiply(grads, trained)
        counts = row.where & trees.all_finite(grads) & jnp.isfinite(loss)
        zero = jax.tree.map(jnp.zeros_like, (grads, (loss, report)))
        grads, told = trees.select(counts, (grads, (loss, report)), zero)
        clipped, _ = clipping.to_norm(grads, dp.clip)
        return clipped, told, counts.astype(jnp.int32)

    def addend(rows: Batch) -> tuple[Any, Any, Any]:
        return trees.sum_first(jax.vmap(one)(rows))

    def add(sums: Any, rows: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, addend(rows)), None

    rows = records.where.shape[0]
    size = min(dp.microbatch, rows)
    short = -rows % size
    parts = jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, short)] + [(0, 0)] * (leaf.ndim - 1)).reshape(
            -1, size, *leaf.shape[1:]
        ),
        records,
    )
    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(addend, trees.pick(parts, 0)),
    )
    (total, told, number), _ = jax.lax.scan(add, zero, parts)
    noisy = noise.gaussian(key, total, dp.noise_multiplier * dp.clip)
    lot = jnp.maximum(jnp.minimum(count, dp.batch_size), 1)
    grads = jax.tree.map(
        lambda leaf, t: leaf * t.astype(leaf.dtype) / lot.astype(leaf.dtype),
        noisy,
        trained,
    )
    mean = jax.tree.map(
        lambda value: value / jnp.maximum(number, 1).astype(value.dtype), told
    )
    return mean, grads
