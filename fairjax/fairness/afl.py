"""Agnostic federated learning: adversarial weights over clients."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, FederationFacts, Rule
from fairjax.core.types import Cohort
from fairjax.fairness.weights import LOSSES, gap_to_max


def afl(*, rate: float) -> Rule:
    """The weights climb the losses by projected gradient ascent.

        lambda <- Proj_simplex(lambda + rate F),   w = lambda before the step,

    from lambda_k = n_k / n; rate = 0 is FedAvg. The saddle point minimises the loss of
    the worst mixture of clients. All clients take part in every round. The model of a
    round is the last iterate, not the average over rounds of the convergence theorem.

    Args:
        rate: step size of the ascent, from 0.

    Raises:
        InputError: the rate is negative or not finite.

    Source: Mohri, Sivek and Suresh, "Agnostic federated learning", ICML 2019,
    arXiv:1902.00146, algorithm 1.
    """
    require.in_range("rate", rate, 0)

    def init(params: PyTree, facts: FederationFacts) -> Float[Array, "N"]:
        share = facts.count.astype(jnp.float32)
        return share / jnp.sum(share)

    def weigh(
        state: Float[Array, "N"], cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        mass = jnp.where(valid, state[cohort.client], 0)
        weights = simplex.normalise(mass, simplex.record_weights(stats, valid))
        new_mass = ascend(mass, rate, simplex.loss(stats), valid, jnp.sum(mass))
        slot = jnp.where(valid, cohort.client, len(state))
        return weights, state.at[slot].set(new_mass.astype(state.dtype), mode="drop")

    return Rule(weigh, LOSSES, "losses", full_participation=True, init=init)


def ascend(
    mass: Float[Array, "K"],
    step_size: float,
    loss: Float[Array, "K"],
    valid: Bool[Array, "K"],
    total: Float[Array, ""],
) -> Float[Array, "K"]:
    """Proj(mass + step_size * loss) onto {x >= 0, sum x = total}, 0 where not valid.

    If `total` is the mass that the valid entries had, absent entries keep theirs. A
    `total` of 0 stays 0.
    """
    high = jnp.where(valid, jnp.ones_like(mass), 0)
    scale = jnp.where(total > 0, total, 1)
    # A common shift moves no projection, and a mass that lies more than 1 behind is 0
    # however far behind it lies.
    step = jnp.maximum(step_size * gap_to_max(loss, valid) / scale, -2)
    target = mass / scale + step
    return total * simplex.project(target, jnp.zeros_like(mass), high)
