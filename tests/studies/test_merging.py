"""studies/merging/run.py: its results are whole, and quoted as they are."""

import json
import re

from fairjax.submodels import expanded as module
from studies.merging import run as expanded

RESULTS = json.loads(expanded.RESULTS.read_text())
NORMED = "expanded with norms"
EXACT = 1e-12


def spread(values):
    """As the module quotes them."""
    low, high = min(values), max(values)
    return f"{low:.2g} to {high:.2g}"


def differences(name, what):
    return [run["difference"][what] for run in RESULTS["runs"][name]]


def test_every_form_was_run_with_every_seed_in_this_setting():
    assert RESULTS["setting"] == expanded.SETTING
    assert RESULTS["seeds"] == list(expanded.SEEDS)
    assert list(RESULTS["runs"]) == list(expanded.FORMS)
    for runs in [*RESULTS["runs"].values(), RESULTS["expansion"]]:
        assert len(runs) == len(expanded.SEEDS)
    figures = [run for runs in RESULTS["runs"].values() for run in runs]
    assert all(0 < v <= 1 for run in figures for v in run["accuracy"].values())
    assert all(run["seconds_per_step"] > 0 for run in figures)


def test_what_is_lossless_was():
    assert max(RESULTS["expanded_to_collapsed"]) < EXACT
    for name in expanded.FORMS:
        assert max(differences(name, "merged")) < EXACT
    assert max(run["norms that pass"] for run in RESULTS["expansion"]) < EXACT


def test_the_module_quotes_what_was_measured():
    text = " ".join(module.__doc__.split())
    assert re.findall(r"[\d.]+ to \d+\.\d+", text) == [
        spread(differences(NORMED, "merged without bias")),
        spread(differences(NORMED, "training mode")),
        spread([run["norms of scale 1"] for run in RESULTS["expansion"]]),
    ]
    assert set(re.findall(r"1e-\d+", text)) == {f"{EXACT:g}"}
    assert f"{expanded.SETTING['steps']} steps" in text
    assert f"{expanded.SETTING['reestimated']} batches" in text
