"""A run from its config to its files, its selected round and its starting points."""

import dataclasses
import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from fairjax import report
from fairjax.core import require, trees
from fairjax.experiment import compilation, model_selection, summary
from fairjax.experiment.config import build, conversion
from fairjax.experiment.evaluate import evaluate
from fairjax.experiment.io import preemption, progress
from fairjax.experiment.resume import initial_state, load
from fairjax.experiment.train import train
from tests import fakes
from tests.trained import rows, selected_state, small, steps, untimed

PRINCIPLES = {
    "opportunity",
    "contribution",
    "shared_fruits",
    "equal_accuracy",
    "sustainability",
}


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
    every = {"train/loss", "cohort/valid", "cohort/not_finite", "time/round_s"}
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
    evaluated |= {f"val/{name}" for name in model_selection.CRITERIA}
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
    """Three of four clients take part in a round; clients.jsonl names them."""
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
    took_part = summary._cohort_masks(run, state)
    assert took_part.sum(axis=1).tolist() == [3, 3, 3]
    for row in rows(result.workdir / "clients.jsonl"):
        client = run.splits.clients.index(row["client"])
        assert took_part[row["round"] - 1, client] == (row["weight"] is not None)
    # One epoch: every slot uses its client's records once.
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
    # Every client trains the whole model, whatever its budget.
    for name, shares in principles["opportunity"]["cost"].items():
        assert shares == [1, 1, 1, 1]
        assert principles["opportunity"]["within"][name] == [False] * 3 + [True]


def test_tiers_that_are_not_admitted_have_no_opportunity(tmp_path):
    """Padded slots of the sliced form belong to no client."""
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
    assert config == conversion.to_plain(small())
    assert conversion.to_plain(conversion.from_plain(config)) == config


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
    with pytest.raises(require.InputError, match='Did you mean "test"'):
        evaluate(run, state, "tset")


def test_the_report_is_one_page_with_every_hospital(finished):
    page = (finished[0].workdir / "report.html").read_text()
    assert all(f"hospital_{i}" in page for i in range(4))
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_second_signal_gives_the_terminal_its_cursor_back(monkeypatch):
    """It ends the process while a bar hides the cursor."""
    terminal = io.StringIO()
    console = functools.partial(rich.console.Console, file=terminal)
    monkeypatch.setattr(
        progress, "Console", functools.partial(console, force_terminal=True)
    )
    with progress.display(0, 3) as show:
        show(1, {"train/loss": 0.5})
        assert "\x1b[?25l" in terminal.getvalue()
        [stop] = preemption._exit_calls
        stop()
        assert terminal.getvalue().endswith("\n\x1b[?25h")
    assert preemption._exit_calls == []


# ------------------------------------------------------------- selection, final figures


def test_the_best_round_of_the_validation_split_is_kept(finished):
    result, _ = finished
    lines = rows(result.workdir / "metrics.jsonl")
    best = max(lines[1:], key=lambda row: (row["val/auroc"], -row["val/loss"]))
    assert result.summary["final"]["selected_by"] == "auroc"
    state, number = selected_state(result.workdir)
    assert steps(result.workdir / "selected") == [number] == [best["round"]]
    assert int(state.round) == number
    run, _ = load(result.workdir)
    row, _ = evaluate(run, jax.tree.map(jnp.asarray, state), "val")
    for name in model_selection.CRITERIA:
        np.testing.assert_allclose(row[f"eval/{name}"], best[f"val/{name}"], rtol=1e-6)
    final = result.summary["final"]
    assert final["selected"]["round"] == number
    assert final["last"]["round"] == 3
    for name in ("accuracy", "auroc", "loss", "balanced_accuracy"):
        last = final["last"]["pooled"][name]
        np.testing.assert_allclose(last["value"], lines[-1][f"eval/{name}"], rtol=1e-5)
        assert last["low"] <= last["value"] <= last["high"]


def test_the_test_split_decides_nothing(tmp_path, monkeypatch):
    """With flipped test labels the rounds, selection and thresholds are the same."""
    fields = {"rounds": 6, "eval_every": 1, "selection_metric": "loss"}
    fields["local__learning_rate"] = 1.0  # so that the last round is not the best
    straight = train(small(**fields), tmp_path / "a")
    whole = build.checked_run

    def turned(checked, **how):
        run = whole(checked, **how)
        test = dataclasses.replace(run.splits.test, y=1 - run.splits.test.y)
        return dataclasses.replace(
            run, splits=dataclasses.replace(run.splits, test=test)
        )

    monkeypatch.setattr(build, "checked_run", turned)
    other = train(small(**fields), tmp_path / "b")
    for ours, theirs in zip(
        *(rows(each.workdir / "metrics.jsonl") for each in (straight, other)),
        strict=True,
    ):
        assert ours["eval/loss"] != theirs["eval/loss"]
        for name in (
            "train/loss",
            *(f"val/{name}" for name in model_selection.CRITERIA),
        ):
            assert ours[name] == theirs[name]
    ours, theirs = (each.summary["final"] for each in (straight, other))
    for which in ("last", "selected"):
        for name in ("round", "threshold"):
            assert ours[which][name] == theirs[which][name]
        assert ours[which]["pooled"]["auroc"] != theirs[which]["pooled"]["auroc"]
    states = [selected_state(each.workdir) for each in (straight, other)]
    assert fakes.equal(states[0][0].params, states[1][0].params)
    assert ours["selected"]["round"] < ours["last"]["round"]


