"""Several runs, vmapped in one program, that differ in seeds and in scalar settings.

Every run is `train` in its own thread, with its own folder, logs and checkpoints.
Rounds are shared: the states of all runs are stacked, one vmapped program advances them
by a round, and they are unstacked. A run that has ended delays no other, and runs may
go on from different rounds.
"""

import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fairjax.core import require, trees
from fairjax.core.types import RunState
from fairjax.data import pixels
from fairjax.experiment.compilation import Compile, Step, round_step
from fairjax.experiment.config import build, conversion, renames
from fairjax.experiment.config.schema import Config
from fairjax.experiment.io import distributed, preemption
from fairjax.experiment.train import Result, train

VARIED = ("seed", *build.VALUES)
"""Config fields in which the runs of a program may differ."""


def program_key(config: ConfigDict) -> str:
    """All fields but `VARIED` as text: runs with the same key can share a program."""
    values = _flat(config)
    return repr([(path, values[path]) for path in values if path not in VARIED])


def _flat(config: ConfigDict | Config) -> dict[str, Any]:
    """{dotted path: value} of all fields."""
    return renames.flatten(conversion.to_plain(config))


def train_all(
    configs: Sequence[ConfigDict], workdirs: Sequence[pathlib.Path]
) -> list[Result | BaseException]:
    """Trains runs side by side in one program.

    A run that fails stops no other.

    Args:
        configs: equal but for `VARIED`.
        workdirs: one for every config.

    Returns:
        For every config its result, or the exception that the run raised.

    Raises:
        InputError: one program cannot train these configs; nothing has been written.
        Stopped: a signal came, and all runs have saved the round in hand.
    """
    runs = VmappedRuns(configs)
    results: list[Any] = [None] * len(configs)

    def train_run(run_index: int) -> None:
        with runs.turn:
            try:
                results[run_index] = train(
                    configs[run_index],
                    workdirs[run_index],
                    compile_fn=runs.compile_round(run_index),
                )
            except BaseException as error:
                results[run_index] = error
            finally:
                runs.leave(run_index)

    threads = [
        threading.Thread(target=train_run, args=(run_index,), name=f"run {run_index}")
        for run_index in range(len(configs))
    ]
    # A run defers signals during its rounds, but not before and after them.
    with preemption.listening():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results


