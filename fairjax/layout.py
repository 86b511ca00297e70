"""How a cohort is laid on the hardware; what is computed is the same under all of them.

`vmap` runs all clients side by side: the one step for all tiers on GPU and TPU, and on
CPU for small dense models. `scan` runs them one after the other in the memory of one.
`chunk` scans over vmapped groups. Any of them may run `sliced`: the cohort's slots come
in runs of one tier, and every run trains dense networks of that tier's size, all in one
program. Each is a `types.Layout`, that is, two functions; the round knows no more.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fairjax import checks, trees
from fairjax.types import Layout, One

FORMS = ("auto", "masked", "sliced")
BATCHINGS = ("auto", "vmap", "scan", "chunk")

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
    checks.positive("execution.chunk", size)

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
    checks.one_of("execution.batching", batching, BATCHINGS)
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
    checks.one_of("execution.form", asked, FORMS)
    if asked == "sliced" and obstacle:
        checks.fail("execution.form", f"masked: {obstacle}", asked)
    if asked != "auto":
        return asked, f"{asked}: asked for"
    if obstacle:
        return "masked", f"masked: {obstacle}"
    if parameters > SLICE_ABOVE:
        return "sliced", f"sliced: {parameters} parameters are above {SLICE_ABOVE}"
    return "masked", f"masked: {parameters} parameters are not above {SLICE_ABOVE}"
