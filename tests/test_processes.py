"""One run on several devices, and in several processes."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from fairjax.experiment.resume import load
from fairjax.experiment.train import train
from tests import fakes
from tests.trained import final_params, rows, small, steps, untimed

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def on_four(finished, tmp_path_factory):
    """Three rounds on one device, continued for two on four."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(finished[0].workdir, workdir)
    train(small(rounds=5, execution__devices=4), workdir)
    return workdir


@pytest.mark.slow
def test_a_run_goes_on_on_more_devices(on_four, longer, finished):
    """Three clients leave one device with padding; differences are float order."""
    ours, theirs = (rows(folder / "metrics.jsonl") for folder in (on_four, longer))
    assert [row["round"] for row in ours] == [1, 2, 3, 4, 5]
    for name, value in theirs[-1].items():
        if not name.startswith("time/"):
            assert ours[-1][name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert fakes.gap(final_params(on_four), final_params(longer)) < 1e-6
    assert fakes.gap(final_params(on_four), finished[0].state.params) > 1e-3


# The command that a user starts on every host, without the final figures; then checks
# that need several processes.
PROCESS = """
import sys
sys.path[:0] = [{root!r}]
from fairjax.experiment.io import preemption
preemption.listen()
from fairjax.core import require
from fairjax.experiment import cli, summary
from fairjax.experiment.io import distributed
from scripts import train

summary.final = lambda *_: {{"last": None, "selected": None}}
cli.run(train.main, train.define, ["train.py", *sys.argv[1:]])

import numpy as np
first = distributed.first()
assert distributed.any_process(not first)
assert not distributed.any_process(False)
zero = np.float32(-0.0 if first else 1.0)
assert np.signbit(distributed.broadcast({{"x": zero}})["x"])
try:
    distributed.require_equal("seed", str(first))
except require.InputError as error:
    print(error)
try:
    with distributed.collective_section():
        if not first:
            require.fail("a disk", "room", "none")
except require.InputError as error:
    print(error)
"""


def two(program, tmp_path, **fields):
    """Two processes on loopback, with two devices and a folder each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", program.format(root=str(ROOT))]
    command += ["--config=configs/default.py", "--distributed", "--processes=2"]
    command += [f"--coordinator=127.0.0.1:{port}"]
    fields = {
        "eval_every": 2,
        "clients_per_round": 3,
        "model.mlp.hidden": "(8,)",
    } | fields
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    command += ["--config.data.partition.num_clients=4", "--config.execution.devices=0"]
    return [
        subprocess.Popen(
            [*command, f"--process={number}", f"--workdir={tmp_path / str(number)}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
        )
        for number in range(2)
    ]


def test_two_processes_are_one_run(finished, on_four, tmp_path):
    """They give the same bits as four devices of one process."""
    shutil.copytree(finished[0].workdir, tmp_path / "0")
    processes = two(PROCESS, tmp_path, rounds=5)
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said

    workdir = tmp_path / "0"
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert {path.name for path in workdir.iterdir()} == {
        path.name for path in on_four.iterdir()
    }
    assert steps(workdir / "checkpoints") == steps(on_four / "checkpoints") == [4, 5]
    for name in ("metrics.jsonl", "clients.jsonl"):
        assert untimed(workdir / name) == untimed(on_four / name)
    assert fakes.equal(final_params(workdir), final_params(on_four))
    device = json.loads((workdir / "provenance.json").read_text())["device"]
    assert device == "4 x cpu"

    # Gloo prints from several threads, which may interleave.
    lines = [out.splitlines() for out, _ in said]
    alike = "seed: expected the same in all processes; got 'others in some'"
    stop = "--distributed: expected processes that can all go on; got 'process 1,"
    assert any(line.startswith("report: ") for line in lines[0])
    assert lines[0][-2] == alike
    assert lines[0][-1].startswith(stop)
    assert lines[1][-2:] == [alike, "a disk: expected room; got 'none'"]
    assert "accuracy" not in said[1][0]


@pytest.mark.slow
def test_a_process_whose_other_one_is_lost_says_so_and_keeps_its_last_step(tmp_path):
    first, other = two(PROCESS, tmp_path, rounds=100_000)
    metrics = tmp_path / "0" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        assert first.poll() is None
        time.sleep(0.01)
    other.kill()
    _, told = first.communicate(timeout=300)
    other.communicate()
    assert first.returncode == 1
    assert "train.py: another process is gone, see what it said (" in told
    assert int(load(tmp_path / "0")[1].round) >= 4


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_round(tmp_path):
    processes = two(PROCESS, tmp_path, rounds=100_000)
    metrics = tmp_path / "0" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        assert processes[0].poll() is None
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[1] for process in processes]
    last = len(rows(metrics))
    line = f"train.py: stopped after round {last}; the same command goes on\n"
    for process, err in zip(processes, said, strict=True):
        assert process.returncode == 75, err
        assert err.count("train.py: ") == err.count(line) == 1
    assert max(steps(tmp_path / "0" / "checkpoints")) == last
