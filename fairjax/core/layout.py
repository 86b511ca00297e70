"""Layouts: how a cohort is laid on the hardware. All of them compute the same round.

`vmapped` runs all clients side by side: the one step for all tiers on GPU and TPU, and
on CPU for small dense models. `scanned` runs one client after the other in the memory
of one. `chunked` scans over vmapped groups. Any of them may run `sliced`: the cohort's
slots come in runs of one tier, and every run trains dense networks of that tier's size,
all in one program. Any of them may be `sharded` over the devices of a mesh, in one
process or in many. Each layout is a `protocols.Layout`, that is, two functions; the
round knows no more.

Example:
    >>> slots = jnp.arange(3.0)
    >>> vmapped().stack(lambda slot, tier: slot**2, slots).tolist()
    [0.0, 1.0, 4.0]
    >>> sums, reports = scanned().total(lambda slot, tier: (slot, slot > 1), slots)
    >>> float(sums), reports.tolist()
    (3.0, [False, False, True])
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Bool

from fairjax.core import require, trees
from fairjax.core.protocols import Layout, PerClient

FORMS = ("auto", "masked", "sliced")
BATCHINGS = ("auto", "vmap", "scan", "chunk")

CLIENTS = "clients"
"""The mesh axis over which the slots of a cohort are sharded."""

SCAN_ABOVE = 1 << 15
"""Parameters above which "auto" scans on CPU, where XLA has no fast path for batched
products of larger per-client matrices."""

SLICE_ABOVE = 1 << 15
"""Parameters above which "auto" slices. Below, a program per tier costs more to start
than its smaller products save."""


def vmapped(reason: str = "") -> Layout:
    """All clients at once.

    Args:
        reason: why this layout was chosen, `Layout.reason`.
    """

    def stack(per_client: PerClient, slots: Any) -> Any:
        return jax.vmap(lambda slot: per_client(slot, None))(slots)

    def total(per_client: PerClient, slots: Any) -> tuple[Any, Any]:
        addends, reports = stack(per_client, slots)
        return trees.sum_first(addends), reports

    return Layout(stack, total, reason)


def scanned(reason: str = "") -> Layout:
    """One client after the other, in the memory of one; the carry holds the sums.

    Args:
        reason: why this layout was chosen, `Layout.reason`.
    """

    def stack(per_client: PerClient, slots: Any) -> Any:
        return jax.lax.map(lambda slot: per_client(slot, None), slots)

    def total(per_client: PerClient, slots: Any) -> tuple[Any, Any]:
        return _scan_sum(lambda slot: per_client(slot, None), slots)

    return Layout(stack, total, reason)


def chunked(size: int, reason: str = "") -> Layout:
    """Groups of `size` clients one after the other; the last group may be smaller.

    Args:
        size: clients of a group.
        reason: why this layout was chosen, `Layout.reason`.

    Raises:
        InputError: `size` is not above 0.
    """
    require.positive("size", size)

    def stack(per_client: PerClient, slots: Any) -> Any:
        return jax.lax.map(lambda slot: per_client(slot, None), slots, batch_size=size)

    def total(per_client: PerClient, slots: Any) -> tuple[Any, Any]:
        clients = jax.tree.leaves(slots)[0].shape[0]
        head_size = clients - clients % size

        def run_chunk(rows: Any) -> tuple[Any, Any]:
            addends, reports = jax.vmap(lambda slot: per_client(slot, None))(rows)
            return trees.sum_first(addends), reports

        if not head_size:
            return run_chunk(slots)
        head = jax.tree.map(
            lambda leaf: leaf[:head_size].reshape(-1, size, *leaf.shape[1:]), slots
        )
        sums, reports = _scan_sum(run_chunk, head)
        reports = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), reports)
        if head_size == clients:
            return sums, reports
        last_sums, last_reports = run_chunk(trees.pick(slots, slice(head_size, None)))
        return jax.tree.map(jnp.add, sums, last_sums), _concatenate(
            [reports, last_reports]
        )

    return Layout(stack, total, reason)


def _scan_sum(per_row: Callable[[Any], tuple[Any, Any]], rows: Any) -> tuple[Any, Any]:
    """(sum of addends, stacked reports) of `per_row` over the rows, in their order."""
    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(per_row, trees.pick(rows, 0))[0],
    )

    def body(sums: Any, row: Any) -> tuple[Any, Any]:
        addend, report = per_row(row)
        return jax.tree.map(jnp.add, sums, addend), report

    return jax.lax.scan(body, zero, rows)


def sliced(inner: Layout, slots_per_tier: Sequence[int]) -> Layout:
    """Runs every tier's clients as dense networks of that tier's size.

    Args:
        inner: the layout of the clients of one tier.
        slots_per_tier: number of slots of every tier, smallest first. The cohort's
            slots come in this order.
    """
    ends = list(itertools.accumulate(slots_per_tier))
    runs = [
        (tier, slice(end - length, end))
        for tier, (length, end) in enumerate(zip(slots_per_tier, ends, strict=True))
        if length
    ]

    def bind_tier(tier: int, per_client: PerClient) -> PerClient:
        return lambda slot, _: per_client(slot, tier)

    def stack(per_client: PerClient, slots: Any) -> Any:
        return _concatenate(
            [
                inner.stack(bind_tier(tier, per_client), trees.pick(slots, run))
                for tier, run in runs
            ]
        )

    def total(per_client: PerClient, slots: Any) -> tuple[Any, Any]:
        sums, reports = zip(
            *(
                inner.total(bind_tier(tier, per_client), trees.pick(slots, run))
                for tier, run in runs
            ),
            strict=True,
        )
        return jax.tree.map(lambda *leaves: sum(leaves), *sums), _concatenate(reports)

    return Layout(stack, total, inner.reason)


def sharded(inner: Layout) -> Layout:
    """Shards the slots over D devices, each of which runs its shard under `inner`.

    It works only inside `on_devices`, which names the devices.

    K slots are cut into D shards of ceil(K / D). Where the last shards lack slots, they
    repeat the cohort's last slot, and the results of these repetitions are dropped:
    their addends are set to 0 and their reports are cut off.

    Devices exchange their sums and reports, and every device adds the D sums in the
    order of the mesh. So all devices hold the same bits, whichever network and
    algorithm carried them. The order in which a `psum` adds may differ between one
    process and many. The price is memory for D sums.

    Args:
        inner: the layout of the clients of one device.

    Guarantees: bit-equal results in every run on D devices of one kind, in one process
        or in many; equal up to float order across values of D.
    """

    def shard_slots(slots: Any) -> tuple[int, Any, Bool[Array, "slots"]]:
        """(K, this device's slots, which of them are real)."""
        clients = jax.tree.leaves(slots)[0].shape[0]
        shard_size = -(-clients // jax.lax.axis_size(CLIENTS))
        slot = jax.lax.axis_index(CLIENTS) * shard_size + jnp.arange(
            shard_size, dtype=jnp.int32
        )
        shard = trees.pick(slots, jnp.minimum(slot, clients - 1))
        return clients, shard, slot < clients

    def gather_rows(rows: Any, clients: int) -> Any:
        rows = jax.tree.map(
            lambda leaf: jax.lax.all_gather(leaf, CLIENTS, tiled=True), rows
        )
        return trees.pick(rows, slice(clients))

    def stack(per_client: PerClient, slots: Any) -> Any:
        clients, shard, _ = shard_slots(slots)
        return gather_rows(inner.stack(per_client, shard), clients)

    def total(per_client: PerClient, slots: Any) -> tuple[Any, Any]:
        def zero_padding(slot: Any, tier: int | None) -> tuple[Any, Any]:
            slot, valid = slot
            addend, report = per_client(slot, tier)
            zero = jax.tree.map(jnp.zeros_like, addend)
            return trees.select(valid, addend, zero), report

        def add(sums: Any, addend: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, addend), None

        clients, shard, valid = shard_slots(slots)
        sums, reports = inner.total(zero_padding, (shard, valid))
        sums = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, CLIENTS), sums)
        first_sum, later_sums = trees.pick(sums, 0), trees.pick(sums, slice(1, None))
        return jax.lax.scan(add, first_sum, later_sums)[0], gather_rows(
            reports, clients
        )

    return Layout(stack, total, inner.reason)


