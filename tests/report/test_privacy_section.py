"""The page's words on privacy, and its tables of attacks."""

import json

import numpy as np
import pytest

from fairjax import report
from fairjax.core import require
from fairjax.privacy import statement
from fairjax.privacy.statement import GuaranteeFacts
from fairjax.report import markup, privacy_section, roc
from fairjax.report.formats import MISSING
from tests.outline import Outline
from tests.workdirs import fake_run

NAMES = ["north", "south"]
PROMISE = {
    "mechanism": "record_dp",
    "unit": "record",
    "epsilon": 4.0,
    "delta": 1e-5,
    "rounds": 3,
    "budget": 8.0,
    "secure_sum": "masked",
    "hospitals": {"north": 1.5, "south": 4.0},
    "public": ["tier of every hospital"],
}


def member(tier, auc, variant="loss", **more):
    row = {"attack": "membership", "variant": variant, "observable": "model"}
    row |= {"mechanism": "record_dp", "tier": tier, "members": 40, "nonmembers": 20}
    row |= {"auc": auc, "auc_low": auc - 0.1, "auc_high": auc + 0.1, "tpr_at_1": None}
    return row | {"blind_auc": 0.5, "reason": "20 are too few"} | more


AUDIT = {
    "attack": "audit",
    "variant": "record",
    "canary": "spike",
    "tier": 0,
    "epsilon_low": 1.25,
    "epsilon": 4.0,
    "ceiling": 3.0,
    "exceeds": False,
}


def page(folder, promise=None, attacks=None):
    workdir = fake_run(folder / "run", NAMES)
    summary = json.loads((workdir / "summary.json").read_text())
    summary["privacy"] = promise or summary["privacy"]
    (workdir / "summary.json").write_text(json.dumps(summary))
    if attacks is not None:
        (workdir / "attack.json").write_text(json.dumps(attacks))
    section = markup.Section(
        "privacy", "Privacy", privacy_section.section(report.read_run(workdir))
    )
    path = folder / "page.html"
    path.write_text(markup.document("run", "", [section]))
    return Outline(path)


def after(outline, cell, count):
    start = outline.cells.index(cell)
    return outline.cells[start + 1 : start + 1 + count]


def test_a_guarantee_is_told_in_words_and_spent_against_its_budget(tmp_path):
    shown = page(tmp_path, PROMISE)
    assert "whether or not a given record was trained on" in shown.text
    assert "e^4 times as likely" in shown.text
    assert "Taken as public: tier of every hospital." in shown.text
    assert "simulated secure sum" in shown.text
    at = shown.cells.index("of the budget")
    assert shown.cells[at + 1 : at + 9] == [
        *("south", "4", "8", "50.0%"),
        *("north", "1.5", "8", "18.8%"),
    ]


