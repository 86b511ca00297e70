"""A run that is cut short at any point ends as an uninterrupted one."""

import dataclasses
import itertools
import json
import os
import shutil
import signal

import pytest

from fairjax import report
from fairjax.core import require
from fairjax.experiment import compilation, costs, evaluate, hooks, summary
from fairjax.experiment import rows as round_rows
from fairjax.experiment import train as train_module
from fairjax.experiment.config import build, conversion
from fairjax.experiment.io import distributed, preemption
from fairjax.experiment.io import workdir as files
from fairjax.experiment.io.checkpoint import Checkpoints
from fairjax.experiment.resume import initial_state, load
from fairjax.experiment.train import train
from tests.trained import rows, same_states, small, steps, untimed


class Cut(BaseException):
    """Stands for the end of the process."""


def four(**fields):
    return small(**{"rounds": 4} | fields)


def lighten(patch, run, step, measured):
    """Makes runs of `four` share compiled programs and skip the final figures."""

    def built(checked, **_):
        return dataclasses.replace(run, config=checked.config)

    patch.setattr(build, "checked_run", built)
    results = {
        (evaluate, "compile_evaluation"): measured,
        (compilation, "compile_round"): step,
        (costs, "tier_costs"): [],
        (costs, "full_model_cost"): {},
        (costs, "simulation_cost"): {},
        (summary, "run_summary"): {"metrics": {}},
        (summary, "final"): {},
    }
    for (owner, name), value in results.items():
        patch.setattr(owner, name, lambda *_, value=value: value)
    for name in ("write", "table", "headline"):
        patch.setattr(report, name, lambda _: "")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The shared programs, and the workdir of an uninterrupted run."""
    run = build.run(four())
    state = initial_state(run)
    made = (
        run,
        compilation.compile_round(run, state),
        evaluate.compile_evaluation(run, state),
    )
    folder = tmp_path_factory.mktemp("runs") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        lighten(patch, *made)
        train(four(), folder)
    return made, folder


@pytest.fixture
def straight(programs, monkeypatch):
    made, folder = programs
    lighten(monkeypatch, *made)
    return folder


def half_a_row(file, rows):
    file.write('{"round": 3, "train/lo')
    file.flush()


def half_a_step(checkpoints, round, state):
    (checkpoints._directory / f"{round}.orbax-checkpoint-tmp" / "state").mkdir(
        parents=True
    )


def half_a_file(path, value):
    path.with_name(path.name + ".new").write_text('{"se')


# {point: (owner, function, number of its call, what it leaves half done) per process}
CUTS = {
    "in the middle of the config": [(files, "write_json", 1, half_a_file)],
    "before the first round": [(files, "write_json", 2, half_a_file)],
    "in a round": [(distributed, "local_copy", 3, None)],
    "in an evaluation": [(round_rows, "evaluation_row", 1, None)],
    "between the logs": [(files, "write_lines", 3, None)],
    "in the middle of a row": [(files, "write_lines", 4, half_a_row)],
    "before a selection": [(hooks.KeepBest, "after_round", 2, None)],
    "between a selection and its round's save": [(Checkpoints, "save", 3, None)],
    "in the middle of a save": [(Checkpoints, "save", 4, half_a_step)],
    "in the last save": [(files, "sync", 4, None)],
    "after the last round": [(summary, "final", 1, None)],
    "while it goes on": [
        (distributed, "local_copy", 4, None),
        (files, "truncate", 2, None),
        (Checkpoints, "__init__", 1, None),
    ],
}


@pytest.mark.parametrize("point", CUTS)
def test_a_run_that_is_cut_short_ends_as_if_it_had_not_been(point, straight, tmp_path):
    for owner, name, number, half in CUTS[point]:
        real, calls = getattr(owner, name), itertools.count(1)

        def cutting(*args, number=number, half=half, real=real, calls=calls, **more):
            if next(calls) != number:
                return real(*args, **more)
            if half is not None:
                half(*args)
            raise Cut

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, cutting)
            with pytest.raises(Cut):
                train(four(), tmp_path)
    train(four(), tmp_path)
    name = "metrics.jsonl"
    assert untimed(tmp_path / name) == untimed(straight / name)
    clients = [(path / "clients.jsonl").read_bytes() for path in (tmp_path, straight)]
    assert clients[0] == clients[1]
    same_states(tmp_path, straight)
    assert steps(tmp_path / "checkpoints") == [3, 4]


def test_a_run_that_is_told_to_stop_saves_the_round_in_hand(straight, tmp_path):
    """It saves although no save is due, and the same call goes on."""
    config = four(checkpoint__every=100)

    def told(number, row):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(preemption.Stopped) as stopped:
        train(config, tmp_path, log=told)
    saved = int(load(tmp_path)[1].round)
    assert saved in (1, 2)  # another thread receives the signal
    assert str(stopped.value) == f"stopped after round {saved}"
    assert len(rows(tmp_path / "metrics.jsonl")) == saved
    train(config, tmp_path)
    assert untimed(tmp_path / "metrics.jsonl") == untimed(straight / "metrics.jsonl")
    same_states(tmp_path, straight)


def test_a_process_that_lends_its_devices_stops_with_the_others(straight, monkeypatch):
    run = build.run(four())
    monkeypatch.setattr(distributed, "any_process", lambda told: not told)
    with pytest.raises(preemption.Stopped, match="after round 1"):
        train_module._run_worker(run, initial_state(run))


def test_all_processes_stop_at_a_signal_after_the_last_round(tmp_path, monkeypatch):
    """One process alone may receive it, so they ask each other once more."""
    config = small(rounds=1)
    run = build.run(config)
    processes = {
        "the first": lambda: train(config, tmp_path),
        "another": lambda: train_module._run_worker(run, initial_state(run)),
    }
    for begin in processes.values():
        answers = iter([False, True])
        monkeypatch.setattr(
            distributed, "any_process", lambda told, of=answers: next(of)
        )
        with pytest.raises(preemption.Stopped, match="after round 1"):
            begin()
    assert int(load(tmp_path)[1].round) == 1
    assert not (tmp_path / "summary.json").exists()


def test_a_folder_that_is_trained_in_is_refused_and_can_be_read(straight):
    before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    with files.lock(straight):
        with pytest.raises(require.InputError, match="that nobody trains; got"):
            train(four(), straight)
        assert int(load(straight)[1].round) == 4
    after = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    assert after == before


def test_without_a_valid_step_nothing_is_changed(straight, tmp_path):
    """A run that began anew would cut the logs."""
    shutil.copytree(straight, tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        shutil.rmtree(step / "state")
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(require.InputError, match=r"a valid step; got 4: .*; 3: "):
        train(four(rounds=5), tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before
    assert len(rows(tmp_path / "run" / "metrics.jsonl")) == 4
    assert json.loads((tmp_path / "run" / "config.json").read_text())["rounds"] == 4


def test_a_run_of_a_version_with_other_fields_is_refused(finished, tmp_path):
    provenance = {"versions": {"fairjax": "0.0.9"}}
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    path = tmp_path / "config.json"
    config = json.loads((finished[0].workdir / "config.json").read_text())
    del config["execution"]["unroll"]
    path.write_text(json.dumps(config))
    with pytest.raises(
        require.InputError, match=r"got one of fairjax 0\.0\.9: .*unroll"
    ):
        load(tmp_path)
    message = (
        r"of fairjax 0\.0\.9, whose config has not the same fields: execution\.unroll$"
    )
    with pytest.raises(require.InputError, match=message):
        train(small(), tmp_path)
    path.write_text(json.dumps(conversion.to_plain(small()) | {"newer": 1}))
    with pytest.raises(require.InputError, match=r"not the same fields: newer$"):
        train(small(), tmp_path)


def test_a_step_of_another_run_is_refused_by_what_differs(straight, tmp_path):
    """The config.json is this run's, and its checkpoints were copied from another."""
    train(four(local__learning_rate=0.1), tmp_path / "other")
    train(four(), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(
        tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints"
    )
    with pytest.raises(
        require.InputError, match=r"other values of local\.learning_rate$"
    ):
        train(four(), tmp_path / "run")
