"""Gives broken input to everything that reads input, and counts the outcomes.

    python studies/fuzz/run.py
    python studies/fuzz/run.py --inputs=400 --seed=1

An input may be accepted, or refused with one line, exit code 2, no other output and no
written file. Any other outcome is a defect. The script prints every defect with the
numbers that reproduce its input, and then exits with code 1. It writes results.json
and, from it, the table in README.md. `inputs.py` makes the inputs.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import contextlib
import functools
import io
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.io import workdir as files
from studies import experiment
from studies.experiment import fill
from studies.fuzz.inputs import (
    Make,
    Random,
    checkpoint_attempt,
    csv,
    npz,
    overrides,
    run_attempt,
    run_files,
)

RESULTS = pathlib.Path(__file__).resolve().parent / "results.json"
BEGIN = "<!-- studies/fuzz/results.json -->"


class Defect(Exception):
    """An outcome that is neither an acceptance nor a refusal."""


def outcome(make: Make, rng: Random) -> str:
    """Gives one input to its command.

    Returns:
        "accepted" or "refused".

    Raises:
        Defect: the outcome is neither of the two.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with experiment.temporary() as folder:
        attempt = make(rng, pathlib.Path(folder))
        before = _content(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.run(attempt.main, attempt.define, attempt.argv)
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            raise Defect(f"{type(error).__name__}: {error}") from error
        if _content(folder) != before:
            raise Defect("something was written")
    printed = out.getvalue(), err.getvalue()
    if (code, *printed) == (0, "", ""):
        return "accepted"
    if (
        code == 2
        and not printed[0]
        and printed[1].splitlines() == [printed[1].rstrip("\n")]
    ):
        return "refused"
    raise Defect(f"exit code {code} and {printed}")


def _content(folder: str) -> dict[str, bytes]:
    paths = pathlib.Path(folder).rglob("*")
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


class Kind(NamedTuple):
    """A kind of input and the function that makes it."""

    title: str
    make: Make


def kinds(content: Mapping[str, bytes]) -> dict[str, Kind]:
    """All kinds of input by name.

    Args:
        content: the files of a run, which the kind "run" breaks.
    """
    return {
        "overrides": Kind("fields of a config on the command line", overrides),
        "csv": Kind("csv, read and dealt to hospitals", csv),
        "npz": Kind("npz, read and dealt to hospitals", npz),
        "run": Kind("the files of a run", functools.partial(run_attempt, content)),
        "step": Kind("a step of checkpoints", checkpoint_attempt),
    }


def counts(
    content: Mapping[str, bytes], inputs: int, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row of counts per kind, and a line per defect.

    Args:
        content: the files of a run.
        inputs: the number of inputs of all kinds together; kinds take turns.
        seed: the seed of every input, together with its number.
    """
    rows, defects = [], []
    kind_by_name = kinds(content)
    for position, (name, kind) in enumerate(kind_by_name.items()):
        row = {"kind": name, "input": kind.title, "accepted": 0, "refused": 0}
        row |= {"defect": 0, "slowest_s": 0.0}
        for number in range(position, inputs, len(kind_by_name)):
            started = time.perf_counter()
            try:
                result = outcome(kind.make, np.random.default_rng([seed, number]))
            except Defect as defect:
                result = "defect"
                defects.append(f"{name} [{seed}, {number}]: {defect}")
            row[result] += 1
            row["slowest_s"] = max(row["slowest_s"], time.perf_counter() - started)
        rows.append(row)
    return rows, defects


def table(results: dict[str, Any]) -> str:
    """The counts as a Markdown table."""
    heads = ["input", "accepted", "refused in one line", "defects"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for row in results["runs"]:
        numbers = [f"{row[result]:,}" for result in ("accepted", "refused", "defect")]
        lines.append(f"| {row['input']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def finding(results: dict[str, Any]) -> str:
    """The counts of all kinds together."""
    accepted, refused, defects = (
        sum(row[name] for row in results["runs"])
        for name in ("accepted", "refused", "defect")
    )
    kinds_text = ", ".join(row["input"] for row in results["runs"])
    return (
        f"{accepted + refused + defects:,} inputs ({kinds_text}): {accepted:,} are "
        f"accepted, {refused:,} refused in one line, {defects} do anything else."
    )


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    description = "Number of inputs of all kinds together."
    flags.DEFINE_integer("inputs", 10_000, description, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of all inputs.", flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Counts outcomes, and writes the results and the page."""
    inputs = require.count("--inputs", options.inputs)
    seed = require.in_range("--seed", options.seed, 0)
    content = run_files()
    started = time.perf_counter()
    rows, defects = counts(content, inputs, seed)
    results = {
        "command": f"python studies/fuzz/run.py --inputs={inputs} --seed={seed}",
        **experiment.surroundings(),
        "seconds": time.perf_counter() - started,
        "runs": rows,
    }
    files.write_json(RESULTS, results)
    page = RESULTS.parent / "README.md"
    page.write_text(fill(page.read_text(), BEGIN, table(results)))
    for defect in defects:
        print(f"fuzz.py: {defect}", file=sys.stderr)
    if defects:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, define)
