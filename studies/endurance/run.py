"""Kills one run thirty times, and counts the resources of a run of 2,000 rounds.

    python studies/endurance/run.py

Both runs are of configs/breast_cancer.py, with a checkpoint after every round and an
evaluation after every fifth. Processes of the first run receive SIGKILL in a step, an
evaluation, a write of logs or a save, in turn, after a random number of rounds. The
last process finishes the run, and its files are compared with those of an uninterrupted
run. Memory, threads and open files of the second run are counted every hundred rounds.
The script writes results.json and the page beside it. It takes ten to twenty minutes on
2 CPU cores.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import collections
import contextlib
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from configs import breast_cancer
from fairjax.core import trees
from fairjax.experiment import best_round, cli, compilation, evaluate, resume
from fairjax.experiment import train as loop
from fairjax.experiment.io import checkpoint, preemption
from fairjax.experiment.io import workdir as files
from studies import experiment
from studies.experiment import fill

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = pathlib.Path(__file__).resolve().parent / "results.json"
BEGIN = "<!-- studies/endurance/results.json -->"
PHASES = ("in a step", "in an evaluation", "in a write of logs", "in a save")
ROUNDS = 400
"""Rounds of the killed run, which are enough for all of its processes."""
SETTLED = 200
"""The first round whose memory is compared."""


def config_of(rounds: int) -> Any:
    """The config of both runs."""
    config = breast_cancer.get_config()
    config.rounds, config.selection_metric = rounds, experiment.SELECT
    return config


# ------------------------------------------------------------------------------ killed


def train_with_marks(workdir: str, mark: str) -> None:
    """Trains, and marks in a file the phase that began last and the last round.

    A save continues in the background while the next step begins.

    Args:
        workdir: the folder of the run.
        mark: a file of five bytes: an index of `PHASES`, and the round in four bytes.
    """
    cli.keep_programs()
    file = os.open(mark, os.O_WRONLY)

    def marking(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            os.pwrite(file, bytes([PHASES.index(phase)]), 0)
            return function(*args, **kwargs)

        return run

    compiled, measured = compilation.compile_round, evaluate.compile_evaluation

    def steps(*args: Any) -> Any:
        step, program = compiled(*args)
        return marking("in a step", step), program

    compilation.compile_round = steps
    evaluate.compile_evaluation = lambda *args: marking(
        "in an evaluation", measured(*args)
    )
    files.write_lines = marking("in a write of logs", files.write_lines)
    save = checkpoint.Checkpoints.save
    checkpoint.Checkpoints.save = marking("in a save", save)

    def log(number: int, row: dict[str, Any]) -> None:
        os.pwrite(file, number.to_bytes(4, "little"), 1)

    loop.train(config_of(ROUNDS), workdir, log=log)


def _start(workdir: pathlib.Path, mark: pathlib.Path) -> subprocess.Popen[bytes]:
    mark.write_bytes(bytes(5))
    call = f"endurance.train_with_marks({str(workdir)!r}, {str(mark)!r})"
    code = f"from scripts import endurance; {call}"
    out = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=out)


def kill(workdir: pathlib.Path, mark: pathlib.Path, phase: str, after: int) -> str:
    """Starts a process and kills it in a phase, some rounds after its first one.

    Returns:
        The phase that the process was in.
    """
    process, first = _start(workdir, mark), 0
    with (
        mark.open("rb") as file,
        preemption.leaving(process.kill),
        contextlib.ExitStack() as ended,
    ):
        ended.callback(process.wait)
        ended.callback(process.kill)
        while process.poll() is None:
            noted = os.pread(file.fileno(), 5, 0)
            number = int.from_bytes(noted[1:], "little")
            first = first or number
            if number and number >= first + after and PHASES[noted[0]] == phase:
                break
            if not number:
                time.sleep(0.01)
        if process.poll() is not None:
            raise RuntimeError(f"a process ended by itself, with {process.returncode}")
    return PHASES[mark.read_bytes()[0]]


def leftovers(workdir: pathlib.Path) -> dict[str, int]:
    """Traces of a kill: incomplete checkpoints, and logged rounds without one."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    saved = max((int(name) for name in names if name.isdecimal()), default=0)
    logged = (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    half = sum("tmp" in name for name in names)
    return {"half a step": half, "rounds again": logged - saved}


def contents(workdir: pathlib.Path) -> dict[str, Any]:
    """The contents that interruptions must not change."""
    rows = [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in files.rows(workdir / "metrics.jsonl")
    ]
    run, last = resume.load(workdir)
    best = checkpoint.restore_latest(
        workdir / "selected", last, best_round.checkpoint_meta(run)
    )
    assert best is not None

    def as_bytes(state: Any) -> list[bytes]:
        return [
            np.asarray(leaf).tobytes()
            for leaf in jax.tree.leaves(trees.unwrap_keys(state))
        ]

    return {
        "metrics.jsonl without time/": json.dumps(rows),
        "clients.jsonl": (workdir / "clients.jsonl").read_bytes(),
        "the last state": as_bytes(last),
        "the selected state": as_bytes(best.state),
    }


def killed_run(folder: pathlib.Path, kills: int, seed: int) -> dict[str, Any]:
    """Compares a run that is killed with one that is not."""
    rng, mark = np.random.default_rng(seed), folder / "mark"
    lives, started = [], time.perf_counter()
    for phase in itertools.islice(itertools.cycle(PHASES), kills):
        was = kill(folder / "killed", mark, phase, int(rng.integers(8)))
        lives.append({"phase": was, **leftovers(folder / "killed")})
    for name in ("killed", "straight"):
        process = _start(folder / name, mark)
        with preemption.leaving(process.kill):
            if code := process.wait():
                raise RuntimeError(f"the {name} run ended with {code}")
    killed_contents, straight_contents = (
        contents(folder / name) for name in ("killed", "straight")
    )
    return {
        "rounds": ROUNDS,
        "lives": lives,
        "same": {
            name: killed_contents[name] == straight_contents[name]
            for name in killed_contents
        },
        "seconds": round(time.perf_counter() - started),
    }


# -------------------------------------------------------------------------------- long


def long_run(folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Counts the resources of a long run in this process every hundred rounds."""
    rows, started = [], time.perf_counter()

    def log(number: int, row: dict[str, Any]) -> None:
        if number % 100 == 0:
            rows.append({"round": number, **resources()})

    loop.train(config_of(rounds), folder / "long", log=log)
    seconds = round(time.perf_counter() - started)
    return {"rounds": rounds, "counted": rows, "seconds": seconds}


def resources() -> dict[str, float]:
    """Resident memory in MB, threads and open files of this process."""
    process = pathlib.Path("/proc/self")
    status = (process / "status").read_text().splitlines()
    resident = next(line for line in status if line.startswith("VmRSS"))
    counts = {name: len(os.listdir(process / name)) for name in ("task", "fd")}
    return {
        "megabytes": int(resident.split()[1]) / 1024,
        "threads": counts["task"],
        "files": counts["fd"],
    }


def growth(rows: Sequence[dict[str, float]], name: str) -> tuple[float, float]:
    """A figure at round `SETTLED`, and its maximum from there on."""
    values = [row[name] for row in rows if row["round"] >= SETTLED]
    return values[0], max(values)


# ---------------------------------------------------------------------------- the page


def summary_text(results: dict[str, Any]) -> str:
    """The results in words."""
    run, long = results["killed"], results["soak"]
    phases = collections.Counter(life["phase"] for life in run["lives"])
    where = ", ".join(f"{phases[phase]} {phase}" for phase in PHASES)
    half, retrained = (
        sum(life[name] for life in run["lives"])
        for name in ("half a step", "rounds again")
    )
    identical = [name for name, is_equal in run["same"].items() if is_equal]
    different = [name for name, is_equal in run["same"].items() if not is_equal]
    settled, peak = growth(long["counted"], "megabytes")
    threads, files_open = (growth(long["counted"], n) for n in ("threads", "files"))
    return (
        f"Killed {len(run['lives'])} times in {run['rounds']} rounds: {where}. {half} "
        f"kills left half a step; {retrained} rounds were trained again. As in a run "
        f"that was not killed, byte for byte: {', '.join(identical) or 'nothing'}. Not "
        f"so: {', '.join(different) or 'nothing'}.\n\n"
        f"{long['rounds']:,} rounds with a checkpoint each: resident memory "
        f"{settled:.0f} MB after round {SETTLED}, at most {peak:.0f} MB later "
        f"({peak / settled - 1:+.1%}); threads {threads[0]}, at most {threads[1]}; "
        f"open files {files_open[0]}, at most {files_open[1]}."
    )


def finding(results: dict[str, Any]) -> str:
    """What a killed run and a long run come to, in two sentences."""
    run, long = results["killed"], results["soak"]
    is_same = all(run["same"].values())
    settled, peak = growth(long["counted"], "megabytes")
    return (
        f"A run that is killed {len(run['lives'])} times in {run['rounds']} rounds "
        f"ends {'as' if is_same else 'otherwise than'} one that is not, byte for byte. "
        f"Resident memory grows by {peak / settled - 1:.1%} between round {SETTLED} "
        f"and round {long['rounds']:,}."
    )


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_integer("kills", 30, "Processes killed.", flag_values=values)
    flags.DEFINE_integer("rounds", 2000, "Rounds of the long run.", flag_values=values)
    description = "Seed of the rounds at which processes are killed."
    flags.DEFINE_integer("seed", 0, description, flag_values=values)
    flags.DEFINE_string("workdir", None, "Keeps the runs there.", flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Does both runs and writes the results and the page."""
    with contextlib.ExitStack() as stack:
        root = options.workdir or stack.enter_context(experiment.temporary())
        folder = pathlib.Path(root)
        files.create(folder)
        results = {
            "command": "python studies/endurance/run.py",
            "seed": options.seed,
            **experiment.surroundings(),
            "soak": long_run(folder, options.rounds),
            "killed": killed_run(folder, options.kills, options.seed),
        }
    files.write_json(RESULTS, results)
    page = RESULTS.parent / "README.md"
    page.write_text(fill(page.read_text(), BEGIN, summary_text(results)))
    print(summary_text(results))


if __name__ == "__main__":
    cli.run(main, define)