def test_a_run_that_diverges_says_so_and_selects_no_round(tmp_path, capfd):
    """The learning rate makes the first round overflow at every client."""
    fast = small(rounds=2, eval_every=1, local__learning_rate=1e4)
    result = train(fast, tmp_path)
    lines = rows(tmp_path / "metrics.jsonl")
    for row in lines:
        assert row["train/loss"] is None
        assert (row["cohort/valid"], row["cohort/not_finite"]) == (0, 3)
    out, err = capfd.readouterr()
    assert "data.positive = malignant: of benign and malignant" in out
    assert f"round 1/2  loss {report.formats.MISSING}  accuracy 0." in out
    why = "no hospital's training ends with finite numbers"
    assert out.count(f"diverged: since round 1 {why}") == 1
    assert not err
    assert result.summary["diverged"] == {"round": 1, "why": why}
    final = result.summary["final"]
    assert final["selected"] is None
    assert final["selected_by"] is None
    assert final["note"].endswith(": every round that was validated shows divergence")
    page = (tmp_path / "report.html").read_text()
    assert page.count("This run has diverged") == 1


@pytest.mark.slow
def test_a_network_that_overflows_by_degrees_has_diverged(tmp_path):
    """Noise images of 9 x 21 in two classes, at ten times LeNet's learning rate.

    The updates of some clients are left out; those of others give huge losses.
    """
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 140), ("test", 60)):
        arrays[f"{split}_images"] = rng.integers(0, 230, (n, 9, 21)).astype(np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, n)
    np.savez(tmp_path / "bytes.npz", **arrays)
    fields = {"data__name": "npz", "data__path": str(tmp_path / "bytes.npz")}
    fields |= {
        "model__name": "lenet",
        "local__learning_rate": 0.5,
        "clients_per_round": 0,
    }
    result = train(small(rounds=6, eval_every=3, **fields), tmp_path / "run")
    assert result.summary["diverged"]
    assert result.summary["final"]["selected"] is None


def test_without_validation_records_nothing_is_selected(tmp_path):
    fields = {"data__partition__val_fraction": 0.0, "data__positive": "benign"}
    result = train(small(rounds=1, **fields), tmp_path)
    assert not (tmp_path / "selected").exists()
    assert not any(name.startswith("val/") for name in result.metrics)
    final = result.summary["final"]
    assert final["selected"] is None
    assert final["note"] == "no round could be selected on the validation split"
    assert result.summary["diverged"] is False
    assert final["last"]["threshold"] is None
    assert final["last"]["pooled"]["sensitivity"]["value"] is None
    assert final["last"]["not_estimated"]["no threshold"] >= 2
    # Figures concern the class that the config asks for.
    assert result.summary["data"]["positive"] == final["last"]["positive"] == "benign"
    assert result.summary["data"]["classes"] == ["malignant", "benign"]
    page = (tmp_path / "report.html").read_text()
    whose = "Sensitivity, specificity, AUPRC and calibration are of the class "
    assert page.count(f"{whose}&quot;benign&quot;") >= 4


# -------------------------------------------------------------- starting points, extras


def test_a_run_starts_from_given_parameters_and_from_another_run(finished, tmp_path):
    result, _ = finished
    run = build.run(small())
    given = initial_state(run, result.state.params)
    assert fakes.equal(given.params, result.state.params)
    frozen = {"rounds": 1, "local__learning_rate": 0.0}
    from_run = train(
        small(model__init_from=str(result.workdir), **frozen), tmp_path / "a"
    )
    from_params = train(small(**frozen), tmp_path / "b", params=result.state.params)
    assert fakes.equal(from_run.state.params, result.state.params)
    assert fakes.equal(from_params.state.params, result.state.params)
    turned = small(model__init_from=str(result.workdir), data__positive="benign")
    message = r"^model\.init_from: expected a run of classes malignant, benign"
    with pytest.raises(require.InputError, match=message):
        train(turned, tmp_path / "c")
    wrong = jax.tree.map(lambda leaf: leaf[:1], result.state.params)
    with pytest.raises(require.InputError, match=r"params\['head'\]\['bias'\]"):
        train(small(), tmp_path / "c", params=wrong)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, result.state.params)
    with pytest.raises(
        require.InputError, match="finite numbers; got 'NaN or infinity'"
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
    ends = [
        trees.unwrap_keys(state) for state in (load(result.workdir)[1], result.state)
    ]
    assert fakes.equal(*ends)


# ------------------------------------------------------------------ records on the host


def test_a_run_on_records_by_cohort_is_the_run_on_all(finished, tmp_path):
    """A continued run first asks for the records of a later round."""
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
    assert build.run(small()).choices["execution.records"].startswith("device: ")
    choice = build.run(small(**{size: 0.001})).choices["execution.records"]
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
    assert build.run(auto).choices["execution.records"].startswith("device: ")
    message = rf"^execution\.records: expected device: {obstacle}"
    with pytest.raises(require.InputError, match=message):
        build.run(small(execution__records="host", **fields))


def test_a_round_that_takes_too_much_memory_runs_in_chunks_that_do_not(
    capsys, monkeypatch
):
    run = build.run(small(clients_per_round=4, execution__memory=1.0))
    state = initial_state(run)
    whole, _ = compilation.compile_round(run, state)
    assert "chunks" not in capsys.readouterr().out
    # The number of clients side by side is halved until the program fits.
    monkeypatch.setattr(compilation, "_peak_memory_mib", lambda program: next(taken))
    taken = iter([2.0, 1.1, 0.9])
    halves, _ = compilation.compile_round(run, state)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == [
        "execution.batching = chunks of 2",
        "execution.batching = chunks of 1",
    ]
    assert fakes.gap(whole(state)[0].params, halves(state)[0].params) < 1e-6


def test_what_is_asked_for_is_not_chunked():
    run = build.run(small(execution__batching="vmap", execution__memory=1e-6))
    _, program = compilation.compile_round(run, initial_state(run))
    assert compilation._peak_memory_mib(program) > 1e-3
