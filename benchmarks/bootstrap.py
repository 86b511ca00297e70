"""What the bootstrap interval of an AUROC takes.

    python scripts/bench.py --name=bootstrap

A minute on 2 CPU cores. 2,000 resamples of 2,000 records, two decimals of a score, so
that many are tied; the program is compiled before the clock starts.
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
"""Resamples of the loop over scikit-learn, which is then scaled."""


def records() -> tuple[np.ndarray, np.ndarray]:
    """(scores, positives)."""
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


def timed(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the clock and on all cores together: median over turns."""
    jax.block_until_ready(run())
    wall, cpu = [], []
    for _ in range(TURNS):
        began, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
    return {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}


def loop(scores: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """scikit-learn, resample by resample."""
    rng = np.random.default_rng(1)
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(LOOP):
        drawn = rng.integers(0, RECORDS, RECORDS)
        roc_auc_score(positive[drawn], scores[drawn])
    scale = RESAMPLES / LOOP
    return {
        "seconds": scale * (time.perf_counter() - began),
        "cpu_seconds": scale * (time.process_time() - busy),
    }


def measure() -> dict[str, Any]:
    """All figures."""
    scores, positive = records()
    one = jnp.zeros(RECORDS, jnp.int32)

    def interval(draw: bootstrap.Draw) -> Callable[[], Any]:
        @jax.jit
        def run(scores, positive, key):
            return bootstrap.interval(
                lambda w: metrics.auroc(scores, positive, one, 1, weight=w)[0],
                draw,
                key,
                resamples=RESAMPLES,
            )

        given = (jnp.asarray(scores), jnp.asarray(positive), jax.random.key(0))
        return functools.partial(run, *given)

    made = {name: timed(interval(draw)) for name, draw in draws().items()}
    made["a loop over scikit-learn, records"] = loop(scores, positive)
    return {
        "records": RECORDS,
        "resamples": RESAMPLES,
        "turns": TURNS,
        "intervals": made,
    }


def table(results: dict[str, Any]) -> str:
    """Seconds as a Markdown table."""
    what = f"{results['resamples']:,} resamples of {results['records']:,} records"
    lines = [f"| AUROC, {what} | seconds | CPU seconds |", "|---|--:|--:|"]
    for name, each in results["intervals"].items():
        lines.append(f"| {name} | {each['seconds']:.2f} | {each['cpu_seconds']:.2f} |")
    return "\n".join(lines)
