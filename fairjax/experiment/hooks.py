"""What happens after every round of a run: `train` calls a list of hooks in order.

The order is a contract, on which a run that was killed relies. `MetricsLog` writes the
rows of a round before `KeepBest` or `SaveCheckpoint` saves its state, so the logs of
every saved round are on disk. `StopRequest` asks after the caller's log has returned,
and `SaveCheckpoint` then saves the round before `StopRun` ends the run.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TextIO

import jax

from fairjax.core.types import RunState
from fairjax.experiment import compilation, model_selection, resume
from fairjax.experiment.config import build
from fairjax.experiment.io import distributed, preemption, progress
from fairjax.experiment.io import workdir as files
from fairjax.experiment.io.checkpoint import Checkpoints

Log = Callable[[int, dict[str, Any]], None]
"""(round, row of metrics.jsonl): a place to forward metrics to."""


class Options(NamedTuple):
    """What the caller of `train` asks for beside the config."""

    log: Log | None
    profile: bool
    compile_fn: compilation.Compile


class FinishedRound(NamedTuple):
    """A finished round, as hooks see it."""

    number: int
    """Counted from 1."""
    state: RunState
    """After the round; this process's copy."""
    row: dict[str, Any]
    """The round's row of metrics.jsonl."""
    client_rows: list[dict[str, Any]]
    """The round's rows of clients.jsonl; [] in rounds that are not evaluated."""


class Hook(Protocol):
    """A side effect after every round."""

    def after_round(self, report: FinishedRound) -> None:
        """Is called once for every round, in order."""
        ...


class MetricsLog(NamedTuple):
    """Writes the rows of a round, those of clients first."""

    rounds_file: TextIO
    clients_file: TextIO

    def after_round(self, report: FinishedRound) -> None:
        """Appends the rows at once."""
        if report.client_rows:
            files.write_lines(self.clients_file, report.client_rows)
        files.write_lines(self.rounds_file, [report.row])


class KeepBest:
    """Saves the state of a round that is the best so far.

    Args:
        checkpoints: the folder `selected` of the run.
        best_rows: the row of the best round so far; [] if there is none.
        criterion: one of `model_selection.CRITERIA`.
    """

    def __init__(
        self, checkpoints: Checkpoints, best_rows: list[dict[str, Any]], criterion: str
    ):
        self._checkpoints, self._criterion = checkpoints, criterion
        self._best_rows = best_rows

    def after_round(self, report: FinishedRound) -> None:
        """Saves the round if it is the best so far, and waits for the save."""
        rows = [*self._best_rows, report.row]
        if model_selection.best(rows, self._criterion) != report.number:
            return
        self._checkpoints.save(report.number, report.state)
        # The best round's state is on disk before the round's own checkpoint begins, so
        # a run that goes on from that checkpoint finds it.
        self._checkpoints.wait()
        self._best_rows = [report.row]


class ForwardMetrics(NamedTuple):
    """Calls a function of the user with the row."""

    log: Log

    def after_round(self, report: FinishedRound) -> None:
        """Forwards the row."""
        self.log(report.number, report.row)


class StopRequest:
    """Asks all processes, once after every round, whether one has been told to stop.

    Args:
        stop_requested: says whether this process has been told to stop.
    """

    def __init__(self, stop_requested: Callable[[], bool]):
        self._stop_requested = stop_requested
        self.is_set = False

    def after_round(self, report: FinishedRound) -> None:
        """Sets `is_set`; every process calls this after the same rounds."""
        self.is_set = distributed.any_process(self._stop_requested())


class SaveCheckpoint(NamedTuple):
    """Saves the state every few rounds, after the last one and before a stop."""

    checkpoints: Checkpoints
    every: int
    """Rounds."""
    last: int
    """The last round of the run."""
    stop: StopRequest
    logs: tuple[TextIO, ...]
    """Files that are synced to the disk before a save."""

    def after_round(self, report: FinishedRound) -> None:
        """Starts a save if one is due."""
        is_due = report.number % self.every == 0 or report.number == self.last
        if self.stop.is_set or is_due:
            files.sync(*self.logs)
            self.checkpoints.save(report.number, report.state)


class ShowProgress(NamedTuple):
    """Shows the round on the terminal, see `progress.display`."""

    show: Callable[[int, dict[str, Any]], None]

    def after_round(self, report: FinishedRound) -> None:
        """Shows the round."""
        self.show(report.number, report.row)


class StopRun(NamedTuple):
    """Ends the run if a process has been told to stop."""

    checkpoints: Checkpoints
    stop: StopRequest

    def after_round(self, report: FinishedRound) -> None:
        """Waits for the save of this round and raises.

        Raises:
            Stopped: a process has been told to stop.
        """
        if self.stop.is_set:
            self.checkpoints.wait()  # a signal ends a command once it has left here
            raise preemption.Stopped(f"stopped after round {report.number}")


class Profile:
    """Writes a JAX profile of the second to the fourth round of a session.

    Args:
        folder: created when missing.
        first: the round that the session goes on from.
        last: the last round of the run.
        stack: closes a profile that the run's end cuts short.
    """

    def __init__(
        self, folder: pathlib.Path, first: int, last: int, stack: contextlib.ExitStack
    ):
        self._folder, self._stack = folder, stack
        self._first, self._last = first, last

    def after_round(self, report: FinishedRound) -> None:
        """Starts the profile after the first round and ends it after the fourth."""
        if report.number == self._first + 1 and report.number < self._last:
            self._stack.enter_context(jax.profiler.trace(str(self._folder)))
        if report.number == self._first + 4:
            self._stack.close()


@contextlib.contextmanager
def open_hooks(
    run: build.Run,
    resumed: resume.OpenRun,
    last: int,
    best_rows: list[dict[str, Any]],
    options: Options,
    stop_requested: Callable[[], bool],
) -> Iterator[list[Hook]]:
    """Opens the logs and the progress display; gives the hooks of a run in their order.

    Args:
        run: the run.
        resumed: its open folder.
        last: its last round.
        best_rows: the row of the best round so far; [] if there is none.
        options: of the call of `train`.
        stop_requested: says whether this process has been told to stop.
    """
    first, workdir = int(resumed.state.round), resumed.workdir
    with (
        files.open_append(workdir / "metrics.jsonl") as rounds_file,
        files.open_append(workdir / "clients.jsonl") as clients_file,
        progress.display(first, last) as show,
        contextlib.ExitStack() as profiling,
    ):
        stop, logs = StopRequest(stop_requested), (rounds_file, clients_file)
        every = run.config.checkpoint.every
        round_hooks: list[Hook] = [MetricsLog(*logs)]
        if resumed.best_checkpoints is not None:
            keep_best = KeepBest(resumed.best_checkpoints, best_rows, run.criterion)
            round_hooks.append(keep_best)
        if options.log is not None:
            round_hooks.append(ForwardMetrics(options.log))
        round_hooks += [
            stop,
            SaveCheckpoint(resumed.checkpoints, every, last, stop, logs),
            ShowProgress(show),
            StopRun(resumed.checkpoints, stop),
        ]
        if options.profile:
            folder = workdir / "profile"
            round_hooks.append(Profile(folder, first, last, profiling))
        yield round_hooks
