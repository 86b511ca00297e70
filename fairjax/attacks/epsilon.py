"""A lower bound on epsilon from runs with and without a canary.

A mechanism that is (epsilon, delta)-private lets no test of "is the canary in?" have
false positives alpha and false negatives beta other than

    alpha + exp(epsilon) beta >= 1 - delta,    beta + exp(epsilon) alpha >= 1 - delta.

So rates that are observed bound epsilon from below,

    epsilon >= log max((1 - delta - beta) / alpha, (1 - delta - alpha) / beta),

here with Clopper-Pearson upper bounds of both rates, each at half of what the
confidence leaves open. A test is a statistic of what was observed and a threshold: both
are chosen on one half of the runs and judged on the other. A bound above the
accountant's epsilon shows that something is wrong; one below shows nothing: n runs of a
kind cannot show more than `ceiling(n / 2)`, and this attack may be a poor one.

Source: Jagielski, Ullman and Oprea 2020, "Auditing differentially private machine
learning"; Kairouz, Oh and Viswanath 2015 for the two lines.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.stats import beta

from fairjax.core import require


class Bound(NamedTuple):
    """What an audit shows."""

    epsilon: float
    """Of the mechanism at least this, with the confidence asked for."""
    ceiling: float
    """The most that so many runs could have shown."""
    threshold: float
    """Scores above it are taken for runs with the canary."""
    false_positives: float
    """Share of the judged runs without the canary."""
    false_negatives: float
    """Share of the judged runs with it."""


def upper(
    count: Num[np.ndarray, "..."], number: int, level: float
) -> Float[np.ndarray, "..."]:
    """One-sided Clopper-Pearson bound of a probability: `count` of `number` came.

    It is exceeded with probability 1 - level at most.
    """
    count = np.asarray(count, float)
    short = np.maximum(number - count, 0.5)  # its value where all came is not used
    return np.where(count >= number, 1.0, beta.ppf(level, count + 1, short))


@functools.lru_cache
def _uppers(number: int, level: float) -> Float[np.ndarray, "counts"]:
    """`upper` of every count."""
    return upper(np.arange(number + 1), number, level)


def lower_epsilon(
    false_positives: Int[np.ndarray, "..."],
    false_negatives: Int[np.ndarray, "..."],
    number: int,
    *,
    delta: float,
    confidence: float,
) -> Float[np.ndarray, "..."]:
    """The bound for these counts, each of `number` runs; 0 if they show nothing."""
    table = _uppers(number, 1 - (1 - confidence) / 2)
    a, b = table[false_positives], table[false_negatives]
    odds = np.maximum((1 - delta - b) / a, (1 - delta - a) / b)
    return np.asarray(np.log(np.maximum(odds, 1.0)))


def ceiling(number: int, *, delta: float, confidence: float = 0.95) -> float:
    """The bound of a perfect attack on so many judged runs with and without."""
    none = np.zeros((), int)
    return float(lower_epsilon(none, none, number, delta=delta, confidence=confidence))


def statistics(
    inside: Float[np.ndarray, "runs F"], outside: Float[np.ndarray, "runs F"]
) -> tuple[Float[np.ndarray, "rest S"], Float[np.ndarray, "rest S"]]:
    """What a test may be of: every feature, and all in one direction, up and down.

    The direction is the difference of the means over the variances, the best one for
    features that are Gaussian and independent. It is that of the first third of the
    runs, and the statistics are of the rest: runs that it was fitted to would flatter
    it.
    """
    third = len(inside) // 3
    first = [np.asarray(each, float)[:third] for each in (inside, outside)]
    apart = first[0].mean(0) - first[1].mean(0)
    spread = (first[0].var(0) + first[1].var(0)) / 2
    # What never varies and yet differs tells everything.
    least = 1e-12 * np.maximum(apart**2, np.finfo(np.float32).tiny)
    direction = apart / np.maximum(spread, least)

    def columns(features: np.ndarray) -> np.ndarray:
        rest = np.asarray(features, float)[third:]
        along = np.stack([rest @ direction, *rest.T], axis=1)
        return np.concatenate([along, -along], axis=1)

    return columns(inside), columns(outside)


def bound(
    inside: Float[np.ndarray, "runs *S"],
    outside: Float[np.ndarray, "others *S"],
    *,
    delta: float,
    confidence: float = 0.95,
) -> Bound:
    """What scores of runs with and without a canary show, higher meaning "with".

    Args:
        inside: of runs with the canary, independent of each other; or several
            statistics, a column each, of which the one that shows most on the first
            half is judged on the other.
        outside: of as many runs without it.
        delta: at which epsilon is bounded.
        confidence: that epsilon is not smaller.

    Raises:
        InputError: fewer than two runs of a kind, unlike numbers of them, or a score
            that is not finite.
    """
    require.in_range("runs of an audit", len(inside), 2)
    if len(outside) != len(inside):
        require.fail("runs without the canary", f"{len(inside)}", len(outside))
    require.finite("scores", (np.asarray(inside), np.asarray(outside)))
    half = len(inside) // 2
    scores = [np.asarray(each).reshape(len(each), -1) for each in (inside, outside)]
    settings = {"delta": delta, "confidence": confidence}

    def judged(thresholds: np.ndarray, column: int, part: slice) -> tuple[Any, ...]:
        with_it, without = (np.sort(each[part, column]) for each in scores)
        missed = np.searchsorted(with_it, thresholds, side="right")
        wrong = len(without) - np.searchsorted(without, thresholds, side="right")
        shown = lower_epsilon(wrong, missed, len(with_it), **settings)
        return shown, wrong / len(without), missed / len(with_it)

    def chosen(column: int) -> tuple[float, float]:
        """(what the best threshold shows on the first half, that one)."""
        first = np.sort(np.concatenate([each[:half, column] for each in scores]))
        # Between two scores: none of the other half ties with it.
        thresholds = first[1:] / 2 + first[:-1] / 2
        shown = judged(thresholds, column, slice(half))[0]
        return float(np.max(shown)), float(thresholds[np.argmax(shown)])

    found = [chosen(column) for column in range(scores[0].shape[1])]
    best = max(range(len(found)), key=lambda column: found[column][0])
    threshold = found[best][1]
    shown, wrong, missed = judged(np.asarray([threshold]), best, slice(half, None))
    return Bound(
        float(shown[0]),
        ceiling(len(inside) - half, **settings),
        threshold,
        float(wrong[0]),
        float(missed[0]),
    )
