"""README, docs and studies: code runs, commands exist, tables are made of results."""

import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

import configs.trend
from configs import default
from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.config import optimizers, registry, validate
from studies import experiment, pages
from studies.contests import standings
from studies.contests.settings import CONTESTS
from studies.first_results import run as results
from studies.trend import run as trend

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").rglob("*.md"))
BLOCKS = [
    (page, kind, code)
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
    for kind, code in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)
]
"""(page, language, code) of every block of code for users."""


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shell_lines():
    text = "\n".join(code for _, kind, code in BLOCKS if kind == "sh")
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def example(name):
    """What the one Python block of a page defines when it runs."""
    (code,) = [c for p, kind, c in BLOCKS if kind == "python" and p.name == name]
    found = {}
    exec(compile(code, name, "exec"), found)
    return found, [line for line in code.splitlines() if line.strip()]


def test_the_library_example_runs_on_arrays():
    found, lines = example("README.md")
    assert len(lines) <= 32
    assert int(found["state"].round) == 20
    accuracy = np.mean(np.argmax(found["logits"], axis=1) == found["y"])
    assert round(float(accuracy), 2) == 0.98  # as its comment says
    assert found["info"].weights.shape == (3,)


def test_the_page_on_rules_and_methods_runs_in_twenty_lines():
    found, lines = example("build_on_it.md")
    assert len(lines) <= 20
    info, before, after = found["info"], found["run"].spec, found["state"]
    assert int(after.round) == 1
    # The rule that was handed in decided the weights ...
    expected = jax.nn.softmax(5.0 * info.incoming_losses)
    np.testing.assert_allclose(info.weights, expected, rtol=1e-5)
    # ... and the method the units.
    assert found["spec"].local.method.submodel is found["half"]
    assert before.rule.weights is not found["worst_first"]


def test_every_block_of_python_is_run_here():
    pages_with_code = {page.name for page, kind, _ in BLOCKS if kind == "python"}
    assert pages_with_code == {"README.md", "build_on_it.md"}


def test_the_readme_is_short():
    assert len(README.encode()) <= 7 * 1024


def test_every_link_of_a_page_leads_somewhere():
    studies_pages = (ROOT / "studies").rglob("README.md")
    seen = 0
    for page in [*ROOT.glob("*.md"), *DOCS, *studies_pages]:
        text = page.read_text()
        assert "[](" not in text
        for target, anchor in re.findall(r"\]\(([^)#]+)(?:#([^)]*))?\)", text):
            if target.startswith("http"):
                continue
            seen += 1
            other = page.parent / target
            assert other.exists(), f"{page}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
                titles = [re.sub(r"\[(.*)\]\(.*\)", r"\1", h) for h in headings]
                slugs = {re.sub(r"[^\w -]", "", t.lower()) for t in titles}
                assert anchor in {s.replace(" ", "-") for s in slugs}, (
                    f"{page}: {anchor}"
                )
    assert seen > 50


