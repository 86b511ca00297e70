"""Writes the report of a run again, or a page that compares many runs.

    python scripts/report.py --workdir=runs/heart
    python scripts/report.py --workdir=runs/sweep --interval=t
    python scripts/report.py --workdir=runs/a --workdir=runs/b --output=runs/both.html

A folder of runs stands for all of them; their page is its comparison.html unless
--output names another. Runs that differ only in the seed share a point and a row.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import pathlib
from collections.abc import Sequence

from absl import flags

from fairjax import report
from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.config import renames
from scripts.tabulate import define_table


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds the flags of `tabulate.define_table` and --output."""
    define_table(values)
    flags.mark_flags_as_required(["workdir"], values)
    flags.DEFINE_string("output", None, "File of the page.", flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Writes one page and prints its path."""
    renames.refuse_runs(options.workdir)
    first = pathlib.Path(options.workdir[0])
    is_single = len(options.workdir) == 1
    if is_single and (first / "config.json").exists():
        if options.output is not None:
            require.fail("--output", "it for many runs only", options.output)
        print(report.write(first))
        return
    if not is_single and options.output is None:
        raise require.InputError("--output: expected the page of many runs; got none")
    path = options.output or first / "comparison.html"
    metrics, interval = options.metrics, options.interval
    print(report.compare(options.workdir, path, metrics=metrics, interval=interval))


if __name__ == "__main__":
    cli.run(main, define)
