"""scripts/blood.py: how rates are chosen, what is averaged, judged and run again."""

import json
import re
from types import SimpleNamespace

import pytest

from configs import pbc_blood28
from fairjax import schema
from fairjax.data.datasets import mixtures
from fairjax.data.table import TEST, TRAIN
from scripts import blood
from scripts.blood import Job
from scripts.results import interval

FIRST = next(iter(blood.RATIOS))
QUALITY = {
    "dynamicfl": 0.9,
    "ladder": 0.8,
    "heterofl": 0.7,
    "matched": 0.6,
    "fedavg": 0.6,
    "fedrolex": 0.5,
    "smallest": 0.4,
}
"""In which every claim holds."""


def run(job, accuracy=None, validation=None):
    """The record of a made-up run, with equal evaluations."""
    accuracy = QUALITY[job.method] if accuracy is None else accuracy
    row = {"accuracy": accuracy, "balanced_accuracy": accuracy}
    row |= {name: 3 * [accuracy] for name in ("tiers", "own", "submodels")}
    return job._asdict() | {
        "evaluations": [{"round": n, **row} for n in (40, 50, 60)],
        "validation": validation,
        "parameters": 3 * [7],
        "bytes": [3_000_000, 2_000_000, 1_000_000],
        "flops": [3 * 10**12, 2 * 10**12, 10**12],
        "seconds": 1.0,
    }


def made_up(best=0.1, **changed):
    """All runs; the validation split prefers the rate `best`.

    `changed` has another accuracy for {method_seed: ...}, at the first ratio.
    """
    runs = {}
    for method in blood.METHODS:
        for job in blood.tuning(method):
            runs[job] = run(job, validation=3 * [1 - abs(job.learning_rate - best)])
        for ratio in blood.RATIOS:
            for seed in blood.SEEDS:
                job = Job(method, ratio, seed, best)
                accuracy = None
                if ratio == FIRST:
                    accuracy = changed.get(f"{method}_{seed}")
                validation = runs.get(job, {}).get("validation")
                runs[job] = run(job, accuracy, validation)
    return runs


def results(runs):
    return blood.judged({"runs": list(runs.values())})


# ------------------------------------------------------------------------------ one run


@pytest.mark.parametrize("own", [False, True])
def test_a_run_averages_its_last_evaluations(monkeypatch, own):
    def train(config, workdir, *, log):
        for number in range(1, 9):
            row = {"round": number, "train/loss": 1.0}
            if number % 2 == 0:
                for name, factor in (("accuracy", 0.1), ("balanced_accuracy", 0.05)):
                    row[f"eval/{name}"] = factor * number
                    for t in range(3):
                        row[f"eval/{name}/tier_{t}"] = factor * (number + t)
                        row[f"eval/{name}/tier_{t}/own"] = factor * (number - t)
                        row[f"eval/{name}/submodel_{t}"] = factor * (number + 1 + t)
            log(number, row)
        costs = {"parameters": 7, "bytes_down": 4, "bytes_up": 3}
        costs |= {"flops_train": 5, "flops_step": 2}
        clients = (21, 6, 3)
        return SimpleNamespace(
            summary={"tiers": [{"clients": n} | costs for n in clients]}
        )

    monkeypatch.setattr(blood, "train", train)
    config = blood.config_of("heterofl", "7:2:1", 0, 0.1)
    made = blood.measure(config, own=own, last=2)
    assert [row["round"] for row in made["evaluations"]] == [6, 8]
    assert made["validation"] is None
    shift = 1 if own else 0
    expected = {
        "balanced_accuracy": 0.05 * (7 + shift),
        "last": 0.05 * (8 + shift),
        "accuracy": 0.1 * (7 + shift),
        "worst_tier": 0.05 * (5 if own else 7),
        "worst_tier_own": 0.05 * 5,
    }
    assert blood.figures_of(made) == pytest.approx(expected)
    # Nine clients, of which 6, 2 and 1 are of the three tiers.
    rounds = config.rounds
    assert made["bytes"] == [slots * rounds * 7 for slots in (6, 2, 1)]
    step = 32 * 5 + 2
    assert made["flops"] == [slots * rounds * 12 * step for slots in (6, 2, 1)]


