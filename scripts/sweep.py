"""Trains a config once for every combination of some of its fields.

    python scripts/sweep.py --config=configs/heart_disease.py --workdir=runs/sweep \
        --grid=fairness.rule=size,uniform --grid=seed=0,1,2 --config.rounds=20
    python scripts/sweep.py --config=configs/digits.py --workdir=runs/tiers \
        --grid='tiers.budget=(0.25,0.5,0.75,1.0),(1.0,1.0,1.0,1.0)' --processes=2
    python scripts/sweep.py --config=configs/digits.py --workdir=runs/rules \
        --list=rules.jsonl --grid=seed=0,1,2

--grid is field=value,value,.. with values as for --config.field; commas inside brackets
belong to a value. --list names a file with one JSON object of fields per line, such as
{"fairness.rule": "q_ffl", "fairness.q_ffl.q": 0.1}; each is combined with the grid.

Every run has its own folder, named by its settings, and prints to a .log beside it. The
same command again skips finished runs and continues the others. An invalid field or
value is refused before any run starts (exit code 2). A run that fails stops no other;
it is named at the end, and the exit code is 1. A signal to the sweep is passed on to
its runs, and the sweep exits with 75 once they have saved the round in hand; a second
signal kills them.

In a SLURM array every task trains one run, --index=$SLURM_ARRAY_TASK_ID from 0, of the
number that --count prints. --processes=N trains N runs side by side; on one GPU they
need XLA_PYTHON_CLIENT_MEM_FRACTION below 1 / N to share its memory.

--together trains runs that differ only in seeds, learning rates, q, t or noise as one
vmapped program in this process: one compilation, and for some models cheaper rounds
than run by run (benchmarks/README.md). Seeds must share their records,
--config.data.partition.seed=0.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from fairjax.core import require
from fairjax.experiment import cli, sweep
from scripts import train


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds --config, --workdir, --grid, --list and how runs share the machine."""
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    for name, text in {
        "workdir": "Folder of the runs' folders.",
        "list": "File with a JSON object of fields and values a line.",
    }.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_multi_string(
        "grid", [], "field=value,value,..; may be repeated.", flag_values=values
    )
    flags.DEFINE_integer("processes", 1, "Runs side by side.", flag_values=values)
    description = "Runs that differ only in numbers in one program."
    flags.DEFINE_bool("together", False, description, flag_values=values)
    flags.DEFINE_integer("index", None, "Run this one alone.", flag_values=values)
    flags.DEFINE_bool("count", False, "Print how many there are.", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], values)


def main(options: flags.FlagValues) -> None:
    """Trains the runs that are not finished and names those that fail.

    Args:
        options: the parsed flags.
    """
    workdir = pathlib.Path(options.workdir)
    processes = require.count("--processes", options.processes)
    points = sweep.points(train.define, base(options), settings(options), workdir)
    if options.count:
        print(len(points))
        return
    if options.index is not None:
        require.in_range("--index", options.index, 0, len(points) - 1)
        points = [points[options.index]]
    if options.together:
        failed = sweep.run_together(points, workdir)
    else:
        program = [sys.executable, train.__file__]
        failed = sweep.run(points, workdir, program=program, processes=processes)
    for name, why in failed.items():
        print(f"sweep.py: {name} failed: {why}", file=sys.stderr)
    if failed:
        sys.exit(1)


def base(options: flags.FlagValues) -> list[str]:
    """The flags of the config that all runs share."""
    flag = options["config"]
    overrides = config_flags.get_override_values(flag)
    return [
        f"--config={config_flags.get_config_filename(flag)}",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]


def settings(options: flags.FlagValues) -> list[sweep.Fields]:
    """The fields that every run sets beside them: the list times the grid.

    Raises:
        InputError: neither --grid nor --list is given, or a field is set twice.
    """
    if not options.list and not options.grid:
        raise require.InputError("--grid: expected it or --list; got neither")
    entries = sweep.read_settings(pathlib.Path(options.list)) if options.list else [{}]
    grid = sweep.grid(options.grid)
    assigned = {*cli.override_paths(options)}
    for flag, fields in (("--list", set().union(*entries)), ("--grid", {*grid[0]})):
        for field in sorted(fields & assigned):
            require.fail(f"{flag} {field}", "a field that is set once", "another value")
        assigned |= fields
    return [{**entry, **point} for entry in entries for point in grid]


if __name__ == "__main__":
    cli.run(main, define)
