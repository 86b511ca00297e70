"""Inversion: who is attacked, what is judged, and what the pages say."""

import json

import numpy as np
import pytest

from fairjax.attacks import reconstruction
from fairjax.experiment.config import build, validate
from fairjax.experiment.io.workdir import number
from studies.inversion import budget as inversion_budget
from studies.inversion import page as inversion_page
from studies.inversion import parts as inversion_parts
from studies.inversion import run as inversion
from studies.inversion.parts import PARTS


def row(part="fedavg", level="plain", tier=2, found=0.9, rank1=1.0, epsilon=None):
    """Ten victims that are found this well; guesses reach 0.5."""
    victims = {
        name: [found + 0.001 * i for i in range(10)] for name in ("psnr", "ssim")
    }
    for guess in ("mean", "nearest"):
        victims |= {f"{name}_{guess}": [0.5] * 10 for name in ("psnr", "ssim")}
    victims["rank1"] = [rank1] * 10
    figures = {name: 0.5 for name in ("label", "rank1", "baseline_rank1")}
    for name in ("psnr", "ssim"):
        figures |= {name: found, f"{name}_low": found, f"{name}_high": found}
        figures |= {f"baseline_{name}_{guess}": 0.5 for guess in ("mean", "nearest")}
    return figures | {
        "part": part,
        "tier": tier,
        "level": level,
        "epsilon": epsilon,
        "structure": None,
        "baseline_rank1": 0.002,
        "victims": victims,
    }


def made(blind=0.9, noisy=0.4):
    """All rows: attackers without knowledge find `blind`, those of noise `noisy`."""
    rows = []
    for name, part in PARTS.items():
        settings = reconstruction.Inversion(**part.settings)
        for tier in settings.tier:
            for level in settings.level:
                private = "privacy.mechanism" in part.fields
                found = noisy if private else blind if level != "structure" else 0.9
                hit = float(found > 0.5)
                epsilon = 100.0 if private else None
                rows.append(row(name, level, tier, found, hit, epsilon))
    return rows


def test_what_hiding_is_worth_follows_the_figures():
    said = inversion_page.sentence(made())
    assert "from the server does not prevent image reconstruction" in said
    said = inversion_page.sentence(made(blind=0.4))
    assert "from the server prevented 7 of 7 such attacks (0 of 7" in said
    assert "+0.50 SSIM (+0.50 to +0.50)" in inversion_page.hiding_gain(
        made(blind=0.4), "dynamicfl", 1
    )


def test_noise_stops_an_attack_only_if_more_noise_does_too():
    assert "noise of 0.001 clips on the upload stops" in inversion_page.sentence(made())
    assert "no noise that was tried" in inversion_page.sentence(made(noisy=0.9))
    rows = made()
    for each in rows:
        if each["part"] == "noise 0.01":
            each["victims"]["rank1"] = [1.0] * 10
    assert "noise of 0.1 clips on the upload stops" in inversion_page.sentence(rows)


def test_a_guess_is_beaten_in_both_figures_or_not():
    assert inversion_page.beats(row(), "_mean")
    assert not inversion_page.beats(row(found=0.4), "_mean")
    mixed = row()
    mixed["victims"]["psnr"] = [0.4] * 10
    assert not inversion_page.beats(mixed, "_mean")
    assert inversion_page.recognised(row(rank1=1.0))
    assert not inversion_page.recognised(row(rank1=0.0))


def test_few_exceptions_are_named_rather_than_many_cases():
    rows = made()
    assert inversion_page.attacks_where(rows, lambda each: True) == "all"
    assert inversion_page.attacks_where(rows, lambda each: False) == "none"
    only = inversion_page.attacks_where(rows, lambda each: each["part"] == "fedavg")
    assert only == "FedAvg by plain, one step"
    rest = inversion_page.attacks_where(rows, lambda each: each["part"] != "fedavg")
    assert rest == f"all but {only}"


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_a_config_and_an_attack(name):
    validate.check(inversion_parts.config_of(PARTS[name]))
    settings = reconstruction.Inversion(**PARTS[name].settings)
    assert settings.images >= 20
    assert settings.restarts >= 2


def test_the_results_are_whole():
    results = json.loads(inversion.RESULTS.read_text())
    rows = results["runs"]
    assert {each["part"] for each in rows} == set(PARTS)
    for each in rows:
        assert each["setting"] == inversion_parts.setting(PARTS[each["part"]])
        assert each["psnr"] == pytest.approx(np.mean(each["victims"]["psnr"]), abs=1e-3)
    assert inversion_page.FIGURE.stat().st_size < 200_000


@pytest.mark.parametrize("name", [name for name in PARTS if name.startswith("noise")])
def test_committed_epsilons_are_those_that_the_code_claims(name):
    """What an upload spends follows from its noise, so that digits stand in here."""
    config = inversion_parts.config_of(PARTS[name])
    config.data.name = "digits"
    claimed = number(build.run(config).guarantee.epsilon(1))
    for study in (inversion, inversion_budget):
        rows = json.loads(study.RESULTS.read_text())["runs"]
        assert {r["epsilon"] for r in rows if r["part"] == name} <= {claimed}
