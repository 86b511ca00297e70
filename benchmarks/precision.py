"""The effect of layers in bfloat16: the digits, a small CNN, three seeds.

    python scripts/bench.py --name=precision

The benchmark takes four minutes on 2 CPU cores. Its seconds on a CPU do not predict
those on an accelerator.
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


def train_case(dtype: str, seed: int) -> None:
    """Trains one run, and reports its figures on the test split."""
    config = digits.get_config()
    config.model.name = "cnn"
    config.rounds, config.seed = ROUNDS, seed
    config.execution.dtype = dtype
    round_seconds = []
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        last = train.train(
            config,
            pathlib.Path(folder) / "run",
            log=lambda number, row: round_seconds.append(row["time/round_s"]),
        ).metrics
    cpu = time.process_time() - began
    figures = {name: last[f"eval/{name}"] for name in ("accuracy", "auroc", "loss")}
    work.report(round_seconds, cpu, seed=seed, **figures)


def measure() -> list[Row]:
    """A row for every dtype and seed."""
    return [
        {"case": CASE, "name": dtype}
        | run.run_once(None, "benchmarks.precision", (dtype, str(seed)))
        for dtype in adapt.DTYPES
        for seed in SEEDS
    ]


def table(rows: list[Row]) -> str:
    """A Markdown table of means over seeds, and the differences by seed."""
    lines = [
        f"| {CASE}, {ROUNDS} rounds | accuracy | AUROC | loss | a round |",
        "|---|--:|--:|--:|--:|",
    ]
    rows_by_dtype = {
        name: [row for row in rows if row["name"] == name] for name in adapt.DTYPES
    }
    for name, dtype_rows in rows_by_dtype.items():
        mean = {
            key: statistics.mean(row[key] for row in dtype_rows)
            for key in ("accuracy", "auroc", "loss", "median_s")
        }
        lines.append(
            f"| {name} | {mean['accuracy']:.4f} | {mean['auroc']:.4f} "
            f"| {mean['loss']:.4f} | {seconds(mean['median_s'])} |"
        )
    pairs = zip(*rows_by_dtype.values(), strict=True)
    gaps = [half["accuracy"] - full["accuracy"] for full, half in pairs]
    gap_text = ", ".join(f"{gap:+.4f}" for gap in gaps)
    return (
        "\n".join(lines)
        + f"\n\nAccuracy of bfloat16 less float32, by seed: {gap_text}."
    )


if __name__ == "__main__":
    train_case(sys.argv[1], int(sys.argv[2]))
