"""Pages of contests: their table, their sentence and their figure."""

import json
import re

import numpy as np
import pytest

from studies import experiment
from studies.contests import page as contest_page
from studies.contests import standings
from studies.contests.standings import Job
from studies.experiment import interval
from tests.studies.made_up_contest import (
    BLOOD,
    FIRST,
    QUALITY,
    RATIOS,
    made_up,
    results,
    run,
)


def test_the_table_has_the_figures_and_what_they_cost():
    runs = made_up(heterofl_0=0.6, heterofl_1=0.65, heterofl_2=0.7)
    text = contest_page.table(BLOOD, results(runs))
    (row, _) = re.findall(r"^\| HeteroFL \|.*$", text, re.M)
    assert row.count(interval([0.6, 0.65, 0.7])) == len(standings.FIGURES)
    assert row.startswith("| HeteroFL | 0.1 | ")
    assert row.endswith(" | 7 / 7 / 7 | 3 / 2 / 1 | 3,000 / 2,000 / 1,000 |")
    # One hospital has no tiers, and nothing to compare at another ratio.
    (here, there) = re.findall(r"^\| one hospital.*$", text, re.M)
    assert here == there
    assert here.endswith(" |  |  |  |  |  | 7 | 3 | 3,000 |")


def test_who_takes_no_part_has_no_sub_model_and_a_rate_at_the_edge_is_marked():
    runs = made_up(best=0.3)
    for job, made in runs.items():
        if job.method == "exclusive":
            made["bytes"] = [0, 0, 1_000_000]
    text = contest_page.table(BLOOD, results(runs))
    (row, _) = re.findall(r"^\| FedAvg: the richest.*$", text, re.M)
    assert row.startswith("| FedAvg: the richest tier alone | 0.3 \\* | ")
    assert [row.split(" | ")[place] for place in (6, 8)] == ["", ""]
    # Whom it leaves out has no sub-model of it, beside any claim.
    claimed = f"> {BLOOD.entries['exclusive'].title}: +0.400 (+0.400 to +0.400)"
    assert f"{claimed} [0.700, none; 0.400]" in text
    assert " | 0 / 0 / 7 | 0 / 0 / 1 | " in row


def test_a_rival_without_a_poorest_tier_is_not_compared_there(monkeypatch):
    """As the best of the validation split may be, of which the poor get nothing."""
    monkeypatch.setitem(QUALITY, "exclusive", 0.92)
    runs = made_up()
    for job, made in runs.items():
        if job.method == "exclusive":
            made["bytes"] = [0, 0, 1_000_000]
    made = results(runs)
    json.dumps(made, allow_nan=False)
    assert made["best_published"] == dict.fromkeys(RATIOS, "exclusive")
    claims = [claim["claim"] for claim in made["claims"][FIRST]]
    assert not [claim for claim in claims if claim.startswith("poorest tier's")][1:]
    title = BLOOD.entries["exclusive"].title
    assert f"; {title}, none; " in contest_page.sentence(BLOOD, made)


def test_the_sentence_says_who_wins_by_how_much_and_for_whom():
    made = results(made_up(adjusted_tiers_0=0.8, adjusted_tiers_1=0.9, heterofl_2=0.95))
    # 0.8, 0.9, 0.95 against 0.7, 0.7, 0.95; the other ratio is as QUALITY has it.
    said = contest_page.sentence(BLOOD, made)
    assert "0.883, does not beat at every seed HeteroFL, 0.783," in said
    assert "by +0.100 (-0.148 to +0.348); at the worst tier by +0.100" in said
    # The poor are named beside the claim, with the baseline that may serve them better.
    ours, baseline = (
        BLOOD.entries[name].title for name in ("adjusted_tiers", "smallest_adjusted")
    )
    listed = f"at these hospitals: {ours}, 0.883; HeteroFL, 0.783; {baseline}, 0.400"
    assert listed in said
    # By the other ratio, where the best of the contest is ours.
    assert f"{ours} serves them best, with 0.950" in said
    assert "best of 12 trials, a published method of 3" in said
    assert "0.950, beats HeteroFL, 0.700, the best published method" in said


def test_a_page_says_what_its_seeds_can_tell_and_whether_size_buys_anything():
    runs = made_up(fedavg_0=0.6, fedavg_1=0.7, fedavg_2=0.8, smallest_0=0.4)
    seeds = list(standings.complete_seeds(BLOOD, runs, FIRST).values())
    pairs = standings.headroom(seeds, BLOOD)
    assert pairs == [pytest.approx([whole, 0.4]) for whole in (0.6, 0.7, 0.8)]
    two = BLOOD._replace(entries={n: BLOOD.entries[n] for n in ("fedavg", "smallest")})
    only = [{name: runs[name] for name in two.entries} for runs in seeds]
    # Differences 0.2, 0.3, 0.4: 4.3027 * 0.1 / sqrt(3).
    half = experiment.resolution([[0.6, 0.7, 0.8], [0.4, 0.4, 0.4], [np.nan] * 3])
    assert half == pytest.approx(0.24841, abs=1e-5)
    assert contest_page.limits(two, only[:1]) == []
    (half,) = contest_page.limits(two, only)
    assert half.startswith("3 seeds tell two methods apart to about ±0.248,")
    # Less than a hundredth: no page may claim that sub-models help there.
    for seed in only:
        seed["fedavg"] = run(Job("fedavg", FIRST, 0, 0.1), 0.409)
    said = contest_page.limits(two, only)[-1]
    assert said.startswith("Model size buys nothing on this task: FedAvg has 0.409")


def test_the_figure_shows_who_takes_part(tmp_path):
    runs = made_up()
    for job, made in runs.items():
        if job.method == "exclusive":
            made["bytes"] = [0, 0, 1]
    contest_page.draw(BLOOD, results(runs), tmp_path / "blood.png")
    assert (tmp_path / "blood.png").read_bytes().startswith(b"\x89PNG")


# ----------------------------------------------------------------------------- all runs
