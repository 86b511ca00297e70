"""A lower bound on epsilon from runs with and without a canary.

A mechanism that is (epsilon, delta)-private lets no test of "is the canary in?" have
false positives alpha and false negatives beta other than

    alpha + exp(epsilon) beta >= 1 - delta,    beta + exp(epsilon) alpha >= 1 - delta.

So rates that are observed bound epsilon from below,

    epsilon >= log max((1 - delta - beta) / alpha, (1 - delta - alpha) / beta),

here with Clopper-Pearson upper bounds of both rates, each at half of what the
confidence leaves open. The threshold is chosen on one half of the runs and judged on
the other. A bound above the accountant's epsilon shows that something is wrong; one
below shows nothing: n runs of a kind cannot show more than `ceiling(n / 2)`, and this
attack may be a poor one.

Source: Jagielski, Ullman and Oprea 2020, "Auditing differentially private machine
learning"; Kairouz, Oh and Viswanath 2015 for the two lines.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy.stats import beta

from fairjax import checks


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


def lower_epsilon(
    false_positives: Num[np.ndarray, "..."],
    false_negatives: Num[np.ndarray, "..."],
    number: int,
    *,
    delta: float,
    confidence: float,
) -> Float[np.ndarray, "..."]:
    """The bound for these counts, each of `number` runs; 0 if they show nothing."""
    level = 1 - (1 - confidence) / 2
    a, b = (upper(count, number, level) for count in (false_positives, false_negatives))

    odds = np.maximum((1 - delta - b) / a, (1 - delta - a) / b)
    return np.asarray(np.log(np.maximum(odds, 1.0)))


def ceiling(number: int, *, delta: float, confidence: float = 0.95) -> float:
    """The bound of a perfect attack on so many judged runs with and without."""
    none = np.zeros(())
    return float(lower_epsilon(none, none, number, delta=delta, confidence=confidence))


def bound(
    inside: Float[np.ndarray, "runs"],
    outside: Float[np.ndarray, "others"],
    *,
    delta: float,
    confidence: float = 0.95,
) -> Bound:
    """What scores of runs with and without a canary show, higher meaning "with".

    Args:
        inside: of runs with the canary, independent of each other.
        outside: of as many runs without it.
        delta: at which epsilon is bounded.
        confidence: that epsilon is not smaller.

    Raises:
        InputError: fewer than two runs of a kind, unlike numbers of them, or a score
            that is not finite.
    """
    checks.in_range("runs of an audit", len(inside), 2)
    if len(outside) != len(inside):
        checks.fail("runs without the canary", f"{len(inside)}", len(outside))
    checks.finite("scores", (np.asarray(inside), np.asarray(outside)))
    half = len(inside) // 2
    settings = {"delta": delta, "confidence": confidence}

    def judged(thresholds: np.ndarray, part: slice) -> tuple[np.ndarray, ...]:
        with_it, without = (np.sort(np.asarray(s)[part]) for s in (inside, outside))
        missed = np.searchsorted(with_it, thresholds, side="right")
        wrong = len(without) - np.searchsorted(without, thresholds, side="right")
        shown = lower_epsilon(wrong, missed, len(with_it), **settings)
        return shown, wrong / len(without), missed / len(with_it)

    first = np.concatenate([inside[:half], outside[:half]])
    thresholds = np.sort(first)
    # Between two scores: none of the other half ties with it.
    thresholds = (thresholds[1:] + thresholds[:-1]) / 2
    best = thresholds[np.argmax(judged(thresholds, slice(half))[0])]
    shown, wrong, missed = judged(best[None], slice(half, None))
    return Bound(
        float(shown[0]),
        ceiling(len(inside) - half, **settings),
        float(best),
        float(wrong[0]),
        float(missed[0]),
    )
