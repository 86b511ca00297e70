"""The state of the best round on disk: the folder `selected` of a run.

`model_selection` says which round is the best. Its row is in metrics.jsonl before its
state is saved, so a run that was killed between the two selects it again.
"""

import contextlib
import pathlib
from typing import Any

from fairjax.core.types import RunState
from fairjax.experiment import model_selection
from fairjax.experiment.config import build
from fairjax.experiment.io import checkpoint
from fairjax.experiment.io import workdir as files
from fairjax.experiment.io.checkpoint import Checkpoints


def checkpoint_meta(run: build.Run) -> checkpoint.CheckpointMeta:
    """What every step of a run, of the last rounds and of the best, says about it."""
    return checkpoint.CheckpointMeta(build.identity(run), files.versions())


def open_checkpoints(
    run: build.Run, workdir: pathlib.Path
) -> contextlib.AbstractContextManager[Checkpoints | None]:
    """The folder of the best round's state; None without validation records."""
    if not run.splits.rows["val"]:
        return contextlib.nullcontext()
    return Checkpoints(workdir / "selected", keep=1, run_meta=checkpoint_meta(run))


def best_rows(
    run: build.Run, state: RunState, workdir: pathlib.Path
) -> list[dict[str, Any]]:
    """The row of the best round up to the state's; [] if no round can be selected."""
    rows = files.rows(workdir / "metrics.jsonl")
    rows = [row for row in rows if row["round"] <= int(state.round)]
    best = model_selection.best(rows, run.criterion)
    return [row for row in rows if row["round"] == best]


def damaged_rounds(run: build.Run, state: RunState, workdir: pathlib.Path) -> list[int]:
    """The best round up to the state's, if its step is there and not valid; else [].

    A missing step is no damage: a run that was killed after it had selected a round,
    and before it saved that round, selects it again.
    """
    steps = workdir / "selected"
    rounds = [row["round"] for row in best_rows(run, state, workdir)]
    return [
        number
        for number in rounds
        if checkpoint.restore_latest(steps, state, checkpoint_meta(run), round=number)
        is None
        and (steps / str(number)).exists()
    ]


def restore(run: build.Run, state: RunState, workdir: pathlib.Path) -> RunState | str:
    """The state of the round that the validation split selects, or why there is none.

    Args:
        run: the run.
        state: its last state.
        workdir: its folder.
    """
    rows = best_rows(run, state, workdir)
    if not rows:
        validated_rows = run.splits.rows["val"] and files.rows(
            workdir / "metrics.jsonl"
        )
        reason = (
            ": every round that was validated shows divergence"
            if validated_rows
            else ""
        )
        return f"no round could be selected on the validation split{reason}"
    steps, number = workdir / "selected", rows[0]["round"]
    valid_step = checkpoint.restore_latest(
        steps, state, checkpoint_meta(run), round=number
    )
    if valid_step is None:
        return (
            f"the validation split selects round {number}, whose step in selected/ was "
            "damaged or is missing"
        )
    return valid_step.state
