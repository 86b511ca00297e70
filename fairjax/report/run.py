"""Reads the files in the folder of a finished or interrupted run."""

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


class Resolution(NamedTuple):
    """The change of an accuracy by the prediction for one record."""

    pooled: float
    """The change over all test records, or over the validation records if fewer."""
    client: float
    """The change at the smallest hospital that is large enough for a headline."""
    tier: float
    """The largest change of a mean over a tier's hospitals."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a run's folder."""

    workdir: pathlib.Path
    config: Row
    provenance: Row
    summary: Row
    """{} before the run has ended; older than `metrics` while a run is extended."""
    metrics: list[Row]
    """One row per finished round."""
    history: list[Row]
    """One row per evaluated round and client."""
    clients: list[Row]
    """The rows of `history` at the last evaluated round."""
    finished: bool
    final: Row
    """The metrics of the last evaluated round."""
    tiers: list[Row]
    """Tiers from the smallest up; without costs before the run has ended."""
    attacks: list[Row]
    """Rows of attack.json, which scripts/attack.py writes; [] without the file."""

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(rounds, values) of a metric in the rounds where it is known."""
        rows = [row for row in self.metrics if row.get(key) is not None]
        return (
            np.array([row["round"] for row in rows], np.int64),
            np.array([row[key] for row in rows], np.float64),
        )

    def series_of(self, client: Any, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(rounds, values) of one client's figure in the rounds where it is known."""
        rows = [row for row in self.history if row["client"] == client]
        rows = [row for row in rows if row.get(key) is not None]
        return (
            np.array([row["round"] for row in rows], np.int64),
            np.array([row[key] for row in rows], np.float64),
        )

    @functools.cached_property
    def figures(self) -> dict[str, Number]:
        """All numbers of a run by their keys.

        Keys are those of metrics.jsonl at the last evaluated round and dotted paths
        into summary.json: "final.last.pooled.auroc.value", "tiers.0.bytes_up".
        """
        summary = {
            key: value for key, value in self.summary.items() if key != "metrics"
        }
        return _numbers(summary) | _numbers(self.final)

    @property
    def final_rounds(self) -> list[tuple[str, Row]]:
        """(name, final figures) of the last and of the selected round.

        The list has one entry if they are the same round. It is empty for a run that
        records no final figures, or whose summary is older than its metrics.
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
        """The round and reason of divergence, see `divergence.find_divergence`."""
        return divergence.find_divergence(self.metrics)

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader of the figures must know."""
        return list(map(str, self.summary.get("notes") or ()))

    @property
    def client_counts(self) -> list[Row]:
        """Record counts of every hospital; [] before the run has ended."""
        return list(self.summary.get("data", {}).get("hospitals") or ())

    @property
    def min_test_records(self) -> int:
        """The test records that a hospital or tier needs to be in a headline."""
        return self.config.get("min_test_records", 1)

    def is_small(self, row: Row) -> bool:
        """Whether a row of `clients` has fewer test records than a headline needs."""
        return row["n"] < self.min_test_records

    @property
    def small_tiers(self) -> list[int]:
        """Tiers whose hospitals together have fewer test records than required."""
        records: dict[int, int] = {}
        for row in self.clients:
            records[row["tier"]] = records.get(row["tier"], 0) + row["n"]
        return sorted(tier for tier, n in records.items() if n < self.min_test_records)

    @property
    def headlines(self) -> Row:
        """Headlines of the last round, see `headlines.Headlines`; {} if unfinished."""
        return (
            self.final_rounds[0][1].get("headlines") or {} if self.final_rounds else {}
        )

    @property
    def by_accuracy(self) -> list[Row]:
        """Clients with a known accuracy, worst first, with small clients at the end."""
        rows = [row for row in self.clients if row.get("accuracy") is not None]
        return sorted(
            rows,
            key=lambda row: (self.is_small(row), row["accuracy"], str(row["client"])),
        )

    @property
    def ranked_clients(self) -> list[Row]:
        """Clients with a known accuracy and enough test records, worst first."""
        return [row for row in self.by_accuracy if not self.is_small(row)]

    @functools.cached_property
    def resolution(self) -> "Resolution":
        """How far one record can move accuracies at the last evaluated round."""
        rows = [row for row in self.clients if row["n"]]
        counts = [row["n"] for row in rows if not self.is_small(row)]
        counts = counts or [row["n"] for row in rows]
        tiers: dict[int, list[int]] = {}
        for row in rows:
            tiers.setdefault(row["tier"], []).append(row["n"])
        test_records = sum(row["n"] for row in rows)
        val_records = (
            self.summary.get("data", {}).get("rows", {}).get("val") or test_records
        )
        return Resolution(
            pooled=1 / min(test_records, val_records) if rows else 0.0,
            client=1 / min(counts, default=1) if rows else 0.0,
            tier=max((1 / (min(n) * len(n)) for n in tiers.values()), default=0.0),
        )

    def tier_accuracies(self, tier: Row) -> tuple[Number, ...]:
        """Accuracies of a tier at the last evaluated round.

        Returns:
            (full model on the tier's clients, own sub-model on the tier's clients, own
            sub-model on all test records).
        """
        t = tier["tier"]
        names = (f"tier_{t}", f"tier_{t}/own", f"submodel_{t}")
        return tuple(self.final.get(f"eval/accuracy/{name}") for name in names)

    def traffic(self, tier: Row) -> Number:
        """Bytes down plus bytes up of one client in one round; None if unknown."""
        bytes_down, bytes_up = tier.get("bytes_down"), tier.get("bytes_up")
        return None if bytes_down is None or bytes_up is None else bytes_down + bytes_up


