"""Tables and pages of many runs: figures by hand, what is grouped and what is not."""

import csv
import io
import json
import pathlib

import numpy as np
import pytest

from fairjax import report
from fairjax.core import require
from fairjax.experiment import cli
from fairjax.report import comparison, frontier_section
from scripts import report as report_script
from scripts import tabulate as tabulate_script
from tests.outline import Outline
from tests.workdirs import fake_run

pytestmark = pytest.mark.usefixtures("drawn")

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ["A", "B", "C"]
DASH = "\N{EN DASH}"


def leave(workdir, seed, shift, rule="size", **config):
    config = {"seed": seed, "fairness": {"rule": rule}, **config}
    return fake_run(workdir, NAMES, rounds=2, config=config, shift=shift)


@pytest.fixture
def runs(tmp_path):
    """Accuracies 0.70, 0.72 and 0.77 with one rule, 0.6 once with the other."""
    for seed, shift in ((2, 0.07), (0, 0.0), (1, 0.02)):
        leave(tmp_path / f"size,{seed}", seed, shift)
    leave(tmp_path / "uniform,0", 0, -0.1, rule="uniform")
    return tmp_path


def refused(message, folders):
    with pytest.raises(require.InputError, match=message):
        comparison.read_runs(folders)


# -------------------------------------------------------------------------- the figures


def test_runs_are_grouped_by_what_differs_beside_the_seed(runs):
    found = comparison.read_runs([runs])
    assert found.fields == ["fairness.rule"]
    assert [group.settings for group in found.groups] == [
        {"fairness.rule": "size"},
        {"fairness.rule": "uniform"},
    ]
    assert [run.config["seed"] for run in found.groups[0].runs] == [0, 1, 2]


def test_a_choice_among_private_runs_is_said_to_spend_what_all_do(runs):
    keys = ["eval/accuracy"]
    found = comparison.read_runs([runs])
    assert "Epsilon" not in comparison.markdown(found, keys, "range")
    for workdir in runs.iterdir():
        summary = json.loads((workdir / "summary.json").read_text())
        summary["privacy"] = {"mechanism": "client_dp", "of": "one hospital"}
        (workdir / "summary.json").write_text(json.dumps(summary))
    found = comparison.read_runs([runs])
    spends = "spends the epsilon of all of them, which adds"
    assert spends in comparison.markdown(found, keys, "range")
    assert spends in comparison.render(found, [], keys, "range", "runs")
    assert "of one hospital" in comparison.markdown(found, keys, "range")


def test_markdown_as_computed_by_hand(runs):
    keys = ["eval/accuracy", "tiers.1.parameters"]
    text = comparison.markdown(comparison.read_runs([runs]), keys, "range")
    assert text.split("\n") == [
        "| fairness.rule | seeds | eval/accuracy | tiers.1.parameters |",
        "|---|--:|--:|--:|",
        f"| size | 0 1 2 | 0.730 (0.700{DASH}0.770) | 24,690 (24,690{DASH}24,690) |",
        "| uniform | 0 | 0.600 | 24,690 |",
        "",
        "Mean over seeds; in brackets: lowest to highest.",
    ]


def test_csv_with_student_s_interval_as_computed_by_hand(runs):
    """Deviations -0.03, -0.01, 0.04: s = sqrt(0.0026 / 2); t(0.975, 2) = 4.302653."""
    text = comparison.table(comparison.read_runs([runs]), ["eval/accuracy"], "t")
    head, size, uniform = csv.reader(io.StringIO(text))
    assert head[:3] == ["fairness.rule", "seeds", "eval/accuracy mean"]
    half = 4.302653 * (0.0026 / 2) ** 0.5 / 3**0.5
    np.testing.assert_allclose(
        [float(cell) for cell in size[2:]],
        [0.73, 0.73 - half, 0.73 + half, 3],
        rtol=1e-6,
    )
    assert uniform == ["uniform", "0", "0.6", "", "", "1"]


