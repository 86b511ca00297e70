"""How a cohort is laid on the hardware; what is computed is the same under all of them.

`vmap` runs all clients side by side: the one step for all tiers on GPU and TPU, and on
CPU for small dense models. `scan` runs them one after the other in the memory of one.
`chunk` scans over vmapped groups. Each is a `types.Layout`, that is, two functions; the
round knows no more.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fairjax import checks, trees
from fairjax.types import Layout

BATCHINGS = ("auto", "vmap", "scan", "chunk")

SCAN_ABOVE = 1 << 15
"""Parameters above which "auto" scans on CPU: batched products of larger per-client
matrices fall off XLA's fast path there."""


def vmapped(reason: str = "") -> Layout:
    """All clients at once."""

    def stack(one: Callable[[Any], Any], slots: Any) -> Any:
        return jax.vmap(one)(slots)

    def total(one: Callable[[Any], tuple[Any, Any]], slots: Any) -> tuple[Any, Any]:
        addends, reports = jax.vmap(one)(slots)
        return trees.sum_first(addends), reports

    return Layout(stack, total, reason)


def chunked(size: int, reason: str = "") -> Layout:
    """Groups of `size` clients one after the other; the last group may be smaller."""
    checks.positive("execution.chunk", size)

    def stack(one: Callable[[Any], Any], slots: Any) -> Any:
        return jax.lax.map(one, slots, batch_size=size)

    def total(one: Callable[[Any], tuple[Any, Any]], slots: Any) -> tuple[Any, Any]:
        clients = jax.tree.leaves(slots)[0].shape[0]
        whole = clients - clients % size
        group = lambda rows: jax.vmap(one)(rows)  # noqa: E731
        head = jax.tree.map(
            lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), slots
        )
        zero = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(one, trees.pick(slots, 0))[0],
        )

        def body(sums: Any, rows: Any) -> tuple[Any, Any]:
            addends, reports = group(rows)
            return jax.tree.map(jnp.add, sums, trees.sum_first(addends)), reports

        sums, reports = jax.lax.scan(body, zero, head)
        reports = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), reports)
        if whole == clients:
            return sums, reports
        addends, rest = group(trees.pick(slots, slice(whole, None)))
        sums = jax.tree.map(jnp.add, sums, trees.sum_first(addends))
        join = functools.partial(jnp.concatenate, axis=0)
        return sums, jax.tree.map(lambda a, b: join([a, b]), reports, rest)

    return Layout(stack, total, reason)


def scanned(reason: str = "") -> Layout:
    """One client after the other: the sums live in the carry, memory is that of one."""
    return chunked(1, reason)


def choose(
    batching: str, *, chunk: int, backend: str, parameters: int, clients: int
) -> Layout:
    """The layout a config asks for; "auto" decides by backend and model size.

    Args:
        batching: "auto", "vmap", "scan" or "chunk".
        chunk: clients of a chunk, for "chunk".
        backend: "cpu", "gpu" or "tpu".
        parameters: P of the plain model.
        clients: K, which a chunk never exceeds.
    """
    checks.one_of("execution.batching", batching, BATCHINGS)
    if batching == "auto":
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
