"""Measures one benchmark, and writes its figures and its table.

    python scripts/bench.py --name=branches

Writes benchmarks/<name>.json and from it the part between its markers in
benchmarks/README.md.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks import bootstrap, branches
from fairjax import checks, command
from fairjax.workdir import provenance, write_json
from scripts.results import fill

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
BENCHMARKS = {"bootstrap": bootstrap, "branches": branches}


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_string("name", None, ", ".join(BENCHMARKS), flag_values=values)
    flags.mark_flags_as_required(["name"], values)


def filled(page: str, name: str, results: dict[str, Any]) -> str:
    """The page with the table of a benchmark, and where its figures are from."""
    versions = ", ".join(f"{k} {results['versions'][k]}" for k in ("python", "jax"))
    origin = (
        f"`{results['command']}` on {results['machine']} ({results['device']}); "
        f"{versions}."
    )
    body = f"{BENCHMARKS[name].table(results)}\n\n{origin}"
    return fill(page, f"<!-- benchmarks/{name}.json -->", body)


def main(options: flags.FlagValues) -> None:
    """Measures."""
    name = checks.one_of("--name", options.name, BENCHMARKS)
    made = provenance()
    load = [os.getloadavg()[0]]
    figures = BENCHMARKS[name].measure()
    load.append(os.getloadavg()[0])
    results = {
        "command": f"python scripts/bench.py --name={name}",
        "device": made["device"],
        "machine": made["machine"],
        "versions": made["versions"],
        "load_before_and_after": load,
        **figures,
    }
    write_json(FOLDER / f"{name}.json", results)
    page = FOLDER / "README.md"
    page.write_text(filled(page.read_text(), name, results))


if __name__ == "__main__":
    command.run(main, define)
