"""Many runs side by side: a row per setting, mean and interval over seeds."""

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
from fairjax.report.run import Run, of_a_run
from fairjax.report.run import read as read_run

METRICS = (
    "eval/accuracy",
    "eval/auroc",
    "eval/accuracy/client_mean",
    "eval/accuracy/client_worst",
    "eval/accuracy/tier_gap",
    "eval/accuracy/tier_0/own",
)
"""What a table shows unless it is told; the last is what the poorest hospitals get."""


class Group(NamedTuple):
    """Runs that differ in nothing but the seed."""

    settings: dict[str, Any]
    """The fields in which the groups differ; a run without such a field has None."""
    runs: list[Run]
    """By seed."""

    @property
    def name(self) -> str:
        """The settings' values."""
        return ", ".join(map(formats.plain, self.settings.values())) or "all runs"


class Comparison(NamedTuple):
    """What there is to compare."""

    fields: list[str]
    groups: list[Group]
    unfinished: list[pathlib.Path]
    """Left out: their last evaluated round is not that of the others."""


class Summary(NamedTuple):
    """A figure over the seeds of a group; None where nothing is known."""

    mean: float | None
    low: float | None
    high: float | None
    """No interval for a single value."""
    known: int


def extremes(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value."""
    return min(values), max(values)


def student(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean by Student's t.

        mean ± t(0.975, n - 1) s / sqrt(n),  s with divisor n - 1

    of at least two values.
    """
    n, mean = len(values), statistics.fmean(values)
    quantile = float(scipy.special.stdtrit(n - 1, 0.975))
    half = quantile * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


INTERVALS: dict[str, tuple[Callable[[Sequence[float]], tuple[float, float]], str]] = {
    "range": (extremes, "lowest to highest"),
    "t": (student, "95 % confidence interval of the mean by Student's t"),
}
"""Name -> (function of at least two values, what it is called)."""


def read(folders: Iterable[str | os.PathLike[str]]) -> Comparison:
    """Reads runs and groups them by the fields in which they differ beside the seed.

    Args:
        folders: of runs, or of folders of runs.

    Raises:
        InputError: a folder without a finished run, a file that cannot be read, or two
            runs of one config and seed, which would count one result twice.
    """
    runs, unfinished = [], []
    for path in dict.fromkeys(_runs(folders)):
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
        for other in group.runs:
            if other.config.get("seed") == run.config.get("seed"):
                twins = f"{other.workdir} and {run.workdir}"
                require.fail("--workdir", "every config and seed once", twins)
        group.runs.append(run)
    for group in groups:
        group.runs.sort(key=lambda run: run.config.get("seed", 0))
    return Comparison(fields, groups, unfinished)


def summarise(values: Iterable[float | None], interval: str) -> Summary:
    """Mean and interval of what is known.

    Args:
        values: one per seed, None where it is not known.
        interval: one of `INTERVALS`.
    """
    function, _ = INTERVALS[require.one_of("--interval", interval, INTERVALS)]
    known = [float(value) for value in values if value is not None]
    if not known:
        return Summary(None, None, None, 0)
    mean = statistics.fmean(known)
    if len(known) == 1:
        return Summary(mean, None, None, 1)
    return Summary(mean, *function(known), len(known))


def summaries(
    comparison: Comparison, keys: Sequence[str], interval: str
) -> list[list[Summary]]:
    """For every group the summaries of some figures.

    Args:
        comparison: see `read`.
        keys: of metrics.jsonl (with a slash) at the last evaluated round, or dotted
            paths into summary.json, as `Run.figure` takes them.
        interval: one of `INTERVALS`.

    Raises:
        InputError: no key, or one that no run has.
    """
    if not keys:
        require.fail("--metrics", "at least one key", "")
    known = dict.fromkeys(
        key for group in comparison.groups for run in group.runs for key in run.figures
    )
    for key in keys:
        if key not in known:
            raise require.InputError(
                f"--metrics: expected a key of metrics.jsonl or a path into "
                f"summary.json; got {key!r}{require.nearest(key, known)}"
            )
    return [
        [
            summarise((run.figures.get(key) for run in group.runs), interval)
            for key in keys
        ]
        for group in comparison.groups
    ]


@of_a_run("--workdir")
def markdown(comparison: Comparison, keys: Sequence[str], interval: str) -> str:
    """A Markdown table, and a line that says what its intervals are."""
    heads, rows = _cells(comparison, keys, interval)

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = "|" + "---|" * len(comparison.fields) + "--:|" * (1 + len(keys))
    notes = " ".join([_note(interval), *_privacy(comparison)])
    return "\n".join([line(heads), rule, *map(line, rows), "", notes])


@of_a_run("--workdir")
def table(comparison: Comparison, keys: Sequence[str], interval: str) -> str:
    """The same table as CSV in full precision: mean, low, high and n of every key."""
    columns = [f"{key} {part}" for key in keys for part in ("mean", "low", "high", "n")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*comparison.fields, "seeds", *columns])
    found = summaries(comparison, keys, interval)
    for group, row in zip(comparison.groups, found, strict=True):
        settings = [formats.plain(value) for value in group.settings.values()]
        figures = [part for summary in row for part in summary]
        writer.writerow([*settings, _seeds(group), *figures])
    return text.getvalue()


