"""What people see of a run, or of many: a table, one line, figures and a page.

Everything is read from the files that a run leaves behind, so a report can be written
again at any time, on another computer, also for a run that was interrupted. A value
that is not known is shown as "–", never as 0.
"""

import os
import pathlib
from collections.abc import Iterable, Sequence

import rich.box
import rich.markup
import rich.table

from fairjax.metrics import divergence
from fairjax.report import comparison, figures, formats, frontier, page, privacy
from fairjax.report.lettering import drawing
from fairjax.report.run import Run, of_a_run, read

__all__ = [
    "Run", "cautions", "compare", "comparison", "headline", "promise", "read", "table",
    "write",
]  # fmt: skip


def table(workdir: str | os.PathLike[str]) -> rich.table.Table:
    """What every tier pays and gets, one row per tier, for a terminal.

    Args:
        workdir: folder of a finished or interrupted run.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read(workdir)
    with of_a_run(workdir):
        return _table(run)


def _table(run: Run) -> rich.table.Table:
    caption = (
        "traffic: bytes down and up, one hospital, one round. Accuracy: full model "
        "or the tier's own sub-model; local: mean over the tier's hospitals, "
        "pooled: all test records."
        + (f" {page.MARK} few test records." if run.small_tiers else "")
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
        result.add_row(
            f"{tier['tier']}{page.MARK if tier['tier'] in run.small_tiers else ''}",
            formats.plain(tier.get("budget")),
            formats.count(tier.get("clients")),
            formats.count(tier.get("parameters")),
            formats.si(run.traffic(tier), "B"),
            *accuracies,
        )
    return result


def headline(workdir: str | os.PathLike[str]) -> str:
    """The run in one line.

    Args:
        workdir: folder of a finished or interrupted run.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read(workdir)
    with of_a_run(workdir):
        parts = [
            f"{card.label} {card.value}" + (f" ({card.detail})" if card.detail else "")
            for card in page.cards(run)
        ]
    return ("" if run.finished else "unfinished: ") + ", ".join(parts)


def promise(workdir: str | os.PathLike[str]) -> list[str]:
    """What the run's epsilon says and what it does not; nothing without one.

    Args:
        workdir: folder of a finished run.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read(workdir)
    with of_a_run(workdir):
        return privacy.statement(run.summary.get("privacy") or {})


def cautions(workdir: str | os.PathLike[str]) -> list[str]:
    """What must be known beside the headline, a line each; most runs have none.

    Args:
        workdir: folder of a finished or interrupted run.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read(workdir)
    with of_a_run(workdir):
        said = page.cautions(run)
        return said if run.diverged is None else [*said, divergence.said(run.diverged)]


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `figures/*.png` and `report.html` into the run's folder.

    Everything is drawn before anything is written, and every file is replaced whole:
    who opens the page sees the old one or the new one.

    Args:
        workdir: folder of a finished or interrupted run.

    Returns:
        The path of the page.

    Raises:
        InputError: the folder holds no run, or one of its files cannot be read.
    """
    run = read(workdir)
    with of_a_run(workdir), drawing(_texts(run)):
        images = _images(run)
        html = page.render(run, images)
    path = run.workdir / "report.html"
    _publish(path, (image for drawn in images.values() for image in drawn), html)
    return path


def compare(
    workdirs: Iterable[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    metrics: Sequence[str] = comparison.METRICS,
    interval: str = "range",
) -> pathlib.Path:
    """Writes a page about many runs, and its figures into `figures/` beside it.

    Args:
        workdirs: folders of runs, or of folders of runs.
        path: of the page.
        metrics: columns of its table, see `comparison.summaries`.
        interval: over seeds, one of `comparison.INTERVALS`.

    Returns:
        `path`.

    Raises:
        InputError: there is nothing to compare, or a metric or interval is unknown.
    """
    path = pathlib.Path(path)
    found = comparison.read(workdirs)
    title = path.resolve().parent.name
    with of_a_run("--workdir"), drawing(group.name for group in found.groups):
        images = frontier.frontiers(found, interval)
        html = comparison.render(found, images, metrics, interval, title)
    _publish(path, images, html)
    return path


def _publish(path: pathlib.Path, images: Iterable[figures.Image], html: str) -> None:
    folder = path.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        _replace(folder / f"{image.name}.png", image.png)
    _replace(path, html.encode())


def _images(run: Run) -> dict[str, list[figures.Image]]:
    """Section of the page -> its figures."""
    return {
        "learning": figures.learning(run),
        "hospitals": figures.hospitals(run),
        "calibration": figures.calibration(run),
        "weights": figures.weights(run),
        "tiers": figures.tiers(run),
        "privacy": figures.privacy(run),
        "data": figures.data(run),
    }


def _texts(run: Run) -> list[str]:
    """Names in its figures that nobody here chose."""
    rows = [*run.clients, *run.hospitals]
    classes = (name for row in run.hospitals for name in row.get("classes") or ())
    return [*(str(row["client"]) for row in rows), *dict.fromkeys(classes)]


def _replace(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
