"""Reads the files of a run's folder, finished or not."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fairjax.core import require
from fairjax.metrics import divergence
from fairjax.report.formats import Number

Row = Mapping[str, Any]


class OneRecord(NamedTuple):
    """By how much the answer to one record moves a share of right answers."""

    pooled: float
    """Over all test records, or the validation records if these are fewer."""
    hospital: float
    """At the judged hospital with the fewest."""
    tier: float
    """As a mean over a tier's hospitals."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left behind so far."""

    workdir: pathlib.Path
    config: Row
    provenance: Row
    summary: Row
    """Empty before the run has ended; older than `metrics` in an extended run."""
    metrics: list[Row]
    """One row per finished round."""
    history: list[Row]
    """One row per evaluated round and client."""
    clients: list[Row]
    """Of the last evaluated round."""
    finished: bool
    final: Row
    """The last evaluated round's metrics."""
    tiers: list[Row]
    """From the smallest up; without costs before the run has ended."""
    attacks: list[Row]
    """Rows of attack.json, which scripts/attack.py writes; none without it."""

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(rounds, values) of the rounds where `key` is known."""
        rows = [row for row in self.metrics if row.get(key) is not None]
        return (
            np.array([row["round"] for row in rows], np.int64),
            np.array([row[key] for row in rows], np.float64),
        )

    def series_of(self, client: Any, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(rounds, values) of one client where `key` is known."""
        rows = [row for row in self.history if row["client"] == client]
        rows = [row for row in rows if row.get(key) is not None]
        return (
            np.array([row["round"] for row in rows], np.int64),
            np.array([row[key] for row in rows], np.float64),
        )

    @functools.cached_property
    def figures(self) -> dict[str, Number]:
        """Every number of a finished run by its key.

        Keys are those of metrics.jsonl at the last evaluated round and dotted paths
        into summary.json: "final.last.pooled.auroc.value", "tiers.0.bytes_up".
        """
        rest = {key: part for key, part in self.summary.items() if key != "metrics"}
        return _numbers(rest) | _numbers(self.final)

    @property
    def reported(self) -> list[tuple[str, Row]]:
        """(what it is called, final figures) at the last and at the selected round.

        One entry if they are the same round; none for a run that records no final
        figures, or whose summary is that of its shorter past.
        """
        final = self.summary.get("final") or {} if self.finished else {}
        last, selected = final.get("last"), final.get("selected")
        if not last:
            return []
        if selected and selected["round"] == last["round"]:
            return [(f"last and selected round, {last['round']}", last)]
        return [
            (f"{name} round, {figures['round']}", figures)
            for name, figures in (("last", last), ("selected", selected))
            if figures
        ]

    @property
    def diverged(self) -> Row | None:
        """Since when and why, see `divergence.diverged`; None if it has not."""
        return divergence.diverged(self.metrics)

    @property
    def notes(self) -> list[str]:
        """What to know before its figures are read, a sentence each."""
        return list(map(str, self.summary.get("notes") or ()))

    @property
    def hospitals(self) -> list[Row]:
        """What every hospital holds; nothing before the run has ended."""
        return list(self.summary.get("data", {}).get("hospitals") or ())

    @property
    def least(self) -> int:
        """Test records that a hospital or a tier needs to be a headline."""
        return self.config.get("min_test_records", 1)

    def small(self, row: Row) -> bool:
        """Whether a hospital of `clients` has fewer test records."""
        return row["n"] < self.least

    @property
    def small_tiers(self) -> list[int]:
        """Tiers that have hospitals, with fewer test records together."""
        records: dict[int, int] = {}
        for row in self.clients:
            records[row["tier"]] = records.get(row["tier"], 0) + row["n"]
        return sorted(tier for tier, n in records.items() if n < self.least)

    @property
    def headlines(self) -> Row:
        """Of the last round, see `headlines.Headlines`; {} before the run has ended."""
        return self.reported[0][1].get("headlines") or {} if self.reported else {}

    @property
    def by_accuracy(self) -> list[Row]:
        """The clients whose accuracy is known, worst first; those too small last."""
        known = [row for row in self.clients if row.get("accuracy") is not None]
        return sorted(
            known,
            key=lambda row: (self.small(row), row["accuracy"], str(row["client"])),
        )

    @property
    def judged(self) -> list[Row]:
        """The clients whose accuracy is known and a headline, worst first."""
        return [row for row in self.by_accuracy if not self.small(row)]

    @functools.cached_property
    def one_record(self) -> "OneRecord":
        """What one record can move, by the counts of the last evaluated round."""
        rows = [row for row in self.clients if row["n"]]
        counts = [row["n"] for row in rows if not self.small(row)]
        counts = counts or [row["n"] for row in rows]
        tiers: dict[int, list[int]] = {}
        for row in rows:
            tiers.setdefault(row["tier"], []).append(row["n"])
        tested = sum(row["n"] for row in rows)
        validated = self.summary.get("data", {}).get("rows", {}).get("val") or tested
        return OneRecord(
            pooled=1 / min(tested, validated) if rows else 0.0,
            hospital=1 / min(counts, default=1) if rows else 0.0,
            tier=max((1 / (min(n) * len(n)) for n in tiers.values()), default=0.0),
        )

    def tier_accuracies(self, tier: Row) -> tuple[Number, ...]:
        """(full model on its clients, own sub-model on them, own sub-model pooled)."""
        t = tier["tier"]
        names = (f"tier_{t}", f"tier_{t}/own", f"submodel_{t}")
        return tuple(self.final.get(f"eval/accuracy/{name}") for name in names)

    def traffic(self, tier: Row) -> Number:
        """Bytes down and up of one client in one round."""
        down, up = tier.get("bytes_down"), tier.get("bytes_up")
        return None if down is None or up is None else down + up


