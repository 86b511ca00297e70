"""studies/trend/run.py: what it averages, how it judges, and that it goes on."""

import json
from types import SimpleNamespace

import pytest

from fairjax.data.datasets import mixtures
from fairjax.data.table import TEST, TRAIN
from fairjax.experiment.config import validate
from studies import experiment
from studies.experiment import interval
from studies.trend import run as trend


def run(accuracy, tiers=None):
    tiers = tiers or 5 * [accuracy]
    known = {"accuracy": accuracy, "tiers": tiers, "poorest": tiers[0]}
    return known | {"parameters": [1], "seconds": 1.0}


def made_up(**changes):
    """Runs in which every claim holds, and the other content of their file."""
    runs = {name: 3 * [run(0.5)] for name in trend.METHODS}
    runs |= {
        "full": 3 * [run(0.9)],
        "depthfl": 3 * [run(0.8, [0.7, 0.7, 0.72, 0.73, 0.74])],
        "heterofl": 3 * [run(0.6, [0.25, 0.3, 0.4, 0.5, 0.6])],
        "smallest": 3 * [run(0.2)],
    }
    setting = {"tiers.budget": [0.0625, 0.125, 0.25, 0.5, 1.0]}
    return {"setting": setting, "runs": runs | changes}


def test_a_claim_is_shown_only_if_it_holds_for_every_seed():
    claims = trend.with_verdicts(made_up())["claims"]
    assert [claim["shown"] for claim in claims] == len(trend.CLAIMS) * [True]
    # A tie is no ">", and two seeds do not outvote the third.
    depth = [run(0.8, 5 * [0.8]), run(0.9, 5 * [0.9]), run(0.8, 5 * [0.8])]
    results = trend.with_verdicts(made_up(depthfl=depth))
    first, *rest = results["claims"]
    assert not first["shown"]
    assert first["numbers"] == [[0.9, 0.8], [0.9, 0.9], [0.9, 0.8]]
    assert all(claim["shown"] for claim in rest)
    assert experiment.margin(first) == 0
    shown, not_shown, _, baseline, half = trend.table(results).split("\n\n")[2:]
    assert shown.startswith("Shown at each of 3 seeds: DepthFL > HeteroFL (")
    assert not_shown.startswith("Not shown: full > DepthFL (")
    assert "full > DepthFL" not in shown
    assert f"gives the poorest hospitals {interval([0.2, 0.2, 0.2])}" in baseline
    assert half.startswith("3 seeds tell two methods apart to about ±0.000")


def test_only_seeds_that_all_methods_have_run_are_judged():
    results = trend.with_verdicts(made_up(smallest=[run(0.2)], heterofl=2 * [run(0.6)]))
    assert results["complete_seeds"] == [0]
    assert {len(claim["numbers"]) for claim in results["claims"]} == {1}
    nothing = trend.with_verdicts(made_up(smallest=[]))
    assert nothing["complete_seeds"] == []
    assert nothing["figures"] == {}
    assert nothing["claims"] == []


def test_figures_are_mean_lowest_and_highest():
    results = trend.with_verdicts(made_up(full=[run(0.9), run(0.8), run(0.85)]))
    figure = results["figures"]["full"]["accuracy"]
    assert figure == {"mean": pytest.approx(0.85), "lowest": 0.8, "highest": 0.9}
    whole = interval([0.9, 0.8, 0.85])
    assert f"| {whole} | {whole} |  |" in trend.table(results)
    alone = interval(3 * [0.5])
    assert f"| richest tier alone | {alone} |  |  |" in trend.table(results)
    widest_first = trend.table(results).splitlines()[4]
    assert widest_first.index("0.600") < widest_first.index("0.250")


def test_a_run_counts_the_evaluations_since_a_round(monkeypatch):
    def train(config, workdir, *, log):
        for number in range(1, 5):
            row = {"round": number, "train/loss": 1.0}
            if number % 2 == 0:
                row["eval/accuracy"] = 0.2 * number
                row |= {f"eval/accuracy/submodel_{t}": 0.1 * t for t in range(5)}
                row["eval/accuracy/tier_0/own"] = 0.1 * number
            log(number, row)
        return SimpleNamespace(summary={"tiers": 5 * [{"parameters": 7}]})

    monkeypatch.setattr(trend, "train", train)
    config = trend.config_of("full", 0)
    assert trend.measure(config, since=1)["accuracy"] == pytest.approx(0.6)
    late = trend.measure(config, since=3)
    assert late["accuracy"] == pytest.approx(0.8)
    assert late["tiers"] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert late["poorest"] == pytest.approx(0.4)


@pytest.mark.usefixtures("unfinal")
def test_a_run_is_measured_on_what_is_deployed(monkeypatch):
    """Two real rounds of four small hospitals, on a model that compiles fast."""
    monkeypatch.setattr(mixtures, "RECORDS", {TRAIN: 8, TEST: 4})
    config = trend.config_of("smallest", 0)
    config.rounds, config.clients_per_round, config.eval_every = 2, 2, 1
    config.data.partition.num_clients = 4
    config.model.name = "mlp"
    config.model.mlp.hidden = (8,)
    config.tiers.budget, config.tiers.proportions = (0.5, 1.0), (1.0, 1.0)
    config.local.steps = config.local.batch_size = 2
    made = trend.measure(config, deployed=trend.METHODS["smallest"].deployed, since=1)
    assert 0 < made["accuracy"] < 1
    assert made["accuracy"] == made["tiers"][0]
    assert len(made["tiers"]) == 2
    assert made["parameters"][0] == made["parameters"][1]


@pytest.mark.parametrize("name", trend.METHODS)
def test_every_run_is_a_config_that_can_run(name):
    config = trend.config_of(name, 1)
    validate.check(config)
    assert config.seed == 1
    fields = trend.METHODS[name].fields
    assert fields["submodel.name"] == config.submodel.name


def test_what_was_run_is_not_run_again(tmp_path, monkeypatch):
    done = []

    def measure(config, *, deployed):
        if len(done) == 9:
            raise KeyboardInterrupt
        own = config.submodel
        done.append((own.name, own.fedavg.mode, config.seed))
        return run(0.5 + len(done) / 100)

    monkeypatch.setattr(trend, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(trend, "measure", measure)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{trend.BEGIN}\n<!-- end -->\nafter\n")
    with pytest.raises(KeyboardInterrupt):
        trend.main(None)
    made = json.loads(trend.RESULTS.read_text())
    assert made["complete_seeds"] == [0]
    # The table is there although two seeds are missing.
    assert trend.table(made) in readme.read_text()
    first = list(done)
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        trend.main(None)
    assert not set(first) & set(done)
    done.clear()
    trend.main(None)
    made = json.loads(trend.RESULTS.read_text())
    assert [len(runs) for runs in made["runs"].values()] == len(trend.METHODS) * [3]
    assert made["complete_seeds"] == list(trend.SEEDS)
    # Another setting is not mixed with these.
    monkeypatch.setattr(trend, "SINCE", 30)
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        trend.main(None)
    assert done == first
