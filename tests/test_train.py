"""A run from its config to its files: what it leaves, and what survives a kill."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from fairjax import (
    checks,
    final,
    hosts,
    measure,
    preemption,
    report,
    schema,
    selection,
    specs,
    trees,
)
from fairjax import train as train_module
from fairjax import workdir as files
from fairjax.checkpoint import Checkpoints, newest
from fairjax.measure import evaluate
from fairjax.train import about, initial, load, train

ROOT = pathlib.Path(__file__).resolve().parents[1]
PRINCIPLES = {
    "opportunity",
    "contribution",
    "shared_fruits",
    "equal_accuracy",
    "sustainability",
}


def small(**fields):
    """A run of seconds: three rounds, every other one evaluated, three of four ask."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "rounds": 3,
            "eval_every": 2,
            "cohort": 3,
            "data.partition.num_clients": 4,
            "model.mlp.hidden": (8,),
        }
        | {name.replace("__", "."): value for name, value in fields.items()}
    )
    return config


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path):
    """The rows of metrics.jsonl as text, without the clock's keys."""
    kept = [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in rows(path)
    ]
    return "\n".join(json.dumps(row) for row in kept)


def untimed_summary(summary):
    """summary.json without what the clock and the compiler say."""
    last = {k: v for k, v in summary["metrics"].items() if not k.startswith("time/")}
    return summary | {"metrics": last, "time": None, "simulation": None}


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def selected_state(folder):
    """The state in workdir/selected, and its round."""
    run, last = load(folder)
    state, number, _ = newest(folder / "selected", last, about(run))
    return state, number


