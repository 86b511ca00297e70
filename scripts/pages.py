"""The generated sections of README.md, results/README.md and docs/.

A section of a README comes from a JSON file, a section of docs/ from the code.
`python scripts/tabulate.py --pages` writes all of them; a script that makes a JSON file
writes its own section.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fairjax.experiment.config import compatibility, registry
from fairjax.experiment.config.options import fields
from fairjax.experiment.config.schema import Config
from scripts import (
    byzantine,
    contest_page,
    curve,
    endurance,
    frontier,
    fuzz,
    inversion_budget,
    inversion_page,
    results,
    trend,
)
from scripts.contests import CONTESTS, Contest
from scripts.experiment import fill

ROOT = pathlib.Path(__file__).resolve().parent.parent
README, EVIDENCE = "README.md", "results/README.md"
CONFIG, OPTIONS = "docs/config.md", "docs/options.md"
COMPATIBILITY = "docs/compatibility.md"


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


def _contests(
    page: str, render: Callable[[Contest, Mapping[str, Any]], str]
) -> Iterator[Section]:
    text = (ROOT / page).read_text()
    for name, contest in CONTESTS.items():
        data = f"results/{name}.json"
        if f"<!-- {data} -->" in text:
            yield Section(page, data, functools.partial(render, contest))


SECTIONS = (
    Section(README, "results/first.json", results.table),
    *_contests(README, contest_page.sentence),
    Section(
        README,
        "results/inversion.json",
        lambda data: inversion_page.sentence(data["runs"]),
    ),
    Section(
        README,
        "results/inversion_budget.json",
        lambda data: inversion_budget.sentence(data["runs"]),
    ),
    Section(EVIDENCE, "results/trend.json", trend.table),
    *_contests(EVIDENCE, contest_page.table),
    Section(
        EVIDENCE, "results/frontier.json", lambda data: frontier.table(data["runs"])
    ),
    Section(EVIDENCE, "results/curve.json", curve.table),
    Section(
        EVIDENCE,
        "results/inversion.json",
        lambda data: inversion_page.table(data["runs"]),
    ),
    Section(
        EVIDENCE,
        "results/inversion_budget.json",
        lambda data: inversion_budget.table(data["runs"]),
    ),
    Section(
        EVIDENCE, "results/byzantine.json", lambda data: byzantine.table(data["runs"])
    ),
    Section(EVIDENCE, "results/endurance.json", endurance.summary_text),
    Section(EVIDENCE, "results/fuzz.json", fuzz.table),
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
    pages = (README, EVIDENCE, CONFIG, OPTIONS, COMPATIBILITY)
    texts = {page: (ROOT / page).read_text() for page in pages}
    for page, data, body in SECTIONS:
        content = json.loads((ROOT / data).read_text())
        texts[page] = fill(texts[page], f"<!-- {data} -->", body(content))
    for page, source, make_body in CODE_SECTIONS:
        texts[page] = fill(texts[page], f"<!-- {source} -->", make_body())
    return {ROOT / page: text for page, text in texts.items()}
