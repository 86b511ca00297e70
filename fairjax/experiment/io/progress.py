"""The progress of a run on the terminal: a bar, or a plain line per evaluated round."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fairjax.experiment.io import preemption
from fairjax.report import formats

FIGURES = {"loss": "train/loss", "accuracy": "eval/accuracy", "auroc": "eval/auroc"}
"""{what a line calls it: key of metrics.jsonl}."""


@contextlib.contextmanager
def display(first: int, last: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """Gives a function (round, row of metrics.jsonl) that shows a finished round.

    A terminal shows a bar; elsewhere every evaluated round is a plain line.

    Args:
        first: the round that the run goes on from.
        last: the last round.
    """
    console = Console()
    # A terminal has room for one bar: runs beside others, in threads, have none.
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not console.is_terminal or not is_main_thread:

        def show(number: int, row: dict[str, Any]) -> None:
            if "eval/accuracy" in row:
                print(f"round {number}/{last}  {_line(row)}", flush=True)

        yield show
        return
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bar, preemption.leaving(bar.stop):
        task = bar.add_task("", total=last, completed=first, figures="")

        def show(number: int, row: dict[str, Any]) -> None:
            bar.update(task, completed=number, figures=_line(row))

        yield show


def _line(row: dict[str, Any]) -> str:
    figures = {name: row[key] for name, key in FIGURES.items() if key in row}
    return "  ".join(f"{name} {_text(value)}" for name, value in figures.items())


def _text(value: float | None) -> str:
    is_long = value is None or abs(value) >= 1e4
    return formats.decimal(value) if is_long else f"{value:.4f}"
