"""The loop: `train(config, workdir)`. It compiles the round and owns the clock.

A run is its checkpoints. Logs are written before the round they describe is saved, so
whatever step a run is continued from, its log rows are there; rows beyond it are cut.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fairjax import report
from fairjax.core import layout, require, rng, round
from fairjax.core.client import Local, mean_cross_entropy
from fairjax.core.rng import Role
from fairjax.core.types import Cohort, Federation, Layout, Params, RunState
from fairjax.data import federation, feed, pixels
from fairjax.experiment import (
    baselines,
    coverage,
    evaluate,
    model_selection,
    summary,
)
from fairjax.experiment.config import build, validate
from fairjax.experiment.io import checkpoint, distributed, preemption
from fairjax.experiment.io import workdir as files
from fairjax.experiment.io.checkpoint import Checkpoints
from fairjax.metrics import clients, divergence, principles
from fairjax.privacy import statement
from fairjax.report import formats
from fairjax.submodels import cost
from fairjax.submodels.fedavg import fedavg

Log = Callable[[int, dict[str, Any]], None]
"""(round, row of metrics.jsonl): a place to forward metrics to."""


Step = Callable[[RunState], tuple[RunState, tuple[Cohort, round.RoundInfo]]]
"""One round of a run: the next state, and what is reported of it."""
Compile = Callable[[build.Run, RunState], tuple[Step, jax.stages.Compiled]]
"""(run, its state) -> (step, the program behind it)."""


class Result(NamedTuple):
    """What a finished run hands back; of several processes, to the first.

    The others get the state, and of the rest nothing.
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
    log: Log | None = None,
    profile: bool = False,
    overridden: Collection[str] = (),
    compiling: Compile | None = None,
) -> Result:
    """Runs a config to its last round, or goes on where the workdir stands.

    Of several processes (`distributed.join`) all call it alike; the first one's
    `workdir` is that of the run. If one is told to stop, all do.

    Args:
        config: see configs/default.py.
        workdir: created when missing; the files are those of README, "What a run
            leaves".
        params: plain model to start from; None: `model.init_from`, or drawn.
        log: called with every row of metrics.jsonl.
        profile: write a JAX profile of rounds 2 to 4 to workdir/profile.
        overridden: fields set by hand, see `validate.check`.
        compiling: gives the step of the run; None: `compiled`.

    Raises:
        InputError: the config, the data, the workdir or what was saved in it cannot be
            used; nothing has been written then.
        Stopped: a signal came while rounds ran (`preemption`); the same call goes on.
        KeyboardInterrupt: at a second one at once; all saved rounds stay.
        OSError: the workdir cannot be written any more; what is saved stays.
    """
    workdir = pathlib.Path(workdir)
    with distributed.together():
        validate.check(config, overridden)
        if distributed.first():
            files.check(workdir, validate.plain(config))
        run = build.build(config)
        state = start = beginning(run) if params is None else initial(run, params)
    distributed.alike("config and data", json.dumps([run.config, run.splits.hash]))
    if not distributed.first():
        return Result(_lend(run, state), {}, {}, workdir)

    with contextlib.ExitStack() as held, contextlib.ExitStack() as opened:
        with distributed.together():
            held.enter_context(files.held(workdir))
            # Another process may have trained here since.
            files.check(workdir, run.config)
            # Of the first state: a continued run pays what an uninterrupted one does.
            tiers, whole = bills(run, state), whole_bill(run, state)
            left, notes = coverage.notes(run, state)
            steps, said = workdir / "checkpoints", about(run)
            found = checkpoint.newest(steps, state, said)
            if found is not None:
                state = found.state
            damaged = _damaged(run, state, workdir)
            files.write_json(workdir / "config.json", run.config)
            files.write_json(workdir / "provenance.json", files.provenance())
            if found is not None:
                checkpoint.set_aside(steps, found.skipped)
            checkpoint.set_aside(workdir / "selected", damaged)
            for name in ("metrics.jsonl", "clients.jsonl"):
                files.truncate(workdir / name, int(state.round))
            keep = run.config["checkpoint"]["keep"]
            checkpoints = opened.enter_context(
                Checkpoints(steps, keep=keep, about=said)
            )
            selected = opened.enter_context(_selected(run, workdir))
        state, measured_at, spent = _loop(
            run,
            state,
            tiers,
            notes,
            workdir,
            checkpoints,
            selected,
            log,
            profile,
            compiling or compiled,
        )
        opened.close()  # what is written now speaks of steps that are whole
        chosen = _best_state(run, state, workdir)

        written = _summary(run, start, state, tiers, whole, workdir, spent)
        written |= {"untrained": left._asdict(), "notes": notes}
        rows = files.rows(workdir / "metrics.jsonl")
        by = {"selected_by": model_selection.by(rows, run.criterion)}
        written["final"] = summary.final(run, measured_at, state, chosen) | by
        if run.config["baselines"]:
            written["baselines"] = baselines.baselines(
                run, start, state, measured_at(state)[0]
            )
        files.write_json(workdir / "summary.json", written)
        page = report.write(workdir)
    console = Console()
    console.print(report.table(workdir))
    for line in (report.headline(workdir), *report.cautions(workdir)):
        console.print(line, soft_wrap=True, markup=False)  # hospitals have any name
    for sentence in report.promise(workdir):
        console.print(f"privacy: {sentence}", soft_wrap=True, markup=False)
    console.print(f"report: {page}", soft_wrap=True)
    distributed.meet("finished")
    return Result(state, written["metrics"], written, workdir)


