"""The work that all contenders do, and the way it is timed.

The module uses only NumPy, because the contenders' environments share nothing else. The
work is federated averaging of 100 or 10 clients a round, one local epoch in batches of
10 with SGD, on random records. `lr` is logistic regression and `mlp` has 64 hidden
units, both on rows of 30 numbers at 1,000 clients. `cnn` is the two-convolution network
of the EMNIST benchmark without dropout (1.63 million parameters) on images of 32 x 32 x
3 at 100 clients. `dense` has two layers of 256 units on images of 28 x 28 x 3 (671
thousand parameters), and no peers.
"""

import json
import os
import pathlib
import re
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One federation and its model."""

    clients: int
    records: int
    """The number of records of every client."""
    cohort: int
    shape: tuple[int, ...]
    classes: int
    hidden: tuple[int, ...] = ()
    """The widths of dense layers before the head."""
    channels: tuple[int, ...] = ()
    """The channels of 3 x 3 convolutions without padding; pooling follows the last."""
    rounds: int = 200


BATCH, RATE = 10, 0.1
CASES = {
    "lr": Case(1000, 20, 100, (30,), 2),
    "mlp": Case(1000, 20, 100, (30,), 2, (64,)),
    "cnn": Case(100, 50, 10, (32, 32, 3), 10, (128,), (32, 64), rounds=10),
    "dense": Case(100, 50, 10, (28, 28, 3), 10, (256, 256), rounds=50),
}
WARM = 3
"""The number of rounds before the clock starts."""

ONE_CORE = "BENCHMARK_ON_ONE_CORE"
"""The environment variable of processes that must use one core only."""
if ONE_CORE in os.environ and hasattr(os, "sched_setaffinity"):  # macOS has none
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def data(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Records [clients, records, *shape] around a random centre of their class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, case.classes, (case.clients, case.records)).astype(np.int32)
    centre = rng.standard_normal((case.classes, *case.shape), np.float32) / 2
    return centre[y] + rng.standard_normal((*y.shape, *case.shape), np.float32), y


def cohorts(case: Case) -> np.ndarray:
    """The clients of every round."""
    rng = np.random.default_rng(1)
    return np.stack(
        [
            rng.choice(case.clients, case.cohort, replace=False)
            for _ in range(WARM + case.rounds)
        ]
    )


def clock(run: Callable[[], Any], times: int = 10) -> float:
    """Median seconds of a call, after a first call that is not timed."""
    run()
    durations = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def report(
    rounds: list[float], cpu: float, peak_mb: float | None = None, **details: Any
) -> None:
    """Prints a line of JSON, which the driver reads.

    Args:
        rounds: wall seconds of every timed round.
        cpu: CPU seconds of all timed rounds together.
        peak_mb: peak resident memory; None takes that of this process.
        **details: further keys of the row.
    """
    if peak_mb is None:
        peak_mb = _peak_mb()
    row = {
        "rounds": len(rounds),
        "median_s": statistics.median(rounds),
        "min_s": min(rounds),
        "max_s": max(rounds),
        "cpu_s_per_round": cpu / len(rounds),
        "peak_rss_mb": round(peak_mb),
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(row | details), flush=True)


def _peak_mb() -> float:
    """The largest resident memory of this process."""
    about = pathlib.Path("/proc/self/status")
    if about.exists():
        # On Linux getrusage includes the memory of the parent process.
        match = re.search(r"VmHWM:\s+(\d+) kB", about.read_text())
        assert match is not None
        return int(match[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_rounds(run: Callable[[np.ndarray], Any], case: Case, **details: Any) -> None:
    """Times `run(clients)` in every round, and reports the times.

    Args:
        run: a round with the given clients.
        case: the case, which defines the cohorts.
        **details: further keys of the row.
    """
    rounds, busy = [], 0.0
    for number, clients in enumerate(cohorts(case)):
        began, cpu = time.perf_counter(), time.process_time()
        run(clients)
        if number >= WARM:
            rounds.append(time.perf_counter() - began)
            busy += time.process_time() - cpu
    report(rounds, busy, **details)
