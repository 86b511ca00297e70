"""Prints a table of many runs: a row per setting, with mean and interval over seeds.

    python scripts/tabulate.py --workdir=runs/sweep
    python scripts/tabulate.py --workdir=runs/sweep --format=csv --interval=t \
        --metrics=eval/auroc,eval/accuracy/client_worst,tiers.0.bytes_up

A folder of runs stands for all of them; --workdir may be repeated. Rows are the values
of the config fields, other than the seed, in which the runs differ. Columns are keys of
metrics.jsonl, taken at the last round, or dotted paths into summary.json.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import sys
from collections.abc import Sequence

from absl import flags

from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.config import renames
from fairjax.report import comparison


def define_table(values: flags.FlagValues) -> None:
    """Adds the flags of a table: runs, columns and the interval over seeds."""
    flags.DEFINE_multi_string(
        "workdir", None, "A run, or a folder of runs.", flag_values=values
    )
    flags.DEFINE_list(
        "metrics", list(comparison.METRICS), "Columns.", flag_values=values
    )
    flags.DEFINE_string(
        "interval", "range", "Over seeds: range or t (95 %).", flag_values=values
    )


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds the flags of `define_table` and --format."""
    define_table(values)
    flags.DEFINE_string("format", "markdown", "Or csv.", flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Prints the table and names the runs left out of it."""
    if not options.workdir:
        require.fail("--workdir", "a run or a folder of runs", None)
    formats = {"markdown": comparison.markdown, "csv": comparison.table}
    write = formats[require.one_of("--format", options.format, formats)]
    renames.refuse_runs(options.workdir)
    runs = comparison.read_runs(options.workdir)
    print(write(runs, options.metrics, options.interval).rstrip("\n"))
    for path in runs.unfinished:
        print(f"tabulate.py: left out, unfinished: {path}", file=sys.stderr)
    for run in (run for group in runs.groups for run in group.runs):
        if run.diverged:
            print(f"tabulate.py: diverged, counted: {run.workdir}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, define)
