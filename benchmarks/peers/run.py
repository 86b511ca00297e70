"""The same federated work in fairjax, in other frameworks and by hand, side by side.

    python scripts/bench.py --name=peers

Every contender runs in its own process on one core, in turns. pip makes a peer's
missing environment in runs/peers; PyTorch is large. The benchmark takes about ten
minutes.
"""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from benchmarks.peers import work
from benchmarks.rows import Row, pivot
from fairjax.core import require
from fairjax.experiment.io import preemption

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TURNS = 3
CASES = ("lr", "mlp", "cnn")

REQUIREMENTS = {
    "pfl": ("torch==2.13.0", "pfl==0.6.0"),
    "flower": ("torch==2.13.0", "flwr[simulation]==1.41.0", "psutil"),
}
"""Environment -> packages to install."""

CONTENDERS: dict[str, tuple[str | None, str, tuple[str, ...]]] = {
    "fairjax": (None, "benchmarks.peers.ours", ()),
    "JAX by hand, a program a round": (None, "benchmarks.peers.floor", ("round",)),
    "JAX by hand, a program a client": (None, "benchmarks.peers.floor", ("client",)),
    "PyTorch loop": ("pfl", "benchmarks.peers.torch_loop", ()),
    "pfl 0.6.0": ("pfl", "benchmarks.peers.pfl", ()),
    "Flower 1.41.0": ("flower", "benchmarks.peers.flower", ()),
}
"""Name -> (environment, module, further arguments)."""

LEFT_OUT = {("cnn", "JAX by hand, a program a round")}
"""(case, contender) pairs that take too long: vmapped convolutions, 20 s a round."""
ONCE = ("Flower 1.41.0",)
"""Contenders that take only one turn, because a round takes seconds."""


def python(environment: str | None) -> str:
    """The Python interpreter of an environment, which is made if it is missing."""
    if environment is None:
        return sys.executable
    folder = ROOT / "runs" / "peers" / environment
    program = folder / "bin" / "python"
    if not (folder / "ready").exists():
        _run([sys.executable, "-m", "venv", "--clear", folder])
        install = [program, "-m", "pip", "install", "--quiet"]
        _run([*install, *REQUIREMENTS[environment]])
        (folder / "ready").touch()
    return str(program)


def run_once(
    environment: str | None,
    module: str,
    arguments: Sequence[str],
    *,
    flags: str = "",
    platform: str = "cpu",
) -> Row:
    """Runs a contender in a process on one core; the last line it prints is the row.

    Args:
        environment: the environment of the interpreter; None takes the current one.
        module: the dotted name of the module.
        arguments: the arguments of the module.
        flags: XLA_FLAGS; a process with flags has all cores.
        platform: JAX_PLATFORMS; with "" JAX chooses, and the process has all cores.
    """
    command = [python(environment), "-m", module, *arguments]
    settings = {"JAX_PLATFORMS": platform, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    if platform == "cpu" and not flags:
        settings |= {"OMP_NUM_THREADS": "1", work.ONE_CORE: "1"}
    return json.loads(_run(command, settings).strip().splitlines()[-1])


def _run(
    command: Sequence[str | pathlib.Path], settings: Mapping[str, str] | None = None
) -> str:
    """The output of a command; if a signal ends this process, the command ends too.

    Raises:
        InputError: the command fails.
    """
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | dict(settings or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        # Flower starts processes, so the whole process group is killed.
        with preemption.leaving(lambda: os.killpg(process.pid, signal.SIGKILL)):
            output, errors = process.communicate()
    if process.returncode:
        last = (errors.strip() or "no output").splitlines()[-1]
        code = f"{process.returncode}: {last}"
        require.fail(" ".join(map(str, command)), "exit code 0", code)
    return output


def summary(turns: Sequence[Row]) -> Row:
    """Medians over turns, and the shortest and longest round of all turns."""
    middle = ("median_s", "cpu_s_per_round", "peak_rss_mb")
    row = turns[0] | {
        name: statistics.median(turn[name] for turn in turns) for name in middle
    }
    row["turns"] = len(turns)
    row["min_s"] = min(turn["min_s"] for turn in turns)
    row["max_s"] = max(turn["max_s"] for turn in turns)
    return row


def measure() -> list[Row]:
    """A row for every case and contender."""
    rows = []
    for case in CASES:
        rows_by_name: dict[str, list[Row]] = {}
        for turn in range(TURNS):
            for name, (environment, module, arguments) in CONTENDERS.items():
                if (case, name) in LEFT_OUT or (turn and name in ONCE):
                    continue
                row = run_once(environment, module, (case, *arguments))
                rows_by_name.setdefault(name, []).append(row)
        rows += [
            {"case": case, "name": name} | summary(turns)
            for name, turns in rows_by_name.items()
        ]
    return rows


def table(rows: list[Row]) -> str:
    """A Markdown table of seconds per round of fairjax, and the others' ratios."""
    return pivot(rows, "a round, on one core", against="fairjax", memory=True)