def final_params(workdir):
    return load(workdir)[1].params


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    seen = []
    workdir = tmp_path_factory.mktemp("runs") / "run"
    result = train(small(), workdir, log=lambda n, row: seen.append((n, row)))
    return result, seen


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to go on with."""
    return shutil.copytree(finished[0].workdir, tmp_path / "run")


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """The workdir of five rounds in one go, profiled."""
    workdir = tmp_path_factory.mktemp("runs") / "longer"
    train(small(rounds=5), workdir, profile=True)
    return workdir


# -------------------------------------------------------------------- what a run leaves


def test_the_files_of_a_run(finished):
    result, _ = finished
    names = {path.name for path in result.workdir.iterdir()}
    assert names == {
        ".lock",
        "config.json",
        "provenance.json",
        "metrics.jsonl",
        "clients.jsonl",
        "summary.json",
        "checkpoints",
        "selected",
        "report.html",
        "figures",
    }


def test_metrics_have_flat_keys_and_no_nan(finished):
    result, _ = finished
    lines = rows(result.workdir / "metrics.jsonl")
    assert [row["round"] for row in lines] == [1, 2, 3]
    assert all(next(iter(row)) == "round" for row in lines)
    assert "NaN" not in (result.workdir / "metrics.jsonl").read_text()
    every = {"train/loss", "cohort/valid", "time/round_s"}
    every |= {f"fairness/weight_tier_{t}" for t in range(4)}
    slots = ("drawn", "trained", "valid", "steps", "records")
    every |= {f"cohort/{name}_tier_{t}" for name in slots for t in range(4)}
    assert every <= set.intersection(*(set(row) for row in lines))
    evaluated = {"eval/accuracy", "eval/loss", "eval/auroc"}
    evaluated |= {"fairness/jain", "fairness/entropy"}
    evaluated |= {
        f"eval/accuracy/{name}"
        for name in [
            "client_mean",
            "client_std",
            "client_worst",
            "client_worst10",
            "tier_gap",
            *(f"tier_{t}" for t in range(4)),
            *(f"tier_{t}/own" for t in range(4)),
            *(f"submodel_{t}" for t in range(4)),
        ]
    }
    evaluated |= {f"val/{name}" for name in selection.CRITERIA}
    assert ["eval/accuracy" in row for row in lines] == [False, True, True]
    assert evaluated <= set(lines[1]) & set(lines[2])
    for row in lines:
        weights = sum(row[f"fairness/weight_tier_{t}"] for t in range(4))
        np.testing.assert_allclose(weights, 1, rtol=1e-6)
        assert row["cohort/valid"] == 3
        for name in ("drawn", "trained", "valid"):
            assert sum(row[f"cohort/{name}_tier_{t}"] for t in range(4)) == 3


def test_clients_have_a_row_per_evaluated_round(finished):
    result, _ = finished
    lines = rows(result.workdir / "clients.jsonl")
    assert [row["round"] for row in lines] == [2] * 4 + [3] * 4
    keys = {"client", "tier", "n", "weight", "loss", "accuracy", "auroc"}
    assert all(keys <= set(row) for row in lines)
    for number in (2, 3):
        of_round = [row["weight"] for row in lines if row["round"] == number]
        assert of_round.count(None) == 1
        np.testing.assert_allclose(sum(w or 0 for w in of_round), 1, rtol=1e-6)


def test_the_summary_holds_what_others_read(finished):
    result, _ = finished
    summary = json.loads((result.workdir / "summary.json").read_text())
    assert summary == result.summary
    assert summary["metrics"] == rows(result.workdir / "metrics.jsonl")[-1]
    assert [tier["clients"] for tier in summary["tiers"]] == [1, 1, 1, 1]
    keys = (
        "tier budget branches clients parameters flops_forward flops_train "
        "flops_step activation_floats optimizer_floats bytes_down bytes_up"
    )
    for tier in summary["tiers"]:
        assert set(keys.split()) == set(tier)
    parameters = [tier["parameters"] for tier in summary["tiers"]]
    assert parameters == [68, 134, 200, 266]
    assert summary["privacy"]["sampling"] == "fixed"
    assert sum(summary["data"]["rows"].values()) == 569
    assert len(summary["data"]["hash"]) == 64
    assert summary["data"]["normalise"] == "pooled"
    book = summary["data"]["hospitals"]
    assert [row["client"] for row in book] == [f"hospital_{k}" for k in range(4)]
    assert sorted(row["tier"] for row in book) == [0, 1, 2, 3]
    for split, count in summary["data"]["rows"].items():
        assert sum(row[split] for row in book) == count
    for row in book:
        assert set(row["classes"]) == {"benign", "malignant"}
        assert sum(row["classes"].values()) == row["train"]
    assert summary["time"]["rounds_per_s"] > 0
    widest = summary["tiers"][-1]["flops_train"]
    principles = "opportunity contribution shared_fruits equal_accuracy sustainability"
    assert set(summary["principles"]) == set(principles.split())
    simulated = summary["simulation"]["flops_per_round"]
    assert summary["simulation"]["form"] == "masked"
    assert simulated % widest == 0
    assert simulated // widest > 0


def test_the_principles_of_a_run_are_those_of_its_rows(finished):
    """Three of four hospitals a round, one per tier; clients.jsonl names them."""
    result, _ = finished
    principles = result.summary["principles"]
    lines = rows(result.workdir / "metrics.jsonl")

    def total(name):
        return [sum(row[f"cohort/{name}_tier_{t}"] for row in lines) for t in range(4)]

    opportunity = principles["opportunity"]
    assert opportunity["participation"] == [1, 1, 1, 1]
    assert opportunity["hospitals"] == [float(n > 0) for n in total("valid")]
    assert total("drawn") == total("trained") == total("valid")
    run, state = load(result.workdir)
    took_part = train_module._drawn(run, state)
    assert took_part.sum(axis=1).tolist() == [3, 3, 3]
    for row in rows(result.workdir / "clients.jsonl"):
        client = run.splits.clients.index(row["client"])
        assert took_part[row["round"] - 1, client] == (row["weight"] is not None)
    # One epoch: every slot sees its hospital's records once.
    count = np.asarray(run.splits.train.count)[np.argsort(run.tiers)]
    assert total("records") == (count * np.array(total("drawn"))).tolist()
    assert total("steps") == (-(-count // 16) * np.array(total("drawn"))).tolist()
    assert principles["sustainability"]["flops_train"] == [
        tier["flops_train"] * n
        for tier, n in zip(result.summary["tiers"], total("records"), strict=True)
    ]
    assert principles["shared_fruits"]["identical"] == [False, False, False, True]
    effective = principles["contribution"]["effective_weight"]
    np.testing.assert_allclose(sum(effective), 1)


def test_the_principles_of_fedavg(tmp_path):
    result = train(small(rounds=1, submodel__name="fedavg"), tmp_path)
    principles = result.summary["principles"]
    assert set(principles) == PRINCIPLES
    assert principles["shared_fruits"]["hospitals"] == 1
    contribution = principles["contribution"]
    np.testing.assert_allclose(contribution["effective_weight"], contribution["weight"])
    # Everybody carries the whole model, within the budget or not.
    for name, shares in principles["opportunity"]["cost"].items():
        assert shares == [1, 1, 1, 1]
        assert principles["opportunity"]["within"][name] == [False] * 3 + [True]


def test_tiers_that_are_not_admitted_have_no_opportunity(tmp_path):
    """And padded slots, of the sliced form, are nobody's."""
    exclusive = {"submodel__name": "fedavg", "submodel__fedavg__mode": "exclusive"}
    exclusive |= {"submodel__fedavg__tier": 2, "execution__form": "sliced"}
    principles = train(small(**exclusive), tmp_path).summary["principles"]
    lines = rows(tmp_path / "metrics.jsonl")
    drawn = [sum(row[f"cohort/drawn_tier_{t}"] for t in range(4)) for row in lines]
    assert drawn == [3, 3, 3]
    assert principles["opportunity"]["participation"][:2] == [0, 0]
    assert principles["opportunity"]["hospitals"][:2] == [0, 0]
    assert principles["sustainability"]["bytes_down"][:2] == [0, 0]
    assert principles["sustainability"]["flops_train"][:2] == [0, 0]
    assert min(principles["sustainability"]["bytes_up"][2:]) > 0
    assert principles["contribution"]["effective_weight"][:2] == [0, 0]


