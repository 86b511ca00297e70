"""studies/inversion/budget.py: which conclusions a larger budget leaves standing."""

import json

import numpy as np
import pytest

from studies.inversion import budget as inversion_budget
from studies.inversion import parts as inversion_parts
from studies.inversion import run as inversion
from studies.inversion.budget import BUDGETS, CASES, IMAGES, RESULTS
from studies.inversion.parts import PARTS

ROWS = json.loads(RESULTS.read_text())["runs"]


def row(case, budget, found=0.9, rank1=1.0):
    """Five victims that are found this well; guesses reach 0.5."""
    victims = {
        name: [found + 0.001 * i for i in range(IMAGES)] for name in ("psnr", "ssim")
    }
    for guess in ("mean", "nearest"):
        victims |= {f"{name}_{guess}": [0.5] * IMAGES for name in ("psnr", "ssim")}
    victims |= {"rank1": [rank1] * IMAGES, "objective": [0.1] * IMAGES}
    noisy = "privacy.mechanism" in PARTS[case.part].fields
    return {
        **case._asdict(),
        "budget": budget,
        "epsilon": 100.0 if noisy else None,
        "psnr": found,
        "ssim": found,
        "objective": 0.1,
        "baseline_rank1": 0.002,
        "victims": victims,
    }


def made(change=None, **figures):
    """All rows alike, but for one case with the larger budget."""
    rows = []
    for name, case in CASES.items():
        noisy = "privacy.mechanism" in PARTS[case.part].fields
        alike = {"found": 0.4, "rank1": 0.0} if noisy else {"found": 0.6}
        for budget in BUDGETS:
            moved = figures if (name, budget) == (change, "large") else {}
            rows.append(row(case, budget, **alike | moved))
    return rows


def test_every_attack_that_has_the_budget_is_a_case():
    attacks = {
        (name, part.settings.get("variant", "cosine")) for name, part in PARTS.items()
    }
    parts = {case.part for case in CASES.values()}
    assert parts == {name for name, variant in attacks if variant == "cosine"}
    for case in CASES.values():
        small, large = (inversion_budget.settings_of(case, each) for each in BUDGETS)
        assert (small.images, large.images) == (IMAGES, IMAGES)
        assert (large.iterations, large.restarts) == (4800, 4)
        assert small.iterations == PARTS[case.part].settings.get("iterations", 600)
        assert small.restarts == 2


def test_what_does_not_change_is_said_once_and_what_does_by_name():
    rows = made()
    said = inversion_budget.table(rows)
    assert "with both budgets: all but FedAvg, local DP, noise 0.001 clips" in said
    assert "with the larger" not in said
    assert "moves by +0.0 to +0.0 dB" in said
    assert "the same attacks recognise victims; noise of 0.001 clips stops" in said
    worse = inversion_budget.table(made("fedavg:2:plain", found=0.4))
    assert "with the larger: all but FedAvg by plain, one step;" in worse
    assert "moves by -0.2 to +0.0 dB" in worse
    read = inversion_budget.sentence(made("noise 0.01:2:plain", rank1=1.0))
    assert "noise 0.01 clips by plain, one step recognises victims too" in read
    assert "noise of 0.1 clips stops them" in read
    lost = inversion_budget.sentence(made("heterofl:0:tier", rank1=0.0))
    assert "HeteroFL, tier 0 by tier, one step does so no more" in lost
    none = inversion_budget.sentence(made("noise 0.1:2:plain", rank1=1.0))
    assert "no noise that was tried stops them" in none


def test_all_five_or_not():
    one = row(CASES["fedavg:2:plain"], "large", found=0.9)
    assert inversion_budget.beats_for_all(one, "_nearest")
    one["victims"]["ssim"][2] = 0.4
    assert not inversion_budget.beats_for_all(one, "_nearest")
    assert inversion_budget.beats_for_all(one, "_nearest", ("psnr",))


def test_half_a_case_is_not_on_the_page():
    rows = [each for each in made() if each["budget"] == "small"]
    rows.append(row(CASES["fedavg:2:plain"], "large"))
    (pair,) = inversion_budget.pairs(rows)
    assert [each["budget"] for each in pair] == ["small", "large"]
    said = inversion_budget.table(rows)
    assert f"Not measured with both: {len(CASES) - 1} of {len(CASES)}" in said


@pytest.mark.parametrize("each", ROWS, ids=lambda row: f"{row['part']} {row['budget']}")
def test_the_results_are_those_of_the_same_victims(each):
    case = inversion_budget.Case(each["part"], each["tier"], each["level"])
    assert case in CASES.values()
    assert each["setting"] == inversion_parts.setting(PARTS[case.part])
    settings = inversion_budget.settings_of(case, each["budget"])
    assert (each["iterations"], each["restarts"]) == (
        settings.iterations,
        settings.restarts,
    )
    assert each["psnr"] == pytest.approx(np.mean(each["victims"]["psnr"]), abs=1e-3)
    others = json.loads(inversion.RESULTS.read_text())["runs"]
    (other,) = (
        row for row in others if (row["part"], row["tier"], row["level"]) == (*case,)
    )
    for name in ("psnr_mean", "ssim_mean", "psnr_nearest", "ssim_nearest"):
        np.testing.assert_allclose(
            each["victims"][name], other["victims"][name][:IMAGES], atol=1e-3
        )
