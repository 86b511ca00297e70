"""The loop: `train(config, workdir)`. The one place that jits and owns the clock.

A run is its checkpoints. Logs are written before the round they describe is saved, so
whatever step a run is continued from, its log rows are there; rows beyond it are cut.
"""

import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fairjax import checks, keys, metrics, report, round, specs
from fairjax.checkpoint import Checkpoints
from fairjax.data import federation
from fairjax.keys import Role
from fairjax.submodels import cost
from fairjax.types import Cohort, Member, Params, RunState

Log = Callable[[int, dict[str, Any]], None]
"""(round, row of metrics.jsonl): a place to forward metrics to."""


class Result(NamedTuple):
    """What a finished run hands back."""

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
) -> Result:
    """Runs a config to its last round, or goes on where the workdir stands.

    Args:
        config: see configs/default.py.
        workdir: created when missing; the files are those of README, "What a run
            leaves".
        params: plain model to start from; None: `model.init_from`, or drawn.
        log: called with every row of metrics.jsonl.
        profile: write a JAX profile of rounds 2 to 4 to workdir/profile.
        overridden: fields set by hand, see `specs.check`.

    Raises:
        InputError: the config, the data or the workdir cannot be used; nothing has been
            written then.
    """
    specs.check(config, overridden)
    workdir = pathlib.Path(workdir)
    _check_workdir(workdir, specs.plain(config))
    run = specs.build(config)
    init_from = run.config["model"]["init_from"]
    if params is None and init_from is not None:
        params = load(init_from)[1].params
    state = initial(run, params)

    _create(workdir)
    folder = workdir / "checkpoints"
    with Checkpoints(folder, keep=run.config["checkpoint"]["keep"]) as checkpoints:
        _write_json(workdir / "config.json", run.config)
        _write_json(workdir / "provenance.json", provenance())
        restored = checkpoints.restore(state)
        if restored is not None:
            state = jax.tree.map(jnp.asarray, restored[0])
        for name in ("metrics.jsonl", "clients.jsonl"):
            _truncate(workdir / name, int(state.round))
        state, seconds = _loop(run, state, workdir, checkpoints, log, profile)

    summary = _summary(run, state, workdir, seconds)
    _write_json(workdir / "summary.json", summary)
    page = report.write(workdir)
    console = Console()
    console.print(report.table(workdir))
    console.print(report.headline(workdir), soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)
    return Result(state, summary["metrics"], summary, workdir)


def initial(run: specs.Run, params: Params | None = None) -> RunState:
    """The state of a run before its first round."""
    x = jnp.asarray(run.splits.train.x[:1])
    state_of = functools.partial(
        round.init,
        jax.random.key(run.config["seed"]),
        x,
        clients=len(run.splits.clients),
        tiers=len(run.budget),
        spec=run.spec,
    )
    drawn = state_of()
    if params is None:
        return drawn
    checks.same_structure(
        "params", checks.describe(params), checks.describe(drawn.params)
    )
    checks.finite("params", params)
    return state_of(params=params)


def load(workdir: str | os.PathLike[str]) -> tuple[specs.Run, RunState]:
    """A run and its newest checkpoint.

    Raises:
        InputError: there is no run, or no readable checkpoint, in `workdir`.
    """
    workdir = pathlib.Path(workdir)
    try:
        config = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise checks.InputError(f"{workdir}: expected a run; got {error}") from error
    run = specs.build(specs.from_plain(config))
    if not (workdir / "checkpoints").is_dir():
        checks.fail(str(workdir), "a checkpoint", "none")
    with Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
        restored = checkpoints.restore(initial(run))
    if restored is None:
        checks.fail(str(workdir), "a readable checkpoint", "none")
    return run, jax.tree.map(jnp.asarray, restored[0])


def evaluate(
    run: specs.Run, state: RunState, split: str
) -> tuple[dict[str, float], tuple[metrics.Evaluation, metrics.Evaluation]]:
    """The evaluation keys of metrics.jsonl on a split, and the figures behind them."""
    data = getattr(run.splits, checks.one_of("split", split, ("train", "val", "test")))
    if not data.y.shape[0]:
        checks.fail("split", "a split with records", split)
    compiled = jax.jit(functools.partial(round.evaluate, spec=run.spec))
    data, train = jax.tree.map(jnp.asarray, (data, run.splits.train))
    full, own = compiled(
        state, data, train, jnp.asarray(run.tiers), representatives(run)
    )
    return metrics.summary(full, own, run.tiers), (full, own)


