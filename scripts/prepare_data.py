"""Prepares a data set by its name, and prints a summary of its records.

    python scripts/prepare_data.py --name=bloodmnist/224 --data_dir=/data
    python scripts/prepare_data.py --name=heart_disease

The script looks for official files in --data_dir or FAIRJAX_DATA_DIR, and downloads
them where the licence allows it. Prepared data are stored in TFDS_DATA_DIR and reused.
Without the files and without a network the script fails at once, and names the files
and the folder where they must be.
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
    description = "Folder of the official files."
    flags.DEFINE_string("data_dir", None, description, flag_values=values)
    flags.mark_flags_as_required(["name"], values)


def summary_lines(table: Table) -> list[str]:
    """Lines that summarise a data set: records, classes, patients and hospitals."""
    shape = " x ".join(map(str, table.x.shape[1:]))
    records = f"{len(table.y):,} records of {shape} numbers"
    lines = [f"{table.name}: {records}", table.source]
    for split, code in {"to be cut": FREE, **SPLITS}.items():
        labels = table.y[table.split == code]
        count = np.bincount(labels, minlength=len(table.classes)).tolist()
        counts = [f"{n:,} {name}" for name, n in zip(table.classes, count, strict=True)]
        if len(labels):
            lines.append(f"{split}: {len(labels):,} records: {'; '.join(counts)}")
    if table.patient is not None:
        lines.append(f"patients: {len(np.unique(table.patient)):,}")
    if table.client is None:
        return [*lines, "hospitals: none named, data.partition simulates them"]
    count = dict(zip(*np.unique(table.client, return_counts=True), strict=True))
    counts = [f"{n:,} {name}" for name, n in count.items()]
    return [*lines, f"hospitals: {len(count)}: {'; '.join(counts)}"]


def main(options: flags.FlagValues) -> None:
    """Prepares the data set and prints its summary."""
    name = require.one_of("--name", options.name, NAMES)
    print("\n".join(summary_lines(datasets.load(name, data_dir=options.data_dir))))


if __name__ == "__main__":
    cli.run(main, define)