class VmappedRuns:
    """The program of several runs, and the place where their threads wait for a round.

    Args:
        configs: equal but for `VARIED`.

    Raises:
        InputError: they differ in other fields, in seeds without
            `data.partition.seed`, or in noise that other releases of a round share; or
            they ask for several devices or for records on the host.
    """

    def __init__(self, configs: Sequence[ConfigDict]):
        self._run = run = build.run(configs[0], vmapped=True)
        values = _values(configs)
        _check(configs, run, values)
        records = distributed.replicate(
            pixels.to_uint8(run.pixels, run.splits.train), None
        )
        validation = None
        if "validation" in run.spec.rule.reads:
            validation = distributed.replicate(run.splits.val, None)
        self.arguments = values, records, validation
        """Arguments of the program beside the states of the runs."""
        self.turn = threading.Condition()
        """The lock of the one run that computes outside rounds; all other runs wait for
        it or for a round."""
        self._number = len(configs)
        self._open = set(range(self._number))
        self._arrived: dict[int, RunState] = {}
        self._done: dict[int, Any] = {}
        self._handed: dict[int, RunState] = {}
        """The state that every run received last: a slice of `_states`."""
        self._states: Any = None
        self._program: jax.stages.Compiled | None = None

    def compile_round(self, run_index: int) -> Compile:
        """`compilation.compile_round` for the run `run_index`."""

        def begin(run: build.Run, state: RunState) -> tuple[Step, jax.stages.Compiled]:
            if self._program is None:
                self._program = self.program(state)
            return lambda state: self._submit_state(run_index, state), self._program

        return begin

    def leave(self, run_index: int) -> None:
        """Ends the rounds of a run: the others no longer wait for it."""
        self._open.discard(run_index)
        self._run_when_ready()

    def program(self, state: RunState) -> jax.stages.Compiled:
        """Compiles (stacked states, *arguments) -> (next ones, [output of a `Step`]).

        Args:
            state: of one run; the states of all runs have its shapes.
        """
        run, number = self._run, self._number

        def per_run(state: RunState, values: Mapping[str, Any], train: Any, val: Any):
            return round_step(run, run.with_values(values))(state, train, val)

        def rounds(states: RunState, values: Mapping[str, Any], train: Any, val: Any):
            outputs = jax.vmap(per_run, (0, 0, None, None))(states, values, train, val)
            # Unstacked in the program: one call instead of one for every leaf.
            return outputs[0], [
                trees.pick(outputs, run_index) for run_index in range(number)
            ]

        return (
            jax.jit(rounds).lower(stacked([state] * number), *self.arguments).compile()
        )

    def _submit_state(self, run_index: int, state: RunState) -> Any:
        self._arrived[run_index] = state
        self._run_when_ready()
        self.turn.wait_for(lambda: run_index in self._done)
        result = self._done.pop(run_index)
        if isinstance(result, BaseException):
            raise result
        return result

    def _run_when_ready(self) -> None:
        """Computes the round if all open runs have arrived."""
        if not self._open or not self._open <= self._arrived.keys():
            return
        states_by_run, self._arrived = self._arrived, {}
        try:
            self._done |= self._round(states_by_run)
        except BaseException as error:
            self._done |= dict.fromkeys(states_by_run, error)
        self.turn.notify_all()

    def _round(self, states_by_run: Mapping[int, RunState]) -> dict[int, Any]:
        states, run_indices = self._states, range(self._number)
        if any(
            states_by_run.get(run_index) is not self._handed.get(run_index)
            for run_index in run_indices
        ):
            filler = next(iter(states_by_run.values()))
            run_states = [
                states_by_run.get(run_index, filler) for run_index in run_indices
            ]
            states = stacked(run_states)
        assert self._program is not None
        self._states, outputs = self._program(states, *self.arguments)
        self._handed = {run_index: outputs[run_index][0] for run_index in states_by_run}
        return {run_index: tuple(outputs[run_index]) for run_index in states_by_run}


def stacked(states: Sequence[RunState]) -> RunState:
    """Stacks the states of R runs, [R, ...] a leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _values(configs: Sequence[ConfigDict]) -> dict[str, jax.Array]:
    """The fields of `build.VALUES` that differ, and always the first one, [R] each."""
    field_values = {
        path: [_flat(config)[path] for config in configs] for path in build.VALUES
    }
    return {
        path: jnp.asarray(values, jnp.float32)
        for path, values in field_values.items()
        if path == build.VALUES[0] or len(set(values)) > 1
    }


def _check(
    configs: Sequence[ConfigDict], run: build.Run, values: Mapping[str, Any]
) -> None:
    first, *others = [conversion.to_typed(config) for config in configs]
    for config in others:
        differences = conversion.differences(
            conversion.to_plain(first), conversion.to_plain(config)
        )
        for path in differences:
            if path not in VARIED:
                requirement = (
                    f"the same in all runs of a program, but for {', '.join(VARIED)}"
                )
                require.fail(path, requirement, _flat(config)[path])
        seed = config.data.partition.seed
        if "seed" in differences and seed is None:
            requirement = "a number, so that runs of other seeds share their records"
            require.fail("data.partition.seed", requirement, None)
    noise = "privacy.noise_multiplier"
    if noise in values and run.guarantee.with_noise is None:
        requirement = (
            "the same in all runs where more than changes is noised, or summed in "
        )
        require.fail(noise, requirement + "secret", first.privacy.noise_multiplier)
    if run.mesh is not None:
        devices = first.execution.devices
        require.fail("execution.devices", "1 for runs that share a program", devices)
    if run.records == "host":
        requirement = "device for runs that share a program"
        require.fail("execution.records", requirement, first.execution.records)