@pytest.mark.usefixtures("unfinal")
def test_a_run_is_validated_in_the_rounds_that_are_averaged(monkeypatch):
    """Four real rounds of four small hospitals, on a model that compiles fast."""
    monkeypatch.setattr(mixtures, "RECORDS", {TRAIN: 16, TEST: 4})
    config = blood.config_of("smallest", "7:2:1", 0, 0.1)
    config.rounds, config.cohort, config.eval_every = 4, 2, 1
    config.data.name = "mixtures"
    config.data.partition.num_clients = 4
    config.model.name = "mlp"
    config.model.mlp.hidden = (8,)
    config.tiers.budget, config.tiers.share = (0.5, 1.0), (1.0, 1.0)
    config.local.steps = config.local.batch_size = 2
    seen = []
    whole = blood.evaluator

    def evaluator(run, split):
        measured = whole(run, split)

        def remember(state):
            seen.append((split, int(state.round)))
            return measured(state)

        return remember

    monkeypatch.setattr(blood, "evaluator", evaluator)
    made = blood.measure(config, own=True, validate=True)
    assert seen == [("val", 2), ("val", 3), ("val", 4)]
    assert len(made["validation"]) == 3
    for row in made["evaluations"]:
        # Only the smallest sub-model is trained, and every tier deploys it.
        assert row["balanced_accuracy"] == row["submodels"][0] == row["submodels"][1]
        assert row["tiers"] == row["own"]
    assert made["parameters"][0] == made["parameters"][1]


@pytest.mark.parametrize("method", blood.METHODS)
@pytest.mark.parametrize("ratio", blood.RATIOS)
def test_every_run_is_a_config_that_can_run(method, ratio):
    config = blood.config_of(method, ratio, 1, 0.3)
    schema.check(config)
    assert (config.seed, config.local.learning_rate) == (1, 0.3)
    assert config.submodel.name == blood.METHODS[method].fields["submodel.name"]
    share = tuple(float(part) for part in ratio.split(":"))
    assert config.tiers.share == share


def test_methods_differ_from_the_config_in_the_method_alone():
    for entry in blood.METHODS.values():
        for field in entry.fields:
            assert field.split(".")[0] in ("submodel", "tiers", "execution")


def test_the_last_evaluations_are_in_the_config():
    config = pbc_blood28.get_config()
    assert config.rounds // config.eval_every >= blood.LAST


# ------------------------------------------------------------------- rates and verdicts


@pytest.mark.parametrize("best", blood.RATES)
def test_the_rate_is_the_one_that_the_validation_split_prefers(best):
    runs = made_up(best)
    # The test split prefers another.
    for job in runs:
        if job.learning_rate != best:
            runs[job] = run(job, 1.0, runs[job]["validation"])
    made = results(runs)
    assert made["learning_rates"] == dict.fromkeys(blood.METHODS, best)
    figure = made["figures"][FIRST]["heterofl"]["balanced_accuracy"]
    assert figure["mean"] == pytest.approx(QUALITY["heterofl"])


def test_a_rate_is_chosen_when_all_are_tried():
    runs = made_up()
    del runs[blood.tuning("heterofl")[2]]
    assert "heterofl" not in blood.chosen(runs)
    assert results(runs)["complete_seeds"] == {}
    equal = {job: run(job, validation=[0.5]) for job in blood.tuning("heterofl")}
    assert blood.chosen(equal) == {"heterofl": min(blood.RATES)}


def test_a_claim_is_shown_only_if_it_holds_for_every_seed():
    made = results(made_up())
    for claims in made["claims"].values():
        assert [claim["shown"] for claim in claims] == len(blood.CLAIMS) * [True]
    # A tie is no ">", and two seeds do not outvote the third.
    made = results(made_up(dynamicfl_0=0.7, heterofl_0=0.7))
    shown = {claim["claim"]: claim["shown"] for claim in made["claims"][FIRST]}
    assert [name for name, is_shown in shown.items() if not is_shown] == [
        "DynamicFL > HeteroFL"
    ]
    assert all(claim["shown"] for claim in made["claims"]["4:3:3"])
    assert "Not shown: DynamicFL > HeteroFL (smallest difference 0.000)." in (
        blood.table(made)
    )


def test_only_seeds_that_all_methods_have_run_are_judged():
    runs = made_up()
    del runs[Job("ladder", FIRST, 1, 0.1)]
    made = results(runs)
    assert made["complete_seeds"] == {FIRST: [0, 2], "4:3:3": [0, 1, 2]}
    assert {len(claim["numbers"]) for claim in made["claims"][FIRST]} == {2}
    text = blood.table(made)
    assert f"Tiers {FIRST}, smallest first; 2 seeds:" in text
    assert "Shown at each of 2 seeds: DynamicFL > FedAvg" in text


