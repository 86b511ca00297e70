"""What a score of membership achieves: true positives at few false positives.

A score is higher for a likelier member. An attacker calls a record a member if its
score exceeds a threshold.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.stats import binom

from fairjax.attacks.epsilon_bound import upper_bound


def tpr_at_fpr(
    score: Float[Array, "E"],
    member: Bool[Array, "E"],
    where: Bool[Array, "E"],
    *,
    fpr: float = 0.01,
) -> Float[Array, ""]:
    """The true positive rate of the threshold with this false positive rate.

    With n non-members, floor(fpr n) of them may lie above the threshold. A record whose
    score ties with the threshold is not called a member.

    Args:
        score: of every record.
        member: whether the record is a member.
        where: the records that count; their scores are numbers.
        fpr: the largest false positive rate.

    Returns:
        The share of the members that are found. NaN with fewer than 1 / fpr
        non-members, none of whom could be a false positive, or without members.
    """
    nonmember_mask, member_mask = where & ~member, where & member
    # A hair more: 0.29 * 100 is below 29 in floats.
    number = jnp.sum(nonmember_mask).astype(score.dtype)
    fp_limit = jnp.floor(number * fpr * (1 + 1e-6)).astype(jnp.int32)
    sorted_nonmembers = jnp.sort(
        jnp.where(nonmember_mask, score, -jnp.inf), descending=True
    )
    hits = member_mask & (score > sorted_nonmembers[fp_limit])
    members = jnp.sum(member_mask)
    share = jnp.sum(hits) / jnp.maximum(members, 1)
    return jnp.where((fp_limit > 0) & (members > 0), share, jnp.nan)


def tpr_interval(
    member_scores: Float[np.ndarray, "members"],
    nonmember_scores: Float[np.ndarray, "others"],
    *,
    fpr: float,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """A confidence interval of the true positive rate at a false positive rate.

    The true positive rate is Pr(s > t) of a member, at the least t that no more than
    `fpr` of non-members exceed. Neither t nor the rate at t is known. Four statements
    bound both, each wrong with probability (1 - confidence) / 4 at most: t lies between
    two order statistics of the non-members, since the number of n that exceed t is
    Binomial(n, fpr); at either of them, which the members did not choose, the rate has
    a Clopper-Pearson bound. So the interval holds for every distribution of the scores,
    with ties too, and for every n. A bootstrap of the extreme order statistics that a
    low rate asks for does not. With few non-members no score is surely above t (fewer
    than 437 for 1 % and a confidence of 95 %), and the lower end is 0.

    Args:
        member_scores: scores of members, as independent draws; numbers.
        nonmember_scores: those of non-members.
        fpr: the false positive rate.
        confidence: that the interval contains the true positive rate.

    Returns:
        (low, high), between which `tpr_at_fpr` lies; (0, 1) without members or
        non-members.

    Sources: Clopper and Pearson 1934 (see `fairjax.attacks.epsilon_bound.upper_bound`);
    for the quantile David and Nagaraja, "Order statistics", Wiley 2003,
    doi:10.1002/0471722162, section 7.1. The union bound joins the four.
    """
    members, nonmembers = len(member_scores), len(nonmember_scores)
    if not members or not nonmembers:
        return 0.0, 1.0
    error = (1 - confidence) / 4
    sorted_nonmembers = np.sort(nonmember_scores)[::-1]
    upper_index = int(binom.ppf(error, nonmembers, fpr)) - 1
    lower_index = int(binom.ppf(1 - error, nonmembers, fpr))
    high_threshold = sorted_nonmembers[upper_index] if upper_index >= 0 else np.inf
    low_threshold = (
        sorted_nonmembers[lower_index] if lower_index < nonmembers else -np.inf
    )
    hits = (
        int(np.sum(member_scores > threshold))
        for threshold in (high_threshold, low_threshold)
    )
    low_hits, high_hits = hits
    low = 1 - upper_bound(np.asarray(members - low_hits), members, 1 - error)
    high = upper_bound(np.asarray(high_hits), members, 1 - error)
    return float(low), float(high)


def roc_curve(
    member_scores: Float[np.ndarray, "members"],
    nonmember_scores: Float[np.ndarray, "others"],
    *,
    points: int = 50,
) -> list[tuple[int, int]]:
    """The ROC curve, thinned evenly in the logarithm of its false positives.

    As in `tpr_at_fpr`, the threshold is the score of a non-member, and no record whose
    score ties with it is called a member. Where non-members tie, fewer of them are
    false positives than a point allows, and that point is missing.

    Args:
        member_scores: scores of members; numbers.
        nonmember_scores: those of non-members.
        points: the largest number of points, the two ends included.

    Returns:
        (false positives, true positives) as counts, fewest first, from the threshold
        that no non-member exceeds to the one that every record exceeds; empty without
        members or non-members.
    """
    members, nonmembers = len(member_scores), len(nonmember_scores)
    if not members or not nonmembers:
        return []
    sorted_nonmembers, sorted_members = (
        np.sort(nonmember_scores)[::-1],
        np.sort(member_scores),
    )
    steps = np.geomspace(1, nonmembers, max(points - 1, 1)).round().astype(int)
    true_positives = {}
    for fp_limit in [0, *np.unique(steps[steps < nonmembers]).tolist()]:
        threshold = sorted_nonmembers[fp_limit]
        false_positives = int(np.sum(sorted_nonmembers > threshold))
        true_positives[false_positives] = members - int(
            np.searchsorted(sorted_members, threshold, side="right")
        )
    true_positives[nonmembers] = members
    return sorted(true_positives.items())
