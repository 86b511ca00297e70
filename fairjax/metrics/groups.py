"""How far patient groups are apart, from predictions and an integer attribute.

A group's figures are those of any segment: `auroc(scores, positive, group, groups)`.
What is here decides which groups can be estimated, and takes the gaps between them.
Sources: demographic parity, Calders et al. 2009, ICDM workshops; equalised odds and
equal opportunity, Hardt et al. 2016, NeurIPS; the largest pairwise difference, as in
Fairlearn (Weerts et al. 2023, JMLR 24, 257).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.metrics.discrimination import sensitivity, specificity
from fairjax.metrics.segments import Weight, mean, total

MINIMUM = 10


def large(
    group: Int[Array, "E"],
    groups: int,
    positive: Bool[Array, "E"] | None = None,
    *,
    minimum: int = MINIMUM,
) -> Int[Array, "E"]:
    """The attribute with -1, which counts nowhere, for every group that is too small.

    Args:
        group: in [0, groups), or -1 where it is not known.
        groups: G.
        positive: the true class; None where there are more than two.
        minimum: positives, and negatives, that a group needs; with more than two
            classes twice as many records of any.
    """
    if positive is None:
        size = total(jnp.ones_like(group), group, groups)
        enough = size >= 2 * minimum
    else:
        ones, zeros = (
            total(jnp.where(c, 1, 0), group, groups) for c in (positive, ~positive)
        )
        enough = (ones >= minimum) & (zeros >= minimum)
    return jnp.where(enough[group] & (group >= 0), group, -1)


class Rates(NamedTuple):
    """Of every group; NaN where it lacks the records."""

    selection: Float[Array, "G"]
    """Share that is predicted positive."""
    true_positive: Float[Array, "G"]
    """Sensitivity; what it lacks of 1 is the rate of under-diagnosis."""
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
    """The rates whose gaps are taken; which groups are large enough `large` says."""
    return Rates(
        mean(predicted, group, groups, weight=weight),
        sensitivity(predicted, positive, group, groups, weight=weight),
        1 - specificity(predicted, positive, group, groups, weight=weight),
    )


def difference(values: Float[Array, "*more G"]) -> Float[Array, "*more"]:
    """Largest minus smallest known value; NaN with fewer than two."""
    low, high, known = _ends(values)
    return jnp.where(known > 1, high - low, jnp.nan)


def ratio(values: Float[Array, "*more G"]) -> Float[Array, "*more"]:
    """Smallest over largest known value; NaN with fewer than two, or if all are 0."""
    low, high, known = _ends(values)
    return jnp.where(
        (known > 1) & (high > 0), low / jnp.where(high > 0, high, 1), jnp.nan
    )


def _ends(values: Array) -> tuple[Array, Array, Array]:
    known = ~jnp.isnan(values)
    low = jnp.min(values, axis=-1, initial=jnp.inf, where=known)
    high = jnp.max(values, axis=-1, initial=-jnp.inf, where=known)
    return low, high, jnp.sum(known, axis=-1)


class Gaps(NamedTuple):
    """Over the groups of one attribute; NaN with fewer than two that are known."""

    demographic_parity_difference: Float[Array, ""]
    """max - min selection rate."""
    demographic_parity_ratio: Float[Array, ""]
    """min / max selection rate."""
    equalized_odds_difference: Float[Array, ""]
    """The larger of max - min true positive rate and max - min false positive rate."""
    equal_opportunity_difference: Float[Array, ""]
    """max - min true positive rate: the under-diagnosis gap."""


def errors(
    drawn: Float[Array, "*R G"], values: Float[Array, "*V G"]
) -> Float[Array, "*R G"]:
    """Of resamples; NaN for one that lacks a group which the records have."""
    lost = jnp.isnan(drawn) & ~jnp.isnan(values)
    return jnp.where(jnp.any(lost, axis=-1, keepdims=True), jnp.nan, drawn - values)


def away(drawn: Rates, rates: Rates) -> Gaps:
    """How far resamples are from the records, gap by gap, for `bootstrap.reach`.

    A difference is a seminorm of the rates: that of their errors. The ratio is
    exp(-range of log rates): the range of the errors of the logarithms.
    """

    def log(rate: Float[Array, "*R G"]) -> Float[Array, "*R G"]:
        return jnp.log(jnp.maximum(rate, jnp.finfo(rate.dtype).tiny))

    logs = errors(log(drawn.selection), log(rates.selection))
    made = gaps(Rates(*map(errors, drawn, rates)))
    return made._replace(demographic_parity_ratio=difference(logs))


def gaps(rates: Rates) -> Gaps:
    """Demographic parity, equalised odds and equal opportunity of one attribute."""
    opportunity = difference(rates.true_positive)
    return Gaps(
        difference(rates.selection),
        ratio(rates.selection),
        jnp.maximum(opportunity, difference(rates.false_positive)),
        opportunity,
    )