def test_unknown_figures_are_left_out_and_counted(runs):
    path = runs / "size,1" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["eval/auroc"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = comparison.read_runs([runs])
    [[size], _] = comparison.summaries(found, ["eval/auroc"], "range")
    assert size == (0.8, 0.8, 0.8, 2)
    text = comparison.markdown(found, ["eval/auroc"], "range")
    assert f"0.800 (0.800{DASH}0.800; 2 of 3 seeds)" in text
    nothing = comparison.summarise([None, None], "range")
    assert nothing == (None, None, None, 0)


def test_a_bar_in_a_value_does_not_end_its_cell(tmp_path):
    leave(tmp_path / "a", 0, 0.0, rule="a|b")
    leave(tmp_path / "b", 0, 0.0)
    text = comparison.markdown(
        comparison.read_runs([tmp_path]), ["eval/accuracy"], "range"
    )
    assert r"| a\|b | 0 | 0.700 |" in text


# ------------------------------------------------------------------ what is not grouped


def test_how_often_a_run_was_saved_makes_no_row(tmp_path):
    leave(tmp_path / "a", 0, 0.0, checkpoint={"keep": 2})
    leave(tmp_path / "b", 1, 0.1, checkpoint={"keep": 9})
    found = comparison.read_runs([tmp_path])
    assert found.fields == []
    assert len(found.groups) == 1


def test_a_field_that_older_runs_lack_makes_a_row(tmp_path):
    leave(tmp_path / "a", 0, 0.0)
    leave(tmp_path / "b", 0, 0.0, selection_metric="auroc")
    found = comparison.read_runs([tmp_path])
    assert [group.settings for group in found.groups] == [
        {"selection_metric": None},
        {"selection_metric": "auroc"},
    ]


def test_one_result_is_not_counted_twice(runs):
    leave(runs / "again", 1, 0.02)
    refused("every config and seed once; got '.*again and .*size,1", [runs])


def test_one_folder_named_twice_is_one_run(runs):
    found = comparison.read_runs([runs, runs / "size,0"])
    assert len(found.groups[0].runs) == 3


def test_unfinished_runs_are_left_out(runs):
    late = fake_run(runs / "late", NAMES, rounds=1, planned=2, config={"seed": 9})
    assert comparison.read_runs([runs]).unfinished == [late]
    refused("a finished run; got '1 unfinished", [late])


def test_a_folder_without_runs_is_refused(tmp_path):
    refused("a run or a folder of runs", [tmp_path])


def test_an_unknown_figure_is_refused(runs):
    found = comparison.read_runs([runs])
    with pytest.raises(require.InputError, match='Did you mean "eval/auroc"'):
        comparison.summaries(found, ["eval/auroq"], "range")


# -------------------------------------------------------------------- frontier and page


def test_the_frontier_holds_what_nothing_beats():
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (2.0, 1.0), (1.0, 2.5)]
    assert frontier_section.pareto_front(points) == [0, 1, 2]
    # Equal points do not beat each other; a better one in one figure alone beats.
    assert frontier_section.pareto_front([(1.0, 1.0), (1.0, 1.0)]) == [0, 1]
    assert frontier_section.pareto_front([(1.0, 1.0), (1.0, 2.0)]) == [1]


def test_the_page_of_many_runs(runs):
    """Hospitals B and C have 0.7 and 0.9, and the seed's shift; A has no estimate."""
    path = report.compare([runs], runs / "page.html")
    outline = Outline(path)
    assert outline.values("id") == ["frontier", "table", "runs"]
    [image] = [attrs for tag, attrs in outline.tags if tag == "img"]
    assert image["src"].startswith("data:image/png;base64,")
    assert "size: mean 83.0%, worst 73.0%; uniform: mean 70.0%" in image["alt"]
    assert "4 runs of 2 settings" in outline.text
    assert f"0.730 (0.700{DASH}0.770)" in outline.cells
    assert (runs / "figures" / "frontier_accuracy.png").exists()
    assert not {"script", "link"} & {tag for tag, _ in outline.tags}


# ------------------------------------------------------------------------- the scripts


def started(script, *flags):
    """Runs a script; its exit code."""
    try:
        cli.run(script.main, script.define, [f"{script.__name__}.py", *flags])
    except SystemExit as stop:
        return stop.code
    return 0


def test_tabulate_prints_what_is_asked_for(runs, capsys):
    fake_run(runs / "late", NAMES, rounds=1, planned=2, config={"seed": 9})
    flags = [f"--workdir={runs}", "--metrics=eval/auroc", "--format=csv"]
    assert started(tabulate_script, *flags) == 0
    out, err = capsys.readouterr()
    assert out.startswith("fairness.rule,seeds,eval/auroc mean,")
    assert err == f"tabulate.py: left out, unfinished: {runs / 'late'}\n"
    assert started(tabulate_script, *flags, "--interval=sd") == 2
    line = "tabulate.py: --interval: expected one of range, t; got 'sd'"
    assert line in capsys.readouterr().err
    assert started(tabulate_script) == 2
    assert "--workdir: expected a run" in capsys.readouterr().err


def test_report_writes_one_page_for_one_run_and_one_for_many(runs, capsys):
    one, many = runs / "size,0", f"--workdir={runs}"
    assert started(report_script, f"--workdir={one}") == 0
    assert (one / "report.html").exists()
    assert started(report_script, many, "--interval=t") == 0
    assert "Student" in (runs / "comparison.html").read_text()
    two = [f"--workdir={one}", f"--workdir={runs / 'uniform,0'}"]
    assert started(report_script, *two) == 2
    assert "--output: expected" in capsys.readouterr().err
    page = runs / "two.html"
    assert started(report_script, *two, f"--output={page}") == 0
    assert "2 runs of 2 settings" in page.read_text()
