"""How a cohort is laid on the hardware; what is computed is the same under all of them.

`vmap` runs all clients side by side: the one step for all tiers on GPU and TPU, and on
CPU for small dense models. `scan` runs them one after the other in the memory of one.
`chunk` scans over vmapped groups. Any of them may run `sliced`: the cohort's slots come
in runs of one tier, and every run trains dense networks of that tier's size, all in one
program. Any of them may be `sharded`: the slots are dealt to the devices of a mesh, of
one process or of many. Each is a `types.Layout`, that is, two functions; the round
knows no more.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Bool

from fairjax.core import require, trees
from fairjax.core.types import Layout, One

FORMS = ("auto", "masked", "sliced")
BATCHINGS = ("auto", "vmap", "scan", "chunk")

CLIENTS = "clients"
"""The mesh axis over which the slots of a cohort are dealt."""

SCAN_ABOVE = 1 << 15
"""Parameters above which "auto" scans on CPU: batched products of larger per-client
matrices fall off XLA's fast path there."""

SLICE_ABOVE = 1 << 15
"""Parameters above which "auto" slices: below, a program per tier costs more to start
than its smaller products save."""


def vmapped(reason: str = "") -> Layout:
    """All clients at once."""

    def stack(one: One, slots: Any) -> Any:
        return jax.vmap(lambda slot: one(slot, None))(slots)

    def total(one: One, slots: Any) -> tuple[Any, Any]:
        addends, reports = stack(one, slots)
        return trees.sum_first(addends), reports

    return Layout(stack, total, reason)


def scanned(reason: str = "") -> Layout:
    """One client after the other: the sums live in the carry, memory is that of one."""

    def stack(one: One, slots: Any) -> Any:
        return jax.lax.map(lambda slot: one(slot, None), slots)

    def total(one: One, slots: Any) -> tuple[Any, Any]:
        return _added(lambda slot: one(slot, None), slots)

    return Layout(stack, total, reason)


def chunked(size: int, reason: str = "") -> Layout:
    """Groups of `size` clients one after the other; the last group may be smaller."""
    require.positive("execution.chunk", size)

    def stack(one: One, slots: Any) -> Any:
        return jax.lax.map(lambda slot: one(slot, None), slots, batch_size=size)

    def total(one: One, slots: Any) -> tuple[Any, Any]:
        clients = jax.tree.leaves(slots)[0].shape[0]
        whole = clients - clients % size

        def group(rows: Any) -> tuple[Any, Any]:
            addends, reports = jax.vmap(lambda slot: one(slot, None))(rows)
            return trees.sum_first(addends), reports

        if not whole:
            return group(slots)
        head = jax.tree.map(
            lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), slots
        )
        sums, reports = _added(group, head)
        reports = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), reports)
        if whole == clients:
            return sums, reports
        last, rest = group(trees.pick(slots, slice(whole, None)))
        return jax.tree.map(jnp.add, sums, last), _joined([reports, rest])

    return Layout(stack, total, reason)


def _added(one: Callable[[Any], tuple[Any, Any]], rows: Any) -> tuple[Any, Any]:
    """(sum of the addends, stacked reports) of `one` over the rows, in their order."""
    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(one, trees.pick(rows, 0))[0],
    )

    def body(sums: Any, row: Any) -> tuple[Any, Any]:
        addend, report = one(row)
        return jax.tree.map(jnp.add, sums, addend), report

    return jax.lax.scan(body, zero, rows)


def sliced(inner: Layout, slots: Sequence[int]) -> Layout:
    """Runs every tier's clients as dense networks of that tier's size.

    Args:
        inner: how the clients of one tier are laid.
        slots: slots of every tier, smallest first; the cohort's slots come in this
            order (`data.federation.sample`).
    """
    ends = list(itertools.accumulate(slots))
    runs = [
        (tier, slice(end - length, end))
        for tier, (length, end) in enumerate(zip(slots, ends, strict=True))
        if length
    ]

    def of(tier: int, one: One) -> One:
        return lambda slot, _: one(slot, tier)

    def stack(one: One, slots: Any) -> Any:
        return _joined(
            [inner.stack(of(tier, one), trees.pick(slots, run)) for tier, run in runs]
        )

    def total(one: One, slots: Any) -> tuple[Any, Any]:
        sums, reports = zip(
            *(inner.total(of(tier, one), trees.pick(slots, run)) for tier, run in runs),
            strict=True,
        )
        return jax.tree.map(lambda *leaves: sum(leaves), *sums), _joined(reports)

    return Layout(stack, total, inner.reason)


