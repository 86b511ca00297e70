"""Ctrl-C in a real script: at six named points, and at fifty random times (slow).

At every point the script prints one line and exits with code 75, and the same command
goes on to the same bytes.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fairjax.experiment.train import train
from tests import signalled
from tests.trained import rows, same_states, small, steps, untimed

ROOT = pathlib.Path(__file__).resolve().parents[1]
AT_ONCE = "train.py: stopped; the same command goes on\n"


@pytest.fixture(autouse=True, scope="module")
def _nobody_ignores_them():
    """Restores SIGINT, which a shell ignores for tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(point, workdir, rounds=3):
    """scripts/train.py on the config of `trained.small`."""
    fields = {"rounds": rounds, "eval_every": 2, "clients_per_round": 3}
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
    """Files and steps that are incomplete."""
    steps = [*workdir.glob("checkpoints/*"), *workdir.glob("selected/*")]
    half = [step for step in steps if not step.name.isdecimal()]
    half += [*workdir.glob("**/*.new"), *workdir.glob("**/.*.html*")]
    for path in workdir.glob("*.jsonl"):
        half += [] if path.read_text()[-1:] in ("", "\n") else [path]
    return half


def alike(workdir, straight):
    """Asserts the bytes of an uninterrupted run, apart from times."""
    name = "metrics.jsonl"
    assert untimed(workdir / name) == untimed(straight / name)
    clients = [(path / "clients.jsonl").read_bytes() for path in (workdir, straight)]
    assert clients[0] == clients[1]
    same_states(workdir, straight)
    assert (workdir / "report.html").exists()


def test_ctrl_c_at_six_named_points(finished, tmp_path):
    """One run is stopped at each point in turn, goes on and ends."""
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


# --------------------------------------------------------------------- at drawn times

ROUNDS = 30
PARTS, EACH = 5, 10


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run, and its seconds with cached programs."""
    for name in ("first", "second"):
        workdir = tmp_path_factory.mktemp("runs") / name
        with start("drawn times", workdir, ROUNDS) as process:
            assert process.stdout.readline() == "begun\n"
            began = time.monotonic()
            process.communicate(timeout=600)
            seconds = time.monotonic() - began
        assert process.returncode == 0
    return workdir, seconds


def reached(workdir):
    """(the phase that a run was in, by its files, the number of its rounds)."""
    metrics = workdir / "metrics.jsonl"
    done = len(rows(metrics)) if metrics.exists() else 0
    at = {
        "config.json": "starting",
        "metrics.jsonl": "compiling",
        "summary.json": "final figures" if done == ROUNDS else "rounds",
        "report.html": "report",
    }
    ahead = [at for name, at in at.items() if not (workdir / name).exists()]
    return [*ahead, "done"][0], done


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_ctrl_c_at_drawn_times(part, straight, tmp_path):
    """Uniform over the whole run; each part has ten signals to live processes."""
    rng, fell = np.random.default_rng([0, part]), 0
    while fell < EACH:
        seconds, workdir = rng.uniform(0, straight[1]), tmp_path / str(fell)
        with start("drawn times", workdir, ROUNDS) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(seconds)
            fell += process.poll() is None
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)  # a timeout means a lost signal
        (at, done), code = reached(workdir), process.returncode
        print(f"{seconds:.2f} s, {at} {done}: {code} {err!r}", flush=True)
        if (at, code, err) == ("done", 0, ""):
            continue  # its work was over: a signal may come too late
        after = AT_ONCE.replace("stopped", f"stopped after round {done}")
        assert (code, err in (AT_ONCE, after)) == (75, True), (at, err)
        assert halves(workdir) == []
        if done:
            assert max(steps(workdir / "checkpoints")) == done
        train(small(rounds=ROUNDS), workdir)
        alike(workdir, straight[0])