def representatives(run: specs.Run) -> Member:
    """For every tier its first hospital (hospital 0 where it has none), [T] a leaf."""
    tiers = np.arange(len(run.budget))
    clients = np.array([int(np.argmax(run.tiers == tier)) for tier in tiers])
    train = run.splits.train
    return Member(
        jnp.asarray(clients, jnp.int32),
        jnp.asarray(tiers, jnp.int32),
        jnp.ones(tiers.shape, bool),
        jnp.asarray(train.count)[clients],
        jnp.asarray(train.labels)[clients],
    )


# ----------------------------------------------------------------------------- the loop


def _loop(
    run: specs.Run,
    state: RunState,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    log: Log | None,
    profile: bool,
) -> tuple[RunState, dict[str, float | None]]:
    config = run.config
    first, last = int(state.round), config["rounds"]
    if first >= last:
        return state, {"compile_s": None, "rounds_per_s": None}
    train_data = jax.tree.map(jnp.asarray, run.splits.train)
    test_data = jax.tree.map(jnp.asarray, run.splits.test)
    asked = (train_data, jnp.asarray(run.tiers), representatives(run))

    def one_round(state: RunState) -> tuple[RunState, tuple[Cohort, round.RoundInfo]]:
        cohort_key = keys.at(state.key, Role.COHORT)
        cohort = federation.sample(
            cohort_key,
            state.round,
            run.tiers,
            run.cohort,
            slots=run.slots,
            law=config["execution"]["slots"],
        )
        state, info = round.step(
            state, train_data, cohort, spec=run.spec, layout=run.layout
        )
        return state, (cohort, info)

    started = time.perf_counter()
    step = jax.jit(one_round).lower(state).compile()
    measure = jax.jit(functools.partial(round.evaluate, spec=run.spec))
    measure = measure.lower(state, test_data, *asked).compile()
    compile_s = time.perf_counter() - started
    for name, choice in run.choices.items():
        print(f"{name} = {choice}")

    busy = 0.0
    with (
        (workdir / "metrics.jsonl").open("a") as rounds_file,
        (workdir / "clients.jsonl").open("a") as clients_file,
        _progress(first, last) as show,
        contextlib.ExitStack() as profiling,
    ):
        for number in range(first + 1, last + 1):
            if profile and number == first + 2:
                profiling.enter_context(jax.profiler.trace(str(workdir / "profile")))
            if number == first + 5:
                profiling.close()
            started = time.perf_counter()
            state, (cohort, info) = jax.block_until_ready(step(state))
            round_s = time.perf_counter() - started
            busy += round_s
            row = {"round": number} | _round_row(run, cohort, info)
            if number % config["eval_every"] == 0 or number == last:
                full, own = jax.device_get(measure(state, test_data, *asked))
                row |= metrics.summary(full, own, run.tiers)
                _write_lines(
                    clients_file, _client_rows(run, number, cohort, info, full, own)
                )
            row["time/round_s"] = round_s
            row = {name: _number(value) for name, value in row.items()}
            _write_lines(rounds_file, [row])
            if log is not None:
                log(number, row)
            if number % config["checkpoint"]["every"] == 0 or number == last:
                checkpoints.save(number, state, {"round": number})
            show(number, row)
    return state, {"compile_s": compile_s, "rounds_per_s": (last - first) / busy}


def _round_row(run: specs.Run, cohort: Cohort, info: round.RoundInfo) -> dict[str, Any]:
    tier, weight = np.asarray(cohort.tier), np.asarray(info.weights, np.float64)
    row: dict[str, Any] = {"train/loss": float(info.loss)}
    for t in range(len(run.budget)):
        row[f"fairness/weight_tier_{t}"] = float(weight[tier == t].sum())
    row["cohort/valid"] = int(np.sum(info.valid))
    row["cohort/coverage"] = float(info.coverage)
    return row


def _client_rows(
    run: specs.Run,
    number: int,
    cohort: Cohort,
    info: round.RoundInfo,
    full: metrics.Evaluation,
    own: metrics.Evaluation,
) -> Iterator[dict[str, Any]]:
    valid = np.asarray(cohort.valid)
    weights = dict(
        zip(
            np.asarray(cohort.client)[valid].tolist(),
            np.asarray(info.weights, np.float64)[valid].tolist(),
            strict=True,
        )
    )
    for client, name in enumerate(run.splits.clients):
        tier = int(run.tiers[client])
        yield {
            "round": number,
            "client": name,
            "tier": tier,
            "n": int(full.clients.count[client]),
            "weight": _number(weights.get(client)),
            "loss": _number(full.clients.loss[client]),
            "accuracy": _number(full.clients.accuracy[client]),
            "auroc": _number(full.clients.auroc[client]),
            "own_accuracy": _number(own.clients.accuracy[tier, client]),
        }


