"""Contests: what is chosen, averaged, judged, drawn and run again."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fairjax.data.datasets import mixtures
from fairjax.data.table import TEST, TRAIN
from fairjax.experiment.config import build, validate
from fairjax.experiment.costs import tier_costs
from fairjax.experiment.resume import initial_state
from studies.contests import page as contest_page
from studies.contests import run as compare
from studies.contests import standings
from studies.contests.settings import CONTESTS
from studies.contests.standings import Job
from tests.studies.made_up_contest import (
    BLOOD,
    FEW,
    FIRST,
    RATIOS,
    made_up,
    results,
    run,
)


def test_a_run_keeps_every_evaluation_and_what_tiers_spent(monkeypatch):
    def train(config, workdir, *, log):
        for number in range(1, 7):
            row = {"round": number, "train/loss": 1.0}
            if number % 2 == 0:
                row |= {"val/auroc": 0.1 * (7 - number), "eval/accuracy": 0.1 * number}
                row |= {"eval/accuracy/tier_gap": 0.3, "eval/accuracy/client_std": 0.2}
                row["eval/auroc"] = 0.05 * number
                for t in range(3):
                    row[f"eval/auroc/tier_{t}"] = 0.05 * (number + t)
                    row[f"eval/auroc/tier_{t}/own"] = 0.05 * (number - t)
                    row[f"eval/auroc/submodel_{t}"] = 0.05 * (number + 1 + t)
            log(number, row)
        spent = {
            "bytes_down": [4, 2, 0],
            "bytes_up": [3, 1, 0],
            "flops_train": [5, 6, 0],
        }
        return SimpleNamespace(
            summary={
                "tiers": [{"parameters": n} for n in (1, 2, 7)],
                "principles": {"sustainability": spent},
            }
        )

    monkeypatch.setattr(compare, "train", train)
    config = compare.config_of(BLOOD, Job("heterofl", FIRST, 0, 0.1))
    made = compare.measure(config, "auroc")
    assert [row["round"] for row in made["evaluations"]] == [2, 4, 6]
    assert (made["bytes"], made["flops"]) == ([7, 3, 0], [5, 6, 0])
    assert made["parameters"] == [1, 2, 7]
    contest = BLOOD._replace(last=2)
    assert standings.validation(contest, made) == pytest.approx(0.2)
    assert standings.figures_of(contest, made) == pytest.approx(
        {
            "score": 0.05 * 5,
            "last": 0.05 * 6,
            "selected": 0.05 * 2,
            "accuracy": 0.1 * 5,
            "worst_tier": 0.05 * 5,
            "poorest": 0.05 * 5,
            # The richest tier took no part.
            "own": 0.05 * 4,
            "gap": 0.3,
            "std": 0.2,
        }
    )


def test_a_tier_that_cannot_be_judged_is_not_the_worst():
    made = run(Job("heterofl", FIRST, 0, 0.1))
    for row in made["evaluations"]:
        row["tiers"], row["own"] = [None, 0.6, 0.8], [0.5, None, 0.8]
    figures = standings.figures_of(BLOOD, made)
    assert (figures["worst_tier"], figures["own"]) == pytest.approx((0.6, 0.5))
    assert figures["poorest"] == pytest.approx(0.5)
    for row in made["evaluations"]:
        row["own"] = [None, 0.6, 0.8]
    assert np.isnan(standings.figures_of(BLOOD, made)["poorest"])
    made["bytes"] = [0, 0, 1]
    assert np.isnan(standings.figures_of(BLOOD, made)["poorest"])


@pytest.mark.usefixtures("unfinal")
def test_a_real_run_has_what_is_kept(monkeypatch):
    """Two rounds of four small hospitals, on a model that compiles fast."""
    monkeypatch.setattr(mixtures, "RECORDS", {TRAIN: 16, TEST: 4})
    config = compare.config_of(BLOOD, Job("exclusive", FIRST, 0, 0.1))
    config.rounds, config.clients_per_round, config.eval_every = 2, 2, 1
    config.data.name = "mixtures"
    config.data.partition.num_clients = 4
    config.model.name = "mlp"
    config.model.mlp.hidden = (8,)
    config.tiers.budget, config.tiers.proportions = (0.5, 1.0), (1.0, 1.0)
    config.submodel.fedavg.tier = 1
    config.local.steps = config.local.batch_size = 2
    made = compare.measure(config, BLOOD.score)
    assert [row["round"] for row in made["evaluations"]] == [1, 2]
    # The poor take no part.
    assert made["bytes"][0] == made["flops"][0] == 0 < min(made["bytes"][1:])
    assert standings.figures_of(BLOOD, made).keys() == set(standings.FIGURES)


# ------------------------------------------------------------------------- who competes


@pytest.mark.parametrize("name", CONTESTS)
def test_every_run_is_a_config_that_can_run(name):
    contest = CONTESTS[name]
    for method, entry in contest.entries.items():
        for ratio, share in contest.ratios.items():
            config = compare.config_of(contest, Job(method, ratio, 1, 0.3))
            validate.check(config)
            assert (config.seed, config.local.learning_rate) == (1, 0.3)
            assert config.tiers.proportions == entry.fields.get(
                "tiers.proportions", share
            )
        assert config.rounds // config.eval_every >= contest.last


def test_who_is_no_reference_stays_within_the_budgets_of_heterofl(tmp_path):
    """On images of as many colours and classes, which decide how large networks are."""
    rng, arrays = np.random.default_rng(0), {}
    for name in ("train", "val", "test"):
        arrays[f"{name}_images"] = rng.integers(0, 256, (640, 4, 4, 3), np.uint8)
        arrays[f"{name}_labels"] = np.arange(640) % 8
    np.savez(tmp_path / "cells.npz", **arrays)

    def parameters(method):
        config = compare.config_of(BLOOD, Job(method, FIRST, 0, 0.1))
        config.data.name, config.data.path = "npz", str(tmp_path / "cells.npz")
        run = build.run(config)
        return [bill["parameters"] for bill in tier_costs(run, initial_state(run))]

    budgets = parameters("heterofl")
    assert budgets == [2176, 6408, 24328]
    # The others have the same widths, or the richest tier alone.
    for method in ("smallest", "fiarse", "depthfl"):
        for mine, theirs in zip(parameters(method), budgets, strict=True):
            # DepthFL's exits are what the plain network has not.
            assert mine <= theirs + 400 * (method == "depthfl"), method


RESULTS = compare.FOLDER
MEASURED = [name for name in CONTESTS if (RESULTS / f"{name}.json").exists()]


@pytest.mark.parametrize("name", MEASURED)
def test_committed_runs_were_within_the_budgets(name):
    runs = json.loads((RESULTS / f"{name}.json").read_text())["runs"]
    budgets = {run["method"]: run["parameters"] for run in runs}
    for method, parameters in budgets.items():
        role = CONTESTS[name].entries[method].role
        # In "exclusive" the poorer tiers train nothing.
        if role != "reference" and method != "exclusive":
            for mine, theirs in zip(parameters, budgets["heterofl"], strict=True):
                # DepthFL's exits are what the plain network has not.
                assert mine <= theirs + 400 * (method == "depthfl"), method


# ------------------------------------------------------------------- rates and verdicts


@pytest.mark.parametrize("best", BLOOD.rates)
def test_the_rate_is_the_one_that_the_validation_split_prefers(best):
    runs = made_up(best)
    # The test split prefers another.
    for job, made in runs.items():
        if job.learning_rate != best:
            validation = made["evaluations"][0]["validation"]
            runs[job] = run(job, 1.0, validation)
    made = results(runs)
    assert made["learning_rates"] == dict.fromkeys(BLOOD.entries, best)
    assert "0.700 (0.700" in contest_page.table(BLOOD, made)


def test_a_model_whose_answers_are_no_numbers_is_not_preferred():
    runs = made_up(best=0.3)
    for job in standings.tuning(BLOOD, "heterofl"):
        if job.learning_rate == 0.3:
            runs[job] = run(job, validation=np.nan)
            for row in runs[job]["evaluations"]:
                row |= dict.fromkeys(("validation", "score"))
    assert standings.learning_rates(BLOOD, runs)["heterofl"] == 0.1
    assert np.isnan(standings.figures_of(BLOOD, runs[job])["last"])


def test_a_rate_is_chosen_when_all_are_tried():
    runs = made_up()
    del runs[standings.tuning(BLOOD, "heterofl")[2]]
    assert "heterofl" not in standings.learning_rates(BLOOD, runs)
    made = results(runs)
    assert made["complete_seeds"] == {}
    assert made["best_published"] == {}
    jobs = standings.tuning(BLOOD, "heterofl")
    equal = {job: run(job, validation=0.5) for job in jobs}
    assert standings.learning_rates(BLOOD, equal) == {"heterofl": min(BLOOD.rates)}


def test_the_validation_split_decides_who_of_ours_is_shown():
    runs = made_up()
    for job in runs:
        if job.method == "adjusted_branches":
            # Best on the test split, which nobody asks.
            runs[job] = run(job, 1.0, 0.2)
    made = results(runs)
    assert made["best_of_ours"] == "adjusted_tiers"
    text = contest_page.table(BLOOD, made)
    assert "| **widths, adjusted logits, tiers weighed by loss** | 0.1 |" in text
    assert "| **widths, adjusted logits** |" not in text
    assert "widths, adjusted logits: 0.850;" in text.splitlines()[-1]
    # Four combinations of ours at three learning rates, and one published method.
    assert "3 for every published method, 12 for ours" in text.splitlines()[-1]


def test_the_rival_is_the_best_published_of_its_ratio_by_the_validation_split():
    runs = made_up()
    for job in runs:
        if (job.method, job.ratio) == ("smallest", "4:3:3"):
            # Best at one seed, and over all three, though not on the test split.
            runs[job] = run(job, 0.1, validation=0.6 + 0.4 * (job.seed == 1))
    made = results(runs)
    assert made["best_published"] == {FIRST: "heterofl", "4:3:3": "smallest"}
    title = BLOOD.entries["smallest"].title
    assert f"beats {title}, 0.100, the best published" in contest_page.sentence(
        BLOOD, made
    )


def test_a_claim_is_shown_only_if_it_holds_for_every_seed():
    made = results(made_up())
    for claims in made["claims"].values():
        assert len(claims) == 16
        assert all(claim["shown"] for claim in claims)
    # A tie is no ">", and two seeds do not outvote the third.
    made = results(made_up(dynamicfl_0=0.7, heterofl_0=0.7))
    missed = [claim["claim"] for claim in made["claims"][FIRST] if not claim["shown"]]
    dynamicfl = BLOOD.entries["dynamicfl"].title
    assert missed == [f"{dynamicfl} > HeteroFL"]
    assert all(claim["shown"] for claim in made["claims"]["4:3:3"])
    # Differences 0, 0.2, 0.2; t(0.975, 2) = 4.303.
    assert (
        f"Not shown: {dynamicfl} > HeteroFL: +0.133 (-0.154 to +0.420) "
        "[0.833, 0.700; 0.400]."
    ) in contest_page.table(BLOOD, made)


def test_only_seeds_that_all_methods_have_run_are_judged():
    runs = made_up()
    del runs[Job("mixed", FIRST, 1, 0.1)]
    made = results(runs)
    assert made["complete_seeds"] == {FIRST: [0, 2], "4:3:3": [0, 1, 2]}
    assert {len(claim["numbers"]) for claim in made["claims"][FIRST]} == {2}
    text = contest_page.table(BLOOD, made)
    assert f"tiers {FIRST}, smallest first; 2 seeds:" in text
    assert "Shown at each of 2 seeds: " in text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A page of its own, and runs that are made up; `limit` interrupts them."""
    page = tmp_path / "studies" / "contests" / "README.md"
    state = SimpleNamespace(ran=[], limit=None, page=page, asked=[])

    def config_of(contest, job):
        state.asked.append(job)
        return whole(contest, job)

    def measure(config, score):
        if len(state.ran) == state.limit:
            raise KeyboardInterrupt
        job = state.asked[-1]
        state.ran.append(job)
        made = run(job, validation=job.learning_rate)
        return {name: made[name] for name in made.keys() - {*Job._fields, "fields"}}

    whole = compare.config_of
    monkeypatch.setitem(compare.CONTESTS, "blood", FEW)
    monkeypatch.setattr(compare, "FOLDER", page.parent)
    monkeypatch.setattr(compare, "config_of", config_of)
    monkeypatch.setattr(compare, "measure", measure)
    monkeypatch.setattr(compare, "draw", lambda *_: None)
    page.parent.mkdir(parents=True)
    for each in (page, page.parents[1] / "README.md", tmp_path / "README.md"):
        each.write_text(
            "before\n<!-- studies/contests/blood.json -->\n<!-- end -->\nafter\n"
        )
    return state


