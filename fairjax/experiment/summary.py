"""The figures that a run reports in the end: `summary.json`'s "final".

Of the full model on the test split, with intervals; of every tier, hospital and patient
group; and of what separates them. The threshold is chosen on the validation split.
Intervals resample hospitals and their patients, see `bootstrap.clustered`; they know
nothing of other seeds. Those of gaps and of the ECE are `bootstrap.reach` to either
side, the others percentiles. Those of `headlines` resample patients alone. What cannot
be estimated is null, and counted with its reason.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from fairjax import metrics
from fairjax.core import rng
from fairjax.core.rng import Role
from fairjax.core.types import RunState
from fairjax.data.table import Attribute
from fairjax.experiment import headlines
from fairjax.experiment.config import build
from fairjax.experiment.evaluate import Measure
from fairjax.experiment.io import workdir as files
from fairjax.metrics import bootstrap, calibration, groups

RESAMPLES, LEVEL = 1000, 0.95
LARGEST = 2**18
"""Numbers of an array of a chunk of resamples: 1 MB, which a core's cache holds."""
FEWEST, MOST = 4, 64
"""Resamples of a chunk, in each of which scores are sorted once."""
OF_TWO = ("sensitivity", "specificity", "calibration_slope", "calibration_intercept")
OF_BOTH = ("auroc", "auprc", *OF_TWO)
"""Metrics of two classes only, and those that need records of both."""


def final(
    run: build.Run, measure: Measure, last: RunState, selected: RunState | str
) -> dict[str, Any]:
    """The last model, and the selected one or null with a note.

    Args:
        run: the run.
        measure: see `evaluate.compiled`.
        last: its state in the end.
        selected: its state in the round that the validation split selects, or why
            there is none.
    """
    made: dict[str, Any] = {"last": _of(run, measure, last), "selected": None}
    if isinstance(selected, str):
        return made | {"note": selected}
    if int(selected.round) == int(last.round):
        return made | {"selected": made["last"]}
    return made | {"selected": _of(run, measure, selected)}


# ---------------------------------------------------------------------------- on device


class _Figures(NamedTuple):
    """Of a view of the records in S segments, [S]; of R resamples, [R, S].

    Of V views [V, S] and [R, V, S].
    """

    quality: metrics.Quality
    rates: groups.Rates
    """NaN with more than two classes."""
    misses: Float[Array, "*more S bins"]
    """What the ECE adds up."""
    plot: calibration.Reliability
    """Of the first segment: [*more, bins]."""


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
    within: Bool[Array, ""],
    *,
    segments: int,
    patients: int,
    longest: int,
) -> _Figures:
    """Resamples `numbers` of one view; number 0 is the records themselves.

    One program for all that is asked of a run: compiling it takes longer than most
    runs' figures.
    """

    def draw(key: Array) -> Int[Array, "E"]:
        times = bootstrap.clustered(
            key, offset, count, rows=patients, longest=longest, within=within
        )
        return times[patient]

    def of(weight: Int[Array, "E"]) -> _Figures:
        quality = metrics.quality(
            logits, y, segment, segments, threshold=threshold, weight=weight
        )
        unknown = jnp.full((segments,), jnp.nan)
        rates = groups.Rates(unknown, unknown, unknown)
        if logits.shape[1] == 2:
            predicted = metrics.predicted(logits, threshold)
            rates = groups.rates(predicted, y == 1, segment, segments, weight=weight)
            known = metrics.finite(logits, segment, segments, weight=weight)
            known &= ~jnp.isnan(threshold)
            rates = jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan), rates)
        # The bins of the ECE: XLA computes them once.
        plot = calibration.reliability(
            *calibration.confidence(jax.nn.softmax(logits), y),
            segment,
            segments,
            weight=weight,
        )
        first = jax.tree.map(lambda leaf: leaf[0], plot)
        return _Figures(quality, rates, calibration.misses(plot), first)

    return bootstrap.resampled(of, draw, key, numbers)


@jax.jit
def _thresholds(full: Float[Array, "E 2"], own: Float[Array, "T E 2"], y) -> Array:
    """Of the full model, then of every sub-model."""
    logits = jnp.concatenate([full[None], own])
    p = jax.nn.sigmoid(logits[..., 1] - logits[..., 0])
    return jax.lax.map(lambda scores: metrics.youden(scores, y == 1), p)


_Gaps = Mapping[str, Float[Array | np.ndarray, "V"]]


