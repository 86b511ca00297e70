"""Writes the generated sections of README.md, the pages of studies/, and docs/.

    python studies/pages.py
    python studies/pages.py --commands

A section of a README comes from a JSON file, a section of docs/ from the code. A study
writes its own page too. With --commands the script prints the command of every study.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from fairjax.experiment import cli
from fairjax.experiment.config import compatibility, registry
from fairjax.experiment.config.options import fields
from fairjax.experiment.config.schema import Config
from studies.byzantine import run as byzantine
from studies.contests import page as contest_page
from studies.contests.settings import CONTESTS
from studies.endurance import run as endurance
from studies.experiment import fill
from studies.fairness_rules import run as fairness_rules
from studies.first_results import run as first_results
from studies.fuzz import run as fuzz
from studies.inversion import budget as inversion_budget
from studies.inversion import page as inversion_page
from studies.merging import run as merging
from studies.privacy_curve import run as privacy_curve
from studies.slicing.page import finding as slicing_finding
from studies.trend import run as trend

ROOT = pathlib.Path(__file__).resolve().parents[1]
README, OVERVIEW = "README.md", "studies/README.md"
CONFIG, OPTIONS = "docs/reference/config.md", "docs/reference/options.md"
COMPATIBILITY = "docs/reference/compatibility.md"


class Section(NamedTuple):
    """The text between a marker and the next end marker of a page."""

    page: str
    data: str
    """The path of the JSON file, which the marker contains as well."""
    body: Callable[[Mapping[str, Any]], str]


class CodeSection(NamedTuple):
    """A section that no JSON file determines."""

    page: str
    source: str
    """What makes the section, which the marker contains as well."""
    body: Callable[[], str]


def _of_runs(body: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], str]:
    """The body of a section that reads nothing but the runs."""
    return lambda data: body(data["runs"])


def _contests(page: str, render: Callable[..., str]) -> list[Section]:
    return [
        Section(
            page, f"studies/contests/{name}.json", functools.partial(render, contest)
        )
        for name, contest in CONTESTS.items()
    ]


def _study(name: str, body: Callable[..., str], data: str = "results") -> Section:
    return Section(f"studies/{name}/README.md", f"studies/{name}/{data}.json", body)


SECTIONS = (
    Section(README, "studies/first_results/results.json", first_results.table),
    Section(
        README,
        "studies/contests/blood.json",
        functools.partial(contest_page.sentence, CONTESTS["blood"]),
    ),
    Section(OVERVIEW, "studies/trend/results.json", trend.finding),
    *_contests(OVERVIEW, contest_page.sentence),
    Section(
        OVERVIEW,
        "studies/fairness_rules/results.json",
        _of_runs(fairness_rules.finding),
    ),
    Section(OVERVIEW, "studies/privacy_curve/results.json", privacy_curve.finding),
    Section(
        OVERVIEW, "studies/inversion/results.json", _of_runs(inversion_page.sentence)
    ),
    Section(
        OVERVIEW, "studies/inversion/budget.json", _of_runs(inversion_budget.sentence)
    ),
    Section(OVERVIEW, "studies/byzantine/results.json", _of_runs(byzantine.finding)),
    Section(OVERVIEW, "studies/endurance/results.json", endurance.finding),
    Section(OVERVIEW, "studies/fuzz/results.json", fuzz.finding),
    Section(OVERVIEW, "studies/merging/results.json", merging.finding),
    Section(OVERVIEW, "studies/slicing/results.json", slicing_finding),
    _study("trend", trend.table),
    *_contests("studies/contests/README.md", contest_page.table),
    _study("fairness_rules", _of_runs(fairness_rules.table)),
    _study("privacy_curve", privacy_curve.table),
    _study("inversion", _of_runs(inversion_page.table)),
    _study("inversion", _of_runs(inversion_budget.table), "budget"),
    _study("byzantine", _of_runs(byzantine.table)),
    _study("endurance", endurance.summary_text),
    _study("fuzz", fuzz.table),
)

CODE_SECTIONS = (
    CodeSection(
        CONFIG, "schema.Config", functools.partial(fields.describe_group, Config)
    ),
    *(
        CodeSection(
            OPTIONS, f"registry.{name}", functools.partial(fields.describe, entries)
        )
        for name, entries in {
            "METHODS": registry.METHODS,
            "RULES": registry.RULES,
            "MODELS": registry.MODELS,
        }.items()
    ),
    CodeSection(COMPATIBILITY, "compatibility.table", compatibility.table),
)


def updated_pages() -> dict[pathlib.Path, str]:
    """Page -> its text with every section made from its JSON file or from the code."""
    sections = [*SECTIONS, *CODE_SECTIONS]
    texts = {section.page: (ROOT / section.page).read_text() for section in sections}
    for page, data, body in SECTIONS:
        content = json.loads((ROOT / data).read_text())
        texts[page] = fill(texts[page], f"<!-- {data} -->", body(content))
    for page, source, make_body in CODE_SECTIONS:
        texts[page] = fill(texts[page], f"<!-- {source} -->", make_body())
    return {ROOT / page: text for page, text in texts.items()}


def commands() -> list[str]:
    """The command of every file of results, in the order of the overview."""
    files = dict.fromkeys(section.data for section in SECTIONS)
    return list(
        dict.fromkeys(
            json.loads((ROOT / data).read_text())["command"] for data in files
        )
    )


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flag of this script."""
    description = "Print the commands of all studies instead."
    flags.DEFINE_bool("commands", False, description, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Writes the pages, or prints the commands."""
    if options.commands:
        print("\n".join(commands()))
        return
    for path, text in updated_pages().items():
        path.write_text(text)


if __name__ == "__main__":
    cli.run(main, define)
