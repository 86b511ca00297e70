"""What a run reports in the end: the content of summary.json.

"final" has the figures of the full model on the test split, with intervals; those of
every tier, client and patient group; and the gaps between groups. Thresholds are chosen
on the validation split. Intervals (`intervals`) resample clients and their patients and
do not cover the variation between seeds; those of `headlines` resample patients alone.
What cannot be estimated is null, and is counted by its reason.
"""

import dataclasses
import functools
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from fairjax.core import require
from fairjax.core.types import RunState
from fairjax.data import federation
from fairjax.data.tiers import tier_size_correlation
from fairjax.experiment import (
    baselines,
    breakdowns,
    costs,
    evaluate,
    headlines,
    intervals,
    model_selection,
)
from fairjax.experiment.config import build
from fairjax.experiment.evaluate import EvaluateFn
from fairjax.experiment.intervals import Figures, Gaps, Intervals
from fairjax.experiment.io import workdir as files
from fairjax.metrics import calibration, clients, divergence, principles

RESAMPLES = 1000
"""Resamples of a view that has intervals."""


def summarise(
    run: build.Run,
    forecast: costs.Forecast,
    state: RunState,
    best_state: RunState | str,
    evaluate_fn: EvaluateFn,
    workdir: pathlib.Path,
    machine_cost: dict[str, Any],
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        run: the run.
        forecast: what was known before its first round.
        state: its last state.
        best_state: see `best_round.restore`.
        evaluate_fn: see `evaluate.compile_evaluation`.
        workdir: has the logs of all rounds.
        machine_cost: {"simulation", "time"} of this session; {} if no round was left,
            and then those of the summary that is there already count.
    """
    content = run_summary(run, forecast, state, workdir, machine_cost)
    content |= {"untrained": forecast.untrained._asdict(), "notes": forecast.notes}
    rows = files.rows(workdir / "metrics.jsonl")
    criterion = model_selection.effective_criterion(rows, run.criterion)
    content["final"] = final(run, evaluate_fn, state, best_state)
    content["final"] |= {"selected_by": criterion}
    if run.config.baselines:
        evaluation = evaluate_fn(state)[0]
        content["baselines"] = baselines.baselines(
            run, forecast.start, state, evaluation
        )
    return content


# ------------------------------------------------------------------------ the whole run


def run_summary(
    run: build.Run,
    forecast: costs.Forecast,
    state: RunState,
    workdir: pathlib.Path,
    machine_cost: dict[str, Any],
) -> dict[str, Any]:
    """What summary.json says about the run and its rounds; for Args see `summarise`."""
    previous = workdir / "summary.json"
    if not machine_cost and previous.exists():
        text = previous.read_text(errors="replace")
        old_summary = require.parse_json(str(previous), text, dict)
        machine_cost = {name: old_summary.get(name) for name in ("simulation", "time")}
    rows = files.rows(workdir / "metrics.jsonl")
    return {
        "metrics": rows[-1],
        "tiers": forecast.tiers,
        "privacy": costs.privacy_of(run, int(state.round)),
        "robust": evaluate.robustness_summary(run, forecast.start, state),
        "diverged": divergence.find_divergence(rows) or False,
        "principles": principles.measure(
            rows,
            forecast.tiers,
            forecast.full_cost,
            _cohort_masks(run, state),
            np.stack([run.tiers_at(number) for number in range(int(state.round))]),
            state,
            evaluate.representatives(run),
            local=run.spec.local,
            eligible_tiers=_compared_tiers(run, state),
        ),
        "data": _data_summary(run),
        "simulation": machine_cost.get("simulation"),
        "time": machine_cost.get("time") or {"compile_s": None, "rounds_per_s": None},
    }


def _data_summary(run: build.Run) -> dict[str, Any]:
    splits, config = run.splits, run.config.data
    return {
        "name": config.name,
        "rows": splits.rows,
        "hash": splits.hash,
        "normalise": config.normalise,
        "partition": config.partition.name,
        "clients": len(splits.clients),
        "classes": list(splits.classes),
        "positive": splits.positive,
        "hospitals": federation.client_summaries(splits, run.tiers),
        "tier_by_size": tier_size_correlation(run.tiers, splits.train.count),
        "source": splits.source,
        "notes": list(splits.notes),
    }


def _cohort_masks(run: build.Run, state: RunState) -> Bool[np.ndarray, "rounds N"]:
    """The clients of every round's cohort up to the state's round."""
    clients = len(run.splits.clients)

    def cohort_mask(number: Array) -> Array:
        cohort = run.draw(state.key, number)
        slot = jnp.where(cohort.valid, cohort.client, clients)
        return jnp.zeros(clients, bool).at[slot].set(True, mode="drop")

    rounds = jnp.arange(int(state.round), dtype=jnp.int32)
    return np.asarray(jax.lax.map(cohort_mask, rounds))


def _compared_tiers(run: build.Run, state: RunState) -> list[int]:
    """The tiers that have enough test records for their accuracy to be a headline."""
    test_counts, tiers = (
        np.asarray(run.splits.test.count),
        np.asarray(run.tiers_at(state.round - 1)),
    )
    min_records = run.config.min_test_records
    _, is_compared = clients.has_enough_records(
        test_counts, tiers, len(run.budget), min_records
    )
    return np.flatnonzero(is_compared).tolist()


# -------------------------------------------------------------------- the final figures


def final(
    run: build.Run,
    evaluate_fn: EvaluateFn,
    last_state: RunState,
    selected_state: RunState | str,
) -> dict[str, Any]:
    """The figures of the last model, and of the selected one or null with a note.

    Args:
        run: the run.
        evaluate_fn: see `evaluate.compile_evaluation`.
        last_state: its state in the end.
        selected_state: its state in the round that the validation split selects, or why
            there is none.
    """
    entries: dict[str, Any] = {
        "last": _model_entry(run, evaluate_fn, last_state),
        "selected": None,
    }
    if isinstance(selected_state, str):
        return entries | {"note": selected_state}
    if int(selected_state.round) == int(last_state.round):
        return entries | {"selected": entries["last"]}
    return entries | {"selected": _model_entry(run, evaluate_fn, selected_state)}


@dataclasses.dataclass(frozen=True)
class _ModelSummary:
    """One model's figures, and how they become entries of the summary."""

    records: breakdowns.SegmentedRecords
    threshold: float
    value: Mapping[int, Figures]
    """By view."""
    missing: Counter[str]
    """Why entries are null; counted as they are made."""
    gap_values: Gaps = dataclasses.field(default_factory=dict)
    intervals: Intervals | None = None

    def point_estimates(self, view: int, segment: int) -> dict[str, Any]:
        """{metric: value} of one segment."""
        stats = self.records.segment_stats[view][segment]
        entry = {}
        for name, leaf in self.value[view].quality._asdict().items():
            entry[name] = files.number(leaf[segment])
            if entry[name] is None:
                reason = breakdowns.missing_reason(name, stats, self.threshold)
                self.missing[reason] += 1
        return entry

    def with_intervals(self, view: int, segment: int) -> dict[str, Any]:
        """{metric: value with interval} of one segment."""
        assert self.intervals is not None
        low, high = (quality._asdict() for quality, _ in self.intervals)
        return {
            name: self._interval(
                value, low[name][view, segment], high[name][view, segment]
            )
            for name, value in self.point_estimates(view, segment).items()
        }

    def gaps(self, view: int) -> dict[str, Any]:
        """{gap: value with interval} of one attribute."""
        assert self.intervals is not None
        low, high = (gaps for _, gaps in self.intervals)
        entry = {}
        for name, leaf in self.gap_values.items():
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


class _ModelFigures(NamedTuple):
    """One model of a run on the test split, before it becomes an entry."""

    run: build.Run
    tiers: Int[np.ndarray, "N"]
    """Every client's tier in the model's round."""
    records: breakdowns.SegmentedRecords
    full: _ModelSummary
    submodels: list[_ModelSummary]
    """For every tier its own sub-model."""
    client_quality: Any
    """Quality of every client and of resamples of its patients, [1 + R, N] a leaf."""


def _model_figures(
    run: build.Run, evaluate_fn: EvaluateFn, state: RunState
) -> _ModelFigures:
    # On the host: a restored state is committed to a device, and the programs below
    # would be compiled anew for it.
    full, per_tier = jax.device_get(evaluate_fn(state)[1])
    tiers = np.asarray(run.tiers_at(state.round - 1))
    records = breakdowns.segment_records(run, tiers)
    missing: Counter[str] = Counter()
    thresholds = intervals.select_thresholds(run, full, per_tier)
    by_client, by_tier = records.client_view, records.tier_view
    resample = functools.partial(intervals.resampled_figures, run, state, records)
    segments = max(map(len, records.segment_stats[:by_client]))
    group_figures = {
        view: resample(full["test"], thresholds[0], view, segments, RESAMPLES)
        for view in (0, *records.attribute_views)
    }
    client_figures = resample(
        full["test"],
        thresholds[0],
        by_client,
        len(tiers),
        RESAMPLES,
        within_clients=True,
    )
    tier_figures = resample(full["test"], thresholds[0], by_tier, len(run.budget))
    unit_figures = {by_client: client_figures, by_tier: tier_figures}
    value = {
        view: intervals.select_resamples(figures, 0)
        for view, figures in (group_figures | unit_figures).items()
    }
    bounds = intervals.gap_intervals(list(group_figures.values()))
    full_summary = _ModelSummary(records, float(thresholds[0]), value, missing, *bounds)

    def submodel_summary(tier: int) -> _ModelSummary:
        threshold = thresholds[1 + tier]
        logits = per_tier["test"][tier]
        figures = resample(logits, threshold, by_tier, len(run.budget))
        tier_value = {by_tier: intervals.select_resamples(figures, 0)}
        return _ModelSummary(records, float(threshold), tier_value, missing)

    submodels = [submodel_summary(tier) for tier in range(len(run.budget))]
    return _ModelFigures(
        run, tiers, records, full_summary, submodels, client_figures.quality
    )


def _model_entry(
    run: build.Run, evaluate_fn: EvaluateFn, state: RunState
) -> dict[str, Any]:
    """One model's entry."""
    figures = _model_figures(run, evaluate_fn, state)
    full, attribute_views = figures.full, figures.records.attribute_views
    client_entries = [
        _client_entry(figures, client) for client in range(len(figures.tiers))
    ]
    min_records = run.config.min_test_records
    client_headlines = headlines.Headlines(
        client_entries, figures.client_quality, len(run.budget), min_records
    )
    attributes = dict(zip(attribute_views, breakdowns.attributes(run), strict=True))
    return {
        "round": int(state.round),
        "positive": run.splits.positive,
        "threshold": files.number(full.threshold),
        "pooled": full.with_intervals(0, 0),
        "tiers": [_tier_entry(figures, tier) for tier in range(len(run.budget))],
        "clients": client_entries,
        "over_clients": headlines.client_spread(client_entries, client_headlines),
        "headlines": client_headlines.entry(),
        "groups": {
            attribute.name: {
                value: _group_entry(figures, view, group)
                for group, value in enumerate(attribute.values)
            }
            for view, attribute in attributes.items()
        },
        "gaps": {
            attribute.name: full.gaps(view) for view, attribute in attributes.items()
        },
        "calibration": list(_bins(full.value[0].plot)),
        "not_estimated": dict(sorted(full.missing.items())),
    }


def _tier_entry(figures: _ModelFigures, tier: int) -> dict[str, Any]:
    """The full model and the tier's own sub-model on the tier's records."""
    by_tier, submodel = figures.records.tier_view, figures.submodels[tier]
    head = {"tier": tier, "n": figures.records.segment_stats[by_tier][tier].n}
    threshold = {"threshold": files.number(submodel.threshold)}
    submodel_entry = threshold | submodel.point_estimates(by_tier, tier)
    full_entry = figures.full.point_estimates(by_tier, tier)
    return head | full_entry | {"own": submodel_entry}


def _client_entry(figures: _ModelFigures, client: int) -> dict[str, Any]:
    by_client = figures.records.client_view
    name = figures.run.splits.clients[client]
    head = {"client": name, "tier": int(figures.tiers[client])}
    head["n"] = figures.records.segment_stats[by_client][client].n
    return head | figures.full.point_estimates(by_client, client)


def _group_entry(figures: _ModelFigures, view: int, group: int) -> dict[str, Any]:
    stats = figures.records.segment_stats[view][group]
    head = {"n": stats.n, "positives": stats.positives}
    return head | figures.full.with_intervals(view, group)


def _bins(plot: calibration.Reliability) -> Iterator[Mapping[str, Any]]:
    """The calibration plot of all records, without empty bins."""
    for predicted, observed, n in zip(*plot, strict=True):
        if n:
            yield {
                "predicted": files.number(predicted),
                "observed": files.number(observed),
                "n": int(n),
            }