class _Intervals(NamedTuple):
    """Bounds of one model's figures: (of every segment, of gaps)."""

    low: tuple[metrics.Quality, _Gaps]
    high: tuple[metrics.Quality, _Gaps]


@jax.jit
def _gaps(figures: _Figures) -> _Gaps:
    apart = {"auroc_difference": groups.difference(figures.quality.auroc)}
    return groups.gaps(figures.rates)._asdict() | apart


@jax.jit
def _ends(value: _Figures, gaps: _Gaps, drawn: _Figures) -> _Intervals:
    """Of figures and their gaps, from their resamples."""
    # As one array: a program of quantiles for every metric would take long to compile.
    bounds = bootstrap.bounds(jnp.stack(drawn.quality, axis=1), LEVEL)
    low, high = (metrics.Quality(*ends) for ends in bounds)

    areas = groups.errors(drawn.quality.auroc, value.quality.auroc)
    away = groups.away(drawn.rates, value.rates)._asdict()
    away["auroc_difference"] = groups.difference(areas)
    far = bootstrap.reach(jnp.stack(list(away.values()), axis=1), LEVEL)
    reach = dict(zip(away, far, strict=True))
    off = jnp.sum(jnp.abs(drawn.misses - value.misses), axis=-1)
    ece, off = value.quality.ece, bootstrap.reach(off, LEVEL)

    def end(sign: int) -> _Gaps:
        made = {name: jnp.clip(gaps[name] + sign * reach[name], 0, 1) for name in reach}
        name = "demographic_parity_ratio"
        made[name] = jnp.minimum(gaps[name] * jnp.exp(sign * reach[name]), 1)
        return made

    low = low._replace(ece=jnp.clip(ece - off, 0, 1))
    high = high._replace(ece=jnp.clip(ece + off, 0, 1))
    return _Intervals((low, end(-1)), (high, end(1)))


# -------------------------------------------------------------------------- on the host


class _Part(NamedTuple):
    """The records of one segment, as far as they say what can be estimated."""

    n: int
    positives: int | None
    """None with more than two classes."""
    present: int
    """Classes that have records."""
    small: bool
    """A patient group below the minimum."""


def _part(y: Int[np.ndarray, "n"], classes: int, small: bool = False) -> _Part:
    positives = int(np.sum(y == 1)) if classes == 2 else None
    return _Part(len(y), positives, len(np.unique(y)), small)


class _Records(NamedTuple):
    """The test split, and the ways in which it is cut into segments."""

    y: Int[np.ndarray, "E"]
    views: Int[np.ndarray, "V E"]
    """All records; then every attribute; then hospitals; then tiers."""
    parts: list[list[_Part]]
    """Of every view, and every segment of it."""


def _attributes(run: build.Run) -> tuple[Attribute, ...]:
    """Those of patients, and last, where there are any, groups of hospitals.

    What group a patient's hospital is in is judged as any attribute of the patient is.
    """
    of_hospitals = Attribute("hospital_group", run.hospital_groups)
    return run.splits.groups + (of_hospitals,) * bool(run.hospital_groups)


def _records(run: build.Run, tiers: Int[np.ndarray, "N"]) -> _Records:
    test, classes = run.splits.test, len(run.splits.classes)
    y = np.asarray(test.y)
    owner = np.repeat(np.arange(len(tiers)), np.asarray(test.count))

    def cut(column: np.ndarray, segments: int) -> list[_Part]:
        return [_part(y[column == s], classes) for s in range(segments)]

    views, parts = [np.zeros_like(owner)], [[_part(y, classes)]]
    columns = [*np.asarray(test.group).T]
    if run.hospital_groups:
        columns.append(np.asarray(run.group_of, np.int32)[owner])
    for attribute, column in zip(_attributes(run), columns, strict=True):
        size = len(attribute.values)
        positive = jnp.asarray(y == 1) if classes == 2 else None
        large = np.asarray(groups.large(jnp.asarray(column), size, positive))
        views.append(large)
        parts.append(
            [
                part._replace(small=not np.any(large == s))
                for s, part in enumerate(cut(column, size))
            ]
        )
    views += [owner, tiers[owner]]
    parts += [cut(owner, len(tiers)), cut(tiers[owner], len(run.budget))]
    return _Records(y, np.stack(views).astype(np.int32), parts)


def _why(name: str, part: _Part, threshold: float) -> str:
    """Why a metric of these records is not known."""
    if not part.n:
        return "no records"
    if part.small:
        return "patient group too small"
    if part.positives is None and name in OF_TWO:
        return "more than two classes"
    if name in ("sensitivity", "specificity") and np.isnan(threshold):
        return "no threshold"
    if part.present < 2 and name in OF_BOTH:
        return "one class"
    if name.startswith("calibration_"):
        return "classes do not overlap"
    return "scores are not finite"