Program = TypeVar("Program", bound=Callable[..., Any])


def on_devices(program: Program, mesh: Mesh | None) -> Program:
    """A function of arrays that every device of a mesh runs on all of its arguments.

    Arguments and results are whole on every device: the model, the records and every
    client's state. Devices differ only in the slots that a `sharded` layout gives them.
    Without such a layout, all D devices compute the same round.

    Args:
        program: any function around `round.step`, of positional arguments.
        mesh: a mesh with the one axis "clients", see `make_mesh`; None: `program` is
            returned as it is.
    """
    if mesh is None:
        return program
    # One `shard_map` covers the whole round, not the clients alone: a client's function
    # reads the round's arrays, and a `shard_map` must not close over arrays that are
    # typed by the mesh. Cutting arrays is not left to `jit` either: for a CNN on four
    # CPU devices XLA then had every device train every client, scanned or vmapped.
    # `check_vma` is off because results are equal by construction, not by type.
    return jax.shard_map(
        program,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


def make_mesh(devices: int) -> Mesh | None:
    """The mesh of this many devices of all processes; None for a single device.

    Args:
        devices: number of devices; 0: all that JAX sees.

    Raises:
        InputError: `devices` exceeds what JAX sees, or leaves out devices of a run with
            several processes.
    """
    device_count = jax.device_count()
    require.in_range("devices", devices, 0)
    if devices > device_count:
        require.fail("devices", f"at most the {device_count} that there are", devices)
    if jax.process_count() > 1 and devices not in (0, device_count):
        expected = f"0: all {device_count} devices of {jax.process_count()} processes"
        require.fail("devices", expected, devices)
    count = devices or device_count
    if count == 1:
        return None
    return jax.make_mesh(
        (count,),
        (CLIENTS,),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:count],
    )