def render(
    comparison: Comparison,
    images: Sequence[Image],
    keys: Sequence[str],
    interval: str,
    title: str,
) -> str:
    """The page of many runs as text."""
    heads, rows = _cells(comparison, keys, interval)
    runs = [run for group in comparison.groups for run in group.runs]
    header = markup.paragraph(
        f"{len(runs)} runs of {len(comparison.groups)} settings. {_note(interval)}"
    )
    header += "".join(map(markup.paragraph, _privacy(comparison)))
    if comparison.unfinished:
        names = ", ".join(path.name for path in comparison.unfinished)
        header += markup.paragraph(f"Left out, for they are unfinished: {names}.")
    if diverged := [run.workdir.name for run in runs if run.diverged]:
        header += markup.paragraph(f"Diverged, and counted: {', '.join(diverged)}.")
    caption = "After the last round; keys as in metrics.jsonl and summary.json."
    listed = [
        [run.workdir.name, formats.plain(run.provenance.get("git_revision"))]
        for run in runs
    ]
    revision = "git revision"
    made = markup.table("From which code.", ["folder", revision], listed, revision)
    sections = [
        Section("frontier", "Fairness and accuracy", markup.figures(images)),
        Section("table", "All settings", markup.table(caption, heads, rows)),
        Section("runs", "Runs", made),
    ]
    return markup.document(title, header, sections)


def _runs(folders: Iterable[str | os.PathLike[str]]) -> Iterable[pathlib.Path]:
    """The folders of runs, in order; inside a run none is looked for."""
    for folder in map(pathlib.Path, folders):
        if (folder / "config.json").exists():
            yield folder
            continue
        inside = sorted(path.parent for path in folder.glob("*/config.json"))
        if not inside:
            require.fail("--workdir", "a run or a folder of runs", str(folder))
        yield from inside


def _settings(run: Run) -> dict[str, Any]:
    """What may change a run's result, beside the seed."""
    config = markup.flat(run.config)
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
    found = summaries(comparison, keys, interval)
    for group, row in zip(comparison.groups, found, strict=True):
        settings = [formats.plain(value) for value in group.settings.values()]
        cells = [_shown(summary, len(group.runs)) for summary in row]
        rows.append([*settings, _seeds(group), *cells])
    return heads, rows


def _shown(summary: Summary, seeds: int) -> str:
    mean, low, high = map(formats.figure, summary[:3])
    notes = [f"{low}{formats.MISSING}{high}"] if summary.low is not None else []
    if 0 < summary.known < seeds:
        notes.append(f"{summary.known} of {seeds} seeds")
    return f"{mean} ({'; '.join(notes)})" if notes else mean


def _seeds(group: Group) -> str:
    return " ".join(formats.plain(run.config.get("seed")) for run in group.runs)


def _privacy(comparison: Comparison) -> list[str]:
    """What epsilons of runs do not say of a choice among them."""
    told = [
        run.summary.get("privacy") or {}
        for group in comparison.groups
        for run in group.runs
    ]
    whom = sorted({str(each["of"]) for each in told if each.get("of")})
    if not whom:
        return []
    return [
        f"Epsilon is of one run by itself, and of {' or of '.join(whom)}; summary.json "
        "of each says what it covers. Whoever picks one of several runs on the same "
        "records by its figures spends what all of them do, which adds up."
    ]


def _note(interval: str) -> str:
    _, words = INTERVALS[interval]
    return f"Mean over seeds; in brackets: {words}."