@dataclasses.dataclass(frozen=True)
class _Sheet:
    """One model's figures, and how they become entries of the summary."""

    records: _Records
    threshold: float
    value: Mapping[int, _Figures]
    """By view."""
    missing: Counter[str]
    """Counted as entries are made: why they are null."""
    between: _Gaps = dataclasses.field(default_factory=dict)
    intervals: _Intervals | None = None

    def plain(self, view: int, segment: int) -> dict[str, Any]:
        """{metric: value} of one segment."""
        part = self.records.parts[view][segment]
        entry = {}
        for name, leaf in self.value[view].quality._asdict().items():
            entry[name] = files.number(leaf[segment])
            if entry[name] is None:
                self.missing[_why(name, part, self.threshold)] += 1
        return entry

    def bounded(self, view: int, segment: int) -> dict[str, Any]:
        """{metric: value with interval} of one segment."""
        assert self.intervals is not None
        low, high = (quality._asdict() for quality, _ in self.intervals)
        return {
            name: self._interval(
                value, low[name][view, segment], high[name][view, segment]
            )
            for name, value in self.plain(view, segment).items()
        }

    def gaps(self, view: int) -> dict[str, Any]:
        """{gap: value with interval} of one attribute."""
        assert self.intervals is not None
        low, high = (gaps for _, gaps in self.intervals)
        entry = {}
        for name, leaf in self.between.items():
            value = files.number(leaf[view])
            if value is None:
                self.missing["fewer than two patient groups"] += 1
            entry[name] = self._interval(value, low[name][view], high[name][view])
        return entry

    def _interval(self, value: Any, low: Any, high: Any) -> dict[str, Any]:
        ends = files.number(low), files.number(high)
        if value is not None and ends[0] is None:
            self.missing["interval: too few resamples"] += 1
        if value is None or None in ends:
            ends = None, None
        return {"value": value, "low": ends[0], "high": ends[1]}


def _of(run: build.Run, measure: Measure, state: RunState) -> dict[str, Any]:
    """One model's entry."""
    # From the host: what was restored is committed to a device, and would be compiled
    # for anew.
    full, own = jax.device_get(measure(state)[1])
    tiers = np.asarray(run.tiers_at(state.round - 1))
    records = _records(run, tiers)
    missing: Counter[str] = Counter()
    thresholds = _chosen(run, full, own)
    pooled, *by_attribute, by_hospital, by_tier = range(len(records.views))
    drawn = functools.partial(_drawn, run, state, records)
    segments = max(map(len, records.parts[:by_hospital]))
    judged = {
        view: drawn(full["test"], thresholds[0], view, segments, RESAMPLES)
        for view in (pooled, *by_attribute)
    }
    at_home = drawn(
        full["test"], thresholds[0], by_hospital, len(tiers), RESAMPLES, within=True
    )
    in_tiers = drawn(full["test"], thresholds[0], by_tier, len(run.budget))
    others = {by_hospital: at_home, by_tier: in_tiers}
    value = {view: _at(made, 0) for view, made in (judged | others).items()}
    bounds = _intervals(list(judged.values()))
    whole = _Sheet(records, float(thresholds[0]), value, missing, *bounds)

    def of_tier(tier: int) -> dict[str, Any]:
        cut = thresholds[1 + tier]
        made = drawn(own["test"][tier], cut, by_tier, len(run.budget))
        sub = _Sheet(records, float(cut), {by_tier: _at(made, 0)}, missing)
        head = {"tier": tier, "n": records.parts[by_tier][tier].n}
        threshold = {"threshold": files.number(sub.threshold)}
        mine = threshold | sub.plain(by_tier, tier)
        return head | whole.plain(by_tier, tier) | {"own": mine}

    def of_hospital(client: int) -> dict[str, Any]:
        name, tier = run.splits.clients[client], int(tiers[client])
        head = {"client": name, "tier": tier}
        head["n"] = records.parts[by_hospital][client].n
        return head | whole.plain(by_hospital, client)

    def of_group(view: int, group: int) -> dict[str, Any]:
        part = records.parts[view][group]
        head = {"n": part.n, "positives": part.positives}
        return head | whole.bounded(view, group)

    hospitals = [of_hospital(client) for client in range(len(tiers))]
    least = run.config["min_test_records"]
    first = headlines.Headlines(hospitals, at_home.quality, len(run.budget), least)
    named = dict(zip(by_attribute, _attributes(run), strict=True))
    return {
        "round": int(state.round),
        "positive": run.splits.positive,
        "threshold": files.number(whole.threshold),
        "pooled": whole.bounded(pooled, 0),
        "tiers": [of_tier(tier) for tier in range(len(run.budget))],
        "clients": hospitals,
        "over_clients": headlines.over(hospitals, first),
        "headlines": first.entry(),
        "groups": {
            attribute.name: {
                value: of_group(view, group)
                for group, value in enumerate(attribute.values)
            }
            for view, attribute in named.items()
        },
        "gaps": {attribute.name: whole.gaps(view) for view, attribute in named.items()},
        "calibration": list(_bins(value[pooled].plot)),
        "not_estimated": dict(sorted(missing.items())),
    }


