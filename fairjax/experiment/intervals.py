"""Figures of a model, their resamples and the intervals from these, on the device.

Resamples draw clients and their patients, see `bootstrap.clustered`. Intervals of
gaps and of the ECE extend by `bootstrap.reach` to either side of the value, since
quantiles of figures that cannot be negative are no interval. All other intervals are
percentiles of the resamples.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from fairjax import metrics
from fairjax.core import rng
from fairjax.core.rng import Role
from fairjax.core.types import RunState
from fairjax.experiment.breakdowns import SegmentedRecords
from fairjax.experiment.config import build
from fairjax.metrics import bootstrap, calibration, groups

LEVEL = 0.95
"""Coverage of an interval."""
MAX_ELEMENTS = 2**18
"""Numbers in an array of a chunk of resamples: 1 MB, which a core's cache has room
for."""
MIN_CHUNK, MAX_CHUNK = 4, 64
"""Resamples of a chunk; each sorts the scores once."""


class Figures(NamedTuple):
    """Figures of one view of the records, which has S segments.

    Leaves are [S] for the records themselves and [R, S] for R resamples; for V views
    [V, S] and [R, V, S].
    """

    quality: metrics.Quality
    rates: groups.Rates
    """NaN with more than two classes."""
    misses: Float[Array, "*more S bins"]
    """The errors of bins, which the ECE adds up."""
    plot: calibration.Reliability
    """The calibration plot of the first segment, [*more, bins] a leaf."""


@functools.partial(jax.jit, static_argnames=("segments", "patients", "longest"))
def _figures(
    logits: Float[Array, "E C"],
    y: Int[Array, "E"],
    segment: Int[Array, "E"],
    threshold: Float[Array, ""],
    patient: Int[Array, "E"],
    offset: Int[Array, "N"],
    count: Int[Array, "N"],
    key: Key[Array, ""],
    numbers: Int[Array, "R"],
    within_clients: Bool[Array, ""],
    *,
    segments: int,
    patients: int,
    longest: int,
) -> Figures:
    """Resamples `numbers` of one view; number 0 is the records themselves.

    All figures of a run are calls of this one program: compiling it takes longer than
    computing most runs' figures.
    """

    def draw(key: Array) -> Int[Array, "E"]:
        times = bootstrap.clustered(
            key,
            offset,
            count,
            rows=patients,
            longest=longest,
            within_clients=within_clients,
        )
        return times[patient]

    def weighted_figures(weight: Int[Array, "E"]) -> Figures:
        quality = metrics.quality(
            logits, y, segment, segments, threshold=threshold, weight=weight
        )
        nan_rates = jnp.full((segments,), jnp.nan)
        rates = groups.Rates(nan_rates, nan_rates, nan_rates)
        if logits.shape[1] == 2:
            predicted = metrics.predict_positive(logits, threshold)
            rates = groups.rates(predicted, y == 1, segment, segments, weight=weight)
            is_defined = metrics.finite(logits, segment, segments, weight=weight)
            is_defined &= ~jnp.isnan(threshold)
            rates = jax.tree.map(
                lambda leaf: jnp.where(is_defined, leaf, jnp.nan), rates
            )
        # The ECE of `quality` has the same bins: XLA computes them once.
        plot = calibration.reliability(
            *calibration.confidence(jax.nn.softmax(logits), y),
            segment,
            segments,
            weight=weight,
        )
        first = jax.tree.map(lambda leaf: leaf[0], plot)
        return Figures(quality, rates, calibration.bin_errors(plot), first)

    return bootstrap.resample_statistic(weighted_figures, draw, key, numbers)


@jax.jit
def _thresholds(full: Float[Array, "E 2"], per_tier: Float[Array, "T E 2"], y) -> Array:
    logits = jnp.concatenate([full[None], per_tier])
    p = jax.nn.sigmoid(logits[..., 1] - logits[..., 0])
    return jax.lax.map(lambda scores: metrics.youden(scores, y == 1), p)


def select_thresholds(
    run: build.Run, full: dict[str, np.ndarray], per_tier: dict[str, np.ndarray]
) -> Float[np.ndarray, "models"]:
    """Thresholds chosen on the validation split: the full model's, then every tier's.

    Args:
        run: the run.
        full: logits of the full model by split.
        per_tier: logits of every tier's sub-model by split.

    Returns:
        NaN with more than two classes or without validation records.
    """
    if len(run.splits.classes) != 2 or "val" not in full:
        return np.full(1 + len(run.budget), np.nan, np.float32)
    y = np.asarray(run.splits.val.y)
    return np.asarray(_thresholds(full["val"], per_tier["val"], y))


def resampled_figures(
    run: build.Run,
    state: RunState,
    records: SegmentedRecords,
    logits: Float[np.ndarray, "E C"],
    threshold: Any,
    view: int,
    segments: int,
    resamples: int = 0,
    within_clients: bool = False,
) -> Figures:
    """Figures of a view, and then those of draws of clients and their patients.

    Args:
        run: the run.
        state: of the model.
        records: the test split.
        logits: of the test records.
        threshold: on the positive class's probability.
        view: index into `records.views`.
        segments: how many segments the result has; the program has as many as the view
            with the most.
        resamples: R, beside the records themselves.
        within_clients: draw patients alone, see `bootstrap.clustered`; the result has
            the quality only, and None for the other figures.

    Returns:
        [1 + R, segments] a leaf.
    """
    patient = run.splits.patients
    owner = np.repeat(np.arange(len(run.tiers)), np.asarray(run.splits.test.count))
    _, places = np.unique(patient, return_index=True)
    patients_per_client = np.bincount(owner[places]).astype(np.int32)
    count, offset = (
        column[patients_per_client > 0]
        for column in (
            patients_per_client,
            np.cumsum(patients_per_client) - patients_per_client,
        )
    )
    max_segments = max(map(len, records.segment_stats))
    largest = max(logits.size, max_segments * calibration.BINS)
    chunk = min(MAX_CHUNK, max(MIN_CHUNK, MAX_ELEMENTS // largest))
    inputs = (logits, records.y, records.views[view], threshold)
    clusters = (patient, offset.astype(np.int32), count)
    key = rng.fold_in(jax.random.key(run.config.seed), Role.EVALUATE, int(state.round))

    def chunk_figures(numbers: Int[np.ndarray, "R"]) -> Figures:
        figures = _figures(
            *inputs,
            *clusters,
            key,
            numbers,
            np.asarray(within_clients),
            segments=max_segments,
            patients=len(places),
            longest=int(count.max()),
        )
        plot = figures.plot
        if within_clients:
            figures, plot = figures._replace(rates=None, misses=None), None
        plot, figures = jax.device_get((plot, figures._replace(plot=None)))
        view_figures = jax.tree.map(lambda leaf: leaf[:, :segments], figures)
        return view_figures._replace(plot=plot)

    starts = range(0, 1 + resamples, chunk)
    chunks = [chunk_figures(np.arange(n, n + chunk, dtype=np.int32)) for n in starts]
    return jax.tree.map(
        lambda *leaves: np.concatenate(leaves)[: 1 + resamples], *chunks
    )


def select_resamples(figures: Figures, index: int | slice) -> Figures:
    """One resample of figures, or a slice of them; 0 is the records themselves."""
    return jax.tree.map(lambda leaf: leaf[index], figures)


Gaps = Mapping[str, Float[Array | np.ndarray, "V"]]
"""{gap: its value in every view}."""


class Intervals(NamedTuple):
    """Bounds of one model's figures: (of every segment, of gaps)."""

    low: tuple[metrics.Quality, Gaps]
    high: tuple[metrics.Quality, Gaps]


