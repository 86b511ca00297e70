"""Summaries over clients, on the host: how good for most, how bad for the worst.

A client whose figure is unknown, NaN, is left out.
"""

import math

import numpy as np


def _without_nan(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def mean(values: np.ndarray) -> float:
    """Mean of the known values; NaN when none is known."""
    finite_values = _without_nan(values)
    return float(np.mean(finite_values)) if len(finite_values) else math.nan


def std(values: np.ndarray) -> float:
    """Standard deviation of the known values, ddof 0; NaN when none is known."""
    finite_values = _without_nan(values)
    return float(np.std(finite_values)) if len(finite_values) else math.nan


def minimum(values: np.ndarray) -> float:
    """The lowest known value; NaN when none is known."""
    finite_values = _without_nan(values)
    return float(np.min(finite_values)) if len(finite_values) else math.nan


def worst(values: np.ndarray, share: float) -> float:
    """Mean of the ceil(share * K) lowest known values; NaN when none is known."""
    finite_values = np.sort(_without_nan(values))
    return mean(finite_values[: math.ceil(round(share * len(finite_values), 9))])


def best(values: np.ndarray, share: float) -> float:
    """Mean of the ceil(share * K) highest known values; NaN when none is known."""
    return -worst(-values, share)


def jain(values: np.ndarray) -> float:
    """Jain's index (sum a)^2 / (K sum a^2): 1 if all are equal, 1/K if one has all.

    NaN when none is known, or if all are 0.
    """
    finite_values = _without_nan(values)
    square = float(np.sum(finite_values**2))
    return (
        float(np.sum(finite_values) ** 2 / (len(finite_values) * square))
        if square
        else math.nan
    )


def gini(values: np.ndarray) -> float:
    """Gini coefficient: 0 if all are equal, (K - 1) / K if one has all.

        2 sum_i i a_(i) / (K sum_i a_i) - (K + 1) / K,   a_(1) <= ... <= a_(K)

    NaN when none is known, or if all are 0.
    """
    finite_values = np.sort(_without_nan(values))
    clients, total = len(finite_values), float(np.sum(finite_values))
    if not total:
        return math.nan
    ranked = float(np.sum(np.arange(1, clients + 1) * finite_values))
    return 2 * ranked / (clients * total) - (clients + 1) / clients


def entropy(values: np.ndarray) -> float:
    """Normalised entropy: 1 if all are equal, 0 if one has all.

        -sum_k p_k log p_k / log K,   p_k = a_k / sum_j a_j

    NaN for fewer than two known values, or if all are 0.
    """
    finite_values = _without_nan(values)
    if len(finite_values) < 2 or not np.any(finite_values):
        return math.nan
    share = finite_values[finite_values > 0] / np.sum(finite_values)
    return float(-np.sum(share * np.log(share)) / math.log(len(finite_values)))


def tier_gap(means: list[float]) -> float:
    """The lowest minus the highest tier with a known mean; NaN when none is known.

    A negative gap says that clients with small budgets are worse off. If only one tier
    is known, the gap is 0 for a federation of one tier and NaN otherwise.

    Args:
        means: mean of every tier, tier 0 first.
    """
    finite_means = [value for value in means if not math.isnan(value)]
    is_only_tier = len(finite_means) == 1 < len(means)
    return (
        finite_means[0] - finite_means[-1]
        if finite_means and not is_only_tier
        else math.nan
    )


def has_enough_records(
    count: np.ndarray, tiers: np.ndarray, number: int, min_records: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which clients [N] and which tiers [T] have enough test records.

    The lowest of several figures is most often that of the client with the fewest
    records, whichever client is served worst: with one record it is 0 or 1.

    Args:
        count: test records of every client.
        tiers: tier of every client.
        number: T.
        min_records: records that are enough.
    """
    tier_counts = np.bincount(tiers, count, minlength=number)
    return count >= min_records, tier_counts >= min_records
