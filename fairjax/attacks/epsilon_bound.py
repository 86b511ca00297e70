"""A lower bound on epsilon from runs with and without a canary.

A test decides whether the canary is in a run. Under a mechanism that is
(epsilon, delta)-private, the false positive rate alpha and the false negative rate beta
of every test satisfy

    alpha + exp(epsilon) beta >= 1 - delta,    beta + exp(epsilon) alpha >= 1 - delta.

So observed rates bound epsilon from below,

    epsilon >= log max((1 - delta - beta) / alpha, (1 - delta - alpha) / beta),

here with Clopper-Pearson upper bounds of both rates, each at half of what the
confidence leaves open. A test is a statistic of the observables and a threshold: both
are chosen on one half of the runs and evaluated on the other. A bound above the
accountant's epsilon shows that something is wrong. A bound below it shows nothing: n
runs of a kind cannot show more than `ceiling(n / 2)`, and this attack may be a poor
one.

Sources: Jagielski, Ullman and Oprea, "Auditing differentially private machine learning:
How private is private SGD?", NeurIPS 2020, arXiv:2006.07709; for the two inequalities
Kairouz, Oh and Viswanath, "The composition theorem for differential privacy", ICML
2015, arXiv:1311.0776.
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
    """The lower bound on the mechanism's epsilon, at the confidence asked for."""
    ceiling: float
    """The largest bound that so many runs could have shown."""
    threshold: float
    """The test takes scores above it for runs with the canary."""
    false_positives: float
    """Share of the evaluated runs without the canary."""
    false_negatives: float
    """Share of the evaluated runs with it."""


def upper_bound(
    count: Num[np.ndarray, "..."], number: int, level: float
) -> Float[np.ndarray, "..."]:
    """One-sided Clopper-Pearson bound of a probability.

    The probability exceeds the bound with probability 1 - level at most.

    Args:
        count: successes.
        number: trials.
        level: of confidence.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated
    in the case of the binomial", Biometrika 1934, doi:10.1093/biomet/26.4.404.
    """
    count = np.asarray(count, float)
    failures = np.maximum(number - count, 0.5)  # not used where all trials succeed
    return np.where(count >= number, 1.0, beta.ppf(level, count + 1, failures))


@functools.lru_cache
def _upper_bounds(number: int, level: float) -> Float[np.ndarray, "counts"]:
    """`upper_bound` of every count."""
    return upper_bound(np.arange(number + 1), number, level)


def lower_epsilon(
    false_positives: Int[np.ndarray, "..."],
    false_negatives: Int[np.ndarray, "..."],
    number: int,
    *,
    delta: float,
    confidence: float,
) -> Float[np.ndarray, "..."]:
    """The bound on epsilon for these counts; 0 if they show nothing.

    Args:
        false_positives: among `number` runs without the canary.
        false_negatives: among `number` runs with it.
        number: evaluated runs of a kind.
        delta: at which epsilon is bounded.
        confidence: that epsilon is not smaller.
    """
    table = _upper_bounds(number, 1 - (1 - confidence) / 2)
    a, b = table[false_positives], table[false_negatives]
    odds = np.maximum((1 - delta - b) / a, (1 - delta - a) / b)
    return np.asarray(np.log(np.maximum(odds, 1.0)))


def ceiling(number: int, *, delta: float, confidence: float = 0.95) -> float:
    """The bound that a perfect attack shows.

    Args:
        number: evaluated runs with the canary, and as many without.
        delta: at which epsilon is bounded.
        confidence: that epsilon is not smaller.
    """
    zero = np.zeros((), int)
    return float(lower_epsilon(zero, zero, number, delta=delta, confidence=confidence))


