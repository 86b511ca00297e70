"""Comparison of many runs: a row per setting, with mean and interval over seeds."""

import csv
import io
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import scipy.special

from fairjax.core import require
from fairjax.report import formats, markup
from fairjax.report.canvas import Image
from fairjax.report.markup import Section
from fairjax.report.run import Run, input_errors, read_run

METRICS = (
    "eval/accuracy",
    "eval/auroc",
    "eval/accuracy/client_mean",
    "eval/accuracy/client_worst",
    "eval/accuracy/tier_gap",
    "eval/accuracy/tier_0/own",
)
"""The default columns; the last is the sub-model accuracy of the smallest tier."""


class Group(NamedTuple):
    """Runs that differ only in the seed."""

    settings: dict[str, Any]
    """Values of the fields in which groups differ; None where a run lacks the field."""
    runs: list[Run]
    """Ordered by seed."""

    @property
    def name(self) -> str:
        """The values of the settings, or "all runs" where there is only one group."""
        return ", ".join(map(formats.plain, self.settings.values())) or "all runs"


class Comparison(NamedTuple):
    """Runs in groups of equal settings."""

    fields: list[str]
    """Dotted names of the config fields in which groups differ."""
    groups: list[Group]
    unfinished: list[pathlib.Path]
    """Folders of unfinished runs, which are left out of the groups."""


class Summary(NamedTuple):
    """A figure over the seeds of a group; None for what is unknown."""

    mean: float | None
    low: float | None
    high: float | None
    """`low` and `high` are None for a single value."""
    n: int
    """The number of seeds whose value is known."""


def extremes(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value."""
    return min(values), max(values)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean by Student's t.

        mean ± t(0.975, n - 1) s / sqrt(n),  s with divisor n - 1

    Args:
        values: at least two values.
    """
    n, mean = len(values), statistics.fmean(values)
    quantile = float(scipy.special.stdtrit(n - 1, 0.975))
    half_width = quantile * statistics.stdev(values) / math.sqrt(n)
    return mean - half_width, mean + half_width


INTERVALS: dict[str, tuple[Callable[[Sequence[float]], tuple[float, float]], str]] = {
    "range": (extremes, "lowest to highest"),
    "t": (student_interval, "95 % confidence interval of the mean by Student's t"),
}
"""Name -> (function of at least two values, description)."""


def read_runs(folders: Iterable[str | os.PathLike[str]]) -> Comparison:
    """Reads runs and groups them by the fields in which they differ beside the seed.

    Args:
        folders: folders of runs, or folders that contain such folders.

    Raises:
        InputError: there is no finished run, a file cannot be read, or two runs have
            the same config and seed, so that one result would count twice.
    """
    runs, unfinished = [], []
    for path in dict.fromkeys(_run_folders(folders)):
        run = read_run(path)
        runs += [run] if run.finished else []
        unfinished += [] if run.finished else [path]
    if not runs:
        require.fail(
            "--workdir", "a finished run", f"{len(unfinished)} unfinished ones"
        )
    configs = [_settings(run) for run in runs]
    paths = dict.fromkeys(path for config in configs for path in config)
    fields = [
        path
        for path in paths
        if any(config.get(path) != configs[0].get(path) for config in configs)
    ]
    groups: list[Group] = []
    for run, config in zip(runs, configs, strict=True):
        settings = {field: config.get(field) for field in fields}
        group = next((g for g in groups if g.settings == settings), None)
        if group is None:
            group = Group(settings, [])
            groups.append(group)
        for earlier_run in group.runs:
            if earlier_run.config.get("seed") == run.config.get("seed"):
                duplicates = f"{earlier_run.workdir} and {run.workdir}"
                require.fail("--workdir", "every config and seed once", duplicates)
        group.runs.append(run)
    for group in groups:
        group.runs.sort(key=lambda run: run.config.get("seed", 0))
    return Comparison(fields, groups, unfinished)


def summarise(values: Iterable[float | None], interval: str) -> Summary:
    """Mean and interval of the known values.

    Args:
        values: one per seed, None where it is unknown.
        interval: one of `INTERVALS`.

    Raises:
        InputError: the interval is unknown.
    """
    function, _ = INTERVALS[require.one_of("--interval", interval, INTERVALS)]
    numbers = [float(value) for value in values if value is not None]
    if not numbers:
        return Summary(None, None, None, 0)
    mean = statistics.fmean(numbers)
    if len(numbers) == 1:
        return Summary(mean, None, None, 1)
    return Summary(mean, *function(numbers), len(numbers))


def summaries(
    comparison: Comparison, keys: Sequence[str], interval: str
) -> list[list[Summary]]:
    """The summaries of some figures: a list per group, a summary per key.

    Args:
        comparison: see `read_runs`.
        keys: keys of metrics.jsonl at the last evaluated round, or dotted paths into
            summary.json, see `Run.figures`.
        interval: one of `INTERVALS`.

    Raises:
        InputError: there is no key, or no run has one of the keys.
    """
    if not keys:
        require.fail("--metrics", "at least one key", "")
    choices = dict.fromkeys(
        key for group in comparison.groups for run in group.runs for key in run.figures
    )
    for key in keys:
        if key not in choices:
            raise require.InputError(
                f"--metrics: expected a key of metrics.jsonl or a path into "
                f"summary.json; got {key!r}{require.suggestion(key, choices)}"
            )
    return [
        [
            summarise((run.figures.get(key) for run in group.runs), interval)
            for key in keys
        ]
        for group in comparison.groups
    ]


@input_errors("--workdir")
def markdown(comparison: Comparison, keys: Sequence[str], interval: str) -> str:
    """A Markdown table, and a line that explains its intervals.

    Args:
        comparison: see `read_runs`.
        keys: see `summaries`.
        interval: one of `INTERVALS`.
    """
    heads, rows = _cells(comparison, keys, interval)

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = "|" + "---|" * len(comparison.fields) + "--:|" * (1 + len(keys))
    notes = " ".join([_interval_note(interval), *_privacy_notes(comparison)])
    return "\n".join([line(heads), rule, *map(line, rows), "", notes])


@input_errors("--workdir")
def table(comparison: Comparison, keys: Sequence[str], interval: str) -> str:
    """The table as CSV in full precision: mean, low, high and n of every key.

    Args:
        comparison: see `read_runs`.
        keys: see `summaries`.
        interval: one of `INTERVALS`.
    """
    columns = [
        f"{key} {statistic}"
        for key in keys
        for statistic in ("mean", "low", "high", "n")
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*comparison.fields, "seeds", *columns])
    summary_rows = summaries(comparison, keys, interval)
    for group, row in zip(comparison.groups, summary_rows, strict=True):
        settings = [formats.plain(value) for value in group.settings.values()]
        figures = [statistic for summary in row for statistic in summary]
        writer.writerow([*settings, _seeds(group), *figures])
    return text.getvalue()


