"""The loop: `train(config, workdir)` builds a run, resumes, trains and sums it up.

A run is its checkpoints. Logs are written before the round they describe is saved, so
whatever step a run is continued from, its log rows are there; later rows are cut.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console

from fairjax import report
from fairjax.core.types import Params, RunState
from fairjax.experiment import (
    best_round,
    compilation,
    costs,
    evaluate,
    hooks,
    resume,
    rows,
    summary,
)
from fairjax.experiment.config import build, conversion, validate
from fairjax.experiment.io import distributed, preemption
from fairjax.experiment.io import workdir as files


class Result(NamedTuple):
    """What a finished run returns.

    In a run of several processes the first one gets all of it; the others get the
    state, and their `metrics` and `summary` are empty.
    """

    state: RunState
    metrics: dict[str, Any]
    """The last row of metrics.jsonl."""
    summary: dict[str, Any]
    """The content of summary.json."""
    workdir: pathlib.Path


def train(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    params: Params | None = None,
    log: hooks.Log | None = None,
    profile: bool = False,
    override_paths: Collection[str] = (),
    compile_fn: compilation.Compile | None = None,
) -> Result:
    """Runs a config to its last round; goes on from the state that the workdir has.

    Several processes (`distributed.join`) all make the same call; the run is in the
    `workdir` of the first one. If one of them is told to stop, all stop.

    Args:
        config: see configs/default.py.
        workdir: created when missing; the files are those of README, "What a run
            leaves".
        params: plain model to start from; None: `model.init_from`, or drawn.
        log: called with every row of metrics.jsonl.
        profile: write a JAX profile of rounds 2 to 4 to workdir/profile.
        override_paths: fields set by hand, see `validate.check`.
        compile_fn: gives the step of the run; None: `compilation.compile_round`.

    Raises:
        InputError: the config, the data, the workdir or what was saved in it cannot be
            used; nothing has been written then.
        Stopped: a signal came while rounds ran (`preemption`); the same call goes on.
        KeyboardInterrupt: a second signal came; it is raised at once, and all saved
            rounds stay.
        OSError: the workdir cannot be written any more; what is saved stays.
    """
    workdir = pathlib.Path(workdir)
    with distributed.collective_section():
        checked = validate.check(config, override_paths)
        if distributed.first():
            files.check(workdir, checked.config)
        run = build.checked_run(checked)
        start = resume.initial_state(run, params)
    distributed.require_equal(
        "config and data",
        json.dumps([conversion.to_plain(run.config), run.splits.hash]),
    )
    if not distributed.first():
        return Result(_run_worker(run, start), {}, {}, workdir)

    with (
        contextlib.ExitStack() as lock_stack,
        contextlib.ExitStack() as checkpoint_stack,
    ):
        with distributed.collective_section():
            lock_stack.enter_context(files.lock(workdir))
            # Another process may have trained here since the first check.
            files.check(workdir, run.config)
            forecast = costs.forecast(run, start)
            resumed = resume.open_run(run, start, workdir, checkpoint_stack)
        options = hooks.Options(log, profile, compile_fn or compilation.compile_round)
        state, evaluate_fn, machine_cost = _run_rounds(run, forecast, resumed, options)
        checkpoint_stack.close()  # from here on every step on disk is whole
        best_state = best_round.restore(run, state, workdir)
        summary_json = summary.summarise(
            run, forecast, state, best_state, evaluate_fn, workdir, machine_cost
        )
        files.write_json(workdir / "summary.json", summary_json)
        page = report.write(workdir)
    _print_report(workdir, page)
    distributed.barrier("finished")
    return Result(state, summary_json["metrics"], summary_json, workdir)


def _run_rounds(
    run: build.Run,
    forecast: costs.Forecast,
    resumed: resume.OpenRun,
    options: hooks.Options,
) -> tuple[RunState, evaluate.EvaluateFn, dict[str, Any]]:
    """Runs the rounds that are left.

    Returns:
        (the last state, its evaluation, what the rounds cost this machine: {} if none
        was left).
    """
    config, state = run.config, resumed.state
    first, last = int(state.round), run.guarantee.affordable_rounds(config.rounds)
    _print_privacy(run, last)
    start_time = time.perf_counter()
    evaluate_fn = evaluate.compile_evaluation(run, state)
    device_state = distributed.replicate(distributed.broadcast(state), run.mesh)
    if first >= last:
        return state, evaluate_fn, {}
    best_rows = best_round.best_rows(run, state, resumed.workdir)
    if resumed.best_checkpoints is not None:
        # Orbax refuses to save a step that is there: later rounds are trained again.
        resumed.best_checkpoints.keep_only(best_rows[0]["round"] if best_rows else None)
    step, program = options.compile_fn(run, device_state)
    compile_s = time.perf_counter() - start_time
    _print_choices(run, forecast)

    step_seconds = 0.0
    with (
        preemption.deferred() as stop_requested,
        hooks.open_hooks(
            run, resumed, last, best_rows, options, stop_requested
        ) as round_hooks,
    ):
        for number in range(first + 1, last + 1):
            start_time = time.perf_counter()
            device_state, outputs = jax.block_until_ready(step(device_state))
            state, (cohort, info) = distributed.local_copy((device_state, outputs))
            round_s = time.perf_counter() - start_time
            step_seconds += round_s
            is_evaluated = number % config.eval_every == 0 or number == last
            evaluation = None
            if is_evaluated:
                evaluation = jax.device_get(evaluate_fn(state)[0])
            log_rows = rows.of_round(run, number, cohort, info, evaluation, round_s)
            for hook in round_hooks:
                hook.after_round(hooks.FinishedRound(number, state, *log_rows))
        resumed.checkpoints.wait()
        if distributed.any_process(stop_requested()):  # while the last round was saved
            raise preemption.Stopped(f"stopped after round {last}")
    machine_cost = {
        "simulation": costs.simulation_cost(run, state, forecast.tiers, program),
        "time": {"compile_s": compile_s, "rounds_per_s": (last - first) / step_seconds},
    }
    return state, evaluate_fn, machine_cost


def _run_worker(run: build.Run, state: RunState) -> RunState:
    """Runs the rounds in a process that is not the first, on its own devices."""
    with distributed.collective_section():
        pass  # the first process opens its folder
    state = distributed.replicate(distributed.broadcast(state), run.mesh)
    round_indices = range(
        int(state.round), run.guarantee.affordable_rounds(run.config.rounds)
    )
    if round_indices:
        step, _ = compilation.compile_round(run, state)
        with preemption.deferred() as stop_requested:
            for round_index in round_indices:
                state, _ = jax.block_until_ready(step(state))
                if distributed.any_process(stop_requested()):
                    raise preemption.Stopped(f"stopped after round {round_index + 1}")
            # The first process saves the last round meanwhile, and asks once more.
            if distributed.any_process(stop_requested()):
                raise preemption.Stopped(f"stopped after round {round_indices[-1] + 1}")
    distributed.barrier("finished")
    return distributed.local_copy(state)


def _print_privacy(run: build.Run, last: int) -> None:
    warning = run.guarantee.budget_warning(run.config.rounds)
    if warning is not None:
        print(f"privacy.{warning}")
    for note in costs.privacy_notes(run, last):
        print(f"privacy: {note}")


def _print_choices(run: build.Run, forecast: costs.Forecast) -> None:
    for name, choice in run.choices.items():
        print(f"{name} = {choice}")
    for tier in forecast.tiers:
        print(
            f"tier {tier['tier']}: {tier['clients']} hospitals, budget "
            f"{tier['budget']:g}, {tier['branches']} branches per layer, "
            f"{tier['parameters']} parameters, "
            f"{tier['flops_train']} FLOPs per training record"
        )
    for note in forecast.notes:
        print(note)


def _print_report(workdir: pathlib.Path, page: pathlib.Path) -> None:
    console = Console()
    console.print(report.table(workdir))
    for line in (report.headline(workdir), *report.cautions(workdir)):
        # Names of hospitals may look like markup.
        console.print(line, soft_wrap=True, markup=False)
    for sentence in report.privacy_statement(workdir):
        console.print(f"privacy: {sentence}", soft_wrap=True, markup=False)
    console.print(f"report: {page}", soft_wrap=True)
