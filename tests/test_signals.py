"""Ctrl-C in a real script: at six named points, and at fifty drawn times (slow).

Wherever it falls: one line, exit code 75, and the same command goes on to the same
bytes.
"""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
import signalled
from trained import rows, same_states, untimed

ROOT = pathlib.Path(__file__).resolve().parents[1]
AT_ONCE = "train.py: stopped; the same command goes on\n"


@pytest.fixture(autouse=True, scope="module")
def _nobody_ignores_them():
    """As whoever runs tests in the background does, and commands hear all the same."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(point, workdir, rounds=3):
    """scripts/train.py on the config of `trained.small`."""
    fields = {"rounds": rounds, "eval_every": 2, "cohort": 3}
    fields |= {"data.partition.num_clients": 4, "model.mlp.hidden": "(8,)"}
    command = [sys.executable, signalled.__file__, point, "scripts/train.py"]
    command += ["--config=configs/default.py", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def halves(workdir):
    """What was begun and is not whole."""
    steps = [*workdir.glob("checkpoints/*"), *workdir.glob("selected/*")]
    half = [step for step in steps if not step.name.isdecimal()]
    half += [*workdir.glob("**/*.new"), *workdir.glob("**/.*.html*")]
    for path in workdir.glob("*.jsonl"):
        half += [] if path.read_text()[-1:] in ("", "\n") else [path]
    return half


def alike(workdir, straight):
    """The same bytes as a run that nobody stopped, but for the clock's."""
    name = "metrics.jsonl"
    assert untimed(workdir / name) == untimed(straight / name)
    clients = [(path / "clients.jsonl").read_bytes() for path in (workdir, straight)]
    assert clients[0] == clients[1]
    same_states(workdir, straight)
    assert (workdir / "report.html").exists()


def test_ctrl_c_at_six_named_points(finished, tmp_path):
    """One run, which is stopped at each of them in turn, goes on and ends."""
    ends = {point: (75, AT_ONCE, 0) for point in signalled.POINTS}
    for point, last in {"in a round": 1, "saving": 3}.items():
        line = AT_ONCE.replace("stopped", f"stopped after round {last}")
        ends[point] = (75, line, last)
    ends |= {"drawing figures": (75, AT_ONCE, 3), "nowhere": (0, "", 3)}
    workdir = tmp_path / "run"
    metrics = workdir / "metrics.jsonl"
    for point, (code, line, last) in ends.items():
        with start(point, workdir) as process:
            out, err = process.communicate(timeout=300)
        done = len(rows(metrics)) if metrics.exists() else 0
        assert (process.returncode, err, done) == (code, line, last), point
        assert halves(workdir) == [], point
        assert ("report: " in out) == (point == "nowhere"), point
    alike(workdir, finished[0].workdir)
