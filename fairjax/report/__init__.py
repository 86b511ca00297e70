"""Reports of one run or of many: a table, a headline, figures and an HTML page.

A report reads only the files in a run's folder. It can therefore be written again at
any time, on another computer, and for an interrupted run. An unknown value is shown
as "–", never as 0.
"""

import os
import pathlib
from collections.abc import Iterable, Sequence

import rich.box
import rich.markup
import rich.table

from fairjax.metrics import divergence
from fairjax.report import (
    cards,
    comparison,
    figures,
    formats,
    frontier_section,
    page,
    privacy_section,
)
from fairjax.report.lettering import font_context
from fairjax.report.run import Run, input_errors, read_run

__all__ = [
    "Run", "cautions", "compare", "comparison", "headline", "privacy_statement",
    "read_run", "table", "write",
]  # fmt: skip


def table(workdir: str | os.PathLike[str]) -> rich.table.Table:
    """Cost and accuracy of every tier, one row per tier, for a terminal.

    Args:
        workdir: folder of a finished or interrupted run.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read_run(workdir)
    with input_errors(workdir):
        return _table(run)


def _table(run: Run) -> rich.table.Table:
    caption = (
        "traffic: bytes down and up, one hospital, one round. Accuracy: full model "
        "or the tier's own sub-model; local: mean over the tier's hospitals, "
        "pooled: all test records."
        + (f" {formats.SMALL_MARK} few test records." if run.small_tiers else "")
    )
    result = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        caption="\n".join([caption, *map(rich.markup.escape, run.notes)]),
        caption_justify="left",
    )
    heads = ["tier", "budget", "hospitals", "parameters", "traffic"]
    heads += ["full\nlocal", "own\nlocal", "own\npooled"]
    for head in heads:
        result.add_column(head, justify="right", vertical="bottom")
    for tier in run.tiers:
        accuracies = (formats.percent(value) for value in run.tier_accuracies(tier))
        mark = formats.SMALL_MARK if tier["tier"] in run.small_tiers else ""
        result.add_row(
            f"{tier['tier']}{mark}",
            formats.plain(tier.get("budget")),
            formats.count(tier.get("clients")),
            formats.count(tier.get("parameters")),
            formats.si(run.traffic(tier), "B"),
            *accuracies,
        )
    return result


def headline(workdir: str | os.PathLike[str]) -> str:
    """The headline figures of a run in one line.

    Args:
        workdir: folder of a finished or interrupted run.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read_run(workdir)
    with input_errors(workdir):
        items = [
            f"{card.label} {card.value}" + (f" ({card.detail})" if card.detail else "")
            for card in cards.cards(run)
        ]
    return ("" if run.finished else "unfinished: ") + ", ".join(items)


def privacy_statement(workdir: str | os.PathLike[str]) -> list[str]:
    """Sentences on what the run's epsilon covers and what it does not cover.

    A run without a guarantee has none.

    Args:
        workdir: folder of a finished run.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read_run(workdir)
    with input_errors(workdir):
        return privacy_section.statement(run.summary.get("privacy") or {})


def cautions(workdir: str | os.PathLike[str]) -> list[str]:
    """Sentences that a reader of the headline must know; most runs have none.

    Args:
        workdir: folder of a finished or interrupted run.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read_run(workdir)
    with input_errors(workdir):
        sentences = cards.cautions(run)
        return (
            sentences
            if run.diverged is None
            else [*sentences, divergence.describe(run.diverged)]
        )


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `figures/*.png` and `report.html` into the run's folder.

    All figures are drawn before the first file is written, and every file is replaced
    atomically: a reader opens either the old page or the new one.

    Args:
        workdir: folder of a finished or interrupted run.

    Returns:
        The path of the page.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read_run(workdir)
    with input_errors(workdir), font_context(_texts(run)):
        images = _images(run)
        html = page.render(run, images)
    path = run.workdir / "report.html"
    _write_files(
        path,
        (image for section_images in images.values() for image in section_images),
        html,
    )
    return path


def compare(
    workdirs: Iterable[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    metrics: Sequence[str] = comparison.METRICS,
    interval: str = "range",
) -> pathlib.Path:
    """Writes a page that compares many runs, and its figures into `figures/`.

    Args:
        workdirs: folders of runs, or folders that contain such folders.
        path: the page's file; `figures/` is created beside it.
        metrics: the columns of the table, see `comparison.summaries`.
        interval: the interval over seeds, one of `comparison.INTERVALS`.

    Returns:
        `path`.

    Raises:
        InputError: there is nothing to compare, or a metric or interval is unknown.
    """
    path = pathlib.Path(path)
    grouped_runs = comparison.read_runs(workdirs)
    title = path.resolve().parent.name
    with (
        input_errors("--workdir"),
        font_context(group.name for group in grouped_runs.groups),
    ):
        images = frontier_section.frontiers(grouped_runs, interval)
        html = comparison.render(grouped_runs, images, metrics, interval, title)
    _write_files(path, images, html)
    return path


def _write_files(
    path: pathlib.Path, images: Iterable[figures.Image], html: str
) -> None:
    folder = path.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        _replace(folder / f"{image.name}.png", image.png)
    _replace(path, html.encode())


def _images(run: Run) -> dict[str, list[figures.Image]]:
    """The figures of the page by section."""
    return {
        "learning": figures.learning(run),
        "hospitals": figures.clients(run),
        "calibration": figures.calibration(run),
        "weights": figures.weights(run),
        "tiers": figures.tiers(run),
        "privacy": figures.privacy(run),
        "data": figures.data(run),
    }


def _texts(run: Run) -> list[str]:
    """Names of hospitals and classes in the figures, which may use any script."""
    rows = [*run.clients, *run.client_counts]
    classes = (name for row in run.client_counts for name in row.get("classes") or ())
    return [*(str(row["client"]) for row in rows), *dict.fromkeys(classes)]


def _replace(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
