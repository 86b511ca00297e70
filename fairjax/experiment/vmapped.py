"""Several runs as lanes of one program: seeds, and numbers that no shape rests on.

Every run is `train` in a thread of its own, with its folder, logs and checkpoints as
ever. Only its rounds are not its own: the lanes' states meet, one program that is
vmapped over them computes a round of all, and they part again. A lane that has ended,
or that goes on from another round than the others, holds nobody up.
"""

import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fairjax.core import require, trees
from fairjax.core.types import RunState
from fairjax.data import pixels
from fairjax.experiment.config import build, validate
from fairjax.experiment.io import distributed, preemption
from fairjax.experiment.train import Result, Step, one_round, train

VARIED = ("seed", *build.VALUES)
"""Fields in which the lanes of a program may differ."""


def key(config: ConfigDict) -> str:
    """What lanes of one program have in common, as text."""
    plain = validate.plain(config)
    others = [path for path in validate.flat(plain) if path not in VARIED]
    return repr([(path, validate.flat(plain)[path]) for path in others])


def train_all(
    configs: Sequence[ConfigDict], workdirs: Sequence[pathlib.Path]
) -> list[Result | BaseException]:
    """Trains runs side by side in one program; what each came to, in order.

    One that fails stops no other, and its exception stands in its place.

    Args:
        configs: alike but for `VARIED`.
        workdirs: one each.

    Raises:
        InputError: configs that one program cannot train; nothing has been written.
        Stopped: a signal came, and all have saved the round in hand.
    """
    lanes = Lanes(configs)
    ended: list[Any] = [None] * len(configs)

    def one(lane: int) -> None:
        with lanes.turn:
            try:
                ended[lane] = train(
                    configs[lane], workdirs[lane], compiling=lanes.compiled(lane)
                )
            except BaseException as error:
                ended[lane] = error
            finally:
                lanes.leave(lane)

    threads = [
        threading.Thread(target=one, args=(lane,), name=f"lane {lane}")
        for lane in range(len(configs))
    ]
    # A lane's rounds are deferred, what it does before and after them is not.
    with preemption.listening():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return ended


class Lanes:
    """The program of several runs, and where their states meet.

    Args:
        configs: alike but for `VARIED`.

    Raises:
        InputError: they differ in more, in seeds without `data.partition.seed`, or in
            noise that other releases of a round share; or one asks for several devices
            or for records on the host.
    """

    def __init__(self, configs: Sequence[ConfigDict]):
        self._run = run = build.build(configs[0], vmapped=True)
        values = _values(configs)
        _check(configs, run, values)
        records = distributed.spread(pixels.packed(run.pixels, run.splits.train), None)
        validation = None
        if "validation" in run.spec.rule.needs:
            validation = distributed.spread(run.splits.val, None)
        self.arguments = values, records, validation
        """What the program is given beside the lanes' states."""
        self.turn = threading.Condition()
        """Held by the one lane that computes something of its own; the others wait for
        it, or for a round."""
        self._number = len(configs)
        self._open = set(range(self._number))
        self._arrived: dict[int, RunState] = {}
        self._done: dict[int, Any] = {}
        self._handed: dict[int, RunState] = {}
        """What every lane was given last: parts of `_states`."""
        self._states: Any = None
        self._program: jax.stages.Compiled | None = None

    def compiled(
        self, lane: int
    ) -> Callable[[build.Run, RunState], tuple[Step, jax.stages.Compiled]]:
        """`train.compiled` for a lane."""

        def begin(run: build.Run, state: RunState) -> tuple[Step, jax.stages.Compiled]:
            if self._program is None:
                self._program = self.program(state)
            return lambda state: self._meet(lane, state), self._program

        return begin

    def leave(self, lane: int) -> None:
        """The lane needs no more rounds: the others do not wait for it."""
        self._open.discard(lane)
        self._go()

    def program(self, state: RunState) -> jax.stages.Compiled:
        """(lanes' states, *arguments) -> (their next ones, [what a `Step` gives]).

        Args:
            state: of a lane; all are shaped like it.
        """
        run, number = self._run, self._number

        def one(state: RunState, values: Mapping[str, Any], train: Any, val: Any):
            return one_round(run, run.with_values(values))(state, train, val)

        def rounds(states: RunState, values: Mapping[str, Any], train: Any, val: Any):
            after = jax.vmap(one, (0, 0, None, None))(states, values, train, val)
            # In parts, which costs one call in place of one for every leaf.
            return after[0], [trees.pick(after, lane) for lane in range(number)]

        return (
            jax.jit(rounds).lower(stacked([state] * number), *self.arguments).compile()
        )

    def _meet(self, lane: int, state: RunState) -> Any:
        self._arrived[lane] = state
        self._go()
        self.turn.wait_for(lambda: lane in self._done)
        result = self._done.pop(lane)
        if isinstance(result, BaseException):
            raise result
        return result

    def _go(self) -> None:
        """Whoever comes last computes the round."""
        if not self._open or not self._open <= self._arrived.keys():
            return
        given, self._arrived = self._arrived, {}
        try:
            self._done |= self._round(given)
        except BaseException as error:
            self._done |= dict.fromkeys(given, error)
        self.turn.notify_all()

    def _round(self, given: Mapping[int, RunState]) -> dict[int, Any]:
        states, lanes = self._states, range(self._number)
        if any(given.get(lane) is not self._handed.get(lane) for lane in lanes):
            anyone = next(iter(given.values()))
            each = [given.get(lane, anyone) for lane in lanes]
            states = stacked(each)
        assert self._program is not None
        self._states, parts = self._program(states, *self.arguments)
        self._handed = {lane: parts[lane][0] for lane in given}
        return {lane: tuple(parts[lane]) for lane in given}


def stacked(states: Sequence[RunState]) -> RunState:
    """The states of lanes as one, [R, ...] a leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _values(configs: Sequence[ConfigDict]) -> dict[str, jax.Array]:
    """The fields that differ, [R] each; all of them if none does."""
    each = {
        path: [validate.flat(validate.plain(config))[path] for config in configs]
        for path in build.VALUES
    }
    return {
        path: jnp.asarray(values, jnp.float32)
        for path, values in each.items()
        if path == build.VALUES[0] or len(set(values)) > 1
    }


def _check(
    configs: Sequence[ConfigDict], run: build.Run, values: Mapping[str, Any]
) -> None:
    first = validate.plain(configs[0])
    for config in configs[1:]:
        differing = validate.differences(first, validate.plain(config))
        for path in differing:
            if path not in VARIED:
                what = f"the same in all runs of a program, but for {', '.join(VARIED)}"
                require.fail(path, what, validate.flat(validate.plain(config))[path])
        seed = validate.plain(config)["data"]["partition"]["seed"]
        if "seed" in differing and seed is None:
            what = "a number, so that runs of other seeds share their records"
            require.fail("data.partition.seed", what, None)
    noise = "privacy.noise_multiplier"
    if noise in values and run.guarantee.noised is None:
        what = "the same in all runs where more than changes is noised, or summed in "
        require.fail(noise, what + "secret", first["privacy"]["noise_multiplier"])
    if run.mesh is not None:
        devices = first["execution"]["devices"]
        require.fail("execution.devices", "1 for runs that share a program", devices)
    if run.records == "host":
        what = "device for runs that share a program"
        require.fail("execution.records", what, first["execution"]["records"])
