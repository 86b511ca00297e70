"""The time of a run beside its rounds: checkpoints, metrics, evaluation, progress.

    python scripts/bench.py --name=loop

The benchmark takes three minutes on 2 CPU cores. Rounds of a second have an orbax
checkpoint each; rounds below a millisecond have one each, or one every 200.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np

from benchmarks.peers import ours, run, work
from benchmarks.rows import Row, seconds
from fairjax.experiment import train

CASES: dict[str, tuple[str, dict[str, int]]] = {
    "rounds of a second, a checkpoint each": (
        "cnn",
        {"rounds": 12, "eval_every": 12, "checkpoint.every": 1},
    ),
    "rounds below a millisecond, a checkpoint each": (
        "lr",
        {"rounds": 60, "eval_every": 60, "checkpoint.every": 1},
    ),
    "the same, with eval_every and checkpoint.every 200": (
        "lr",
        {"rounds": 1000, "eval_every": 200, "checkpoint.every": 200},
    ),
}
FIRST = 3
"""The number of rounds before the clock starts."""


def time_case(case: str) -> None:
    """Runs `train` on a case, and reports the time from round to round."""
    name, fields = CASES[case]
    wall, busy, steps = [], [], []

    def log(number: int, row: dict) -> None:
        wall.append(time.perf_counter())
        busy.append(time.process_time())
        steps.append(row["time/round_s"])

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "records.npz"
        ours.save(work.CASES[name], path)
        config = ours.config(work.CASES[name], path)
        config.update_from_flattened_dict(fields)
        train.train(config, pathlib.Path(folder) / "run", log=log)
    rounds = np.diff(wall[FIRST:]).tolist()
    cpu = busy[-1] - busy[FIRST]
    step = float(np.mean(steps[FIRST + 1 :]))
    work.report(rounds, cpu, mean_s=float(np.mean(rounds)), step_s=step)


def measure() -> list[Row]:
    """A row for every case."""
    return [
        {"case": case, "name": "fairjax"}
        | run.run_once(None, "benchmarks.loop", (str(number),))
        for number, case in enumerate(CASES)
    ]


def table(rows: list[Row]) -> str:
    """A Markdown table: seconds of the round, and from round to round, with ratio."""
    lines = [
        "| | the round alone | from round to round | ratio |",
        "|---|--:|--:|--:|",
    ]
    for row in rows:
        step, interval = row["step_s"], row["mean_s"]
        lines.append(
            f"| {row['case']} | {seconds(step)} | {seconds(interval)} "
            f"| {interval / step:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    time_case([*CASES][int(sys.argv[1])])