def test_the_table_has_the_figures_and_what_they_cost():
    runs = made_up(heterofl_0=0.6, heterofl_1=0.65, heterofl_2=0.7)
    (row, _) = re.findall(r"^\| HeteroFL \|.*$", blood.table(results(runs)), re.M)
    assert row.count(interval([0.6, 0.65, 0.7])) == len(blood.FIGURES)
    assert row.startswith("| HeteroFL | 0.1 | ")
    assert row.endswith(" | 3 / 2 / 1 | 3.00 / 2.00 / 1.00 |")


# ----------------------------------------------------------------------------- all runs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A page of its own, and runs that are made up; `limit` interrupts them."""
    page = tmp_path / "results" / "README.md"
    state = SimpleNamespace(ran=[], limit=None, page=page)

    def measure(config, *, own, validate):
        if len(state.ran) == state.limit:
            raise KeyboardInterrupt
        names = [
            name
            for name, entry in blood.METHODS.items()
            if all(at(config, field) == value for field, value in entry.fields.items())
        ]
        # What has the most fields is the most special.
        name = max(names, key=lambda name: len(blood.METHODS[name].fields))
        share = ":".join(f"{part:g}" for part in config.tiers.share)
        job = Job(name, share, config.seed, config.local.learning_rate)
        state.ran.append(job)
        made = run(job, validation=3 * [job.learning_rate] if validate else None)
        assert own == (name == "smallest")
        return {key: value for key, value in made.items() if key not in Job._fields}

    monkeypatch.setattr(blood, "ROOT", tmp_path)
    monkeypatch.setattr(blood, "RESULTS", tmp_path / "results" / "blood.json")
    monkeypatch.setattr(blood, "measure", measure)
    state.page.parent.mkdir()
    state.page.write_text(f"before\n{blood.BEGIN}\n<!-- end -->\nafter\n")
    return state


def at(config, path):
    for name in path.split("."):
        config = config[name]
    return config


def go(methods=tuple(blood.METHODS)):
    blood.main(SimpleNamespace(methods=list(methods)))


def test_what_was_run_is_not_run_again(folder, monkeypatch):
    tuning, methods = len(blood.RATES) * len(blood.METHODS), len(blood.METHODS)
    # All rates are tried, and a run of the chosen one is a run of the first seed.
    folder.limit = tuning + methods
    with pytest.raises(KeyboardInterrupt):
        go()
    made = json.loads(blood.RESULTS.read_text())
    assert made["learning_rates"] == dict.fromkeys(blood.METHODS, max(blood.RATES))
    assert made["complete_seeds"] == {FIRST: [0, 1]}
    # The table is there although a seed and a ratio are missing.
    assert blood.table(made) in folder.page.read_text()
    first = list(folder.ran)
    folder.ran.clear()
    folder.limit = None
    go()
    assert not set(first) & set(folder.ran)
    made = json.loads(blood.RESULTS.read_text())
    seeds = list(blood.SEEDS)
    assert made["complete_seeds"] == dict.fromkeys(blood.RATIOS, seeds)
    wanted = len(blood.RATIOS) * len(blood.SEEDS) + len(blood.RATES) - 1
    assert len(made["runs"]) == methods * wanted
    folder.ran.clear()
    go()
    assert folder.ran == []
    # Another setting is not mixed with these.
    monkeypatch.setattr(blood, "LAST", 2)
    folder.limit = tuning
    with pytest.raises(KeyboardInterrupt):
        go()
    assert folder.ran == first[:tuning]


def test_two_processes_share_the_files(folder):
    names = list(blood.METHODS)
    go(names[:3])
    assert {job.method for job in folder.ran} == set(names[:3])
    half = json.loads(blood.RESULTS.read_text())
    assert half["complete_seeds"] == {}
    assert folder.page.read_text().startswith("before\n" + blood.BEGIN + "\n<!--")
    go(names[3:])
    both = json.loads(blood.RESULTS.read_text())
    assert both["runs"][: len(half["runs"])] == half["runs"]
    assert both["complete_seeds"].keys() == blood.RATIOS.keys()
    assert blood.judged(both) == both


def test_an_unknown_method_is_refused(folder):
    with pytest.raises(ValueError, match=r'^--methods: .*Did you mean "heterofl"'):
        go(["heterofI"])
    assert not blood.RESULTS.exists()
