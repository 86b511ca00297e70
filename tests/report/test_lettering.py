"""Names in figures, and what matplotlib has to say of them."""

import json
import logging
import warnings

import matplotlib
import pytest
from matplotlib import font_manager

from fairjax import report
from fairjax.report import lettering
from fairjax.report.lettering import Names, font_context
from tests.outline import Outline
from tests.workdirs import fake_final, fake_run, lines

pytestmark = pytest.mark.usefixtures("drawn")

PLAIN = ["A", "B", "C", "D"]
NAMES = [
    "\u6771\u4eac\u533b\u9662",
    "VA",
    "\uc11c\uc6b8\ubcd1\uc6d0",
    "Cost $a$ & $b^$",
]


def no_other_fonts(monkeypatch):
    monkeypatch.setattr(lettering, "_fallback_families", lambda texts: [])


def sign_of_another_font():
    """(sign, family): one that a font here has, and the usual one has not."""
    usual = lettering._charset(font_manager.findfont("DejaVu Sans"))
    for font in font_manager.fontManager.ttflist:
        for sign in sorted(lettering._charset(font.fname) - usual):
            if sign.isalpha():
                return sign, font.name
    raise AssertionError("matplotlib comes with more than one font")


def absurd_losses(workdir):
    path = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["train/loss"] = 1e24 / row["round"]
        if row["eval/loss"] is not None:
            row["eval/loss"] = 1.3e24
    path.write_text(lines(rows))


def many_classes(workdir):
    path = workdir / "summary.json"
    summary = json.loads(path.read_text())
    for row in summary["data"]["hospitals"]:
        row["classes"] = {f"class number {i} of many": i for i in range(60)}
    path.write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("names", "edit"),
    [
        (NAMES, None),
        (PLAIN, absurd_losses),
        pytest.param(PLAIN, many_classes, marks=pytest.mark.slow),
    ],
)
def test_a_report_gives_matplotlib_nothing_to_warn_of(
    names, edit, tmp_path, monkeypatch, capfd, caplog
):
    """The causes are mended: nothing is there to be routed."""
    caplog.set_level(logging.INFO)
    no_other_fonts(monkeypatch)
    workdir = fake_run(tmp_path / "run", names, final=fake_final(names, (3, 2)))
    if edit is not None:
        edit(workdir)
    report.write(workdir)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_a_name_that_no_font_writes_goes_by_a_number_that_the_caption_explains(
    tmp_path, monkeypatch
):
    no_other_fonts(monkeypatch)
    names = Names(NAMES)
    shown = [names.short(name, 22) for name in NAMES]
    assert shown == ["hospital 1", "VA", "hospital 3", "Cost $a$ & $b^$"]
    assert names.key == f" hospital 1: {NAMES[0]}; hospital 3: {NAMES[2]}."
    assert Names(["VA"]).key == ""
    workdir = fake_run(tmp_path / "run", NAMES, final=fake_final(NAMES, (3, 2)))
    text = Outline(report.write(workdir)).text
    assert text.count(names.key.strip()) == 4  # lines, dots, weights, holdings


def test_a_font_of_this_computer_that_has_the_signs_is_used():
    sign, family = sign_of_another_font()
    assert Names([sign]).key
    with font_context(["VA", sign]):
        assert family in matplotlib.rcParams["font.family"]
        assert not Names([sign]).key
    assert family not in matplotlib.rcParams["font.family"]


def test_a_font_of_placeholders_writes_nothing(monkeypatch):
    class Font:
        def get_charmap(self):
            return dict.fromkeys(range(0x4E00, 0x9FFF), 1)

    monkeypatch.setattr(font_manager, "get_font", lambda path: Font())
    assert not lettering._charset("placeholders.ttf")


def test_what_is_still_warned_of_is_logged_and_not_printed(capfd, caplog):
    caplog.set_level(logging.INFO)
    with font_context([]):
        warnings.warn("a layout collapsed", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    assert "UserWarning: a layout collapsed" in caplog.text
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", stacklevel=1)
