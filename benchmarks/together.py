"""The cost of a seed when one vmapped program runs several seeds.

    python scripts/bench.py --name=together

The benchmark times the step that `train` compiles for one run, and the step of eight
runs that differ in their seeds, for the same number of rounds. It also times their
compilation.
"""

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from configs import default
from fairjax.experiment import compilation, resume, vmapped
from fairjax.experiment.config import build

RUNS, TURNS, ROUNDS = 8, 5, 20


def logistic() -> Any:
    """FedAvg of a logistic regression on a table."""
    c = default.get_config()
    c.data.name = "breast_cancer"
    c.model.mlp.hidden = ()
    c.submodel.name = "fedavg"
    c.rounds = 10_000
    return c


def perceptron() -> Any:
    """HeteroFL of an MLP on the same table."""
    c = default.get_config()
    c.data.name = "breast_cancer"
    c.model.mlp.hidden = (256, 256)
    c.submodel.name = "heterofl"
    c.rounds = 10_000
    return c


def convolutions() -> Any:
    """FedAvg of a small CNN on the digits."""
    c = default.get_config()
    c.data.name = "digits"
    c.model.name = "cnn"
    c.submodel.name = "fedavg"
    c.rounds = 10_000
    return c


CASES: dict[str, Callable[[], Any]] = {
    "logistic regression": logistic,
    "MLP of 2 x 256, HeteroFL": perceptron,
    "CNN on 8 x 8 images": convolutions,
}


def config_of(case: str, seed: int) -> Any:
    """The config of a case with a seed."""
    config = CASES[case]()
    config.seed = seed
    config.data.partition.seed = 0
    return config


def peak_mb() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds_of(step: Callable[[Any], Any], state: Any) -> list[float]:
    """CPU seconds of a round by turn, without the first turn."""
    durations = []
    for _ in range(1 + TURNS):
        began = time.process_time()
        for _ in range(ROUNDS):
            state, _ = jax.block_until_ready(step(state))
        durations.append((time.process_time() - began) / ROUNDS)
    return durations[1:]


def measure() -> list[dict[str, Any]]:
    """A row for every case."""
    rows = []
    for case in CASES:
        configs = [config_of(case, seed) for seed in range(RUNS)]
        run = build.run(configs[0])
        state = resume.initial_state(run)
        began = time.perf_counter()
        step, _ = compilation.compile_round(run, state)
        compile_one = time.perf_counter() - began
        single_seconds = seconds_of(step, state)

        vmapped_runs = vmapped.VmappedRuns(configs)
        states = [resume.initial_state(build.run(config)) for config in configs]
        began = time.perf_counter()
        program = vmapped_runs.program(states[0])
        compile_all = time.perf_counter() - began

        def step_all(
            states: Any, program: Any = program, arguments: Any = vmapped_runs.arguments
        ):
            return program(states, *arguments)

        all_seconds = seconds_of(step_all, vmapped.stacked(states))
        rows.append(
            {
                "case": case,
                "name": "fairjax",
                "runs": RUNS,
                "alone_s": statistics.median(single_seconds),
                "median_s": statistics.median(all_seconds),
                "min_s": min(all_seconds),
                "max_s": max(all_seconds),
                "cpu_s_per_round": statistics.median(all_seconds),
                "peak_rss_mb": peak_mb(),
                "compile_alone_s": compile_one,
                "compile_s": compile_all,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| eight seeds | a round of one | a round of all | a seed costs "
        "| compile one | compile all |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        share = row["median_s"] / row["runs"] / row["alone_s"]
        lines.append(
            f"| {row['case']} | {1000 * row['alone_s']:.3g} ms | "
            f"{1000 * row['median_s']:.3g} ms | x {share:.2f} | "
            f"{row['compile_alone_s']:.1f} s | {row['compile_s']:.1f} s |"
        )
    return "\n".join(lines)
