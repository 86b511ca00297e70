"""Gaps between patient groups, from predictions and an integer attribute.

A group is a segment, so its figures are those of any segment, as in
`auroc(scores, positive, group, groups)`. This module decides which groups can be
estimated, and takes the gaps between them.

Sources: demographic parity, Calders, Kamiran and Pechenizkiy, "Building classifiers
with independency constraints", ICDM workshops 2009, doi:10.1109/ICDMW.2009.83;
equalised odds and equal opportunity, Hardt, Price and Srebro, "Equality of opportunity
in supervised learning", NeurIPS 2016, arXiv:1610.02413; the largest pairwise
difference, Weerts et al., "Fairlearn: Assessing and improving fairness of AI systems",
JMLR 2023, arXiv:2303.16626.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.metrics.discrimination import sensitivity, specificity
from fairjax.metrics.segments import Weight, mean, total

MINIMUM = 10
"""Positives, and negatives, that a group needs to be estimated."""


def mask_small_groups(
    group: Int[Array, "E"],
    groups: int,
    positive: Bool[Array, "E"] | None = None,
    *,
    minimum: int = MINIMUM,
) -> Int[Array, "E"]:
    """The attribute with -1, which counts nowhere, for every group that is too small.

    Args:
        group: in [0, groups), or -1 if it is unknown.
        groups: G.
        positive: whether the true class is the positive one; None with more than two
            classes.
        minimum: positives, and negatives, that a group needs; with more than two
            classes a group needs twice as many records of any class.
    """
    if positive is None:
        size = total(jnp.ones_like(group), group, groups)
        is_large = size >= 2 * minimum
    else:
        positives, negatives = (
            total(jnp.where(c, 1, 0), group, groups) for c in (positive, ~positive)
        )
        is_large = (positives >= minimum) & (negatives >= minimum)
    return jnp.where(is_large[group] & (group >= 0), group, -1)


class Rates(NamedTuple):
    """The rates of every group; NaN if the group lacks the records."""

    selection: Float[Array, "G"]
    """Share of records that are predicted positive."""
    true_positive: Float[Array, "G"]
    """Sensitivity; 1 - sensitivity is the rate of under-diagnosis."""
    false_positive: Float[Array, "G"]
    """1 - specificity."""


def rates(
    predicted: Bool[Array, "E"],
    positive: Bool[Array, "E"],
    group: Int[Array, "E"],
    groups: int,
    *,
    weight: Weight = None,
) -> Rates:
    """The rates of every group; `mask_small_groups` removes groups that are too small.

    Args:
        predicted: whether a record is predicted positive.
        positive: whether its true class is the positive one.
        group: in [0, groups); a record of group -1 counts nowhere.
        groups: G.
        weight: how often a record counts.
    """
    return Rates(
        mean(predicted, group, groups, weight=weight),
        sensitivity(predicted, positive, group, groups, weight=weight),
        1 - specificity(predicted, positive, group, groups, weight=weight),
    )


def difference(values: Float[Array, "*more G"]) -> Float[Array, "*more"]:
    """Largest minus smallest known value; NaN with fewer than two."""
    low, high, num_finite = _finite_range(values)
    return jnp.where(num_finite > 1, high - low, jnp.nan)


def ratio(values: Float[Array, "*more G"]) -> Float[Array, "*more"]:
    """Smallest over largest known value; NaN with fewer than two, or if all are 0."""
    low, high, num_finite = _finite_range(values)
    return jnp.where(
        (num_finite > 1) & (high > 0), low / jnp.where(high > 0, high, 1), jnp.nan
    )


def _finite_range(values: Array) -> tuple[Array, Array, Array]:
    is_finite = ~jnp.isnan(values)
    low = jnp.min(values, axis=-1, initial=jnp.inf, where=is_finite)
    high = jnp.max(values, axis=-1, initial=-jnp.inf, where=is_finite)
    return low, high, jnp.sum(is_finite, axis=-1)


class Gaps(NamedTuple):
    """Gaps between the groups of one attribute; NaN if fewer than two are known."""

    demographic_parity_difference: Float[Array, ""]
    """max - min selection rate."""
    demographic_parity_ratio: Float[Array, ""]
    """min / max selection rate."""
    equalized_odds_difference: Float[Array, ""]
    """The larger of max - min true positive rate and max - min false positive rate."""
    equal_opportunity_difference: Float[Array, ""]
    """max - min true positive rate: the under-diagnosis gap."""


def errors(
    resamples: Float[Array, "*R G"], values: Float[Array, "*V G"]
) -> Float[Array, "*R G"]:
    """Errors of resampled values; NaN for a resample without a group of the records."""
    is_missing = jnp.isnan(resamples) & ~jnp.isnan(values)
    return jnp.where(
        jnp.any(is_missing, axis=-1, keepdims=True), jnp.nan, resamples - values
    )


def deviations(resamples: Rates, rates: Rates) -> Gaps:
    """Distances of resamples from the records, gap by gap, for `bootstrap.reach`.

    A difference is a seminorm of the rates, so its distance is the same seminorm of the
    errors of the rates. The ratio is exp(-range of log rates), so its distance is the
    range of the errors of the logarithms.

    Args:
        resamples: rates of resamples, [R, G].
        rates: rates of the records, [G].
    """

    def log(rate: Float[Array, "*R G"]) -> Float[Array, "*R G"]:
        return jnp.log(jnp.maximum(rate, jnp.finfo(rate.dtype).tiny))

    logs = errors(log(resamples.selection), log(rates.selection))
    gap_errors = gaps(Rates(*map(errors, resamples, rates)))
    return gap_errors._replace(demographic_parity_ratio=difference(logs))


def gaps(rates: Rates) -> Gaps:
    """Demographic parity, equalised odds and equal opportunity of one attribute."""
    opportunity = difference(rates.true_positive)
    return Gaps(
        difference(rates.selection),
        ratio(rates.selection),
        jnp.maximum(opportunity, difference(rates.false_positive)),
        opportunity,
    )
