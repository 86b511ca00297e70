"""The budget tier of every client."""

from collections.abc import Sequence

import numpy as np
import scipy.special
from jaxtyping import Int

from fairjax.core.types import Block
from fairjax.data import partition


def assign_tiers(
    counts: Int[np.ndarray, "N"],
    labels: Int[np.ndarray, "N C"],
    *,
    proportions: Sequence[float],
    assignment: str,
    seed: int,
    correlation: float = 1.0,
) -> Int[np.ndarray, "N"]:
    """Assigns a budget tier to every client.

    With `assignment` "by_size" or "by_label", clients are sorted by

        rho z + sqrt(1 - rho^2) e,

    where z is the normal score of a client's rank and e is standard normal noise. The
    sorted clients fill the tiers from the smallest upwards.

    Args:
        counts: training records of every client.
        labels: training records of every client and class.
        proportions: clients per tier as a ratio, smallest tier first.
            `partition.tier_sizes` rounds them and never leaves the richest tier with a
            share empty.
        assignment: which clients get the smallest tier: "random"; "by_size", those
            with the fewest records; "by_label", those with the smallest share of the
            last class.
        seed: the seed of the random order and of the noise.
        correlation: rho in [0, 1]: 1 gives the strict order, 0 a random one.

    Returns:
        The tier of every client, from 0, the smallest.
    """
    clients = len(counts)
    sizes = partition.tier_sizes(np.asarray(proportions, float), clients)
    permutation = np.random.default_rng([seed, 2]).permutation(clients)
    order = permutation
    if assignment != "random":
        last_class_share = labels[:, -1] / np.maximum(labels.sum(1), 1)
        sort_key = counts if assignment == "by_size" else last_class_share
        order = permutation[np.argsort(sort_key[permutation], kind="stable")]
        score = scipy.special.ndtri((np.arange(clients) + 0.5) / clients)
        noise = np.random.default_rng([seed, 5]).standard_normal(clients)
        noisy_score = correlation * score + np.sqrt(1 - correlation**2) * noise
        order = order[np.argsort(noisy_score, kind="stable")]
    tiers = np.empty(clients, np.int32)
    tiers[order] = np.repeat(np.arange(len(sizes)), sizes)
    return tiers


def tier_size_correlation(
    tiers: Int[np.ndarray, "N"], counts: Int[Block, "N"]
) -> float | None:
    """Spearman's rank correlation between tiers and training records.

    Args:
        tiers: the tier of every client.
        counts: training records of every client.

    Returns:
        The correlation in [-1, 1]; None if all tiers or all counts are equal.
    """
    if min(len(np.unique(tiers)), len(np.unique(counts))) < 2:
        return None
    ranks = []
    for values in (tiers, counts):
        # Ties share their mean rank. Importing scipy.stats would add half a second to
        # every start.
        _, inverse, tie_counts = np.unique(
            values, return_inverse=True, return_counts=True
        )
        ranks.append((np.cumsum(tie_counts) - (tie_counts - 1) / 2)[inverse])
    return float(np.corrcoef(ranks)[0, 1])