def about(run: build.Run) -> checkpoint.About:
    """What the steps of a run say of it."""
    return checkpoint.About(build.identity(run), files.versions())


def beginning(run: build.Run) -> RunState:
    """The state of a run before its first round, with the model that the config names.

    Raises:
        InputError: there is no run, or no valid checkpoint, in `model.init_from`, or it
            has the same classes in another order.
    """
    init_from = run.config["model"]["init_from"]
    if init_from is None:
        return initial(run)
    other, state = load(init_from)
    ours, theirs = run.splits.classes, other.splits.classes
    if ours != theirs and sorted(ours) == sorted(theirs):
        order = ", ".join(ours)
        require.fail("model.init_from", f"a run of classes {order}", ", ".join(theirs))
    return initial(run, state.params)


def initial(run: build.Run, params: Params | None = None) -> RunState:
    """The state of a run before its first round, from `params` or drawn ones."""
    x = jnp.asarray(run.splits.train.x[:1])
    state_of = functools.partial(
        round.init,
        jax.random.key(run.config["seed"]),
        x,
        counts=run.splits.train.count,
        tiers=len(run.budget),
        spec=run.spec,
    )
    drawn = state_of()
    if params is None:
        return drawn
    require.same_structure(
        "params", require.describe(params), require.describe(drawn.params)
    )
    require.finite("params", params)
    return state_of(params=params)


def load(
    workdir: str | os.PathLike[str], *, vmapped: bool = False
) -> tuple[build.Run, RunState]:
    """A run and its newest valid checkpoint; only reads. On one device, if it can be.

    Args:
        workdir: of the run.
        vmapped: as for `build.build`.

    Raises:
        InputError: there is no run, or no valid checkpoint, in `workdir`.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "config.json"
    try:
        text = path.read_text(errors="replace")
    except (OSError, ValueError) as error:
        raise require.InputError(f"{workdir}: expected a run; got {error}") from error
    config = require.parsed(str(path), text, dict)
    try:
        # What it was trained on may be elsewhere; many processes use all they have.
        config["execution"]["devices"] = 1 if jax.process_count() == 1 else 0
        run = build.build(validate.from_plain(config), vmapped=vmapped)
    except (AttributeError, KeyError, TypeError) as error:
        what = "the config of a run of this version; got one of "
        what += f"{files.written_by(workdir)}: {type(error).__name__}: {error}"
        raise require.InputError(f"{path}: expected {what}") from error
    found = checkpoint.newest(workdir / "checkpoints", initial(run), about(run))
    if found is None:
        require.fail(str(workdir), "a checkpoint", "none")
    return run, found.state


# ----------------------------------------------------------------------------- the loop


def _selected(
    run: build.Run, workdir: pathlib.Path
) -> contextlib.AbstractContextManager[Checkpoints | None]:
    """Where the best round's state is kept; None without validation records."""
    if not run.splits.rows["val"]:
        return contextlib.nullcontext()
    return Checkpoints(workdir / "selected", keep=1, about=about(run))


