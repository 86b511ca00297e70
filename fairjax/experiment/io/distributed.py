"""Several processes that work as one machine, by `jax.distributed`.

Every process builds the same run and takes part in every round, whose mesh spans the
devices of all processes: each process computes the cohort's slots on its own devices.
Only process 0, "the first", uses the folder of the run: it restores, evaluates, saves,
writes and prints. It broadcasts the initial state, so the other processes need no
access to its disk. They need all the data, since any client may be drawn for any slot,
and the run that `model.init_from` names.

With a single process all functions here are trivial.
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
    """Makes this process one of several; must come before any other use of JAX.

    Args:
        coordinator: host:port of the first process; None: JAX detects it under SLURM,
            on TPU pods and under Open MPI.
        processes: their number.
        process: the number of this process, from 0.

    Raises:
        InputError: the other processes are unknown, or they do not connect.
    """
    # JAX's service would handle SIGTERM itself and agree on a round by the rounds that
    # it is asked about; orbax asks it about others. `preemption` and `any_process`
    # replace it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise require.InputError(
            "--distributed: expected SLURM, a TPU pod or --coordinator, --processes "
            f"and --process; got {error}"
        ) from error
    # CPUs refuse connections that come half a minute late. All processes connect here,
    # before they load data, which may take one of them longer.
    barrier("joined")


def barrier(where: str) -> None:
    """Returns when all processes have called it with the same name."""
    multihost_utils.sync_global_devices(where)


def first() -> bool:
    """Whether this is process 0, which uses the folder of the run."""
    return jax.process_index() == 0


@contextlib.contextmanager
def collective_section() -> Iterator[None]:
    """A section that all processes complete or none; all processes must enter it.

    Raises:
        InputError: this process has completed it, but another one has failed.
    """
    has_failed = True
    try:
        yield
        has_failed = False
    finally:
        failures = multihost_utils.process_allgather(np.asarray(has_failed))
    if np.any(failures):
        failed_process = (
            f"process {int(np.argmax(failures))}, which cannot and says why"
        )
        require.fail("--distributed", "processes that can all go on", failed_process)


def require_equal(where: str, value: str) -> None:
    """Refuses processes with different values.

    Args:
        where: names the value in the error.
        value: of this process.

    Raises:
        InputError: the values differ; all processes raise it.
    """
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    if np.any(multihost_utils.process_allgather(digest) != digest):
        require.fail(where, "the same in all processes", "others in some")


def any_process(flag: bool) -> bool:
    """Whether any process has the flag set; all processes must call this."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def broadcast(tree: PyTree) -> PyTree:
    """The first process's arrays, bit for bit; all processes pass the same shapes."""
    if jax.process_count() == 1:
        return tree
    host_tree = jax.tree.map(np.asarray, trees.unwrap_keys(tree))
    # As bytes: the broadcast adds zeros, and -0.0 would lose its sign.
    as_bytes = jax.tree.map(
        lambda leaf: np.frombuffer(leaf.tobytes(), np.uint8), host_tree
    )
    broadcast_tree = jax.tree.map(
        lambda buffer, leaf: buffer.view(leaf.dtype).reshape(leaf.shape),
        multihost_utils.broadcast_one_to_all(as_bytes),
        host_tree,
    )
    return trees.wrap_keys(broadcast_tree, tree)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts arrays whole on every device of a mesh.

    Args:
        tree: arrays, equal in all processes.
        mesh: None: one device.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    sharding = NamedSharding(mesh, PartitionSpec())
    global_tree = jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)),
        trees.unwrap_keys(tree),
    )
    return trees.wrap_keys(global_tree, tree)


def local_copy(tree: PyTree) -> PyTree:
    """This process's copy of arrays that every device has whole."""

    def per_leaf(leaf: jax.Array) -> jax.Array:
        is_replicated = len(leaf.sharding.device_set) > 1
        return leaf.addressable_data(0) if is_replicated else leaf

    return jax.tree.map(per_leaf, tree)
