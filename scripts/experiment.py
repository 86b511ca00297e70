"""What experiments on several methods and seeds share: records, claims and pages."""

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
from fairjax.experiment.config import validate
from fairjax.experiment.io import preemption
from fairjax.experiment.io.workdir import provenance

SELECT = "balanced_accuracy"
"""What the runs of experiments select their round by, whatever the default is."""
END = "<!-- end -->"
"""Ends a section of a page."""

Figure = Callable[[Any], float]
"""What was measured of every method, with one seed -> a figure."""


def changes(config: Any) -> dict[str, Any]:
    """The fields that a config changes in configs/default.py, with their values."""
    ours, theirs = validate.plain(config), validate.plain(default.get_config())
    return {
        path: functools.reduce(operator.getitem, path.split("."), ours)
        for path in validate.differences(ours, theirs)
    }


def surroundings() -> dict[str, Any]:
    """The versions and the machine that figures depend on."""
    made = provenance()
    return {name: made[name] for name in ("versions", "device", "machine")}


def continued(path: pathlib.Path, same: Mapping[str, Any]) -> Any:
    """The runs of a file of results; None if there is none, or it is not of `same`."""
    if not path.exists():
        return None
    old, same = json.loads(path.read_text()), json.loads(json.dumps(same))
    if any(old.get(name) != value for name, value in same.items()):
        return None
    return old["runs"]


@contextlib.contextmanager
def temporary() -> Iterator[str]:
    """A folder that is gone afterwards, also when a signal ends the process in here."""
    with tempfile.TemporaryDirectory() as folder:
        gone = functools.partial(shutil.rmtree, folder, ignore_errors=True)
        with preemption.leaving(gone):
            yield folder


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """No other process that asks for it reads or writes the folder meanwhile."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def without_intervals() -> Iterator[None]:
    """Those of the final figures, where none are kept, may take longer than a run."""
    before, summary.RESAMPLES = summary.RESAMPLES, 2
    try:
        yield
    finally:
        summary.RESAMPLES = before


def extent(values: Sequence[float]) -> dict[str, float]:
    """Mean, lowest and highest."""
    return {
        "mean": float(np.mean(values)),
        "lowest": min(values),
        "highest": max(values),
    }


def judge(
    claims: Mapping[str, tuple[Figure, Figure]], seeds: Sequence[Any]
) -> list[dict[str, Any]]:
    """Every claim "A > B" with its two figures per seed: shown if all seeds agree."""
    judged = []
    for claim, pair in claims.items():
        numbers = [[figure(seed) for figure in pair] for seed in seeds]
        shown = all(a > b for a, b in numbers)
        judged.append({"claim": claim, "shown": shown, "numbers": numbers})
    return judged


def margin(claim: Mapping[str, Any]) -> float:
    """The smallest A - B over the seeds."""
    return min(a - b for a, b in claim["numbers"])


def _smallest(claim: Mapping[str, Any]) -> str:
    return f" (smallest difference {margin(claim):.3f})"


def verdicts(
    claims: Sequence[Mapping[str, Any]],
    seeds: int,
    not_asserted: Sequence[str] = (),
    by: Callable[[Mapping[str, Any]], str] = _smallest,
) -> list[str]:
    """Lines that say which claims are shown, which are not, and what is not claimed.

    Args:
        claims: see `judge`.
        seeds: how many there are.
        not_asserted: what is said of claims that are not made.
        by: by how much a claim holds or not, which its line ends with.
    """

    def told(shown: bool) -> list[str]:
        return [made["claim"] + by(made) for made in claims if made["shown"] is shown]

    where = "at the one seed" if seeds == 1 else f"at each of {seeds} seeds"
    said = {
        f"Shown {where}": told(True),
        "Not shown": told(False),
        "Not asserted": not_asserted,
    }
    return [f"{words}: {'; '.join(texts)}." for words, texts in said.items() if texts]


def resolution(methods: Sequence[Sequence[float]]) -> float:
    """Half the width of a typical 95 % interval of a difference of two methods.

    The median over all pairs of methods of t(0.975, n - 1) s / sqrt(n), s the standard
    deviation of the pair's differences over n seeds, of which there are at least two.

    Args:
        methods: a figure of every method, seed by seed; a method with a figure that is
            not finite is left out.
    """
    scores = np.array(methods, float)
    scores = scores[np.isfinite(scores).all(1)]
    first, second = np.triu_indices(len(scores), 1)
    spread = np.std(scores[first] - scores[second], axis=1, ddof=1)
    number = scores.shape[1]
    factor = scipy.special.stdtrit(number - 1, 0.975) / np.sqrt(number)
    return float(factor * np.median(spread))


def told_apart(seeds: int, half: float) -> str:
    """What so many seeds can tell, as a sentence; see `resolution`."""
    return (
        f"{seeds} seeds tell two methods apart to about ±{half:.3f}, the median "
        "half-width of a 95 % interval over all pairs."
    )


def interval(values: Sequence[float]) -> str:
    """Mean, lowest and highest as text."""
    return f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"  # noqa: RUF001


def fill(text: str, begin: str, body: str) -> str:
    """The text with `body` between the marker `begin` and the next `END`."""
    before, found, rest = text.partition(begin)
    assert found, begin
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n\n{body}\n\n{END}{after}"
