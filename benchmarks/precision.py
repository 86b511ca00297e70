"""What layers in bfloat16 change: the digits by a small CNN, three seeds.

    python scripts/bench.py --name=precision

Four minutes on 2 CPU cores. Seconds on a CPU say nothing of an accelerator's.
"""

import pathlib
import statistics
import sys
import tempfile
import time

from benchmarks.peers import run, work
from benchmarks.rows import Row, seconds
from configs import digits
from fairjax.experiment import train
from fairjax.models import adapt

SEEDS = (0, 1, 2)
ROUNDS = 30
CASE = "digits, CNN"


def measured(dtype: str, seed: int) -> None:
    """Trains one run, and reports its figures on the test split."""
    config = digits.get_config()
    config.model.name = "cnn"
    config.rounds, config.seed = ROUNDS, seed
    config.execution.dtype = dtype
    taken = []
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        last = train.train(
            config,
            pathlib.Path(folder) / "run",
            log=lambda number, row: taken.append(row["time/round_s"]),
        ).metrics
    cpu = time.process_time() - began
    figures = {name: last[f"eval/{name}"] for name in ("accuracy", "auroc", "loss")}
    work.report(taken, cpu, seed=seed, **figures)


def measure() -> list[Row]:
    """A row for every precision and seed."""
    return [
        {"case": CASE, "name": dtype}
        | run.once(None, "benchmarks.precision", (dtype, str(seed)))
        for dtype in adapt.DTYPES
        for seed in SEEDS
    ]


def table(rows: list[Row]) -> str:
    """Means over seeds, and the difference seed by seed."""
    lines = [
        f"| {CASE}, {ROUNDS} rounds | accuracy | AUROC | loss | a round |",
        "|---|--:|--:|--:|--:|",
    ]
    by = {name: [row for row in rows if row["name"] == name] for name in adapt.DTYPES}
    for name, mine in by.items():
        mean = {
            key: statistics.mean(row[key] for row in mine)
            for key in ("accuracy", "auroc", "loss", "median_s")
        }
        lines.append(
            f"| {name} | {mean['accuracy']:.4f} | {mean['auroc']:.4f} "
            f"| {mean['loss']:.4f} | {seconds(mean['median_s'])} |"
        )
    pairs = zip(*by.values(), strict=True)
    gaps = [half["accuracy"] - whole["accuracy"] for whole, half in pairs]
    told = ", ".join(f"{gap:+.4f}" for gap in gaps)
    return "\n".join(lines) + f"\n\nAccuracy of bfloat16 less float32, by seed: {told}."


if __name__ == "__main__":
    measured(sys.argv[1], int(sys.argv[2]))