def _leading(
    run: build.Run, state: RunState, workdir: pathlib.Path
) -> list[dict[str, Any]]:
    """The row of the best round so far; none without one."""
    rows = files.rows(workdir / "metrics.jsonl")
    rows = [row for row in rows if row["round"] <= int(state.round)]
    best = model_selection.best(rows, run.criterion)
    return [row for row in rows if row["round"] == best]


def _damaged(run: build.Run, state: RunState, workdir: pathlib.Path) -> list[int]:
    """The best round so far, if its step is there and not valid.

    A step that is missing is no damage: a run that was killed after it had selected a
    round, and before it saved that round, goes on to select it again.
    """
    steps = workdir / "selected"
    rounds = [row["round"] for row in _leading(run, state, workdir)]
    return [
        number
        for number in rounds
        if checkpoint.newest(steps, state, about(run), round=number) is None
        and (steps / str(number)).exists()
    ]


def _select(
    selected: Checkpoints,
    leading: list[dict[str, Any]],
    row: dict[str, Any],
    criterion: str,
    state: RunState,
) -> list[dict[str, Any]]:
    """Keeps the state if its round is the best so far; the row of the one that is."""
    if model_selection.best([*leading, row], criterion) != row["round"]:
        return leading
    selected.save(row["round"], state)
    # Whole before the round's own checkpoint begins: a run that goes on from there
    # finds it.
    selected.wait()
    return [row]


def _best_state(
    run: build.Run, state: RunState, workdir: pathlib.Path
) -> RunState | str:
    """The state of the round that the validation split selects, or why it has none."""
    leading = _leading(run, state, workdir)
    if not leading:
        shown = run.splits.rows["val"] and files.rows(workdir / "metrics.jsonl")
        why = ": every round that was validated shows divergence" if shown else ""
        return f"no round could be selected on the validation split{why}"
    steps, number = workdir / "selected", leading[0]["round"]
    found = checkpoint.newest(steps, state, about(run), round=number)
    if found is None:
        return (
            f"the validation split selects round {number}, whose step in selected/ was "
            "damaged or is missing"
        )
    return found.state


def one_round(run: build.Run, spec: round.Spec) -> Callable[..., Any]:
    """(state, records, validation records or None) -> what a `Step` gives."""

    def once(
        state: RunState, train: Federation, validation: Federation | None
    ) -> tuple[RunState, tuple[Cohort, round.RoundInfo]]:
        cohort = run.draw(state.key, state.round)
        state, info = round.step(
            state, train, cohort, spec=spec, layout=run.layout, validation=validation
        )
        return state, (cohort, info)

    return once


