"""Prints a table of many runs: a row per setting, mean and interval over seeds.

    python scripts/tabulate.py --workdir=runs/sweep
    python scripts/tabulate.py --workdir=runs/sweep --format=csv --interval=t \
        --metrics=eval/auroc,eval/accuracy/client_worst,tiers.0.bytes_up
    python scripts/tabulate.py --pages

A folder that holds runs stands for all of them; --workdir may be repeated. Rows are
the values of the config fields in which the runs differ beside the seed. Columns are
keys of metrics.jsonl, taken at the last round, or dotted paths into summary.json. With
--pages the tables of README.md and results/README.md are written from results/*.json.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import sys
from collections.abc import Sequence

from absl import flags

from fairjax.core import require
from fairjax.experiment import cli
from fairjax.report import comparison


def define_table(values: flags.FlagValues) -> None:
    """The flags that say which runs and what of them."""
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
    """The flags of this script."""
    define_table(values)
    flags.DEFINE_string("format", "markdown", "Or csv.", flag_values=values)
    what = "Write the pages' tables from results/*.json instead."
    flags.DEFINE_bool("pages", False, what, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Prints the table and what was left out of it, or writes the pages."""
    if options.pages:
        from scripts import pages  # which imports every experiment

        for path, text in pages.made().items():
            path.write_text(text)
        return
    if not options.workdir:
        require.fail("--workdir", "a run or a folder of runs, or --pages", None)
    known = {"markdown": comparison.markdown, "csv": comparison.table}
    write = known[require.one_of("--format", options.format, known)]
    found = comparison.read(options.workdir)
    print(write(found, options.metrics, options.interval).rstrip("\n"))
    for path in found.unfinished:
        print(f"tabulate.py: left out, unfinished: {path}", file=sys.stderr)
    for run in (run for group in found.groups for run in group.runs):
        if run.diverged:
            print(f"tabulate.py: diverged, counted: {run.workdir}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, define)
