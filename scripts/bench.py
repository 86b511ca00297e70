"""Measures one benchmark, and writes its figures and its table.

    python scripts/bench.py --name=branches

The script writes benchmarks/<name>.json, or .jsonl where the figures are rows, and from
it the section between the benchmark's markers in benchmarks/README.md.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks import (
    bootstrap,
    branches,
    gpu,
    loop,
    precision,
    scale,
    tiers,
    together,
)
from benchmarks.peers import run as peers
from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.io.workdir import provenance, write_json
from studies.experiment import fill

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
BENCHMARKS = {
    "bootstrap": bootstrap,
    "branches": branches,
    "gpu": gpu,
    "loop": loop,
    "peers": peers,
    "precision": precision,
    "scale": scale,
    "tiers": tiers,
    "together": together,
}
ROWS = frozenset({"gpu", "loop", "peers", "precision", "scale", "tiers", "together"})
"""Benchmarks whose figures are rows, each with its command, machine and versions."""
DRAWN = frozenset({"scale"})
"""Benchmarks with a drawing, <name>.png."""


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_string("name", None, ", ".join(BENCHMARKS), flag_values=values)
    flags.mark_flags_as_required(["name"], values)


def file(name: str) -> pathlib.Path:
    """The path of a benchmark's figures."""
    return FOLDER / f"{name}.{'jsonl' if name in ROWS else 'json'}"


def read_results(name: str) -> Any:
    """The stored figures of a benchmark."""
    text = file(name).read_text()
    if name in ROWS:
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def page_with_table(page: str, name: str, results: Any) -> str:
    """The page with the table of a benchmark and the origin of its figures."""
    about = results[0] if name in ROWS else results
    versions = ", ".join(f"{k} {about['versions'][k]}" for k in ("python", "jax"))
    origin = (
        f"`{about['command']}` on {about['machine']} ({about['device']}); {versions}."
    )
    body = f"{BENCHMARKS[name].table(results)}\n\n{origin}"
    return fill(page, f"<!-- benchmarks/{file(name).name} -->", body)


def main(options: flags.FlagValues) -> None:
    """Measures the benchmark and writes its files."""
    name = require.one_of("--name", options.name, BENCHMARKS)
    origin = provenance()
    load = [os.getloadavg()[0]]
    figures = BENCHMARKS[name].measure()
    load.append(os.getloadavg()[0])
    about = {
        "command": f"python scripts/bench.py --name={name}",
        "device": origin["device"],
        "machine": origin["machine"],
        "versions": origin["versions"],
        "load_before_and_after": load,
    }
    if name in ROWS:
        rows = [json.dumps(row | about) for row in figures]
        file(name).write_text("\n".join(rows) + "\n")
    else:
        write_json(file(name), about | figures)
    if name in DRAWN:
        BENCHMARKS[name].draw(read_results(name), FOLDER / f"{name}.png")
    page = FOLDER / "README.md"
    page.write_text(page_with_table(page.read_text(), name, read_results(name)))


if __name__ == "__main__":
    cli.run(main, define)