def statistics(
    canary_features: Float[np.ndarray, "runs F"],
    reference_features: Float[np.ndarray, "runs F"],
) -> tuple[Float[np.ndarray, "rest S"], Float[np.ndarray, "rest S"]]:
    """The statistics among which a test chooses, S = 2 (F + 1) for F features.

    They are every feature and one projection of all features, each with both signs. The
    projection is on the difference of the means over the variances, which is the best
    direction for features that are Gaussian and independent. The direction follows from
    the first third of the runs, and the statistics are of the rest, because the runs
    that the direction was fitted to would flatter it.

    Args:
        canary_features: of runs with the canary.
        reference_features: of runs without it.

    Returns:
        (statistics of runs with the canary, of runs without it).
    """
    third = len(canary_features) // 3
    fit_features = [
        np.asarray(array, float)[:third]
        for array in (canary_features, reference_features)
    ]
    mean_gap = fit_features[0].mean(0) - fit_features[1].mean(0)
    variance = (fit_features[0].var(0) + fit_features[1].var(0)) / 2
    # A feature that never varies and yet differs separates all runs.
    floor = 1e-12 * np.maximum(mean_gap**2, np.finfo(np.float32).tiny)
    direction = mean_gap / np.maximum(variance, floor)

    def columns(features: np.ndarray) -> np.ndarray:
        held_out = np.asarray(features, float)[third:]
        projections = np.stack([held_out @ direction, *held_out.T], axis=1)
        return np.concatenate([projections, -projections], axis=1)

    return columns(canary_features), columns(reference_features)


def bound(
    canary_scores: Float[np.ndarray, "runs *S"],
    reference_scores: Float[np.ndarray, "others *S"],
    *,
    delta: float,
    confidence: float = 0.95,
) -> Bound:
    """What scores of runs with and without a canary show of epsilon.

    A higher score means that the canary is likelier to be in.

    Args:
        canary_scores: of runs with the canary, independent of each other. Several
            statistics have a column each: the one that shows most on the first half is
            evaluated on the other.
        reference_scores: of as many runs without it.
        delta: at which epsilon is bounded.
        confidence: that epsilon is not smaller.

    Raises:
        InputError: fewer than two runs of a kind, unlike numbers of them, or a score
            that is not finite.
    """
    require.in_range("runs of an audit", len(canary_scores), 2)
    if len(reference_scores) != len(canary_scores):
        require.fail(
            "runs without the canary", f"{len(canary_scores)}", len(reference_scores)
        )
    require.finite("scores", (np.asarray(canary_scores), np.asarray(reference_scores)))
    half = len(canary_scores) // 2
    scores = [
        np.asarray(array).reshape(len(array), -1)
        for array in (canary_scores, reference_scores)
    ]
    settings = {"delta": delta, "confidence": confidence}

    def error_rates(
        thresholds: np.ndarray, column: int, runs: slice
    ) -> tuple[Any, ...]:
        positives, negatives = (np.sort(array[runs, column]) for array in scores)
        false_negatives = np.searchsorted(positives, thresholds, side="right")
        false_positives = len(negatives) - np.searchsorted(
            negatives, thresholds, side="right"
        )
        epsilons = lower_epsilon(
            false_positives, false_negatives, len(positives), **settings
        )
        return (
            epsilons,
            false_positives / len(negatives),
            false_negatives / len(positives),
        )

    def choose_threshold(column: int) -> tuple[float, float]:
        """(the bound of the best threshold on the first half, that threshold)."""
        sorted_scores = np.sort(
            np.concatenate([array[:half, column] for array in scores])
        )
        # A threshold is between two scores: no score of the other half ties with it.
        thresholds = sorted_scores[1:] / 2 + sorted_scores[:-1] / 2
        epsilons = error_rates(thresholds, column, slice(half))[0]
        return float(np.max(epsilons)), float(thresholds[np.argmax(epsilons)])

    optima = [choose_threshold(column) for column in range(scores[0].shape[1])]
    best_column = max(range(len(optima)), key=lambda column: optima[column][0])
    threshold = optima[best_column][1]
    epsilons, false_positives, false_negatives = error_rates(
        np.asarray([threshold]), best_column, slice(half, None)
    )
    return Bound(
        float(epsilons[0]),
        ceiling(len(canary_scores) - half, **settings),
        threshold,
        float(false_positives[0]),
        float(false_negatives[0]),
    )
