"""Where a run starts: from a first state, or from the newest checkpoint of it."""

import contextlib
import functools
import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fairjax.core import require, round
from fairjax.core.types import Params, RunState
from fairjax.experiment import best_round
from fairjax.experiment.config import build, conversion, lookup
from fairjax.experiment.io import checkpoint
from fairjax.experiment.io import workdir as files
from fairjax.experiment.io.checkpoint import Checkpoints


def initial_state(run: build.Run, params: Params | None = None) -> RunState:
    """The state of a run before its first round.

    Args:
        run: the run.
        params: the plain model to start from; None: the model of the run that
            `model.init_from` names, or a drawn one.

    Raises:
        InputError: `params` have another structure than the run's model, or are not
            finite; `model.init_from` has no run or no valid checkpoint, or its run has
            the same classes in another order.
    """
    if params is None and run.config.model.init_from is not None:
        params = _params_of_run(run, run.config.model.init_from)
    return _first_state(run, params)


def _params_of_run(run: build.Run, workdir: str) -> Params:
    """The newest plain model of another run, which must have this run's classes."""
    source_run, state = load(workdir)
    classes, source_classes = run.splits.classes, source_run.splits.classes
    if classes != source_classes and sorted(classes) == sorted(source_classes):
        order = ", ".join(classes)
        require.fail(
            "model.init_from", f"a run of classes {order}", ", ".join(source_classes)
        )
    return state.params


def _first_state(run: build.Run, params: Params | None) -> RunState:
    """The first state from `params` or drawn ones; it reads no other run."""
    x = jnp.asarray(run.splits.train.x[:1])
    init_fn = functools.partial(
        round.init,
        jax.random.key(run.config.seed),
        x,
        counts=run.splits.train.count,
        tiers=len(run.budget),
        spec=run.spec,
    )
    with lookup.initial_state_names(run.config):
        state = init_fn()
    if params is None:
        return state
    require.same_structure(
        "params", require.describe(params), require.describe(state.params)
    )
    require.finite("params", params)
    return init_fn(params=params)


def load(
    workdir: str | os.PathLike[str], *, vmapped: bool = False
) -> tuple[build.Run, RunState]:
    """Reads a run and its newest valid checkpoint, and writes nothing.

    The run is built for one device, or for all devices of all processes where there are
    several processes.

    Args:
        workdir: the folder of the run.
        vmapped: as for `build.run`.

    Raises:
        InputError: there is no run, or no valid checkpoint, in `workdir`.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "config.json"
    try:
        text = path.read_text(errors="replace")
    except (OSError, ValueError) as error:
        raise require.InputError(f"{workdir}: expected a run; got {error}") from error
    config = require.parse_json(str(path), text, dict)
    try:
        # The devices that it was trained on may not be here.
        config["execution"]["devices"] = 1 if jax.process_count() == 1 else 0
        run = build.run(conversion.from_plain(config, f"{path}: "), vmapped=vmapped)
    except (conversion.FieldError, KeyError, TypeError) as error:
        description = "the config of a run of this version; got one of "
        description += f"{files.writer_version(workdir)}: {error}"
        raise require.InputError(f"{path}: expected {description}") from error
    valid_step = checkpoint.restore_latest(
        workdir / "checkpoints",
        _first_state(run, None),
        best_round.checkpoint_meta(run),
    )
    if valid_step is None:
        require.fail(str(workdir), "a checkpoint", "none")
    return run, valid_step.state


class OpenRun(NamedTuple):
    """The folder of a run, ready for more rounds."""

    workdir: pathlib.Path
    state: RunState
    """The newest valid state, or the first one."""
    checkpoints: Checkpoints
    best_checkpoints: Checkpoints | None
    """None without validation records: no round can be selected then."""


def open_run(
    run: build.Run,
    start: RunState,
    workdir: pathlib.Path,
    stack: contextlib.ExitStack,
) -> OpenRun:
    """Restores the newest valid state and cuts the folder back to it.

    Nothing is written before the state has been restored. Then the config and the
    provenance are written, invalid steps are set aside, and log rows of later rounds
    are cut.

    Args:
        run: the run.
        start: its first state, which a run without checkpoints goes on from.
        workdir: its folder, locked by this process.
        stack: receives the open checkpoint folders, whose exit waits for the saves.

    Raises:
        InputError: the folder has checkpoints and none of them is valid, or they are of
            another run.
    """
    steps, meta = workdir / "checkpoints", best_round.checkpoint_meta(run)
    valid_step = checkpoint.restore_latest(steps, start, meta)
    state = start if valid_step is None else valid_step.state
    damaged_rounds = best_round.damaged_rounds(run, state, workdir)
    files.write_json(workdir / "config.json", conversion.to_plain(run.config))
    files.write_json(workdir / "provenance.json", files.provenance())
    if valid_step is not None:
        checkpoint.set_aside(steps, valid_step.skipped_steps)
    checkpoint.set_aside(workdir / "selected", damaged_rounds)
    for name in ("metrics.jsonl", "clients.jsonl"):
        files.truncate(workdir / name, int(state.round))
    keep = run.config.checkpoint.keep
    checkpoints = stack.enter_context(Checkpoints(steps, keep=keep, run_meta=meta))
    best_checkpoints = stack.enter_context(best_round.open_checkpoints(run, workdir))
    return OpenRun(workdir, state, checkpoints, best_checkpoints)
