"""The time that the bootstrap interval of an AUROC takes.

    python scripts/bench.py --name=bootstrap

The benchmark takes a minute on 2 CPU cores. It draws 2,000 resamples of 2,000 records,
whose scores have two decimals, so that many are tied. The program is compiled before
the clock starts.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import roc_auc_score

from fairjax import metrics
from fairjax.metrics import bootstrap

RECORDS, HOSPITALS, RESAMPLES, TURNS = 2000, 10, 2000, 9
LOOP = 200
"""Resamples of the loop over scikit-learn, whose time is scaled to `RESAMPLES`."""


def records() -> tuple[np.ndarray, np.ndarray]:
    """(scores, positives) of random records."""
    rng = np.random.default_rng(0)
    positive = rng.random(RECORDS) < 0.3
    return np.round(rng.normal(size=RECORDS) + positive, 2).astype("f"), positive


def draws() -> dict[str, bootstrap.Draw]:
    """Both ways of resampling."""
    size = RECORDS // HOSPITALS
    clustered = functools.partial(
        bootstrap.clustered,
        offset=jnp.arange(HOSPITALS) * size,
        count=jnp.full((HOSPITALS,), size),
        rows=RECORDS,
        longest=size,
    )
    plain = functools.partial(bootstrap.records, rows=RECORDS)
    return {"records": plain, "hospitals, then records": clustered}


def time_calls(run: Callable[[], Any]) -> dict[str, float]:
    """Median over turns of the wall seconds, and of the CPU seconds of all cores."""
    jax.block_until_ready(run())
    wall, cpu = [], []
    for _ in range(TURNS):
        began, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
    return {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}


def time_loop(scores: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Seconds of a loop over scikit-learn, one resample after the other."""
    rng = np.random.default_rng(1)
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(LOOP):
        rows = rng.integers(0, RECORDS, RECORDS)
        roc_auc_score(positive[rows], scores[rows])
    scale = RESAMPLES / LOOP
    return {
        "seconds": scale * (time.perf_counter() - began),
        "cpu_seconds": scale * (time.process_time() - busy),
    }


def measure() -> dict[str, Any]:
    """Measures all intervals."""
    scores, positive = records()
    groups = jnp.zeros(RECORDS, jnp.int32)

    def interval(draw: bootstrap.Draw) -> Callable[[], Any]:
        @jax.jit
        def run(scores, positive, key):
            return bootstrap.interval(
                lambda w: metrics.auroc(scores, positive, groups, 1, weight=w)[0],
                draw,
                key,
                resamples=RESAMPLES,
            )

        arguments = (jnp.asarray(scores), jnp.asarray(positive), jax.random.key(0))
        return functools.partial(run, *arguments)

    times = {name: time_calls(interval(draw)) for name, draw in draws().items()}
    times["a loop over scikit-learn, records"] = time_loop(scores, positive)
    return {
        "records": RECORDS,
        "resamples": RESAMPLES,
        "turns": TURNS,
        "intervals": times,
    }


def table(results: dict[str, Any]) -> str:
    """Seconds as a Markdown table."""
    title = f"{results['resamples']:,} resamples of {results['records']:,} records"
    lines = [f"| AUROC, {title} | seconds | CPU seconds |", "|---|--:|--:|"]
    for name, times in results["intervals"].items():
        lines.append(
            f"| {name} | {times['seconds']:.2f} | {times['cpu_seconds']:.2f} |"
        )
    return "\n".join(lines)