def test_the_config_file_rebuilds_the_run(finished):
    result, _ = finished
    config = json.loads((result.workdir / "config.json").read_text())
    assert config == schema.plain(small())
    assert schema.plain(schema.from_plain(config)) == config


def test_a_log_function_gets_every_row(finished):
    result, seen = finished
    assert seen == [
        (row["round"], row) for row in rows(result.workdir / "metrics.jsonl")
    ]


def test_the_newest_checkpoint_is_the_final_state(finished):
    result, _ = finished
    run, state = load(result.workdir)
    assert int(state.round) == 3
    assert fakes.equal(state.params, result.state.params)
    row, (full, own) = evaluate(run, state, "test")
    for name in ("eval/accuracy", "eval/auroc", "eval/accuracy/tier_2/own"):
        np.testing.assert_allclose(row[name], result.metrics[name], rtol=1e-6)
    assert full.clients.accuracy.shape == (4,)
    assert own.clients.accuracy.shape == (4, 4)
    val, _ = evaluate(run, state, "val")
    assert val["eval/loss"] != row["eval/loss"]
    with pytest.raises(checks.InputError, match='Did you mean "test"'):
        evaluate(run, state, "tset")


def test_the_report_is_one_page_with_every_hospital(finished):
    page = (finished[0].workdir / "report.html").read_text()
    assert all(f"hospital_{i}" in page for i in range(4))
    assert "http://" not in page.replace("http://www.w3.org", "")


# ------------------------------------------------------------- selection, final figures


