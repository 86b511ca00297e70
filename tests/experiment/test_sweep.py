"""scripts/sweep.py: its runs, refusals before any run starts, and continued sweeps."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from fairjax.core import require
from fairjax.experiment import cli, sweep
from fairjax.experiment.config import conversion
from fairjax.experiment.io import preemption
from scripts import sweep as script
from scripts import train
from tests.workdirs import fake_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ["--config=configs/breast_cancer.py:smoke"]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def points(axes, workdir, base=()):
    return sweep.points(train.define, [*BASE, *base], sweep.grid(axes), workdir)


def started(workdir, *flags):
    """Runs the script and returns its exit code."""
    argv = ["scripts/sweep.py", *BASE, f"--workdir={workdir}", *flags]
    try:
        cli.run(script.main, script.define, argv)
    except SystemExit as stop:
        return stop.code
    return 0


# ------------------------------------------------------------------------ which runs


def test_the_last_field_of_a_grid_varies_fastest():
    assert sweep.grid(["fairness.rule=size,uniform", "seed=0,1"]) == [
        {"fairness.rule": "size", "seed": "0"},
        {"fairness.rule": "size", "seed": "1"},
        {"fairness.rule": "uniform", "seed": "0"},
        {"fairness.rule": "uniform", "seed": "1"},
    ]


def test_commas_inside_brackets_belong_to_a_value():
    axis = "tiers.changes=((3,0,1),(4,1,0)), (),((5, 2, 1),)"
    assert [point["tiers.changes"] for point in sweep.grid([axis])] == [
        "((3,0,1),(4,1,0))",
        "()",
        "((5, 2, 1),)",
    ]


def test_values_are_those_of_the_command_line(tmp_path):
    path = tmp_path / "list.jsonl"
    entries = [
        {"tiers.budget": [0.5, 1.0], "tiers.proportions": [1, 1.0], "local.steps": 3},
        {"robust.finite_guard": False, "local.learning_rate": 1e-5},
    ]
    path.write_text("".join(json.dumps(entry) + "\n\n" for entry in entries))
    first, second = (
        point.config
        for point in sweep.points(
            train.define, BASE, sweep.read_settings(path), tmp_path
        )
    )
    assert first.tiers.budget == (0.5, 1.0)
    assert first.local.steps == 3
    assert second.robust.finite_guard is False
    assert second.local.learning_rate == 1e-5
    assert second.rounds == 2  # the preset's


def test_a_list_and_a_grid_are_combined(tmp_path, capsys):
    path = tmp_path / "list.jsonl"
    path.write_text('{"fairness.rule": "uniform"}\n{"local.fedprox_mu": 0.1}\n')
    flags = [f"--list={path}", "--grid=seed=0,1", "--config.rounds=1"]
    argv = ["sweep.py", *BASE, f"--workdir={tmp_path / 'runs'}", *flags]
    options = cli.parse(script.define, argv)
    found = sweep.points(
        train.define, script.base(options), script.settings(options), tmp_path
    )
    assert [point.name for point in found] == [
        "rule=uniform,seed=0",
        "rule=uniform,seed=1",
        "fedprox_mu=0.1,seed=0",
        "fedprox_mu=0.1,seed=1",
    ]
    assert {point.config.rounds for point in found} == {1}
    assert started(tmp_path / "runs", *flags, "--count") == 0
    assert capsys.readouterr().out == "4\n"
    assert not (tmp_path / "runs").exists()


# --------------------------------------------------------------------------- folders


def named(*settings):
    flags = [f"--config.{setting}" for setting in settings]
    config = cli.parse(train.define, ["t", *BASE, "--workdir=x", *flags]).config
    return sweep.folder(config, [setting.partition("=")[0] for setting in settings])


def test_a_folder_is_named_by_its_settings():
    assert named("fairness.rule=size", "seed=0") == "rule=size,seed=0"
    assert named("tiers.budget=(0.5,1.0)") == "budget=0.5+1.0"
    # Two spellings of one number are one name.
    for value in ("1e-1", ".10"):
        assert named(f"local.fedprox_mu={value}") == "fedprox_mu=0.1"
    # A field that several groups have is named with its group, in every sweep.
    assert named("local.learning_rate=0.5") == "local.learning_rate=0.5"
    assert named("submodel.name=nefl", "model.name=cnn") == (
        "submodel.name=nefl,model.name=cnn"
    )


def test_a_folder_s_name_is_safe_and_tells_runs_apart():
    slash, dash = named("data.path=a/b"), named("data.path=a-b")
    assert "/" not in slash
    assert slash.startswith("path=a-b-")
    assert dash == "path=a-b"
    nested = [named(f"tiers.changes=({c},)") for c in ("(3,0,1)", "(3,0,1),(4,0,1)")]
    assert not any(sign in name for name in nested for sign in "() '")
    assert len({*nested}) == 2
    long = [named(f"data.path={300 * 'x'}{i}") for i in range(2)]
    assert len({*long}) == 2
    assert max(map(len, long)) <= 120


# ------------------------------------------------------------- refused before any run

REFUSED = {
    "--grid=fairness.rul=size": ["--config.fairness.rul: expected a field", "Did you"],
    "--grid=fairness.rule=size,unifrm": ["fairness.rule: expected one of", "'unifrm'"],
    "--grid=rounds=1,two": ["--config.rounds: expected int; got 'two'"],
    "--grid=local.fedprox_mu=0.1,-1": [
        "local.fedprox_mu: expected a finite number >= 0; got -1"
    ],
    "--grid=fairness.q_ffl.q=0.1": ["expected fairness.rule='q_ffl'"],
    "--grid=seed": ["--grid: expected field=value,value,..; got 'seed'"],
    "--grid=seed=0,0": ["every config once; got 'seed=0 and seed=0'"],
    "--grid=seed=0 --grid=seed=1": ["--grid seed: expected every field once"],
    "--grid=seed=0 --config.seed=1": ["--grid seed: expected a field that is set once"],
    "--grid=seed=0,1 --index=2": ["--index: expected a finite number in [0, 1]"],
    "--grid=seed=0 --index=first": ["--index: expected int; got 'first'"],
    "--grid=seed=0 --processes=0": ["--processes: expected a whole number above 0"],
    "--list=nowhere.jsonl": ["--list: expected a file that can be read"],
    "": ["--grid: expected it or --list; got neither"],
}


@pytest.mark.parametrize("flags", REFUSED)
def test_a_sweep_that_cannot_be(tmp_path, capsys, monkeypatch, flags):
    monkeypatch.setattr(sweep, "run", None)
    assert started(tmp_path / "runs", *flags.split()) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(part in line for part in ["sweep.py: ", *REFUSED[flags]]), line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[{}]\n", ":1: expected a JSON object"),
        ('{"seed": 1}\n{"seed"\n', ":2: expected JSON"),
        ("\n", "--list: expected at least one line"),
    ],
)
def test_a_list_that_cannot_be(tmp_path, text, expected):
    path = tmp_path / "list.jsonl"
    path.write_text(text)
    with pytest.raises(require.InputError, match=expected):
        sweep.read_settings(path)


def test_a_folder_that_is_not_of_the_sweep_is_refused(tmp_path):
    leave(points(["seed=0"], tmp_path)[0], tmp_path)
    with pytest.raises(require.InputError, match=r"other values of local\.fedprox_mu"):
        points(["seed=0,1"], tmp_path, base=["--config.local.fedprox_mu=0.1"])
    with pytest.raises(require.InputError, match="a folder of runs"):
        points(["rounds=3"], tmp_path / "seed=0")


# ------------------------------------------------------------------------- what is run


def leave(point, workdir, rounds=None):
    """Writes the files of a run after `rounds` rounds; None: after all rounds."""
    folder = workdir / point.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(conversion.to_plain(point.config)))
    done = point.config.rounds if rounds is None else rounds
    rows = [{"round": number} for number in range(1, done + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if rounds is None:
        (folder / "summary.json").write_text(json.dumps({"metrics": rows[-1]}))


def recorder(path, body=""):
    """A stand-in for scripts/train.py that appends its flags to `path`."""
    code = f"import sys; open({str(path)!r}, 'a').write(sys.argv[-1] + '\\n'); {body}"
    return [sys.executable, "-S", "-c", code]


def folders(path):
    return [pathlib.Path(line).name for line in path.read_text().splitlines()]


def test_what_is_finished_is_skipped_and_what_is_not_goes_on(tmp_path, capsys):
    calls = tmp_path / "calls"
    found = points(["seed=0,1,2"], tmp_path)
    leave(found[0], tmp_path)
    leave(found[1], tmp_path, rounds=1)
    assert sweep.run(found, tmp_path, program=recorder(calls)) == {}
    assert folders(calls) == ["seed=1", "seed=2"]
    assert capsys.readouterr().out.startswith("1 of 3 runs are finished\n")


def test_a_run_that_diverged_is_told_from_one_that_did_not(tmp_path, capsys):
    model = tmp_path / "model"
    fake_run(model, ["a", "b"])
    *rows, last = map(json.loads, (model / "metrics.jsonl").read_text().splitlines())
    copy = "import shutil; shutil.copytree({!r}, sys.argv[-1].partition('=')[2])"
    program = recorder(tmp_path / "calls", copy.format(str(model)))
    for seed, loss in (0, 0.5), (1, None):
        lines = [json.dumps(row) for row in [*rows, last | {"eval/loss": loss}]]
        (model / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        sweep.run(points([f"seed={seed}"], tmp_path), tmp_path, program=program)
    out = capsys.readouterr().out
    assert "seed=0: done\n" in out
    assert "seed=1: done, diverged\n" in out


def test_more_rounds_extend_a_finished_run(tmp_path):
    leave(points(["seed=0"], tmp_path)[0], tmp_path)
    [longer] = points(["seed=0"], tmp_path, base=["--config.rounds=3"])
    assert not sweep.is_finished(longer, tmp_path)


def test_a_run_that_fails_stops_no_other(tmp_path, capsys):
    calls = tmp_path / "calls"
    body = "sys.exit('no room\\n\\n' if 'seed=1' in sys.argv[-1] else 0)"
    found = points(["seed=0,1,2"], tmp_path)
    failed = sweep.run(found, tmp_path, program=recorder(calls, body))
    assert failed == {"seed=1": "no room"}
    assert folders(calls) == ["seed=0", "seed=1", "seed=2"]
    assert "seed=1: failed" in capsys.readouterr().out
    body = "import os; os.kill(os.getpid(), 9)"
    failed = sweep.run(found[:1], tmp_path, program=recorder(calls, body))
    assert failed == {"seed=0": "exit code -9"}


def test_processes_run_side_by_side(tmp_path):
    """Each of two runs waits for the other: one after the other they would not end."""
    calls = tmp_path / "calls"
    body = (
        "import time; t = time.time()\n"
        f"while open({str(calls)!r}).read().count('\\n') < 2:\n"
        "    time.sleep(0.01); assert time.time() < t + 20"
    )
    found = points(["seed=0,1"], tmp_path)
    program = recorder(calls, body)
    assert sweep.run(found, tmp_path, program=program, processes=2) == {}


@pytest.mark.parametrize(
    ("interrupt", "stopped"),
    [
        (lambda: signal.default_int_handler(signal.SIGINT, None), KeyboardInterrupt),
        (lambda: signal.raise_signal(signal.SIGTERM), preemption.Stopped),
    ],
)
def test_an_interrupt_leaves_no_run_behind(tmp_path, monkeypatch, interrupt, stopped):
    made = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(time, "sleep", lambda _: interrupt())
    found = points(["seed=0,1,2"], tmp_path)
    program = recorder(tmp_path / "calls", "import signal; signal.pause()")
    with pytest.raises(stopped):
        sweep.run(found, tmp_path, program=program, processes=2)
    assert [process.returncode for process in made] == [-15, -15]


DEAF = """
import fcntl, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
signal.pthread_sigmask(signal.SIG_SETMASK, [])
lock = open(sys.argv[-1].partition("=")[2] + ".lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("begun", flush=True)
time.sleep(60)
"""
SWEEP = """
from fairjax.experiment.io import preemption
preemption.listen()
import pathlib, sys
from fairjax.experiment import sweep
program = [sys.executable, "-c", {deaf!r}]
sweep.run([sweep.Point("a", (), {{}})], pathlib.Path({folder!r}), program=program)
"""


def test_a_second_signal_ends_the_runs_too(tmp_path):
    """It kills runs that ignore the first signal, which the sweep passes on."""
    code, log = SWEEP.format(deaf=DEAF, folder=str(tmp_path)), tmp_path / "a.log"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        for said in ("begun\n", "begun\ntold\n"):
            while not log.exists() or log.read_text() != said:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        line = "-c: stopped at once; the same command goes on\n"
        assert process.stderr.read() == line
    with (tmp_path / "a.lock").open() as lock:  # a dead process has released it
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_ctrl_c_of_a_terminal_does_not_reach_the_runs(tmp_path):
    """The sweep signals them once: at a second signal they would not save."""
    groups = tmp_path / "groups"
    body = f"import os; open({str(groups)!r}, 'w').write(str(os.getpgid(0)))"
    [found] = points(["seed=0"], tmp_path)
    sweep.run([found], tmp_path, program=recorder(tmp_path / "calls", body))
    assert int(groups.read_text()) != os.getpgid(0)


def test_a_sweep_of_two_runs(tmp_path, capsys):
    """As a user starts it: one run ends, and the other is refused for its data."""
    flags = [
        "--grid=clients_per_round=2,9",
        "--config.rounds=1",
        "--config.model.mlp.hidden=(4,)",
    ]
    assert started(tmp_path, *flags) == 1
    out, err = capsys.readouterr()
    assert out == (
        "0 of 2 runs are finished\nclients_per_round=2: done\n"
        "clients_per_round=9: failed\n"
    )
    refusal = "train.py: clients_per_round: expected at most the 8"
    assert f"sweep.py: clients_per_round=9 failed: {refusal}" in err
    config = json.loads((tmp_path / "clients_per_round=2" / "config.json").read_text())
    assert (config["clients_per_round"], config["rounds"]) == (2, 1)
    assert (tmp_path / "clients_per_round=2" / "report.html").exists()
    assert not (tmp_path / "clients_per_round=9").exists()

    assert started(tmp_path, *flags, "--index=0") == 0
    assert capsys.readouterr().out == "1 of 1 runs are finished\n"


# --------------------------------------------------------------------------- together


@pytest.mark.usefixtures("unfinal")
def test_runs_alike_but_for_numbers_share_a_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fairjax.report.write", lambda workdir: workdir)
    axes = ["--grid=fairness.rule=size,uniform", "--grid=seed=0,1"]
    flags = [*axes, "--config.data.partition.seed=0", "--together"]
    assert started(tmp_path / "all", *flags) == 0
    assert capsys.readouterr().out.count("2 runs in one program") == 2
    names = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert names == [
        f"rule={rule},seed={seed}" for rule in ("size", "uniform") for seed in (0, 1)
    ]
    assert started(tmp_path / "all", *flags) == 0
    assert "4 of 4 runs are finished" in capsys.readouterr().out


def test_a_program_that_cannot_be_shared_is_refused(tmp_path, capsys):
    assert started(tmp_path / "all", "--grid=seed=0,1", "--together") == 2
    assert "data.partition.seed: expected a number" in capsys.readouterr().err
    assert not any((tmp_path / "all").glob("*/config.json"))
