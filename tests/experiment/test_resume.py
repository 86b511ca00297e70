"""A run goes on as if it had never stopped: longer, damaged or killed."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fairjax.core import require
from fairjax.experiment.io import preemption
from fairjax.experiment.train import train
from tests import fakes
from tests.trained import (
    final_params,
    rows,
    same_states,
    small,
    steps,
    untimed,
    untimed_summary,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]

# --------------------------------------------------------------- resuming and extending


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    result, _ = finished
    before = (result.workdir / "metrics.jsonl").read_bytes()
    again = train(small(), result.workdir)
    assert (result.workdir / "metrics.jsonl").read_bytes() == before
    assert again.summary == result.summary
    assert "report:" in capsys.readouterr().out


def test_a_continued_run_sums_up_as_one_that_never_stopped(tmp_path):
    """Costs of redrawn sub-models change by the round: both runs must use one round.

    The local learning rate falls where the run was cut, the server's in every round.
    """
    fields = {
        "submodel__heterofl__dynamic": True,
        "local__schedule": "steps",
        "local__milestones": (2, 3),
        "local__decay_rate": 0.5,
        "local__warmup": 1,
        "server__schedule": "exponential",
        "server__decay_rate": 0.9,
    }
    train(small(rounds=2, **fields), tmp_path / "a")
    ends = [
        train(small(**{"rounds": 4} | fields), tmp_path / name) for name in ("a", "b")
    ]
    continued, straight = (untimed_summary(end.summary) for end in ends)
    assert continued == straight
    assert fakes.equal(*(final_params(tmp_path / name) for name in ("a", "b")))


def test_more_rounds_extend_a_run_as_if_it_had_never_stopped(copied, longer):
    train(small(rounds=5), copied)
    # Round 3 was the last of the short run, so it was evaluated there.
    extended, straight = (rows(n / "metrics.jsonl") for n in (copied, longer))
    assert [row["round"] for row in extended] == [1, 2, 3, 4, 5]
    for ours, theirs in zip(extended, straight, strict=True):
        for name, value in theirs.items():
            if not name.startswith("time/"):
                assert ours[name] == value
    assert fakes.equal(final_params(copied), final_params(longer))


def test_fewer_rounds_and_other_configs_are_refused_by_name(finished):
    result, _ = finished
    before = (result.workdir / "config.json").read_bytes()
    refusals = {
        "rounds: expected at least the 3": {"rounds": 2},
        "other values of local.learning_rate, seed": {
            "seed": 1,
            "local__learning_rate": 0.3,
        },
    }
    for message, fields in refusals.items():
        with pytest.raises(require.InputError, match=message):
            train(small(**fields), result.workdir)
    assert (result.workdir / "config.json").read_bytes() == before


def test_a_schedule_that_ends_is_not_extended(tmp_path):
    train(small(local__schedule="cosine"), tmp_path)
    with pytest.raises(require.InputError, match="rounds: expected 3, on which the"):
        train(small(local__schedule="cosine", rounds=4), tmp_path)


def test_checkpoint_fields_may_differ(copied):
    train(small(checkpoint__keep=3), copied)


def test_a_checkpoint_that_cannot_be_read_costs_one_round(finished, copied):
    newest = copied / "checkpoints" / "3"
    largest = max(newest.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    largest.write_bytes(b"")
    trained = []
    train(small(), copied, log=lambda number, row: trained.append(number))
    assert trained == [3]
    straight, name = finished[0], "metrics.jsonl"
    assert untimed(copied / name) == untimed(straight.workdir / name)
    assert fakes.equal(final_params(copied), straight.state.params)


def test_a_damaged_selected_step_is_set_aside_and_the_run_ends(copied, capsys):
    """Its round stays selected, since its row says that it is the best.

    This holds with and without rounds left to train.
    """
    *before, row = rows(copied / "metrics.jsonl")
    best = row | {"val/auroc": 1.0, "val/loss": 0.0}
    lines = [json.dumps(each) + "\n" for each in [*before, best]]
    (copied / "metrics.jsonl").write_text("".join(lines))
    selected = copied / "selected"
    shutil.rmtree(selected / "3" / "state")
    for rounds in (3, 5):
        made = train(small(rounds=rounds), copied).summary["final"]
        assert made["last"]["round"] == rounds
        assert made["selected"] is None
        assert made["note"] == (
            "the validation split selects round 3, whose step in selected/ was damaged "
            "or is missing"
        )
        assert [path.name for path in selected.iterdir()] == ["invalid-3"]
        told = capsys.readouterr().err
        assert (f"{selected / '3'}: skipped: " in told) == (rounds == 3)


# ------------------------------------------------------------------------------- killed

# A run in a process of its own, as a script starts it.
DRIVER = """
import os, signal, sys, time
sys.path[:0] = [{root!r}]
from fairjax.experiment import cli
from fairjax.experiment.io import checkpoint
from tests.trained import small
from fairjax.experiment.train import train

save = checkpoint.Checkpoints.save
def save_and_die(self, round, state):
    save(self, round, state)
    if round == {die}:  # while a thread is writing
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Checkpoints.save = save_and_die
config, slowly = small(rounds={rounds}), lambda *_: time.sleep(0.1)
run = lambda _: train(config, sys.argv[1], log=slowly)
cli.run(run, lambda *_: None, ["train.py"])
"""
ROUNDS = 16


def drive(workdir, die=0):
    code = DRIVER.format(root=str(ROOT), rounds=ROUNDS, die=die)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(workdir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_killed_in_the_middle_of_a_save_and_told_to_stop(tmp_path):
    stopped, uninterrupted = tmp_path / "stopped", tmp_path / "straight"
    with drive(stopped, die=4) as process:
        assert process.wait(300) == -signal.SIGKILL
    metrics = stopped / "metrics.jsonl"
    assert len(rows(metrics)) == 4
    # A line that a power cut left incomplete.
    with metrics.open("a") as file:
        file.write('{"round": 99, "train/lo')

    with drive(stopped) as process:
        while process.poll() is None and metrics.read_text().count("\n") < 8:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert process.returncode == preemption.EXIT
    last = rows(metrics)[-1]["round"]
    assert f"train.py: stopped after round {last}; the same command goes on" in told
    assert max(steps(stopped / "checkpoints")) == last

    for workdir in (stopped, uninterrupted):
        train(small(rounds=ROUNDS), workdir)
    assert untimed(metrics) == untimed(uninterrupted / "metrics.jsonl")
    both = (stopped, uninterrupted)
    ours, theirs = ((run / "clients.jsonl").read_bytes() for run in both)
    assert ours == theirs
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in both)
    assert untimed_summary(ours) == untimed_summary(theirs)
    same_states(*both)