def test_the_best_round_of_the_validation_split_is_kept(finished):
    result, _ = finished
    lines = rows(result.workdir / "metrics.jsonl")
    best = max(lines[1:], key=lambda row: (row["val/balanced_accuracy"], -row["round"]))
    state, number = selected_state(result.workdir)
    assert steps(result.workdir / "selected") == [number] == [best["round"]]
    assert int(state.round) == number
    run, _ = load(result.workdir)
    row, _ = evaluate(run, jax.tree.map(jnp.asarray, state), "val")
    for name in selection.CRITERIA:
        np.testing.assert_allclose(row[f"eval/{name}"], best[f"val/{name}"], rtol=1e-6)
    final = result.summary["final"]
    assert final["selected"]["round"] == number
    assert final["last"]["round"] == 3
    for name in ("accuracy", "auroc", "loss", "balanced_accuracy"):
        last = final["last"]["pooled"][name]
        np.testing.assert_allclose(last["value"], lines[-1][f"eval/{name}"], rtol=1e-5)
        assert last["low"] <= last["value"] <= last["high"]


def test_the_test_split_decides_nothing(tmp_path, monkeypatch):
    """With its labels turned round: the same rounds, selection and thresholds."""
    fields = {"rounds": 6, "eval_every": 1, "select": "loss"}
    fields["local__learning_rate"] = 1.0  # so that the last round is not the best
    straight = train(small(**fields), tmp_path / "a")
    build = specs.build

    def turned(config, **how):
        run = build(config, **how)
        test = dataclasses.replace(run.splits.test, y=1 - run.splits.test.y)
        return dataclasses.replace(
            run, splits=dataclasses.replace(run.splits, test=test)
        )

    monkeypatch.setattr(specs, "build", turned)
    other = train(small(**fields), tmp_path / "b")
    for ours, theirs in zip(
        *(rows(each.workdir / "metrics.jsonl") for each in (straight, other)),
        strict=True,
    ):
        assert ours["eval/loss"] != theirs["eval/loss"]
        for name in ("train/loss", *(f"val/{name}" for name in selection.CRITERIA)):
            assert ours[name] == theirs[name]
    ours, theirs = (each.summary["final"] for each in (straight, other))
    for which in ("last", "selected"):
        for name in ("round", "threshold"):
            assert ours[which][name] == theirs[which][name]
        assert ours[which]["pooled"]["auroc"] != theirs[which]["pooled"]["auroc"]
    states = [selected_state(each.workdir) for each in (straight, other)]
    assert fakes.equal(states[0][0].params, states[1][0].params)
    assert ours["selected"]["round"] < ours["last"]["round"]


def test_without_validation_records_nothing_is_selected(tmp_path):
    result = train(small(rounds=1, data__partition__val_fraction=0.0), tmp_path)
    assert not (tmp_path / "selected").exists()
    assert not any(name.startswith("val/") for name in result.metrics)
    final = result.summary["final"]
    assert final["selected"] is None
    assert final["note"] == "no round could be selected on the validation split"
    assert final["last"]["threshold"] is None
    assert final["last"]["pooled"]["sensitivity"]["value"] is None
    assert final["last"]["not_estimated"]["no threshold"] >= 2


# --------------------------------------------------------------- resuming and extending


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    result, _ = finished
    before = (result.workdir / "metrics.jsonl").read_bytes()
    again = train(small(), result.workdir)
    assert (result.workdir / "metrics.jsonl").read_bytes() == before
    assert again.summary == result.summary
    assert "report:" in capsys.readouterr().out


def test_a_continued_run_sums_up_as_one_that_never_stopped(tmp_path):
    """Bills of redrawn tiers change by the round: they must be those of one round."""
    fields = {"submodel__heterofl__dynamic": True}
    train(small(rounds=2, **fields), tmp_path / "a")
    ends = [
        train(small(**{"rounds": 4} | fields), tmp_path / name) for name in ("a", "b")
    ]
    continued, straight = (untimed_summary(end.summary) for end in ends)
    assert continued == straight


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
        with pytest.raises(checks.InputError, match=message):
            train(small(**fields), result.workdir)
    assert (result.workdir / "config.json").read_bytes() == before