@contextlib.contextmanager
def of_a_run(where: object) -> Iterator[None]:
    """JSON that is valid and yet not what a run leaves is one line.

    Raises:
        InputError: whatever misses its key or its kind inside.
    """
    try:
        yield
    except require.InputError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        what = f"the files of a run; got {type(error).__name__}: {error}"
        raise require.InputError(f"{where}: expected {what}") from error


def read(workdir: str | os.PathLike[str]) -> Run:
    """Reads a run's folder.

    Raises:
        InputError: there is no `config.json`, or a file is not what a run leaves.
    """
    with of_a_run(workdir):
        return _read(pathlib.Path(workdir))


def _read(workdir: pathlib.Path) -> Run:
    config = _object(workdir / "config.json")
    if not config:
        require.fail(f"{workdir}", "a run's folder with a config.json", "none")
    summary = _object(workdir / "summary.json")
    metrics = _rows(workdir / "metrics.jsonl")
    last = metrics[-1]["round"] if metrics else None
    history = [
        row
        for row in _rows(workdir / "clients.jsonl")
        if last is not None and row["round"] <= last
    ]
    newest = max((row["round"] for row in history), default=None)
    clients = [row for row in history if row["round"] == newest]
    # A run that is being extended still has the summary of its shorter past.
    finished = (
        summary.get("metrics", {}).get("round") == last
        and last is not None
        and len(metrics) >= config.get("rounds", 0)
    )
    evaluated = [row for row in metrics if row.get("eval/accuracy") is not None]
    return Run(
        workdir=workdir,
        config=config,
        provenance=_object(workdir / "provenance.json"),
        summary=summary,
        metrics=metrics,
        history=history,
        clients=clients,
        finished=finished,
        final=evaluated[-1] if evaluated else {},
        tiers=list(summary.get("tiers") or _planned_tiers(config, clients)),
        attacks=_attacks(workdir / "attack.json"),
    )


def _planned_tiers(config: Row, clients: list[Row]) -> list[Row]:
    """What is known of the tiers before the summary is written."""
    planned = config.get("tiers", {})
    budgets = planned.get("budget") or ()
    branches = planned.get("branches") or [None] * len(budgets)
    members = [row["tier"] for row in clients]
    return [
        {
            "tier": tier,
            "budget": budget,
            "branches": slots,
            "clients": members.count(tier) if clients else None,
        }
        for tier, (budget, slots) in enumerate(zip(budgets, branches, strict=True))
    ]


def _numbers(value: Any, path: str = "") -> dict[str, Number]:
    """All numbers of nested mappings and lists by dotted path, with what is null."""
    if isinstance(value, Mapping | list):
        items = enumerate(value) if isinstance(value, list) else value.items()
        found: dict[str, Number] = {}
        for name, inner in items:
            found |= _numbers(inner, f"{path}.{name}" if path else str(name))
        return found
    known = value is None or isinstance(value, int | float)
    return {path: value} if known and not isinstance(value, bool) else {}


def _object(path: pathlib.Path) -> dict[str, Any]:
    """The file's object; an empty one before it is written."""
    if not path.exists():
        return {}
    return require.parsed(str(path), path.read_text(errors="replace"), dict)


def _rows(path: pathlib.Path) -> list[Row]:
    if not path.exists():
        return []
    return [*require.rows(str(path), path.read_text(errors="replace"))]


def _attacks(path: pathlib.Path) -> list[Row]:
    if not path.exists():
        return []
    return require.parsed(str(path), path.read_text(errors="replace"), list)
