"""Weights that follow from no loss (records, uniform), and what weighting rules share.

A weighting rule is a pure function from what is known of the cohort to a point on the
simplex. Every one gives exactly 0 to a padded slot and, if it reads losses, to a client
whose loss is not a finite number. The weights of the other clients sum to 1. In a
cohort without such clients all weights are 0, and the round changes nothing. Weights
follow a permutation of the cohort, and tied clients weigh the same. The loss of a
client is that of its own sub-model at the incoming model.

Exponents are taken relative to the largest one, and a finite loss may be as large as
float32 holds. However strong a rule is, only the distance of the other clients can
overflow; their weights are then exactly 0, and the rule's state stays finite.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fairjax.core import simplex
from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import Cohort

LOSSES = frozenset({"losses"})
"""What a rule reads that needs nothing but mean losses."""


def stateless(
    weigh: Callable[[Cohort, CohortStats], Float[Array, "K"]],
    *reads: str,
    weights_from: str,
) -> Rule:
    """A rule without state from its weights alone; the rest as in `Rule`."""
    return Rule(
        lambda state, cohort, stats: (weigh(cohort, stats), state),
        frozenset(reads),
        weights_from,
    )


def gap_to_max(value: Float[Array, "K"], valid: Bool[Array, "K"]) -> Float[Array, "K"]:
    """The distance v_k - max_j v_j over valid clients, 0 for the others.

    With distances a huge loss does not drown log n_k, and no strength of a rule
    overflows.
    """
    return jnp.where(valid, value - jnp.max(value, where=valid, initial=-jnp.inf), 0)


def size() -> Rule:
    """w_k = n_k / sum_j n_j, n_k the training records of client k.

    Source: McMahan et al., "Communication-efficient learning of deep networks from
    decentralized data", AISTATS 2017, arXiv:1602.05629 (FedAvg).
    """
    return stateless(
        lambda cohort, stats: simplex.record_weights(stats, cohort.valid),
        weights_from="records",
    )


def uniform() -> Rule:
    """w_k = 1 / K over the valid clients: every client counts the same."""
    return stateless(
        lambda cohort, stats: simplex.uniform_weights(stats, cohort.valid),
        weights_from="public",
    )