def _chosen(
    run: build.Run, full: dict[str, np.ndarray], own: dict[str, np.ndarray]
) -> Float[np.ndarray, "models"]:
    """Threshold of the full model and of every sub-model; NaN where there is none."""
    if len(run.splits.classes) != 2 or "val" not in full:
        return np.full(1 + len(run.budget), np.nan, np.float32)
    y = np.asarray(run.splits.val.y)
    return np.asarray(_thresholds(full["val"], own["val"], y))


def _drawn(
    run: build.Run,
    state: RunState,
    records: _Records,
    logits: Float[np.ndarray, "E C"],
    threshold: Any,
    view: int,
    segments: int,
    resamples: int = 0,
    within: bool = False,
) -> _Figures:
    """Figures of a view, and then of draws of hospitals and their patients.

    Args:
        run: the run.
        state: the model's.
        records: the test split.
        logits: of its records.
        threshold: on the positive class's probability.
        view: which one of the records'.
        segments: how many to keep; the program has as many as any view.
        resamples: R, beside the records themselves.
        within: draw patients alone, see `bootstrap.clustered`; of the resamples the
            quality is kept and nothing else.

    Returns:
        [1 + R, segments].
    """
    patient = run.splits.patients
    owner = np.repeat(np.arange(len(run.tiers)), np.asarray(run.splits.test.count))
    _, places = np.unique(patient, return_index=True)
    every = np.bincount(owner[places]).astype(np.int32)
    count, offset = (each[every > 0] for each in (every, np.cumsum(every) - every))
    most = max(map(len, records.parts))
    largest = max(logits.size, most * calibration.BINS)
    chunk = min(MOST, max(FEWEST, LARGEST // largest))
    given = (logits, records.y, records.views[view], threshold)
    clusters = (patient, offset.astype(np.int32), count)
    key = rng.at(jax.random.key(run.config["seed"]), Role.EVALUATE, int(state.round))

    def some(numbers: Int[np.ndarray, "R"]) -> _Figures:
        made = _figures(
            *given,
            *clusters,
            key,
            numbers,
            np.asarray(within),
            segments=most,
            patients=len(places),
            longest=int(count.max()),
        )
        plot = made.plot
        if within:
            made, plot = made._replace(rates=None, misses=None), None
        plot, made = jax.device_get((plot, made._replace(plot=None)))
        kept = jax.tree.map(lambda leaf: leaf[:, :segments], made)
        return kept._replace(plot=plot)

    starts = range(0, 1 + resamples, chunk)
    parts = [some(np.arange(n, n + chunk, dtype=np.int32)) for n in starts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: 1 + resamples], *parts)


def _at(made: _Figures, index: int | slice) -> _Figures:
    """One resample, or some."""
    return jax.tree.map(lambda leaf: leaf[index], made)


def _intervals(judged: list[_Figures]) -> tuple[_Gaps, _Intervals]:
    """Gaps between segments, and the bounds of both, view by view.

    Args:
        judged: of every view the records' figures, and then those of resamples.
    """
    both = jax.tree.map(
        lambda *leaves: np.stack(leaves, axis=1),
        *(made._replace(plot=None) for made in judged),
    )
    value, drawn = _at(both, 0), _at(both, slice(1, None))
    between = _gaps(value)
    return jax.device_get((between, _ends(value, between, drawn)))


def _bins(plot: calibration.Reliability) -> Iterator[Mapping[str, Any]]:
    """The calibration plot of all records, without empty bins."""
    for predicted, observed, n in zip(*plot, strict=True):
        if n:
            yield {
                "predicted": files.number(predicted),
                "observed": files.number(observed),
                "n": int(n),
            }