def test_a_schedule_that_ends_is_not_extended(tmp_path):
    train(small(local__schedule="cosine"), tmp_path)
    with pytest.raises(checks.InputError, match="rounds: expected 3, on which the"):
        train(small(local__schedule="cosine", rounds=4), tmp_path)


def test_checkpoint_fields_may_differ(finished):
    train(small(checkpoint__keep=3), finished[0].workdir)


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
    """Its round stays the one that is selected; none of the two that follow is better.

    Also where no round is left to train.
    """
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


# The run that is killed, in a process of its own.
DRIVER = """
import os, signal, sys
sys.path.insert(0, {root!r})
from fairjax import checkpoint
sys.path.insert(0, {tests!r})
from test_train import killed_run
from fairjax.train import train

save = checkpoint.Checkpoints.save
def save_and_die(self, round, state):
    save(self, round, state)
    if round == {die}:  # the write is under way in a thread of its own
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Checkpoints.save = save_and_die
train(killed_run(), sys.argv[1])
"""


def killed_run():
    return small(rounds=12)


def drive(workdir, die=0):
    code = DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests"), die=die)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(workdir)],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight") / "run"
    train(killed_run(), workdir)
    return workdir


def same_end(workdir, uninterrupted):
    name = "metrics.jsonl"
    assert untimed(workdir / name) == untimed(uninterrupted / name)
    clients = (workdir / "clients.jsonl").read_bytes()
    assert clients == (uninterrupted / "clients.jsonl").read_bytes()
    ours, theirs = (
        json.loads((folder / "summary.json").read_text())
        for folder in (workdir, uninterrupted)
    )
    assert untimed_summary(ours) == untimed_summary(theirs)
    same_states(workdir, uninterrupted)


def same_states(workdir, uninterrupted):
    """Byte for byte: the last one and the selected one."""
    both = (workdir, uninterrupted)
    ends = [load(folder)[1] for folder in both]
    kept, numbers = zip(*map(selected_state, both), strict=True)
    assert numbers[0] == numbers[1]
    for pair in (ends, kept):
        ours, theirs = (jax.tree.leaves(trees.raw(state)) for state in pair)
        assert [np.asarray(leaf).tobytes() for leaf in ours] == [
            np.asarray(leaf).tobytes() for leaf in theirs
        ]


def test_killed_in_the_middle_of_a_save(tmp_path, uninterrupted):
    process = drive(tmp_path / "run", die=7)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(rows(tmp_path / "run" / "metrics.jsonl")) == 7
    train(killed_run(), tmp_path / "run")
    same_end(tmp_path / "run", uninterrupted)