def gap_intervals(view_figures: list[Figures]) -> tuple[Gaps, Intervals]:
    """Gaps between the segments of a view, and the intervals of figures and gaps.

    Args:
        view_figures: for every view the figures of the records and of resamples,
            [1 + R, S] a leaf.

    Returns:
        (gaps, intervals), V views a leaf.
    """
    all_figures = jax.tree.map(
        lambda *leaves: np.stack(leaves, axis=1),
        *(figures._replace(plot=None) for figures in view_figures),
    )
    value, resamples = (
        select_resamples(all_figures, 0),
        select_resamples(all_figures, slice(1, None)),
    )
    gap_values = _gaps(value)
    return jax.device_get((gap_values, _interval_bounds(value, gap_values, resamples)))


@jax.jit
def _gaps(figures: Figures) -> Gaps:
    auroc_gap = {"auroc_difference": groups.difference(figures.quality.auroc)}
    return groups.gaps(figures.rates)._asdict() | auroc_gap


@jax.jit
def _interval_bounds(value: Figures, gaps: Gaps, resamples: Figures) -> Intervals:
    # As one array: a program of quantiles for every metric would take long to compile.
    bounds = bootstrap.bounds(jnp.stack(resamples.quality, axis=1), LEVEL)
    low, high = (metrics.Quality(*ends) for ends in bounds)

    areas = groups.errors(resamples.quality.auroc, value.quality.auroc)
    deviations = groups.deviations(resamples.rates, value.rates)._asdict()
    deviations["auroc_difference"] = groups.difference(areas)
    margins = bootstrap.reach(jnp.stack(list(deviations.values()), axis=1), LEVEL)
    reach = dict(zip(deviations, margins, strict=True))
    ece_margin = jnp.sum(jnp.abs(resamples.misses - value.misses), axis=-1)
    ece, ece_margin = value.quality.ece, bootstrap.reach(ece_margin, LEVEL)

    def bound_gaps(sign: int) -> Gaps:
        gap_bounds = {
            name: jnp.clip(gaps[name] + sign * reach[name], 0, 1) for name in reach
        }
        name = "demographic_parity_ratio"
        gap_bounds[name] = jnp.minimum(gaps[name] * jnp.exp(sign * reach[name]), 1)
        return gap_bounds

    low = low._replace(ece=jnp.clip(ece - ece_margin, 0, 1))
    high = high._replace(ece=jnp.clip(ece + ece_margin, 0, 1))
    return Intervals((low, bound_gaps(-1)), (high, bound_gaps(1)))
