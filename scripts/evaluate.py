"""Evaluates the newest checkpoint of a run on a split.

    python scripts/evaluate.py --workdir=runs/heart --split=test

Prints JSON: the evaluation keys of metrics.jsonl, warnings about them ("notes") and one
row per client.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import json
import math
from collections.abc import Sequence
from typing import SupportsFloat

from absl import flags

from fairjax.experiment import cli, coverage
from fairjax.experiment.evaluate import evaluate
from fairjax.experiment.resume import load


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds --workdir and --split."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("split", "test", "train, val or test.", flag_values=values)
    flags.mark_flags_as_required(["workdir"], values)


def main(options: flags.FlagValues) -> None:
    """Prints the figures of the checkpoint as JSON."""
    run, state = load(options.workdir)
    row, (full, _) = evaluate(run, state, options.split)
    tiers = run.tiers_at(state.round - 1)

    def finite_or_none(value: SupportsFloat) -> float | None:
        return float(value) if math.isfinite(value) else None

    clients = [
        {
            "client": name,
            "tier": int(tiers[i]),
            "n": int(full.clients.count[i]),
            "loss": finite_or_none(full.clients.loss[i]),
            "accuracy": finite_or_none(full.clients.accuracy[i]),
            "auroc": finite_or_none(full.clients.auroc[i]),
        }
        for i, name in enumerate(run.splits.clients)
    ]
    report = {"round": int(state.round), "split": options.split}
    report |= {name: finite_or_none(value) for name, value in row.items()}
    report["notes"] = coverage.notes(run, state)[1]
    print(json.dumps(report | {"clients": clients}, indent=2))


if __name__ == "__main__":
    cli.run(main, define)
