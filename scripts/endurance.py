"""Kills one run thirty times, and trains another for 2,000 rounds: what it costs.

    python scripts/endurance.py

The first is configs/breast_cancer.py: a checkpoint after every round, an evaluation
after every fifth. Processes of it get SIGKILL in a step, an evaluation, a write of logs
or a save, in turn, after a drawn number of rounds; the last one ends the run, which is
compared with one that nothing happened to. The other's memory, threads and open files
are counted every hundred rounds. Writes results/endurance.json and the page beside it.
Ten to twenty minutes on 2 CPU cores.
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
from fairjax.experiment import cli, evaluate
from fairjax.experiment import train as loop
from fairjax.experiment.io import checkpoint, preemption
from fairjax.experiment.io import workdir as files
from scripts import experiment
from scripts.experiment import fill

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "endurance.json"
BEGIN = "<!-- results/endurance.json -->"
PHASES = ("in a step", "in an evaluation", "in a write of logs", "in a save")
ROUNDS = 400
"""Of the run that is killed; enough for all of its lives."""
SETTLED = 200
"""Rounds until memory is counted."""


def config_of(rounds: int) -> Any:
    """The config of both runs."""
    config = breast_cancer.get_config()
    config.rounds, config.select = rounds, experiment.SELECT
    return config


# ------------------------------------------------------------------------------ killed


def marked(workdir: str, mark: str) -> None:
    """Trains, and notes in a file which phase was begun last and the last round.

    A save goes on in the background while the next step begins.
    """
    cli.keep_programs()
    file = os.open(mark, os.O_WRONLY)

    def noted(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            os.pwrite(file, bytes([PHASES.index(phase)]), 0)
            return function(*args, **kwargs)

        return run

    compiled, measured = loop.compiled, evaluate.compiled

    def steps(*args: Any) -> Any:
        step, program = compiled(*args)
        return noted("in a step", step), program

    loop.compiled = steps
    evaluate.compiled = lambda *args: noted("in an evaluation", measured(*args))
    files.write_lines = noted("in a write of logs", files.write_lines)
    save = checkpoint.Checkpoints.save
    checkpoint.Checkpoints.save = noted("in a save", save)

    def log(number: int, row: dict[str, Any]) -> None:
        os.pwrite(file, number.to_bytes(4, "little"), 1)

    loop.train(config_of(ROUNDS), workdir, log=log)


def _start(workdir: pathlib.Path, mark: pathlib.Path) -> subprocess.Popen[bytes]:
    mark.write_bytes(bytes(5))
    call = f"endurance.marked({str(workdir)!r}, {str(mark)!r})"
    code = f"from scripts import endurance; {call}"
    out = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=out)


def kill(workdir: pathlib.Path, mark: pathlib.Path, phase: str, after: int) -> str:
    """Starts a process, kills it some rounds later in a phase; the one it was in."""
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


def left(workdir: pathlib.Path) -> dict[str, int]:
    """What a kill left: half-written steps, and rounds that are not saved."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    saved = max((int(name) for name in names if name.isdecimal()), default=0)
    logged = (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    half = sum("tmp" in name for name in names)
    return {"half a step": half, "rounds again": logged - saved}


def contents(workdir: pathlib.Path) -> dict[str, Any]:
    """What must be the same, whatever happened on the way."""
    rows = [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in files.rows(workdir / "metrics.jsonl")
    ]
    run, last = loop.load(workdir)
    best = checkpoint.newest(workdir / "selected", last, loop.about(run))
    assert best is not None

    def as_bytes(state: Any) -> list[bytes]:
        return [
            np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trees.raw(state))
        ]

    return {
        "metrics.jsonl without time/": json.dumps(rows),
        "clients.jsonl": (workdir / "clients.jsonl").read_bytes(),
        "the last state": as_bytes(last),
        "the selected state": as_bytes(best.state),
    }