@contextlib.contextmanager
def input_errors(where: object) -> Iterator[None]:
    """Turns errors from valid JSON of an unexpected form into an `InputError`.

    Args:
        where: the folder or flag that the message names.

    Raises:
        InputError: a key is missing or a value is of the wrong type inside the context.
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
        detail = f"the files of a run; got {type(error).__name__}: {error}"
        raise require.InputError(f"{where}: expected {detail}") from error


def read_run(workdir: str | os.PathLike[str]) -> Run:
    """Reads a run's folder.

    Raises:
        InputError: there is no `config.json`, or a file does not have the form that a
            run writes.
    """
    with input_errors(workdir):
        return _read_run(pathlib.Path(workdir))


def _read_run(workdir: pathlib.Path) -> Run:
    config = _read_object(workdir / "config.json")
    if not config:
        require.fail(f"{workdir}", "a run's folder with a config.json", "none")
    summary = _read_object(workdir / "summary.json")
    metrics = _read_rows(workdir / "metrics.jsonl")
    last_round = metrics[-1]["round"] if metrics else None
    history = [
        row
        for row in _read_rows(workdir / "clients.jsonl")
        if last_round is not None and row["round"] <= last_round
    ]
    evaluated_round = max((row["round"] for row in history), default=None)
    clients = [row for row in history if row["round"] == evaluated_round]
    # While a run is extended, its summary is still that of the shorter run.
    finished = (
        summary.get("metrics", {}).get("round") == last_round
        and last_round is not None
        and len(metrics) >= config.get("rounds", 0)
    )
    evaluated_rows = [row for row in metrics if row.get("eval/accuracy") is not None]
    return Run(
        workdir=workdir,
        config=config,
        provenance=_read_object(workdir / "provenance.json"),
        summary=summary,
        metrics=metrics,
        history=history,
        clients=clients,
        finished=finished,
        final=evaluated_rows[-1] if evaluated_rows else {},
        tiers=list(summary.get("tiers") or _planned_tiers(config, clients)),
        attacks=_read_attacks(workdir / "attack.json"),
    )


def _planned_tiers(config: Row, clients: list[Row]) -> list[Row]:
    """The tiers as the config defines them, for a run without a summary."""
    tier_config = config.get("tiers", {})
    budgets = tier_config.get("budget") or ()
    branches = tier_config.get("branches") or [None] * len(budgets)
    members = [row["tier"] for row in clients]
    return [
        {
            "tier": tier,
            "budget": budget,
            "branches": branch_count,
            "clients": members.count(tier) if clients else None,
        }
        for tier, (budget, branch_count) in enumerate(
            zip(budgets, branches, strict=True)
        )
    ]


def _numbers(value: Any, path: str = "") -> dict[str, Number]:
    """All numbers and nulls of nested mappings and lists, by dotted path."""
    if isinstance(value, Mapping | list):
        items = enumerate(value) if isinstance(value, list) else value.items()
        numbers: dict[str, Number] = {}
        for name, child in items:
            numbers |= _numbers(child, f"{path}.{name}" if path else str(name))
        return numbers
    is_number = value is None or isinstance(value, int | float)
    return {path: value} if is_number and not isinstance(value, bool) else {}


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object of a file; {} if there is no such file."""
    if not path.exists():
        return {}
    return require.parse_json(str(path), path.read_text(errors="replace"), dict)


def _read_rows(path: pathlib.Path) -> list[Row]:
    if not path.exists():
        return []
    return [*require.parse_log(str(path), path.read_text(errors="replace"))]


def _read_attacks(path: pathlib.Path) -> list[Row]:
    if not path.exists():
        return []
    return require.parse_json(str(path), path.read_text(errors="replace"), list)
