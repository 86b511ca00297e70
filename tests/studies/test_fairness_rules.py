"""The frontier: what is run, what is judged, and that the README says what came out."""

import json

import pytest

from fairjax.experiment.config import validate
from studies.fairness_rules import run as frontier
from studies.fairness_rules.run import DATA, FIRST, RULES, SEEDS, Job

HEART, DIABETES = DATA
PAGE = frontier.RESULTS.parent / "README.md"


def made(worst):
    """Runs whose figures are 0.7, but for the worst AUROC by (rule, seed)."""
    runs = []
    for data in DATA:
        for rule in RULES:
            for seed in SEEDS:
                figures = dict.fromkeys(frontier.FIGURES, 0.7)
                figures["AUROC, worst hospital"] = worst.get((rule, seed), 0.5)
                shares = {name: {"auroc": 0.25 * seed} for name in ("full", "own")}
                job = {"data": data, "rule": rule, "seed": seed}
                row = {"figures": figures, "poorest": 0.6, "worse_off": shares}
                runs.append(job | row)
    return runs


def test_a_rule_moves_the_worst_hospital_where_all_seeds_agree():
    worst = {("term", s): 0.6 for s in SEEDS} | {("cvar", s): 0.4 for s in SEEDS}
    worst |= {("afl", 0): 0.9, ("afl", 1): 0.1}
    runs = frontier.runs_by_job(made(worst))
    told = frontier.rule_effects(runs, HEART, "AUROC, worst hospital")
    assert (
        "better at each seed: `term`, t 2 (+0.100; mean AUROC +0.000; 0.600);" in told
    )
    assert (
        "worse at each: `cvar`, alpha 0.5 (-0.100; mean AUROC +0.000; 0.600)." in told
    )
    assert "`afl`" in told.partition("Seeds disagree")[2]
    assert "`size`;" not in told
    assert told.count("logit_adjust") == 2  # with and without `tier_term`


def test_less_loss_is_better():
    runs = frontier.runs_by_job(made({}))
    for seed in SEEDS:
        runs[Job(HEART, "term", seed)]["figures"]["loss, worst"] = 0.6
    told = frontier.rule_effects(runs, HEART, "loss, worst")
    assert "better at each seed: `term`, t 2 (+0.100" in told


def test_worse_off_is_the_mean_over_seeds():
    assert "25% of the hospitals" in frontier.worse_off_note(
        frontier.runs_by_job(made({})), DIABETES
    )


def test_what_is_missing_is_run_in_order_and_only_for_its_data():
    runs = frontier.runs_by_job(made({}))
    del runs[Job(DIABETES, "term", 1)], runs[Job(HEART, "fedfv", 0)]
    assert list(frontier.missing_jobs(runs, [DIABETES])) == [Job(DIABETES, "term", 1)]
    assert next(frontier.missing_jobs(runs, list(DATA))) == Job(HEART, "fedfv", 0)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_a_config_that_passes_its_checks(rule):
    config = frontier.config_of(HEART, rule, 2)
    validate.check(config)
    assert config.fairness.rule == RULES[rule].rule
    assert config.baselines == (rule == FIRST)


def test_the_readme_says_what_came_out():
    results = json.loads(frontier.RESULTS.read_text())
    assert f"{frontier.BEGIN}\n\n{frontier.table(results['runs'])}\n" in (
        PAGE.read_text()
    )