def killed(folder: pathlib.Path, kills: int, seed: int) -> dict[str, Any]:
    """The run that is killed, beside one that is not."""
    rng, mark = np.random.default_rng(seed), folder / "mark"
    lives, started = [], time.perf_counter()
    for phase in itertools.islice(itertools.cycle(PHASES), kills):
        was = kill(folder / "killed", mark, phase, int(rng.integers(8)))
        lives.append({"phase": was, **left(folder / "killed")})
    for name in ("killed", "straight"):
        process = _start(folder / name, mark)
        with preemption.leaving(process.kill):
            if code := process.wait():
                raise RuntimeError(f"the {name} run ended with {code}")
    ours, theirs = (contents(folder / name) for name in ("killed", "straight"))
    return {
        "rounds": ROUNDS,
        "lives": lives,
        "same": {name: ours[name] == theirs[name] for name in ours},
        "seconds": round(time.perf_counter() - started),
    }


# -------------------------------------------------------------------------------- long


def soak(folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """A long run in this process, and what it holds every hundred rounds."""
    counted, started = [], time.perf_counter()

    def log(number: int, row: dict[str, Any]) -> None:
        if number % 100 == 0:
            counted.append({"round": number, **holds()})

    loop.train(config_of(rounds), folder / "long", log=log)
    seconds = round(time.perf_counter() - started)
    return {"rounds": rounds, "counted": counted, "seconds": seconds}


def holds() -> dict[str, float]:
    """Resident memory, in MB, threads and open files of this process."""
    process = pathlib.Path("/proc/self")
    status = (process / "status").read_text().splitlines()
    resident = next(line for line in status if line.startswith("VmRSS"))
    counted = {name: len(os.listdir(process / name)) for name in ("task", "fd")}
    return {
        "megabytes": int(resident.split()[1]) / 1024,
        "threads": counted["task"],
        "files": counted["fd"],
    }


def growth(counted: Sequence[dict[str, float]], name: str) -> tuple[float, float]:
    """(at round SETTLED, the most after it)."""
    after = [each[name] for each in counted if each["round"] >= SETTLED]
    return after[0], max(after)


# ---------------------------------------------------------------------------- the page


def said(results: dict[str, Any]) -> str:
    """What came out, in words."""
    run, long = results["killed"], results["soak"]
    phases = collections.Counter(life["phase"] for life in run["lives"])
    where = ", ".join(f"{phases[phase]} {phase}" for phase in PHASES)
    half, again = (
        sum(life[name] for life in run["lives"])
        for name in ("half a step", "rounds again")
    )
    same = [name for name, alike in run["same"].items() if alike]
    other = [name for name, alike in run["same"].items() if not alike]
    was, most = growth(long["counted"], "megabytes")
    threads, files_open = (growth(long["counted"], n) for n in ("threads", "files"))
    return (
        f"Killed {len(run['lives'])} times in {run['rounds']} rounds: {where}. {half} "
        f"kills left half a step; {again} rounds were trained again. As in a run that "
        f"was not killed, byte for byte: {', '.join(same) or 'nothing'}. Not so: "
        f"{', '.join(other) or 'nothing'}.\n\n"
        f"{long['rounds']:,} rounds with a checkpoint each: resident memory {was:.0f} "
        f"MB after round {SETTLED}, at most {most:.0f} MB later "
        f"({most / was - 1:+.1%}); threads {threads[0]}, at most {threads[1]}; open "
        f"files {files_open[0]}, at most {files_open[1]}."
    )


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_integer("kills", 30, "Processes killed.", flag_values=values)
    flags.DEFINE_integer("rounds", 2000, "Of the long run.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the moments.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Keeps the runs there.", flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs both and writes both files."""
    with contextlib.ExitStack() as opened:
        where = options.workdir or opened.enter_context(experiment.temporary())
        folder = pathlib.Path(where)
        files.create(folder)
        results = {
            "command": "python scripts/endurance.py",
            "seed": options.seed,
            **experiment.surroundings(),
            "soak": soak(folder, options.rounds),
            "killed": killed(folder, options.kills, options.seed),
        }
    files.write_json(RESULTS, results)
    page = RESULTS.parent / "README.md"
    page.write_text(fill(page.read_text(), BEGIN, said(results)))
    print(said(results))


if __name__ == "__main__":
    cli.run(main, define)
