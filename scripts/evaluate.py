"""Measures the newest checkpoint of a run on a named split.

    python scripts/evaluate.py --workdir=runs/heart --split=test

Prints the evaluation keys of metrics.jsonl, what to know of them ("notes") and one row
per hospital, as JSON.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import json
import math
from collections.abc import Sequence

import numpy as np
from absl import flags

from fairjax.experiment import cli, coverage
from fairjax.experiment.evaluate import evaluate
from fairjax.experiment.train import load


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("split", "test", "train, val or test.", flag_values=values)
    flags.mark_flags_as_required(["workdir"], values)


def main(options: flags.FlagValues) -> None:
    """Evaluates."""
    run, state = load(options.workdir)
    row, (full, _) = evaluate(run, state, options.split)
    tiers = run.tiers_at(state.round - 1)

    def known(value: np.ndarray | float) -> float | None:
        return float(value) if math.isfinite(value) else None

    clients = [
        {
            "client": name,
            "tier": int(tiers[i]),
            "n": int(full.clients.count[i]),
            "loss": known(full.clients.loss[i]),
            "accuracy": known(full.clients.accuracy[i]),
            "auroc": known(full.clients.auroc[i]),
        }
        for i, name in enumerate(run.splits.clients)
    ]
    report = {"round": int(state.round), "split": options.split}
    report |= {name: known(value) for name, value in row.items()}
    report["notes"] = coverage.notes(run, state)[1]
    print(json.dumps(report | {"clients": clients}, indent=2))


if __name__ == "__main__":
    cli.run(main, define)
