"""Shared parts of experiments on methods and seeds: results files, claims and pages."""

import contextlib
import fcntl
import functools
import json
import operator
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from configs import default
from fairjax.experiment import summary
from fairjax.experiment.config import conversion
from fairjax.experiment.io import preemption
from fairjax.experiment.io.workdir import provenance

SELECT = "balanced_accuracy"
"""The selection metric of all experiments, independent of the config's default."""
END = "<!-- end -->"
"""The marker at the end of a section of a page."""

Figure = Callable[[Any], float]
"""The measurements of all methods with one seed -> a figure."""


def changes(config: Any) -> dict[str, Any]:
    """The fields, with values, in which a config differs from configs/default.py."""
    fields, defaults = (
        conversion.to_plain(config),
        conversion.to_plain(default.get_config()),
    )
    return {
        path: functools.reduce(operator.getitem, path.split("."), fields)
        for path in conversion.differences(fields, defaults)
    }


def surroundings() -> dict[str, Any]:
    """The versions, device and machine on which figures depend."""
    origin = provenance()
    return {name: origin[name] for name in ("versions", "device", "machine")}


def load_runs(path: pathlib.Path, setup: Mapping[str, Any]) -> Any:
    """The runs of a results file; None if it is missing or was made with another setup.

    Args:
        path: the results file.
        setup: keys and values that the file must have.
    """
    if not path.exists():
        return None
    results, setup = json.loads(path.read_text()), json.loads(json.dumps(setup))
    if any(results.get(name) != value for name, value in setup.items()):
        return None
    return results["runs"]


@contextlib.contextmanager
def temporary() -> Iterator[str]:
    """A temporary folder that is removed even if a signal ends the process."""
    with tempfile.TemporaryDirectory() as folder:
        remove = functools.partial(shutil.rmtree, folder, ignore_errors=True)
        with preemption.leaving(remove):
            yield folder


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock on a folder among the processes that ask for it."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def without_intervals() -> Iterator[None]:
    """Reduces the resamples of final figures to two, where intervals are not used.

    Estimating the intervals could take longer than the run.
    """
    resamples, summary.RESAMPLES = summary.RESAMPLES, 2
    try:
        yield
    finally:
        summary.RESAMPLES = resamples


def extent(values: Sequence[float]) -> dict[str, float]:
    """Mean, lowest and highest value."""
    return {
        "mean": float(np.mean(values)),
        "lowest": min(values),
        "highest": max(values),
    }


def judge(
    claims: Mapping[str, tuple[Figure, Figure]], seeds: Sequence[Any]
) -> list[dict[str, Any]]:
    """The two figures of every claim "A > B" per seed, and whether all seeds agree."""
    verdicts = []
    for claim, pair in claims.items():
        numbers = [[figure(seed) for figure in pair] for seed in seeds]
        is_shown = all(a > b for a, b in numbers)
        verdicts.append({"claim": claim, "shown": is_shown, "numbers": numbers})
    return verdicts


def margin(claim: Mapping[str, Any]) -> float:
    """The smallest A - B over the seeds."""
    return min(a - b for a, b in claim["numbers"])


def _smallest(claim: Mapping[str, Any]) -> str:
    return f" (smallest difference {margin(claim):.3f})"


def verdicts(
    claims: Sequence[Mapping[str, Any]],
    seeds: int,
    not_asserted: Sequence[str] = (),
    suffix: Callable[[Mapping[str, Any]], str] = _smallest,
) -> list[str]:
    """Lines that list the claims that are shown, not shown and not asserted.

    Args:
        claims: see `judge`.
        seeds: the number of seeds.
        not_asserted: claims that are not made, with the reason.
        suffix: makes the end of a claim's line, for instance its margin.
    """

    def claim_texts(is_shown: bool) -> list[str]:
        return [
            claim["claim"] + suffix(claim)
            for claim in claims
            if claim["shown"] is is_shown
        ]

    where = "at the one seed" if seeds == 1 else f"at each of {seeds} seeds"
    groups = {
        f"Shown {where}": claim_texts(True),
        "Not shown": claim_texts(False),
        "Not asserted": not_asserted,
    }
    return [f"{words}: {'; '.join(texts)}." for words, texts in groups.items() if texts]


def resolution(methods: Sequence[Sequence[float]]) -> float:
    """Half the width of a typical 95 % interval of a difference of two methods.

    It is the median over all pairs of methods of

        t(0.975, n - 1) s / sqrt(n)

    with s the standard deviation of the pair's differences over n >= 2 seeds.

    Args:
        methods: a figure of every method by seed; a method with a figure that is not
            finite is left out.
    """
    scores = np.array(methods, float)
    scores = scores[np.isfinite(scores).all(1)]
    first, second = np.triu_indices(len(scores), 1)
    deviations = np.std(scores[first] - scores[second], axis=1, ddof=1)
    number = scores.shape[1]
    factor = scipy.special.stdtrit(number - 1, 0.975) / np.sqrt(number)
    return float(factor * np.median(deviations))


def resolution_note(seeds: int, half: float) -> str:
    """A sentence on the difference that the seeds can resolve, see `resolution`."""
    return (
        f"{seeds} seeds tell two methods apart to about ±{half:.3f}, the median "
        "half-width of a 95 % interval over all pairs."
    )


def interval(values: Sequence[float]) -> str:
    """Mean, lowest and highest value as text."""
    return f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"  # noqa: RUF001


def fill(text: str, begin: str, body: str) -> str:
    """Replaces the text between the marker `begin` and the next `END` by `body`."""
    before, marker, remainder = text.partition(begin)
    assert marker, begin
    _, _, after = remainder.partition(END)
    return f"{before}{begin}\n\n{body}\n\n{END}{after}"