@contextlib.contextmanager
def _progress(first: int, last: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A bar on a terminal; elsewhere a plain line for every evaluated round."""

    def line(row: dict[str, Any]) -> str:
        figures = {
            "loss": row["train/loss"],
            "accuracy": row.get("eval/accuracy"),
            "auroc": row.get("eval/auroc"),
        }
        return "  ".join(f"{k} {v:.4f}" for k, v in figures.items() if v is not None)

    console = Console()
    if not console.is_terminal:

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
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=last, completed=first, figures="")

        def show(number: int, row: dict[str, Any]) -> None:
            bar.update(task, completed=number, figures=line(row))

        yield show


# -------------------------------------------------------------------------- the workdir


def _check_workdir(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Refuses a workdir that holds another config, a longer run, or no run at all."""
    if workdir.exists() and not workdir.is_dir():
        checks.fail("--workdir", "a folder", str(workdir))
    path = workdir / "config.json"
    if not path.exists():
        if workdir.exists() and any(workdir.iterdir()):
            checks.fail("--workdir", "an empty folder or that of a run", str(workdir))
        return
    try:
        theirs = json.loads(path.read_text())
    except ValueError as error:
        raise checks.InputError(f"{path}: expected a config; got {error}") from error
    differing = [
        field
        for field in specs.differences(config, theirs)
        if not field.startswith("checkpoint.")
    ]
    if differing == ["rounds"]:
        if config["rounds"] > theirs["rounds"] and specs.extendable(theirs):
            return
        reason = (
            f"at least the {theirs['rounds']} that {workdir} was run for"
            if specs.extendable(theirs)
            else f"{theirs['rounds']}, on which the schedule of {workdir} rests"
        )
        checks.fail("rounds", reason, config["rounds"])
    if differing:
        raise checks.InputError(
            f"--workdir: expected the config of {workdir}; got other values of "
            f"{', '.join(differing)}"
        )


def _create(workdir: pathlib.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise checks.InputError(
            f"--workdir: expected a folder that can be written; got {error.strerror}"
        ) from error


def _truncate(path: pathlib.Path, round: int) -> None:
    """Keeps the whole rows of rounds up to `round`, by a file of its own."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["round"] <= round:
                kept.append(line)
        except ValueError:
            break
    _replace(path, "".join(kept))


def _replace(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def _write_json(path: pathlib.Path, value: Any) -> None:
    _replace(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _write_lines(file: Any, rows: Any) -> None:
    file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    file.flush()


def _number(value: Any) -> float | int | None:
    """A JSON number; null for what is not known or not finite."""
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _summary(
    run: specs.Run,
    state: RunState,
    workdir: pathlib.Path,
    seconds: dict[str, float | None],
) -> dict[str, Any]:
    splits, members, local = run.splits, representatives(run), run.spec.local
    units_key = keys.at(state.key, Role.UNITS, state.round)
    tiers = []
    for tier, budget in enumerate(run.budget):
        member = jax.tree.map(lambda leaf, tier=tier: leaf[tier], members)
        kept = local.method.units(units_key, state.round, state.params, member)
        bill = cost.ledger(
            local.model,
            local.method,
            local.objective,
            local.optimizer,
            state.params,
            kept,
            member,
            x=jnp.asarray(splits.train.x[:1]),
        )
        clients = int(np.sum(run.tiers == tier))
        entry = {"tier": tier, "budget": budget, "branches": 0, "clients": clients}
        tiers.append(entry | bill)
    previous = workdir / "summary.json"
    if seconds["compile_s"] is None and previous.exists():
        seconds = json.loads(previous.read_text())["time"]
    part = run.config["data"]["partition"]
    return {
        "metrics": _rows(workdir / "metrics.jsonl")[-1],
        "tiers": tiers,
        "privacy": {
            "mechanism": "none",
            "epsilon": None,
            "delta": None,
            "sampling": "fixed" if run.cohort < len(splits.clients) else "full",
        },
        "principles": {},
        "data": {
            "name": run.config["data"]["name"],
            "rows": splits.rows,
            "hash": splits.hash,
            "normalise": run.config["data"]["normalise"],
            "partition": part["name"],
            "clients": len(splits.clients),
            "classes": list(splits.classes),
            "source": splits.source,
            "notes": list(splits.notes),
        },
        "time": seconds,
    }


def provenance() -> dict[str, Any]:
    """Versions, code revision, device and command of this process."""
    packages = (
        "fairjax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
    )
    root = pathlib.Path(__file__).resolve().parent.parent
    git = functools.partial(
        subprocess.run, cwd=root, capture_output=True, text=True, check=False
    )
    revision = None
    with contextlib.suppress(OSError):
        if (root / ".git").exists():
            head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
            dirty = git(["git", "status", "--porcelain"]).stdout.strip()
            revision = f"{head}{' with local changes' if dirty else ''}" or None
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "git_revision": revision,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": " ".join(sys.argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