def compiled(run: build.Run, state: RunState) -> tuple[Step, jax.stages.Compiled]:
    """The round of a run, compiled once for states that are shaped like this one.

    Records are arguments of the program and not constants in it, of which a compiler
    makes copies. They are whole on every device, as the state is, or those of the
    round's cohort (`data.feed`).

    Returns:
        (step, the program behind it).
    """
    records, validation = _fed(run, state), None
    if "validation" in run.spec.rule.needs:
        validation = distributed.spread(run.splits.val, run.mesh)
    given = records(state), validation

    def program_of(laid: Layout) -> jax.stages.Compiled:
        once = one_round(dataclasses.replace(run, layout=laid), run.spec)
        on_all = jax.jit(layout.on_devices(once, run.mesh))
        return on_all.lower(state, *given).compile()

    program, size = program_of(run.layout), run.cohort
    while run.chunked is not None and size > 1 and _takes(program) > run.memory:
        size = -(-size // 2)
        print(f"execution.batching = chunks of {size}: {run.memory:.3g} MiB allowed")
        program = program_of(run.chunked(size))
    # Who compiles faster waits here: see `distributed.join`.
    distributed.meet("compiled")

    return lambda state: program(state, records(state), validation), program


def _takes(program: jax.stages.Compiled) -> float:
    """MiB of a device while a program runs; 0 where its backend does not say."""
    held = program.memory_analysis()
    parts = ("argument", "output", "temp")
    sizes = (getattr(held, f"{part}_size_in_bytes", 0) for part in parts)
    return sum(sizes) / 2**20


def _fed(run: build.Run, state: RunState) -> Callable[[RunState], Federation]:
    """The run so far -> the records of its next round, on the run's devices."""
    train = pixels.packed(run.pixels, run.splits.train)
    if run.records == "device":
        # The same for every round: nobody waits for the state to be computed.
        everything = distributed.spread(train, run.mesh)
        return lambda state: everything
    poisson, slots = run.guarantee.draw, run.cohort
    if poisson is not None:
        slots = max(poisson.slots, sum(poisson.by_tier))
    length = feed.rows(np.asarray(train.count), slots)
    key, draw = distributed.here(state.key), jax.jit(run.draw)

    def records(finished: int) -> Federation:
        cohort = draw(key, jnp.asarray(finished, jnp.int32))
        return distributed.spread(feed.block(train, cohort, length), run.mesh)

    ahead = feed.Feed(records, run.guarantee.allowed(run.config["rounds"]))
    return lambda state: ahead(int(distributed.here(state.round)))


def _lend(run: build.Run, state: RunState) -> RunState:
    """What every process but the first does: its devices' part of every round."""
    with distributed.together():
        pass  # the first opens its folder
    state = distributed.spread(distributed.sent(state), run.mesh)
    left = range(int(state.round), run.guarantee.allowed(run.config["rounds"]))
    if left:
        step, _ = compiled(run, state)
        with preemption.deferred() as told:
            for finished in left:
                state, _ = jax.block_until_ready(step(state))
                if distributed.some(told()):
                    raise preemption.Stopped(f"stopped after round {finished + 1}")
            if distributed.some(
                told()
            ):  # since the last round, which is saved meanwhile
                raise preemption.Stopped(f"stopped after round {left[-1] + 1}")
    distributed.meet("finished")
    return distributed.here(state)


def _loop(
    run: build.Run,
    state: RunState,
    tiers: list[dict[str, Any]],
    notes: list[str],
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    selected: Checkpoints | None,
    log: Log | None,
    profile: bool,
    compiling: Compile,
) -> tuple[RunState, evaluate.Measure, dict[str, Any]]:
    """The rounds that are left; what they cost this machine is {} if none is."""
    config = run.config
    first, last = int(state.round), run.guarantee.allowed(config["rounds"])
    limit = run.guarantee.limit(config["rounds"])
    if limit is not None:
        print(limit)
    for note in _notes(run, last):
        print(f"privacy: {note}")
    started = time.perf_counter()
    measured_at = evaluate.compiled(run, state)
    spread = distributed.spread(distributed.sent(state), run.mesh)
    if first >= last:
        return state, measured_at, {}
    leading = _leading(run, state, workdir)
    if selected is not None:
        selected.keep_only(leading[0]["round"] if leading else None)
    step, program = compiling(run, spread)
    compile_s = time.perf_counter() - started
    for name, choice in run.choices.items():
        print(f"{name} = {choice}")
    for tier in tiers:
        print(
            f"tier {tier['tier']}: {tier['clients']} hospitals, budget "
            f"{tier['budget']:g}, {tier['branches']} branches per layer, "
            f"{tier['parameters']} parameters, "
            f"{tier['flops_train']} FLOPs per training record"
        )
    for note in notes:
        print(note)

    busy = 0.0
    with (
        preemption.deferred() as told,
        files.appended(workdir / "metrics.jsonl") as rounds_file,
        files.appended(workdir / "clients.jsonl") as clients_file,
        _progress(first, last) as show,
        contextlib.ExitStack() as profiling,
    ):
        for number in range(first + 1, last + 1):
            if profile and number == first + 2:
                profiling.enter_context(jax.profiler.trace(str(workdir / "profile")))
            if number == first + 5:
                profiling.close()
            started = time.perf_counter()
            spread, reported = jax.block_until_ready(step(spread))
            state, (cohort, info) = distributed.here((spread, reported))
            round_s = time.perf_counter() - started
            busy += round_s
            row = {"round": number} | _round_row(run, cohort, info)
            epsilon = run.guarantee.epsilon(number)
            if epsilon is not None:
                row["privacy/epsilon"] = epsilon
            if number % config["eval_every"] == 0 or number == last:
                measured = jax.device_get(measured_at(state)[0])
                tier_of = np.asarray(run.tiers_at(number - 1))
                least = config["min_test_records"]
                row |= evaluate.row(measured, tier_of, least=least)
                files.write_lines(
                    clients_file,
                    evaluate.client_rows(run, number, tier_of, cohort, info, measured),
                )
            row["time/round_s"] = round_s
            row = {name: files.number(value) for name, value in row.items()}
            files.write_lines(rounds_file, [row])
            if selected is not None:
                leading = _select(selected, leading, row, run.criterion, state)
            if log is not None:
                log(number, row)
            stop = distributed.some(told())
            if stop or number % config["checkpoint"]["every"] == 0 or number == last:
                files.sync(rounds_file, clients_file)
                checkpoints.save(number, state)
            show(number, row)
            if stop:
                checkpoints.wait()  # a signal ends a command once it is out of here
                raise preemption.Stopped(f"stopped after round {number}")
        checkpoints.wait()
        if distributed.some(told()):  # while the last round was saved
            raise preemption.Stopped(f"stopped after round {last}")
    spent = {
        "simulation": _simulation(run, state, tiers, program),
        "time": {"compile_s": compile_s, "rounds_per_s": (last - first) / busy},
    }
    return state, measured_at, spent


def _drawn(run: build.Run, state: RunState) -> Bool[np.ndarray, "rounds N"]:
    """The hospitals of every round's cohort so far."""
    clients = len(run.splits.clients)

    def one(number: Array) -> Array:
        cohort = run.draw(state.key, number)
        slot = jnp.where(cohort.valid, cohort.client, clients)
        return jnp.zeros(clients, bool).at[slot].set(True, mode="drop")

    rounds = jnp.arange(int(state.round), dtype=jnp.int32)
    return np.asarray(jax.lax.map(one, rounds))


def _round_row(run: build.Run, cohort: Cohort, info: round.RoundInfo) -> dict[str, Any]:
    tier, weight = np.asarray(cohort.tier), np.asarray(info.weights, np.float64)
    steps = np.asarray(info.clients.steps, np.int64)
    slots = {
        "drawn": np.asarray(cohort.valid),
        "trained": steps > 0,
        "valid": np.asarray(info.valid),
        "steps": steps,
        "records": _records(run, np.asarray(cohort.client), steps),
    }
    row: dict[str, Any] = {"train/loss": float(info.loss)}
    for t in range(len(run.budget)):
        row[f"fairness/weight_tier_{t}"] = float(weight[tier == t].sum())
    row["cohort/valid"] = int(np.sum(info.valid))
    finite = np.asarray(info.clients.finite)
    row["cohort/not_finite"] = int(np.sum(slots["trained"] & ~finite))
    row["cohort/coverage"] = float(info.coverage)
    for name, values in slots.items():
        for t in range(len(run.budget)):
            row[f"cohort/{name}_tier_{t}"] = int(values[tier == t].sum())
    return row


def _records(
    run: build.Run, who: Int[np.ndarray, "K"], steps: Int[np.ndarray, "K"]
) -> Int[np.ndarray, "K"]:
    """Records that went through the local steps of clients."""
    train, protected = run.splits.train, run.guarantee.records
    size = run.spec.local.plan.batch_size
    most = None if protected is None else protected.per_patient
    if most is None:
        return principles.records(np.asarray(train.count, np.int64)[who], steps, size)
    # A lot of patients has as many as on average.
    held = federation.patients(train)
    patients = np.array([len(each) for each in held], np.int64)
    average = np.array([np.minimum(each, most).mean() for each in held])
    number = principles.records(patients[who], steps, size)
    return np.rint(number * average[who]).astype(np.int64)


@contextlib.contextmanager
def _progress(first: int, last: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A bar on a terminal; elsewhere a plain line for every evaluated round."""

    def line(row: dict[str, Any]) -> str:
        keys = {
            "loss": "train/loss",
            "accuracy": "eval/accuracy",
            "auroc": "eval/auroc",
        }
        figures = {name: row[key] for name, key in keys.items() if key in row}
        return "  ".join(f"{name} {shown(value)}" for name, value in figures.items())

    def shown(value: float | None) -> str:
        long = value is None or abs(value) >= 1e4
        return formats.decimal(value) if long else f"{value:.4f}"

    console = Console()
    # A terminal shows one bar at a time; beside other runs a run has none.
    alone = threading.current_thread() is threading.main_thread()
    if not console.is_terminal or not alone:

        def show(number: int, row: dict[str, Any]) -> None:
            if "eval/accuracy" in row:
                print(f"round {number}/{last}  {line(row)}", flush=True)

        yield show
        return
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bar, preemption.leaving(bar.stop):
        task = bar.add_task("", total=last, completed=first, figures="")

        def show(number: int, row: dict[str, Any]) -> None:
            bar.update(task, completed=number, figures=line(row))

        yield show


def bills(run: build.Run, state: RunState) -> list[dict[str, Any]]:
    """What one hospital of every tier pays, smallest tier first; see `cost.ledger`."""
    tiers = []
    everyone = range(len(run.budget))
    for tier, bill in enumerate(_ledgers(run, run.spec.local, state, everyone)):
        clients = int(np.sum(run.tiers == tier))
        size = {"budget": run.budget[tier], "branches": run.branches[tier]}
        tiers.append({"tier": tier, **size, "clients": clients, **bill})
    return tiers


def whole_bill(run: build.Run, state: RunState) -> dict[str, int]:
    """What a hospital would pay that trains the plain model, as in FedAvg."""
    local = run.spec.local
    local = local._replace(
        method=fedavg(local.model.axes), objective=mean_cross_entropy()
    )
    (bill,) = _ledgers(run, local, state, range(1))
    return bill


def _ledgers(
    run: build.Run, local: Local, state: RunState, tiers: range
) -> Iterator[dict[str, int]]:
    members = evaluate.representatives(run)
    units_key = rng.at(state.key, Role.UNITS, state.round)
    for tier in tiers:
        member = jax.tree.map(lambda leaf, tier=tier: leaf[tier], members)
        yield cost.ledger(
            local.model,
            local.method,
            local.objective,
            local.optimizer,
            state.params,
            local.method.units(units_key, state.round, state.params, member),
            member,
            x=jnp.asarray(run.splits.train.x[:1]),
        )


def _simulation(
    run: build.Run,
    state: RunState,
    tiers: list[dict[str, Any]],
    program: jax.stages.Compiled,
) -> dict[str, Any]:
    """What a round costs this machine, beside what it would cost the hospitals.

    Masked, every slot computes what the richest tier does, at full width; sliced, at
    its tier's size, whatever a method narrows a step to. Padded steps and slots compute
    too, also those that fill devices up. Bytes are those of one device.
    """
    local = run.spec.local
    method = local.method._replace(narrow=None)
    slots = run.slots or federation.slots(
        run.tiers, len(run.budget), run.cohort, "stratified"
    )
    if run.form == "masked":
        full, last = method._replace(size=None), len(tiers) - 1
        tiers = tiers[last:]
        if full != local.method:
            whole = local._replace(method=full)
            tiers = [*_ledgers(run, whole, state, range(last, last + 1))]
        slots = (sum(slots),)
    elif local.method.narrow is not None:
        widest = local._replace(method=method)
        tiers = [*_ledgers(run, widest, state, range(len(tiers)))]
    devices = 1 if run.mesh is None else run.mesh.size
    slots = [-(-count // devices) * devices for count in slots]
    steps, size = local.plan.steps, local.plan.batch_size
    protected = run.guarantee.records
    if protected is not None and protected.slots is not None:
        size = protected.slots * (protected.per_patient or 1)
    flops = [
        count * steps * (size * bill["flops_train"] + bill["flops_step"])
        for count, bill in zip(slots, tiers, strict=True)
    ]
    memory = program.memory_analysis()
    return {
        "form": run.form,
        "flops_per_round": sum(flops),
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
    }


def privacy_of(run: build.Run, rounds: int) -> dict[str, Any]:
    """summary.json's "privacy" of a run after so many rounds."""
    summary = run.guarantee.summary(rounds)
    if "notes" in summary:
        summary["notes"] = _notes(run, rounds)
    return summary


def _notes(run: build.Run, rounds: int) -> list[str]:
    """What of the run's guarantee is easily taken for something else."""
    found = run.guarantee.notes(rounds)
    origin = run.config["model"]["init_from"]
    if origin is None or not run.guarantee.parties:
        return found
    folder, about = pathlib.Path(origin), {}
    for name in ("config.json", "summary.json"):
        path = folder / name
        if path.exists():
            about |= require.parsed(str(path), path.read_text(errors="replace"), dict)
    same = (about.get("data") or {}).get("hash") == run.splits.hash
    return [*found, statement.origin(origin, about.get("privacy") or {}, same=same)]


def _compared(run: build.Run, state: RunState) -> list[int]:
    """The tiers that have enough test records for their accuracy to be a headline."""
    tested, tiers = (
        np.asarray(run.splits.test.count),
        np.asarray(run.tiers_at(state.round - 1)),
    )
    least = run.config["min_test_records"]
    _, enough = clients.enough(tested, tiers, len(run.budget), least)
    return np.flatnonzero(enough).tolist()


def _summary(
    run: build.Run,
    start: RunState,
    state: RunState,
    tiers: list[dict[str, Any]],
    whole: dict[str, int],
    workdir: pathlib.Path,
    spent: dict[str, Any],
) -> dict[str, Any]:
    splits = run.splits
    previous = workdir / "summary.json"
    if not spent and previous.exists():
        text = previous.read_text(errors="replace")
        old = require.parsed(str(previous), text, dict)
        spent = {name: old.get(name) for name in ("simulation", "time")}
    part = run.config["data"]["partition"]
    rows = files.rows(workdir / "metrics.jsonl")
    return {
        "metrics": rows[-1],
        "tiers": tiers,
        "privacy": privacy_of(run, int(state.round)),
        "robust": evaluate.withstands(run, start, state),
        "diverged": divergence.diverged(rows) or False,
        "principles": principles.measure(
            rows,
            tiers,
            whole,
            _drawn(run, state),
            np.stack([run.tiers_at(number) for number in range(int(state.round))]),
            state,
            evaluate.representatives(run),
            local=run.spec.local,
            compared=_compared(run, state),
        ),
        "data": {
            "name": run.config["data"]["name"],
            "rows": splits.rows,
            "hash": splits.hash,
            "normalise": run.config["data"]["normalise"],
            "partition": part["name"],
            "clients": len(splits.clients),
            "classes": list(splits.classes),
            "positive": splits.positive,
            "hospitals": federation.hospitals(splits, run.tiers),
            "tier_by_size": federation.by_size(run.tiers, splits.train.count),
            "source": splits.source,
            "notes": list(splits.notes),
        },
        "simulation": spent.get("simulation"),
        "time": spent.get("time") or {"compile_s": None, "rounds_per_s": None},
    }
