"""The round of a run as one compiled program."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.core import layout, round
from fairjax.core.protocols import Layout
from fairjax.core.spec import RoundInfo, Spec
from fairjax.core.types import Cohort, FederatedData, RunState
from fairjax.data import feed, pixels
from fairjax.experiment.config import build
from fairjax.experiment.io import distributed

Step = Callable[[RunState], tuple[RunState, tuple[Cohort, RoundInfo]]]
"""One round of a run: the next state, and what is reported about the round."""
Compile = Callable[[build.Run, RunState], tuple[Step, jax.stages.Compiled]]
"""(run, its state) -> (step, the program behind it)."""


def round_step(run: build.Run, spec: Spec) -> Callable[..., Any]:
    """Returns (state, records, validation records or None) -> the output of a `Step`.

    Args:
        run: gives the cohorts and the layout.
        spec: of the round; `run.spec`, or one with traced values (`vmapped`).
    """

    def step(
        state: RunState, train: FederatedData, validation: FederatedData | None
    ) -> tuple[RunState, tuple[Cohort, RoundInfo]]:
        cohort = run.draw(state.key, state.round)
        state, info = round.step(
            state, train, cohort, spec=spec, layout=run.layout, validation=validation
        )
        return state, (cohort, info)

    return step


def compile_round(run: build.Run, state: RunState) -> tuple[Step, jax.stages.Compiled]:
    """Compiles the round of a run once for states that are shaped like this one.

    Records are arguments of the program: a compiler copies constants. Every device has
    all records, as it has the whole state, or only those of the round's cohort
    (`data.feed`). If the program needs more memory than `run.memory` allows, it is
    compiled again with half the clients side by side until it fits.

    Returns:
        (step, the program behind it).
    """
    input_fn, validation = _input_fn(run, state), None
    if "validation" in run.spec.rule.reads:
        validation = distributed.replicate(run.splits.val, run.mesh)
    arguments = input_fn(state), validation

    def compile_program(client_layout: Layout) -> jax.stages.Compiled:
        step = round_step(dataclasses.replace(run, layout=client_layout), run.spec)
        jitted_step = jax.jit(layout.on_devices(step, run.mesh))
        return jitted_step.lower(state, *arguments).compile()

    program, size = compile_program(run.layout), run.cohort
    while (
        run.chunked_layout is not None
        and size > 1
        and _peak_memory_mib(program) > run.memory
    ):
        size = -(-size // 2)
        print(f"execution.batching = chunks of {size}: {run.memory:.3g} MiB allowed")
        program = compile_program(run.chunked_layout(size))
    # A process that compiles faster waits here for the others: see `distributed.join`.
    distributed.barrier("compiled")

    return lambda state: program(state, input_fn(state), validation), program


def _peak_memory_mib(program: jax.stages.Compiled) -> float:
    """Memory of one device while a program runs, in MiB; 0 if the backend is silent."""
    memory = program.memory_analysis()
    kinds = ("argument", "output", "temp")
    sizes = (getattr(memory, f"{kind}_size_in_bytes", 0) for kind in kinds)
    return sum(sizes) / 2**20


def _input_fn(run: build.Run, state: RunState) -> Callable[[RunState], FederatedData]:
    """Returns a state -> the records of its next round, on the run's devices."""
    train = pixels.to_uint8(run.pixels, run.splits.train)
    if run.records == "device":
        # The same for every round: nothing waits for the state to be computed.
        device_data = distributed.replicate(train, run.mesh)
        return lambda state: device_data
    poisson, slots = run.guarantee.draw, run.cohort
    if poisson is not None:
        slots = max(poisson.slots, sum(poisson.by_tier))
    length = feed.max_records(np.asarray(train.count), slots)
    key, draw = distributed.local_copy(state.key), jax.jit(run.draw)

    def records(round_index: int) -> FederatedData:
        cohort = draw(key, jnp.asarray(round_index, jnp.int32))
        return distributed.replicate(
            feed.cohort_records(train, cohort, length), run.mesh
        )

    prefetcher = feed.Prefetcher(
        records, run.guarantee.affordable_rounds(run.config.rounds)
    )
    return lambda state: prefetcher(int(distributed.local_copy(state.round)))
