"""Every section of README.md and results/README.md, and the json that it stands on.

`python scripts/tabulate.py --pages` writes them anew; the scripts that make the json
write their own.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from scripts import (
    byzantine,
    contest_page,
    curve,
    endurance,
    frontier,
    fuzz,
    inversion,
    inversion_budget,
    results,
    trend,
)
from scripts.contests import CONTESTS, Contest
from scripts.experiment import fill

ROOT = pathlib.Path(__file__).resolve().parent.parent
README, EVIDENCE = "README.md", "results/README.md"


class Section(NamedTuple):
    """What stands between a marker and the next end."""

    page: str
    data: str
    """The json, whose path is the marker too."""
    body: Callable[[Mapping[str, Any]], str]


def _contests(
    page: str, said: Callable[[Contest, Mapping[str, Any]], str]
) -> Iterator[Section]:
    text = (ROOT / page).read_text()
    for name, contest in CONTESTS.items():
        data = f"results/{name}.json"
        if f"<!-- {data} -->" in text:
            yield Section(page, data, functools.partial(said, contest))


SECTIONS = (
    Section(README, "results/first.json", results.table),
    *_contests(README, contest_page.sentence),
    Section(
        README, "results/inversion.json", lambda made: inversion.sentence(made["runs"])
    ),
    Section(
        README,
        "results/inversion_budget.json",
        lambda made: inversion_budget.sentence(made["runs"]),
    ),
    Section(EVIDENCE, "results/trend.json", trend.table),
    *_contests(EVIDENCE, contest_page.table),
    Section(
        EVIDENCE, "results/frontier.json", lambda made: frontier.table(made["runs"])
    ),
    Section(EVIDENCE, "results/curve.json", curve.table),
    Section(
        EVIDENCE, "results/inversion.json", lambda made: inversion.table(made["runs"])
    ),
    Section(
        EVIDENCE,
        "results/inversion_budget.json",
        lambda made: inversion_budget.table(made["runs"]),
    ),
    Section(
        EVIDENCE, "results/byzantine.json", lambda made: byzantine.table(made["runs"])
    ),
    Section(EVIDENCE, "results/endurance.json", endurance.said),
    Section(EVIDENCE, "results/fuzz.json", fuzz.table),
)


def made() -> dict[pathlib.Path, str]:
    """The pages, every section of them made from its json."""
    texts = {page: (ROOT / page).read_text() for page in (README, EVIDENCE)}
    for page, data, body in SECTIONS:
        found = json.loads((ROOT / data).read_text())
        texts[page] = fill(texts[page], f"<!-- {data} -->", body(found))
    return {ROOT / page: text for page, text in texts.items()}
