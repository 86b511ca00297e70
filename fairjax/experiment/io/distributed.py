"""Several processes as one machine, by `jax.distributed`.

Every process builds the same run and enters its every round, whose mesh spans the
devices of all: each computes the cohort's slots that its devices are dealt. The first
process alone knows the folder of the run: it restores, measures, saves, writes and
prints. What it begins the rounds with it sends to the others, so they need no disk of
its. They do need the data, all of it, as any hospital may be drawn for any slot, and
what `model.init_from` names.

Of one process alone everything here is trivial.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fairjax.core import require, trees


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Makes this process one of many; before anything else that JAX does.

    Args:
        coordinator: host:port of the first process; None: JAX finds out, under SLURM,
            on TPU pods and under Open MPI.
        processes: how many there are.
        process: which one this is, from 0.

    Raises:
        InputError: nothing says who the others are, or they do not come.
    """
    # JAX would take SIGTERM for itself, and agree on a round by what it is asked: orbax
    # asks too, of other rounds. Here `preemption` hears it, and `some` agrees.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise require.InputError(
            "--distributed: expected SLURM, a TPU pod or --coordinator, --processes "
            f"and --process; got {error}"
        ) from error
    # Connections between CPUs are refused to those who come half a minute late: all
    # make theirs before they load data, which may take some longer than others.
    meet("joined")


def meet(where: str) -> None:
    """Returns when all processes are there."""
    multihost_utils.sync_global_devices(where)


def first() -> bool:
    """Whether this is the process that has the folder of the run."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A passage that all processes make, or none; all must come to it.

    Raises:
        InputError: this one could go on, but another one cannot.
    """
    stopped = True
    try:
        yield
        stopped = False
    finally:
        others = multihost_utils.process_allgather(np.asarray(stopped))
    if np.any(others):
        one = f"process {int(np.argmax(others))}, which cannot and says why"
        require.fail("--distributed", "processes that can all go on", one)


def alike(where: str, value: str) -> None:
    """Refuses processes of which one has another value.

    Raises:
        InputError: in all of them.
    """
    mine = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    if np.any(multihost_utils.process_allgather(mine) != mine):
        require.fail(where, "the same in all processes", "others in some")


def some(told: bool) -> bool:
    """Whether one of the processes says so; all ask, and all are told the same."""
    if jax.process_count() == 1:
        return told
    return bool(np.any(multihost_utils.process_allgather(np.asarray(told))))


def sent(tree: PyTree) -> PyTree:
    """The first process's arrays in all processes, bit for bit; shapes are alike."""
    if jax.process_count() == 1:
        return tree
    mine = jax.tree.map(np.asarray, trees.raw(tree))
    # As bytes: the broadcast adds zeros, in which -0.0 would lose its sign.
    as_bytes = jax.tree.map(lambda leaf: np.frombuffer(leaf.tobytes(), np.uint8), mine)
    theirs = jax.tree.map(
        lambda got, leaf: got.view(leaf.dtype).reshape(leaf.shape),
        multihost_utils.broadcast_one_to_all(as_bytes),
        mine,
    )
    return trees.typed(theirs, tree)


def spread(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays, alike in all processes, whole on every device of a mesh.

    None: on one device.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    whole = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(whole, np.asarray(leaf)),
        trees.raw(tree),
    )
    return trees.typed(placed, tree)


def here(tree: PyTree) -> PyTree:
    """This process's copy of arrays that are whole on every device."""

    def one(leaf: jax.Array) -> jax.Array:
        of_many = len(leaf.sharding.device_set) > 1
        return leaf.addressable_data(0) if of_many else leaf

    return jax.tree.map(one, tree)
