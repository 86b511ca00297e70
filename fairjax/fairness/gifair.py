"""GIFAIR-FL: weights that penalise differences between the losses of groups."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import Cohort
from fairjax.fairness.weights import stateless

GROUPINGS = ("client", "tier", "client_group")


def gifair(*, c: float, groups: str, client_groups: Sequence[int] = ()) -> Rule:
    """w_k = p_k + lambda r_k / |A_k|, r_k the rank of its group's mean loss.

        r_k = sum over groups g of sign(L_k - L_g),   lambda = c min_k p_k |A_k| / (d-1)

    L is the mean loss of a group's clients, |A_k| the number of clients in k's group
    and d the number of groups. These are the gradient's weights of sum_k p_k F_k +
    lambda sum over pairs of groups |L_g - L_h|. Tied groups share a rank. c = 0 is
    FedAvg; below 1 no weight is negative. The published algorithm scales each client's
    loss by w_k / p_k and averages by p_k, which is the same to first order in the
    learning rate.

    Args:
        c: share of the largest admissible lambda, in [0, 1).
        groups: "client", where every client is a group, "tier" or "client_group".
        client_groups: group of every client, for "client_group".

    Raises:
        InputError: c is outside [0, 1), or `groups` is unknown.

    Source: Yue, Nouiehed and Al Kontar, "GIFAIR-FL: a framework for group and
    individual fairness in federated learning", INFORMS Journal on Data Science 2023,
    arXiv:2108.02741, eqs. (2) and (4).
    """
    require.in_range("c", c, 0, 1, open_high=True)
    require.one_of("groups", groups, GROUPINGS)

    def weigh(cohort: Cohort, stats: CohortStats) -> Float[Array, "K"]:
        loss, valid = simplex.loss(stats), simplex.has_finite_loss(stats, cohort.valid)
        share = simplex.record_weights(stats, valid)
        group = cohort.tier if groups == "tier" else cohort.client
        if groups == "client_group":
            group = jnp.asarray(client_groups)[cohort.client]
        same_group = (group == group[:, None]) & valid
        group_size = jnp.maximum(jnp.sum(same_group, axis=1), 1).astype(share.dtype)
        mean = jnp.sum(jnp.where(same_group, loss, 0) / group_size[:, None], axis=1)
        # Every group has one vote: each of its clients counts 1 / |A|.
        group_share = jnp.where(valid, 1 / group_size, 0)
        rank = jnp.sum(
            group_share * jnp.sign(mean[:, None] - mean), axis=1, where=valid
        )
        number = jnp.maximum(jnp.round(jnp.sum(group_share)) - 1, 1)
        max_lambda = jnp.min(share * group_size, where=valid, initial=jnp.inf) / number
        weights = (
            share
            + c * jnp.where(jnp.isfinite(max_lambda), max_lambda, 0) * rank / group_size
        )
        return simplex.renormalise(weights, valid)

    return stateless(weigh, "losses", weights_from="losses")