def test_killed_in_the_middle_of_a_round(tmp_path, uninterrupted):
    process = drive(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if metrics.read_text().count("\n") >= 4:
                break
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # A line that was being written when the power went.
    with metrics.open("a") as file:
        file.write('{"round": 99, "train/lo')
    train(killed_run(), tmp_path / "run")
    same_end(tmp_path / "run", uninterrupted)


# ------------------------------------------------------- cut short, stopped, taken back


class Cut(BaseException):
    """A process ends here."""


def four(**fields):
    return small(**{"rounds": 4} | fields)


def lighten(patch, run, step, measured):
    """Runs of `four` share what is compiled, and end without figures."""

    def built(config, **_):
        return dataclasses.replace(run, config=schema.plain(config))

    patch.setattr(specs, "build", built)
    patch.setattr(measure, "compiled", lambda *_: measured)
    patch.setattr(final, "final", lambda *_: {})
    ends = {
        "bills": [],
        "whole_bill": {},
        "_simulation": {},
        "_summary": {"metrics": {}},
    }
    for name, value in {"compiled": step, **ends}.items():
        patch.setattr(train_module, name, lambda *_, value=value: value)
    for name in ("write", "table", "headline"):
        patch.setattr(report, name, lambda _: "")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """What such runs share, and the workdir of one that nothing happened to."""
    run = specs.build(four())
    state = initial(run)
    made = run, train_module.compiled(run, state), measure.compiled(run, state)
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


# {point: (owner, function, which of its calls, what is left half done) per process}
CUTS = {
    "in the middle of the config": [(files, "write_json", 1, half_a_file)],
    "before the first round": [(files, "write_json", 2, half_a_file)],
    "in a round": [(hosts, "here", 3, None)],
    "in an evaluation": [(measure, "row", 1, None)],
    "between the logs": [(files, "write_lines", 3, None)],
    "in the middle of a row": [(files, "write_lines", 4, half_a_row)],
    "before a selection": [(train_module, "_select", 2, None)],
    "between a selection and its round's save": [(Checkpoints, "save", 3, None)],
    "in the middle of a save": [(Checkpoints, "save", 4, half_a_step)],
    "in the last save": [(files, "sync", 4, None)],
    "after the last round": [(final, "final", 1, None)],
    "while it goes on": [
        (hosts, "here", 4, None),
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
    """Though no save is due; the same call goes on."""
    config = four(checkpoint__every=100)

    def told(number, row):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(preemption.Stopped) as stopped:
        train(config, tmp_path, log=told)
    saved = int(load(tmp_path)[1].round)
    assert saved in (1, 2)  # it is heard in a thread of its own
    assert str(stopped.value) == f"stopped after round {saved}"
    assert len(rows(tmp_path / "metrics.jsonl")) == saved
    train(config, tmp_path)
    assert untimed(tmp_path / "metrics.jsonl") == untimed(straight / "metrics.jsonl")
    same_states(tmp_path, straight)


def test_a_process_that_lends_its_devices_stops_with_the_others(straight, monkeypatch):
    run = specs.build(four())
    monkeypatch.setattr(hosts, "some", lambda told: not told)
    with pytest.raises(preemption.Stopped, match="after round 1"):
        train_module._lend(run, initial(run))


def test_all_processes_stop_at_a_signal_after_the_last_round(tmp_path, monkeypatch):
    """One of them alone may hear it: they ask each other once more."""
    config = small(rounds=1)
    run = specs.build(config)
    processes = {
        "the first": lambda: train(config, tmp_path),
        "another": lambda: train_module._lend(run, initial(run)),
    }
    for begin in processes.values():
        answers = iter([False, True])
        monkeypatch.setattr(hosts, "some", lambda told, of=answers: next(of))
        with pytest.raises(preemption.Stopped, match="after round 1"):
            begin()
    assert int(load(tmp_path)[1].round) == 1
    assert not (tmp_path / "summary.json").exists()


def test_a_folder_that_is_trained_in_is_refused_and_can_be_read(straight):
    before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    with files.held(straight):
        with pytest.raises(checks.InputError, match="that nobody trains; got"):
            train(four(), straight)
        assert int(load(straight)[1].round) == 4
    after = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    assert after == before


def test_without_a_valid_step_nothing_is_changed(straight, tmp_path):
    """Not the logs, which a run that began anew would cut."""
    shutil.copytree(straight, tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        shutil.rmtree(step / "state")
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(checks.InputError, match=r"a valid step; got 4: .*; 3: "):
        train(four(rounds=5), tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before
    assert len(rows(tmp_path / "run" / "metrics.jsonl")) == 4
    assert json.loads((tmp_path / "run" / "config.json").read_text())["rounds"] == 4


def test_a_run_of_a_version_with_fewer_fields_is_refused(finished, tmp_path):
    path = tmp_path / "config.json"
    config = json.loads((finished[0].workdir / "config.json").read_text())
    del config["execution"]["unroll"]
    path.write_text(json.dumps(config))
    with pytest.raises(checks.InputError, match=r"config of a run; got .*unroll"):
        load(tmp_path)
    with pytest.raises(checks.InputError, match=r"other values of execution\.unroll"):
        train(small(), tmp_path)


def test_a_step_of_another_run_is_refused_by_what_differs(straight, tmp_path):
    """Though config.json is this run's: somebody copied checkpoints."""
    train(four(local__learning_rate=0.1), tmp_path / "other")
    train(four(), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(
        tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints"
    )
    with pytest.raises(
        checks.InputError, match=r"other values of local\.learning_rate$"
    ):
        train(four(), tmp_path / "run")


# ------------------------------------------------------------ many devices, many hosts


@pytest.fixture(scope="module")
def on_four(finished, tmp_path_factory):
    """Three rounds on one device, continued for two on four."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(finished[0].workdir, workdir)
    train(small(rounds=5, execution__devices=4), workdir)
    return workdir


def test_a_run_goes_on_on_more_devices(on_four, longer, finished):
    """Three clients a round, so that one device fills up; the rest is float order."""
    ours, theirs = (rows(folder / "metrics.jsonl") for folder in (on_four, longer))
    assert [row["round"] for row in ours] == [1, 2, 3, 4, 5]
    for name, value in theirs[-1].items():
        if not name.startswith("time/"):
            assert ours[-1][name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert fakes.gap(final_params(on_four), final_params(longer)) < 1e-6
    assert fakes.gap(final_params(on_four), finished[0].state.params) > 1e-3


# What a user starts on every host, but for the final figures; then what only several
# processes can show.
PROCESS = """
import sys
sys.path[:0] = [{root!r}]
from fairjax import checks, command, final, hosts
from scripts import train

final.final = lambda *_: {{"last": None, "selected": None}}
command.run(train.main, train.define, ["train.py", *sys.argv[1:]])

import numpy as np
first = hosts.first()
assert hosts.some(not first)
assert not hosts.some(False)
zero = np.float32(-0.0 if first else 1.0)
assert np.signbit(hosts.sent({{"x": zero}})["x"])
try:
    hosts.alike("seed", str(first))
except checks.InputError as error:
    print(error)
try:
    with hosts.together():
        if not first:
            checks.fail("a disk", "room", "none")
except checks.InputError as error:
    print(error)
"""


def test_two_processes_are_one_run(finished, on_four, tmp_path):
    """Of two devices each, on loopback: the same bits as four devices of one process.

    The second one is given a folder of its own, as on a disk of its own.
    """
    shutil.copytree(finished[0].workdir, tmp_path / "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fields = {"eval_every": 2, "cohort": 3, "data.partition.num_clients": 4}
    fields |= {"model.mlp.hidden": "(8,)", "rounds": 5, "execution.devices": 0}
    command = [sys.executable, "-c", PROCESS.format(root=str(ROOT))]
    command += ["--config=configs/default.py", "--distributed", "--processes=2"]
    command += [f"--coordinator=127.0.0.1:{port}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    processes = [
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

    # Gloo prints from several threads, also in the middle of each other's lines.
    lines = [out.splitlines() for out, _ in said]
    alike = "seed: expected the same in all processes; got 'others in some'"
    stop = "--distributed: expected processes that can all go on; got 'process 1,"
    assert any(line.startswith("report: ") for line in lines[0])
    assert lines[0][-2] == alike
    assert lines[0][-1].startswith(stop)
    assert lines[1][-2:] == [alike, "a disk: expected room; got 'none'"]
    assert "accuracy" not in said[1][0]


# -------------------------------------------------------------- starting points, extras


def test_a_run_starts_from_given_parameters_and_from_another_run(finished, tmp_path):
    result, _ = finished
    run = specs.build(small())
    given = initial(run, result.state.params)
    assert fakes.equal(given.params, result.state.params)
    frozen = {"rounds": 1, "local__learning_rate": 0.0}
    from_run = train(
        small(model__init_from=str(result.workdir), **frozen), tmp_path / "a"
    )
    from_params = train(small(**frozen), tmp_path / "b", params=result.state.params)
    assert fakes.equal(from_run.state.params, result.state.params)
    assert fakes.equal(from_params.state.params, result.state.params)
    wrong = jax.tree.map(lambda leaf: leaf[:1], result.state.params)
    with pytest.raises(checks.InputError, match=r"params\['head'\]\['bias'\]"):
        train(small(), tmp_path / "c", params=wrong)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, result.state.params)
    with pytest.raises(
        checks.InputError, match="finite numbers; got 'NaN or infinity'"
    ):
        train(small(), tmp_path / "c", params=broken)
    assert not (tmp_path / "c").exists()


def test_profile_writes_a_trace(longer):
    assert list((longer / "profile").rglob("*.xplane.pb"))


def test_two_seeds_are_two_runs(finished, tmp_path):
    other = train(small(seed=1), tmp_path)
    result, _ = finished
    assert other.summary["data"]["hash"] != result.summary["data"]["hash"]
    assert not fakes.equal(other.state.params, result.state.params)


def test_a_checkpoint_holds_the_whole_state(finished):
    result, _ = finished
    ends = [trees.raw(state) for state in (load(result.workdir)[1], result.state)]
    assert fakes.equal(*ends)


# ------------------------------------------------------------------ records on the host


def test_a_run_on_records_by_cohort_is_the_run_on_all(finished, tmp_path):
    """Also from where it was continued: the records asked for first are another's."""
    fields = {"execution__records": "host"}
    part = train(small(rounds=2, **fields), tmp_path / "run")
    assert part.summary["metrics"]["round"] == 2
    whole = train(small(**fields), tmp_path / "run")
    assert untimed(whole.workdir / "metrics.jsonl") == untimed(
        finished[0].workdir / "metrics.jsonl"
    )
    assert fakes.equal(whole.state.params, finished[0].state.params)


def test_records_lie_on_the_host_where_the_device_has_no_room():
    size = "execution__memory"
    assert specs.build(small()).choices["execution.records"].startswith("device: ")
    choice = specs.build(small(**{size: 0.001})).choices["execution.records"]
    assert choice.startswith("host: ")
    assert choice.endswith(" MiB are above half of 0.001")


@pytest.mark.parametrize(
    ("fields", "obstacle"),
    [
        ({"model__name": "resmlp", "model__resmlp__width": 8}, "batch norms"),
        ({"fairness__rule": "ditto"}, "rule ditto keeps"),
        ({"baselines": True}, "baselines"),
    ],
)
def test_records_are_refused_the_host_where_all_are_read(fields, obstacle):
    auto = small(execution__memory=0.001, **fields)
    assert specs.build(auto).choices["execution.records"].startswith("device: ")
    message = rf"^execution\.records: expected device: {obstacle}"
    with pytest.raises(checks.InputError, match=message):
        specs.build(small(execution__records="host", **fields))


def test_a_round_that_takes_too_much_memory_runs_in_chunks_that_do_not(
    capsys, monkeypatch
):
    run = specs.build(small(cohort=4, execution__memory=1.0))
    state = initial(run)
    whole, _ = train_module.compiled(run, state)
    assert "chunks" not in capsys.readouterr().out
    # Of clients side by side, as many as still fit.
    monkeypatch.setattr(train_module, "_takes", lambda program: next(taken))
    taken = iter([2.0, 1.1, 0.9])
    halves, _ = train_module.compiled(run, state)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == [
        "execution.batching = chunks of 2",
        "execution.batching = chunks of 1",
    ]
    assert fakes.gap(whole(state)[0].params, halves(state)[0].params) < 1e-6


def test_what_is_asked_for_is_not_chunked():
    run = specs.build(small(execution__batching="vmap", execution__memory=1e-6))
    _, program = train_module.compiled(run, initial(run))
    assert train_module._takes(program) > 1e-3