def test_every_command_of_the_pages_parses(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    seen = 0
    for line in shell_lines():
        words = shlex.split(line, comments=True)
        if words and words[0].startswith("TRAIN="):
            words = words[0].removeprefix("TRAIN=").split()
        if words and words[0] == ".venv/bin/python":
            name = pathlib.Path(words[1]).stem
            options = cli.parse(script(name).define, words[1:])
            if "config" in options:
                validate.check(options.config, cli.override_paths(options))
            seen += 1
    assert seen == 11


def test_the_fields_for_a_csv_exist():
    (line,) = [line for line in shell_lines() if line.startswith("--config.data.name")]
    fields = cli.fields_of(default.get_config())
    for word in shlex.split(line):
        assert word.split("=")[0].removeprefix("--config.") in fields


@pytest.mark.parametrize(
    "target", ["demo", "venv", "lint", "test", "verify", "studies"]
)
def test_every_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    documents = [README, *(page.read_text() for page in DOCS)]
    documents.append((ROOT / "CONTRIBUTING.md").read_text())
    assert f"make {target}" in " ".join(documents)


def test_the_demo_command_is_the_one_that_make_runs(tmp_path):
    """Two rounds of it, as a user would."""
    line = re.search(r"^demo: venv\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    words = line.replace("$(BIN)/python", sys.executable).split()
    words = [
        w if not w.startswith("--workdir") else f"--workdir={tmp_path}" for w in words
    ]
    result = subprocess.run(
        [*words, "--config.rounds=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *_, headline, report = result.stdout.strip().splitlines()
    assert "AUROC" in headline
    assert report == f"report: {tmp_path / 'report.html'}"
    for tier in ("0.25", "0.5", "0.75", "1"):
        assert re.search(rf"^ +\d +{re.escape(tier)} +2 ", result.stdout, re.MULTILINE)


def test_every_table_is_what_its_results_say():
    for path, text in pages.updated_pages().items():
        assert path.read_text() == text
    for page in [ROOT / "README.md", *(ROOT / "studies").rglob("README.md")]:
        marked = re.findall(r"<!-- (studies/\S+) -->", page.read_text())
        name = page.relative_to(ROOT).as_posix()
        assert marked == [part.data for part in pages.SECTIONS if part.page == name]


def test_the_script_writes_the_pages_and_prints_commands(monkeypatch, tmp_path, capsys):
    page = tmp_path / "README.md"
    monkeypatch.setattr(pages, "updated_pages", lambda: {page: "every table"})
    pages.main(cli.parse(pages.define, ["pages.py", "--commands"]))
    assert capsys.readouterr().out.splitlines() == pages.commands()
    assert not page.exists()
    pages.main(cli.parse(pages.define, ["pages.py"]))
    assert page.read_text() == "every table"


def test_every_study_has_a_command_a_page_and_results():
    """The command is that of a file of the study, or of a test module."""
    overview = (ROOT / "studies" / "README.md").read_text()
    for folder in (path for path in (ROOT / "studies").iterdir() if path.is_dir()):
        if folder.name == "__pycache__":
            continue
        data = sorted(folder.glob("*.json"))
        assert data
        assert f"]({folder.name}/README.md)" in overview
        page = (folder / "README.md").read_text()
        for path in data:
            command = json.loads(path.read_text())["command"]
            assert command in pages.commands()
            assert command.split(" --")[0].removeprefix("python ") in page + overview
            script = command.split()[1]
            assert script == "-m" or (ROOT / script).is_file()


def test_the_trend_is_that_of_its_runs_and_config():
    made = json.loads(trend.RESULTS.read_text())
    assert trend.with_verdicts(made) == made
    assert made["setting"] == experiment.changes(configs.trend.get_config())
    assert list(made["runs"]) == list(trend.METHODS)
    first = json.loads(results.RESULTS.read_text())
    assert list(first["runs"]) == list(results.RUNS)


@pytest.mark.parametrize("name", CONTESTS)
def test_a_contest_is_that_of_its_runs_and_config(name):
    made = json.loads((ROOT / "studies/contests" / f"{name}.json").read_text())
    contest = CONTESTS[name]
    assert standings.with_verdicts(contest, made) == made
    assert standings.current_runs(contest, made["runs"]) == made["runs"]
    assert made["setting"] == experiment.changes(contest.config())
    assert next(iter(contest.ratios)) in made["complete_seeds"]


def test_the_results_hold_what_the_configs_promise():
    """Heart disease, three seeds: within reach of pooling the records."""
    made = json.loads(results.RESULTS.read_text())["runs"]
    for name in ("heart disease, four hospitals", "heart disease, FLamby's split"):
        assert np.mean([seed["auroc"] for seed in made[name]]) >= 0.86
    assert min(seed["auroc"] for seed in made["breast cancer"]) >= 0.98


def test_every_name_of_the_tables_is_in_the_reference():
    names = (ROOT / "docs/reference/names.md").read_text()
    for table in (
        registry.MODELS,
        registry.METHODS,
        registry.RULES,
        optimizers.SERVERS,
    ):
        for name in table:
            assert f"`{name}`" in names


def test_the_changelog_and_citation_name_the_version():
    version = re.search(
        r'__version__ = "(.*)"', (ROOT / "fairjax" / "__init__.py").read_text()
    )[1]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()


def test_a_name_that_the_readme_does_not_know_is_refused():
    config = default.get_config()
    config.fairness.rule = "worst_first"
    with pytest.raises(
        require.InputError, match=r"fairness\.rule: expected one of size"
    ):
        validate.check(config)