def go(*methods):
    compare.main(SimpleNamespace(data="blood", methods=list(methods)))


def written_results(folder):
    return json.loads((folder.page.parent / "blood.json").read_text())


@pytest.mark.slow
def test_what_was_run_is_not_run_again(folder, monkeypatch):
    ours = [name for name, entry in FEW.entries.items() if entry.role == "ours"]
    tuned = len(FEW.rates) * len(FEW.entries)
    methods = len(FEW.entries) - len(ours) + 1
    # All rates are tried, and a run of the chosen one is a run of the first seed.
    folder.limit = tuned + methods
    with pytest.raises(KeyboardInterrupt):
        go()
    made = written_results(folder)
    assert made["learning_rates"] == dict.fromkeys(FEW.entries, max(FEW.rates))
    assert made["complete_seeds"] == {FIRST: [0, 1]}
    # The table is there although a seed and a ratio are missing.
    assert contest_page.table(FEW, made) in folder.page.read_text()
    said = (folder.page.parents[1] / "README.md").read_text()
    assert contest_page.sentence(FEW, made) in said
    first = list(folder.ran)
    folder.ran.clear()
    folder.limit = None
    go()
    assert not set(first) & set(folder.ran)
    made = written_results(folder)
    assert made["complete_seeds"] == {key: list(FEW.seeds) for key in RATIOS}
    # The single hospital of all ratios is the same.
    seeds = len(FEW.seeds) * ((methods - 1) * len(RATIOS) + 1)
    assert len(made["runs"]) == tuned + seeds - methods
    folder.ran.clear()
    go()
    assert folder.ran == []
    # A method that has changed is run again, and no other.
    entry = FEW.entries["fedrolex"]
    changed = entry._replace(fields={**entry.fields, "local.momentum": 0.9})
    contest = FEW._replace(entries={**FEW.entries, "fedrolex": changed})
    monkeypatch.setitem(compare.CONTESTS, "blood", contest)
    go()
    assert {job.method for job in folder.ran} == {"fedrolex"}
    # Another setting is not mixed with these.
    contest = FEW._replace(config=lambda: FEW.config("smoke"))
    monkeypatch.setitem(compare.CONTESTS, "blood", contest)
    folder.ran.clear()
    folder.limit = tuned
    with pytest.raises(KeyboardInterrupt):
        go()
    assert folder.ran == first[:tuned]


@pytest.mark.slow
def test_two_processes_share_the_files(folder):
    names = list(FEW.entries)
    go(*names[:3])
    assert {job.method for job in folder.ran} == set(names[:3])
    half = written_results(folder)
    assert half["complete_seeds"] == {}
    assert "no seed has all methods yet" in folder.page.read_text()
    go(*names[3:])
    both = written_results(folder)
    assert both["runs"][: len(half["runs"])] == half["runs"]
    assert both["complete_seeds"].keys() == FEW.ratios.keys()
    assert standings.with_verdicts(FEW, both) == both


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "blud", "methods": []}, r'^--data: .*Did you mean "blood"'),
        (
            {"data": "blood", "methods": ["heterofI"]},
            r'^--methods: .*Did you mean "heterofl"',
        ),
    ],
)
def test_unknown_names_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        compare.main(SimpleNamespace(**options))
    assert not (folder.page.parent / "blood.json").exists()