def sharded(inner: Layout) -> Layout:
    """Deals the slots to D devices, each of which lays its own as `inner`.

    It works inside of `on_devices` alone, which says which devices.

    K slots are cut into D runs of ceil(K / D). Slots that the last ones lack repeat the
    cohort's last slot, and what comes of them is dropped: their addends are 0, their
    reports cut off.

    Devices send each other their sums and reports, and every device adds the D sums up
    in the order of the mesh. So all of them hold the same bits, whatever network and
    algorithm carried these; a `psum` adds in an order of its own, which may be another
    one between processes than inside of one. The price is room for D sums.

    Guarantees: the same bits in every run on D devices of a kind, in one process or in
        many; across D those of float order.
    """

    def dealt(slots: Any) -> tuple[int, Any, Bool[Array, "slots"]]:
        """(K, this device's slots, which of them are real)."""
        clients = jax.tree.leaves(slots)[0].shape[0]
        each = -(-clients // jax.lax.axis_size(CLIENTS))
        slot = jax.lax.axis_index(CLIENTS) * each + jnp.arange(each, dtype=jnp.int32)
        mine = trees.pick(slots, jnp.minimum(slot, clients - 1))
        return clients, mine, slot < clients

    def gathered(rows: Any, clients: int) -> Any:
        rows = jax.tree.map(
            lambda leaf: jax.lax.all_gather(leaf, CLIENTS, tiled=True), rows
        )
        return trees.pick(rows, slice(clients))

    def stack(one: One, slots: Any) -> Any:
        clients, mine, _ = dealt(slots)
        return gathered(inner.stack(one, mine), clients)

    def total(one: One, slots: Any) -> tuple[Any, Any]:
        def counted(slot: Any, tier: int | None) -> tuple[Any, Any]:
            slot, real = slot
            addend, report = one(slot, tier)
            zero = jax.tree.map(jnp.zeros_like, addend)
            return trees.select(real, addend, zero), report

        def add(sums: Any, other: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, other), None

        clients, mine, real = dealt(slots)
        sums, reports = inner.total(counted, (mine, real))
        sums = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, CLIENTS), sums)
        first, others = trees.pick(sums, 0), trees.pick(sums, slice(1, None))
        return jax.lax.scan(add, first, others)[0], gathered(reports, clients)

    return Layout(stack, total, inner.reason)


Program = TypeVar("Program", bound=Callable[..., Any])


def on_devices(program: Program, mesh: Mesh | None) -> Program:
    """A function of arrays that every device of a mesh runs on all of its arguments.

    Its arguments and results are whole on every device: the model, the records, every
    hospital's state. Only what a `sharded` layout deals inside differs between them, so
    rounds that do not shard are computed D times over, alike.

    Args:
        program: any function around `round.step`, of positional arguments.
        mesh: of one axis, "clients", see `mesh_of`; None: the function as it is.
    """
    if mesh is None:
        return program
    # Once for the whole round, and not around the clients alone: a client's function
    # reads the round's arrays, and what a `shard_map` closes over must not be typed by
    # the mesh. Nor is it left to `jit` to cut arrays: of a CNN on four CPU devices XLA
    # then had every device train every client, whether scanned or vmapped. That results
    # are alike on all devices is by construction, not by type.
    return jax.shard_map(
        program,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


def mesh_of(devices: int) -> Mesh | None:
    """The mesh of so many devices, of all processes; None: one device, without a mesh.

    Args:
        devices: 0: all there are.

    Raises:
        InputError: more than there are, or, of several processes, not all.
    """
    there = jax.device_count()
    require.in_range("execution.devices", devices, 0)
    if devices > there:
        require.fail(
            "execution.devices", f"at most the {there} that there are", devices
        )
    if jax.process_count() > 1 and devices not in (0, there):
        what = f"0: all {there} devices of {jax.process_count()} processes"
        require.fail("execution.devices", what, devices)
    count = devices or there
    if count == 1:
        return None
    return jax.make_mesh(
        (count,),
        (CLIENTS,),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:count],
    )


def _joined(parts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def choose(
    batching: str,
    *,
    chunk: int,
    backend: str,
    parameters: int,
    convolutional: bool,
    clients: int,
) -> Layout:
    """The batching a config asks for; "auto" decides by backend and model size.

    Args:
        batching: "auto", "vmap", "scan" or "chunk".
        chunk: clients of a chunk, for "chunk".
        backend: "cpu", "gpu" or "tpu".
        parameters: P of the plain model.
        convolutional: whether it has convolutions.
        clients: K, which a chunk never exceeds.
    """
    require.one_of("execution.batching", batching, BATCHINGS)
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
    return chunked(min(chunk, clients), f"chunks of {min(chunk, clients)}: asked for")


def form(asked: str, *, obstacle: str | None, parameters: int) -> tuple[str, str]:
    """The form a config asks for as (form, reason); "auto" decides by model size.

    Args:
        asked: "auto", "masked" or "sliced".
        obstacle: why the sub-models cannot be sliced; None if they can.
        parameters: P of the plain model.

    Raises:
        InputError: "sliced" is asked for and there is an obstacle.
    """
    require.one_of("execution.form", asked, FORMS)
    if asked == "sliced" and obstacle:
        require.fail("execution.form", f"masked: {obstacle}", asked)
    if asked != "auto":
        return asked, f"{asked}: asked for"
    if obstacle:
        return "masked", f"masked: {obstacle}"
    if parameters > SLICE_ABOVE:
        return "sliced", f"sliced: {parameters} parameters are above {SLICE_ABOVE}"
    return "masked", f"masked: {parameters} parameters are not above {SLICE_ABOVE}"
