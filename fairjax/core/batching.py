"""A client's batches: static lengths, shuffled epochs, and the records of one step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from fairjax.core import require
from fairjax.core.types import Batch, ClientData


class LocalSchedule(NamedTuple):
    """The static lengths of local training, the same for all clients."""

    batch_size: int
    """B."""
    steps: int
    """S, the most steps of any client; a client with fewer idles in the others."""
    epochs: int | None
    """Passes over a client's records; None: every client takes `steps` steps."""
    stream_length: int
    """Length of the stream of shuffled record numbers that batches are cut from."""
    max_records: int
    """Records of the largest client."""


def local_schedule(
    counts: Int[np.ndarray, "N"],
    *,
    batch_size: int,
    epochs: int | None = None,
    steps: int | None = None,
    units: Int[np.ndarray, "N"] | None = None,
) -> LocalSchedule:
    """Static lengths for clients of these sizes, by epochs or by steps.

    Args:
        counts: training records of every client, all at least 1.
        batch_size: B; the last batch of an epoch may be smaller.
        epochs: a client with n records takes epochs * ceil(n / B) steps.
        steps: every client takes this many steps, over as many epochs as they need.
        units: n of every client where patients, not records, make a batch
            (`PrivateGradient.units`); None: `counts`.

    Raises:
        InputError: both or neither of `epochs` and `steps` are given, one is not
            positive, or a round takes more records than int32 counts.

    Example:
        >>> local_schedule(np.array([5, 8]), batch_size=4, epochs=2).steps
        4
    """
    require.positive("batch_size", batch_size)
    if (epochs is None) == (steps is None):
        got = {"epochs": epochs, "steps": steps}
        require.fail("epochs", "either epochs or steps", got)
    counts = np.asarray(counts, np.int64)
    units = counts if units is None else np.asarray(units, np.int64)
    per_epoch = -(-units // batch_size)
    if steps is None:
        assert epochs is not None
        where = "epochs"
        require.positive("epochs", epochs)
        max_steps, passes = int(epochs * per_epoch.max()), np.full_like(units, epochs)
    else:
        where = "steps"
        require.positive("steps", steps)
        max_steps, passes = steps, -(-steps // per_epoch)
    length = int((passes * counts).max())
    if not 1 <= length < 2**31:
        expected = f"a number with which a round takes at most {2**31 - 1:,} records"
        require.fail(where, expected, epochs if steps is None else steps)
    return LocalSchedule(
        batch_size=batch_size,
        steps=max_steps,
        epochs=epochs,
        stream_length=length,
        max_records=int(np.max(counts)),
    )


def stream(
    key: Key[Array, ""], count: Int[Array, ""], length: int
) -> Int[Array, "length"]:
    """The numbers 0 .. count-1 epoch after epoch, each shuffled, cut at `length`.

    Position j belongs to epoch j // count; one sort by (epoch, random) shuffles inside
    every epoch at once. The random number of a position depends on the position alone,
    so neither `length` nor other clients' sizes change a client's order.

    Args:
        key: the client's key of this round.
        count: its records.
        length: `LocalSchedule.stream_length`.

    Example:
        >>> order = stream(jax.random.key(0), jnp.array(3), 7)
        >>> sorted(order[:3].tolist()), sorted(order[3:6].tolist())
        ([0, 1, 2], [0, 1, 2])
    """
    position = jnp.arange(length, dtype=jnp.int32)
    record = position % jnp.maximum(count, 1)
    epoch = position // jnp.maximum(count, 1)
    order = jax.random.bits(key, (length,), jnp.uint32)
    return jax.lax.sort((epoch, order, record), num_keys=2)[2]


def batch(
    examples: ClientData,
    order: Int[Array, "length"],
    step: Int[Array, ""],
    batch_size: int,
) -> Batch:
    """The records of one step, gathered from the flat block.

    Every epoch starts with a new batch, so the last batch of an epoch may be short.
    Rows beyond its records repeat the client's first record and have `where` False.

    Args:
        examples: the client's records.
        order: its `stream`.
        step: the local step, from 0.
        batch_size: B.

    Example:
        >>> x, y = jnp.arange(10.0), jnp.zeros(10, jnp.int32)
        >>> examples = ClientData(x, y, offset=jnp.array(4), count=jnp.array(3))
        >>> rows = batch(examples, jnp.array([2, 0, 1]), jnp.array(1), batch_size=2)
        >>> rows.x.tolist(), rows.where.tolist()
        ([5.0, 4.0], [True, False])
    """
    per_epoch = jnp.maximum(steps_per_epoch(examples.count, batch_size), 1)
    epoch, step_in_epoch = step // per_epoch, step % per_epoch
    rows = step_in_epoch * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    where = rows < examples.count
    position = jnp.minimum(epoch * examples.count + rows, order.shape[0] - 1)
    index = examples.offset + jnp.where(where, order[position], 0)
    group = None if examples.group is None else examples.group[index]
    return Batch(examples.x[index], examples.y[index], where, group)


def steps_per_epoch(count: Int[Array, ""], batch_size: int) -> Int[Array, ""]:
    """ceil(n / B), 0 for a client without records.

    Args:
        count: n.
        batch_size: B.

    Example:
        >>> steps_per_epoch(jnp.array([0, 4, 5]), batch_size=4).tolist()
        [0, 1, 2]
    """
    return (count + batch_size - 1) // batch_size
