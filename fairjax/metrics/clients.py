"""Summaries over hospitals, on the host: how good for most, how bad for the worst.

A hospital whose figure is not known, NaN, is left out.
"""

import math

import numpy as np


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def mean(values: np.ndarray) -> float:
    """Mean of the known values; NaN when none is known."""
    known = _known(values)
    return float(np.mean(known)) if len(known) else math.nan


def std(values: np.ndarray) -> float:
    """Standard deviation of the known values, ddof 0; NaN when none is known."""
    known = _known(values)
    return float(np.std(known)) if len(known) else math.nan


def lowest(values: np.ndarray) -> float:
    """The lowest known value; NaN when none is known."""
    known = _known(values)
    return float(np.min(known)) if len(known) else math.nan


def worst(values: np.ndarray, share: float) -> float:
    """Mean of the ceil(share * K) lowest known values; NaN when none is known."""
    known = np.sort(_known(values))
    return mean(known[: math.ceil(round(share * len(known), 9))])


def best(values: np.ndarray, share: float) -> float:
    """Mean of the ceil(share * K) highest known values; NaN when none is known."""
    return -worst(-values, share)


def jain(values: np.ndarray) -> float:
    """Jain's index (sum a)^2 / (K sum a^2): 1 if all are equal, 1/K if one has all."""
    known = _known(values)
    square = float(np.sum(known**2))
    return float(np.sum(known) ** 2 / (len(known) * square)) if square else math.nan


def gini(values: np.ndarray) -> float:
    """Gini coefficient: 0 if all are equal, (K - 1) / K if one has all.

        2 sum_i i a_(i) / (K sum_i a_i) - (K + 1) / K,   a_(1) <= ... <= a_(K)

    NaN when none is known, or if all are 0.
    """
    known = np.sort(_known(values))
    clients, total = len(known), float(np.sum(known))
    if not total:
        return math.nan
    ranked = float(np.sum(np.arange(1, clients + 1) * known))
    return 2 * ranked / (clients * total) - (clients + 1) / clients


def entropy(values: np.ndarray) -> float:
    """Normalised entropy: 1 if all are equal, 0 if one has all.

        -sum_k p_k log p_k / log K,   p_k = a_k / sum_j a_j

    NaN for fewer than two known values, or if all are 0.
    """
    known = _known(values)
    if len(known) < 2 or not np.any(known):
        return math.nan
    share = known[known > 0] / np.sum(known)
    return float(-np.sum(share * np.log(share)) / math.log(len(known)))


def tier_gap(means: list[float]) -> float:
    """Lowest minus highest tier that is known, tier 0 first; NaN when none is.

    Negative: poor hospitals are worse off. A tier that is the only one known has a gap
    of 0 where there is no other, and none where others are NaN.
    """
    known = [value for value in means if not math.isnan(value)]
    alone = len(known) == 1 < len(means)
    return known[0] - known[-1] if known and not alone else math.nan


def enough(
    count: np.ndarray, tiers: np.ndarray, number: int, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which hospitals [N] and which tiers [T] have so many test records.

    The lowest of several figures is most often that of the hospital with the fewest
    records, whoever is served worst: with one record it is 0 or 1.

    Args:
        count: test records of every hospital.
        tiers: tier of every hospital.
        number: T.
        least: records that are enough.
    """
    each = np.bincount(tiers, count, minlength=number)
    return count >= least, each >= least