def test_what_an_epsilon_covers_stands_wherever_it_is_shown(tmp_path):
    """Card, terminal, spending and audit: all of the words, or where they are."""
    facts = GuaranteeFacts(
        "record_dp", "record", 4.0, 1e-5, 1e-9, 30, 1.0, "poisson", ""
    )
    promise = PROMISE | statement.statement(facts)
    shown = page(tmp_path, promise, [AUDIT])
    for words in (promise["of"], promise["covers"], promise["floats"]):
        assert words in shown.text
    for words in promise["does_not_cover"]:
        assert words in shown.text
    assert "what it does not, is said above" in shown.text
    assert "what it covers is said under Privacy" in shown.text

    workdir = tmp_path / "run"
    sentences = " ".join(report.privacy_statement(workdir))
    for words in (promise["of"], promise["covers"], *promise["does_not_cover"]):
        assert words in sentences
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.dumps(json.loads(row) | {"privacy/epsilon": 4.0}) for row in rows]
    (workdir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert report.headline(workdir).endswith("ε 4 of one record")
    whole = report.write(workdir).read_text()
    assert "what it covers: see Privacy" in whole
    assert report.privacy_statement(fake_run(tmp_path / "open", NAMES)) == []


def test_without_noise_or_mechanism_nothing_is_promised(tmp_path):
    assert "nothing is promised" in page(tmp_path / "none").text
    endless = PROMISE | {"epsilon": None, "hospitals": {"north": None}, "budget": None}
    shown = page(tmp_path / "endless", endless)
    assert "no ε bounds what is learned" in shown.text
    assert after(shown, "of the budget", 4) == ["north", MISSING, MISSING, MISSING]


def test_the_worst_protected_tier_is_named_for_every_attack(tmp_path):
    attacks = [member(None, 0.625), member(0, 0.5), member(1, 0.75), AUDIT]
    attacks += [member(0, 0.625, "update"), member(1, 0.5, "update")]
    attacks[-1] |= {"auc": None, "auc_low": None, "auc_high": None}
    shown = page(tmp_path, PROMISE, attacks)
    assert after(shown, "difference", 6) == [
        "loss, model",
        *("1", "0.750 (0.650–0.850)"),  # noqa: RUF001
        *("0", "0.500 (0.400–0.600)"),  # noqa: RUF001
        "0.250",
    ]
    # One tier alone cannot be compared.
    at = shown.cells.index("difference")
    assert "update, model" not in shown.cells[at : at + 8]
    assert "20 are too few" in shown.cells
    assert after(shown, "most that could be shown", 5) == [
        *("record, spike", "0", "1.250", "4.000", "3.000")
    ]
    assert "more ε than is accounted" not in shown.text


def test_curves_are_drawn_where_few_are_accused(tmp_path):
    few = [[0, 0], [1, 4], [10, 12], [20, 40]]
    attacks = [
        member(None, 0.7, roc=few),
        member(None, 0.6, "rmia_offline", roc=few, tpr_at_1=0.1),
        member(0, 0.6, roc=None),
        AUDIT,
    ]
    image = roc.diagram(attacks)
    assert image.png.startswith(b"\x89PNG")
    assert "40 training records and 20 test records" in image.caption
    assert "loss, model –, rmia offline, model 10.0%" in image.alt  # noqa: RUF001
    assert roc.diagram(attacks[2:]) is None
    wrong, right = roc._rates(attacks[0])
    np.testing.assert_allclose(wrong, [0, 0.05, 0.5, 1])
    np.testing.assert_allclose(right, [0, 0.1, 0.3, 1])
    # The page's tables do not list the points.
    shown = page(tmp_path, PROMISE, attacks)
    assert "roc" not in shown.cells


def test_what_no_attack_could_show_has_no_column(tmp_path):
    rare = {"tpr_at_0.1": 0.25, "tpr_at_0.1_low": 0.0, "tpr_at_0.1_high": 0.5}
    shown = page(tmp_path, PROMISE, [member(t, 0.5, **rare) for t in (0, 1)])
    assert "found at 0.1%" in shown.cells
    assert "0.250 (0.000–0.500)" in shown.cells  # noqa: RUF001
    assert "found at 1% false positives" not in shown.cells


def test_an_audit_that_shows_too_much_is_an_alarm(tmp_path):
    shown = page(tmp_path, PROMISE, [AUDIT | {"epsilon_low": 5.0, "exceeds": True}])
    assert "An audit shows more ε than is accounted for." in shown.text


def test_many_rows_are_folded_away(tmp_path):
    few = page(tmp_path / "few", None, [member(t, 0.5) for t in range(12)])
    many = page(tmp_path / "many", None, [member(t, 0.5) for t in range(13)])
    assert many.count("details") == few.count("details") + 1
    assert "Membership: all 13 rows" in many.text


def test_an_attack_without_a_known_figure_still_has_its_rows(tmp_path):
    shown = page(
        tmp_path, None, [{"attack": "other", "tier": 0, "hits": h} for h in (1, 2)]
    )
    assert after(shown, "hits", 3) == ["other", "0", "1"]


def test_a_broken_file_of_attacks_is_one_line(tmp_path):
    workdir = fake_run(tmp_path / "run", NAMES)
    (workdir / "attack.json").write_text("[{")
    with pytest.raises(require.InputError, match=r"attack\.json: expected JSON"):
        report.read_run(workdir)