def render(
    comparison: Comparison,
    images: Sequence[Image],
    keys: Sequence[str],
    interval: str,
    title: str,
) -> str:
    """The HTML of a page about many runs.

    Args:
        comparison: see `read_runs`.
        images: figures of the section "Fairness and accuracy".
        keys: columns of the table, see `summaries`.
        interval: one of `INTERVALS`.
        title: the heading of the page.
    """
    heads, rows = _cells(comparison, keys, interval)
    runs = [run for group in comparison.groups for run in group.runs]
    header = markup.paragraph(
        f"{len(runs)} runs of {len(comparison.groups)} settings. "
        f"{_interval_note(interval)}"
    )
    header += "".join(map(markup.paragraph, _privacy_notes(comparison)))
    if comparison.unfinished:
        names = ", ".join(path.name for path in comparison.unfinished)
        header += markup.paragraph(f"Left out because they are unfinished: {names}.")
    if diverged_names := [run.workdir.name for run in runs if run.diverged]:
        header += markup.paragraph(
            f"Diverged, but included: {', '.join(diverged_names)}."
        )
    caption = "After the last round; keys as in metrics.jsonl and summary.json."
    provenance_rows = [
        [run.workdir.name, formats.plain(run.provenance.get("git_revision"))]
        for run in runs
    ]
    revision = "git revision"
    provenance_table = markup.table(
        "The code of every run.", ["folder", revision], provenance_rows, revision
    )
    sections = [
        Section("frontier", "Fairness and accuracy", markup.figures(images)),
        Section("table", "All settings", markup.table(caption, heads, rows)),
        Section("runs", "Runs", provenance_table),
    ]
    return markup.document(title, header, sections)


def _run_folders(folders: Iterable[str | os.PathLike[str]]) -> Iterable[pathlib.Path]:
    """The folders of runs, in order; the folder of a run is not searched for others."""
    for folder in map(pathlib.Path, folders):
        if (folder / "config.json").exists():
            yield folder
            continue
        run_folders = sorted(path.parent for path in folder.glob("*/config.json"))
        if not run_folders:
            require.fail("--workdir", "a run or a folder of runs", str(folder))
        yield from run_folders


def _settings(run: Run) -> dict[str, Any]:
    """The config fields that may change a run's result, without the seed."""
    config = markup.flatten(run.config)
    return {
        path: value
        for path, value in config.items()
        if path != "seed" and not path.startswith("checkpoint.")
    }


def _cells(
    comparison: Comparison, keys: Sequence[str], interval: str
) -> tuple[list[str], list[list[str]]]:
    heads = [*comparison.fields, "seeds", *keys]
    rows = []
    summary_rows = summaries(comparison, keys, interval)
    for group, row in zip(comparison.groups, summary_rows, strict=True):
        settings = [formats.plain(value) for value in group.settings.values()]
        cells = [_format_summary(summary, len(group.runs)) for summary in row]
        rows.append([*settings, _seeds(group), *cells])
    return heads, rows


def _format_summary(summary: Summary, seeds: int) -> str:
    mean, low, high = map(formats.figure, summary[:3])
    notes = [f"{low}{formats.MISSING}{high}"] if summary.low is not None else []
    if 0 < summary.n < seeds:
        notes.append(f"{summary.n} of {seeds} seeds")
    return f"{mean} ({'; '.join(notes)})" if notes else mean


def _seeds(group: Group) -> str:
    return " ".join(formats.plain(run.config.get("seed")) for run in group.runs)


def _privacy_notes(comparison: Comparison) -> list[str]:
    """A warning that choosing among runs costs privacy; [] if no run is private."""
    guarantees = [
        run.summary.get("privacy") or {}
        for group in comparison.groups
        for run in group.runs
    ]
    units = sorted(
        {str(guarantee["of"]) for guarantee in guarantees if guarantee.get("of")}
    )
    if not units:
        return []
    return [
        f"Epsilon is of one run by itself, and of {' or of '.join(units)}; the "
        "summary.json of each run says what it covers. Choosing one of several runs on "
        "the same records by its figures spends the epsilon of all of them, which adds "
        "up."
    ]


def _interval_note(interval: str) -> str:
    _, words = INTERVALS[interval]
    return f"Mean over seeds; in brackets: {words}."