def _concatenate(pytrees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pytrees)


def choose_batching(
    batching: str,
    *,
    chunk: int,
    backend: str,
    parameters: int,
    convolutional: bool,
    clients: int,
) -> Layout:
    """The layout for a batching by name; "auto" decides by backend and model size.

    Args:
        batching: "auto", "vmap", "scan" or "chunk", one of `BATCHINGS`.
        chunk: clients of a chunk, for "chunk".
        backend: "cpu", "gpu" or "tpu".
        parameters: P of the plain model.
        convolutional: whether it has convolutions.
        clients: K, which a chunk never exceeds.

    Raises:
        InputError: an unknown batching, or a chunk that is not above 0.
    """
    require.one_of("batching", batching, BATCHINGS)
    if batching == "auto":
        if backend == "cpu" and convolutional:
            return scanned("scan: on CPU, convolutions")
        if backend == "cpu" and parameters > SCAN_ABOVE:
            return scanned(
                f"scan: on CPU, {parameters} parameters are above {SCAN_ABOVE}"
            )
        return vmapped(f"vmap: {parameters} parameters on {backend}")
    if batching == "vmap":
        return vmapped("vmap: asked for")
    if batching == "scan":
        return scanned("scan: asked for")
    require.positive("chunk", chunk)
    return chunked(min(chunk, clients), f"chunks of {min(chunk, clients)}: asked for")


def choose_form(form: str, *, obstacle: str | None, parameters: int) -> tuple[str, str]:
    """(form, reason) for a form by name; "auto" decides by model size.

    Args:
        form: "auto", "masked" or "sliced", one of `FORMS`.
        obstacle: why the sub-models cannot be sliced; None if they can.
        parameters: P of the plain model.

    Raises:
        InputError: an unknown form, or "sliced" where there is an obstacle.
    """
    require.one_of("form", form, FORMS)
    if form == "sliced" and obstacle:
        require.fail("form", f"masked: {obstacle}", form)
    if form != "auto":
        return form, f"{form}: asked for"
    if obstacle:
        return "masked", f"masked: {obstacle}"
    if parameters > SLICE_ABOVE:
        return "sliced", f"sliced: {parameters} parameters are above {SLICE_ABOVE}"
    return "masked", f"masked: {parameters} parameters are not above {SLICE_ABOVE}"
