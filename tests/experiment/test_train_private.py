"""Whole private runs: what they spend, write down and print, and where they end."""

import json

import numpy as np
import pytest

from fairjax.experiment.config import build
from fairjax.experiment.costs import privacy_of
from fairjax.experiment.train import train
from tests import fakes
from tests.private_configs import CLIENT, LOCAL, RECORD, changed


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in kept]


@pytest.mark.usefixtures("unfinal")
def test_a_run_goes_on_to_the_same_bytes_and_tells_what_it_spends(tmp_path):
    """The adaptive clip and a rule by ascent have states, which must survive too."""
    base = CLIENT | {
        "fairness.rule": "afl",
        "fairness.cap": 2.0,
        "privacy.losses.noise_multiplier": 3.0,
        "privacy.accountant": "rdp",
        "privacy.adaptive.quantile": 0.5,
        "privacy.adaptive.count_noise": 2.0,
        "eval_every": 2,
    }
    whole = train(changed(base), tmp_path / "whole")
    spent = build.run(changed(base)).guarantee
    logged = rows(tmp_path / "whole")
    assert [row["privacy/epsilon"] for row in logged] == [
        spent.epsilon(number) for number in (1, 2, 3)
    ]
    told = whole.summary["privacy"]
    assert told["mechanism"] == "client_dp"
    assert max(told["tiers"].values()) == told["epsilon"] == spent.epsilon(3)
    assert "tier of every hospital" in told["public"]
    # Constants from the training records are public too.
    assert any("missing inputs" in each for each in told["public"])
    assert told["sampling"] == "poisson"
    train(changed(base, rounds=2), tmp_path / "parts")
    parts = train(changed(base), tmp_path / "parts")
    by_round = {row["round"]: row for row in rows(tmp_path / "parts")}
    assert by_round[3] == logged[2]
    assert fakes.equal(parts.state.protection, whole.state.protection)
    assert fakes.equal(parts.state.rule, whole.state.rule)
    share = build.run(changed(base)).guarantee.tier_records
    assert not np.allclose(whole.state.rule, np.divide(share, sum(share)))


@pytest.mark.usefixtures("unfinal")
def test_noised_uploads_add_up_in_secret(tmp_path):
    fields = {"privacy__secure_sum": "masked", "privacy__secure__minimum": 2}
    base = LOCAL | {"privacy.accountant": "rdp", "rounds": 1}
    result = train(changed(base, **fields), tmp_path)
    told = result.summary["privacy"]
    assert (told["mechanism"], told["secure_sum"]) == ("local_dp", "masked")
    assert told["epsilon"] == result.metrics["privacy/epsilon"]
    assert max(told["tiers"].values()) == told["epsilon"]


@pytest.mark.usefixtures("unfinal")
def test_a_run_ends_where_its_budget_does(tmp_path, capsys):
    base = RECORD | {"privacy.accountant": "rdp", "eval_every": 5}
    spent = build.run(changed(base)).guarantee
    budget = (spent.epsilon(1) + spent.epsilon(2)) / 2
    result = train(changed(base, privacy__epsilon=budget), tmp_path)
    assert [row["round"] for row in rows(tmp_path)] == [1]
    told = result.summary["privacy"]
    assert told["epsilon"] == spent.epsilon(1) <= budget
    assert max(told["hospitals"].values()) == told["epsilon"]
    assert "eval/accuracy" in rows(tmp_path)[-1]
    printed = capsys.readouterr().out
    assert "the run ends after round 1" in printed
    # The headline says beside epsilon whose it is and what it does not cover.
    assert f"ε {told['epsilon']:.3g} of one record" in printed
    assert f"privacy: ε is of {told['of']}. It covers {told['covers']}." in printed
    assert told["does_not_cover"][0] in printed


def test_a_private_run_says_what_the_run_it_starts_from_has_spent(tmp_path):
    base = RECORD | {"privacy.accountant": "rdp", "model.init_from": str(tmp_path)}
    run = build.run(changed(base))
    before = {"mechanism": "record_dp", "epsilon": 2.5}
    about = {"privacy": before, "data": {"hash": run.splits.hash}}
    (tmp_path / "summary.json").write_text(json.dumps(about))
    (note,) = privacy_of(run, 1)["notes"]
    assert f"{tmp_path}, which spent epsilon 2.5 under record_dp: of the same" in note
    public = run.guarantee.summary(1)["public"]
    assert f"the model that the run starts from ({tmp_path})" in public
    assert privacy_of(build.run(changed(RECORD)), 1)["notes"] == []


def test_a_budget_that_only_warns_lets_all_rounds_pass():
    base = RECORD | {"privacy.accountant": "rdp"}
    spent = build.run(changed(base)).guarantee
    budget = (spent.epsilon(1) + spent.epsilon(2)) / 2
    fields = {"privacy__epsilon": budget, "privacy__on_budget": "warn"}
    warned = build.run(changed(base, **fields)).guarantee
    assert warned.affordable_rounds(3) == 3
    assert "exceeds it after round 1" in warned.budget_warning(3)
    assert spent.budget_warning(3) is None
