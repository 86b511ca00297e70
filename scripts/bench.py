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

from benchmarks import branches
from fairjax import checks, command
from fairjax.workdir import provenance, write_json
from scripts.results import fill

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
BENCHMARKS = {"branches": branches}


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_string("name", None, ", ".join(BENCHMARKS), flag_values=values)
    flags.mark_flags_as_required(["name"], values)


def report(benchmark: Any, results: dict[str, Any]) -> str:
    """Table and origin of a benchmark's figures."""
    versions = ", ".join(f"{k} {results['versions'][k]}" for k in ("python", "jax"))
    origin = (
        f"`{results['command']}` on {results['machine']} ({results['device']}); "
        f"{versions}."
    )
    return f"{benchmark.table(results)}\n\n{origin}"


def main(options: flags.FlagValues) -> None:
    """Measures."""
    name = checks.one_of("--name", options.name, BENCHMARKS)
    made, benchmark = provenance(), BENCHMARKS[name]
    load = [os.getloadavg()[0]]
    figures = benchmark.measure()
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
    readme = FOLDER / "README.md"
    begin = f"<!-- benchmarks/{name}.json -->"
    readme.write_text(fill(readme.read_text(), begin, report(benchmark, results)))


if __name__ == "__main__":
    command.run(main, define)
