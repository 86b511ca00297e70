"""Prepares a data set by its name, and says what is in it.

    python scripts/prepare_data.py --name=bloodmnist/224 --data_dir=/data
    python scripts/prepare_data.py --name=heart_disease

Official files are found in --data_dir or FAIRJAX_DATA_DIR, or downloaded where they
may be; what is prepared lies in TFDS_DATA_DIR and is not made again. Without the files
and without a network it fails at once, and says which files to put where.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

from collections.abc import Sequence

import numpy as np
from absl import flags

from fairjax.core import require
from fairjax.data import datasets
from fairjax.data.table import FREE, SPLITS, Table
from fairjax.experiment import cli

NAMES = tuple(name for name in datasets.DATASETS if name not in datasets.OWN)


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_string("name", None, ", ".join(NAMES), flag_values=values)
    flags.DEFINE_string("data_dir", None, "Official files.", flag_values=values)
    flags.mark_flags_as_required(["name"], values)


def told(table: Table) -> list[str]:
    """What a data set has, in lines."""
    shape = " x ".join(map(str, table.x.shape[1:]))
    records = f"{len(table.y):,} records of {shape} numbers"
    lines = [f"{table.name}: {records}", table.source]
    for split, code in {"to be cut": FREE, **SPLITS}.items():
        mine = table.y[table.split == code]
        count = np.bincount(mine, minlength=len(table.classes)).tolist()
        each = [f"{n:,} {name}" for name, n in zip(table.classes, count, strict=True)]
        if len(mine):
            lines.append(f"{split}: {len(mine):,} records: {'; '.join(each)}")
    if table.patient is not None:
        lines.append(f"patients: {len(np.unique(table.patient)):,}")
    if table.client is None:
        return [*lines, "hospitals: none named, data.partition simulates them"]
    count = dict(zip(*np.unique(table.client, return_counts=True), strict=True))
    each = [f"{n:,} {name}" for name, n in count.items()]
    return [*lines, f"hospitals: {len(count)}: {'; '.join(each)}"]


def main(options: flags.FlagValues) -> None:
    """Prepares, and prints."""
    name = require.one_of("--name", options.name, NAMES)
    print("\n".join(told(datasets.load(name, data_dir=options.data_dir))))


if __name__ == "__main__":
    cli.run(main, define)
