"""Rules over tiers: no budget may buy a client less attention.

Each rule sets or climbs one multiplier per tier, see `fairjax.fairness.domains`. The
rules are ours; `tier_afl` applies a published algorithm to tiers.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, FederationFacts, Rule
from fairjax.core.types import Cohort
from fairjax.fairness.afl import ascend
from fairjax.fairness.domains import (
    LEAST,
    AscentState,
    Domains,
    ascent_step,
    client_domains,
    client_weights,
)
from fairjax.fairness.weights import LOSSES


def _stateless_tier_rule(
    scale: Callable[[Domains], Float[Array, "T"]], weights_from: str
) -> Rule:
    """A rule that sets the tiers' log-multipliers from the cohort alone."""

    def weigh(
        state: Float[Array, "T"], cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        domains = client_domains(cohort.tier, stats, valid, len(state))
        state = scale(domains).astype(state.dtype)
        return client_weights(state, domains, valid), state

    return Rule(weigh, LOSSES, weights_from, init=_initial_scale)


def _initial_scale(params: PyTree, facts: FederationFacts) -> Float[Array, "T"]:
    return jnp.zeros(facts.num_tiers)


def tier_term(*, t: float) -> Rule:
    """Tilts between tiers and averages by records inside each: a_t = t F_t.

    F_t is the mean loss over a tier's records. t = 0 is FedAvg, and t -> infinity
    trains for the worst tier alone, as does any t at which the tilt of every other tier
    overflows.

    Args:
        t: tilt, from 0, per nat.

    Raises:
        InputError: t is negative or not finite.
    """
    require.in_range("t", t, 0)

    def tilt(domains: Domains) -> Float[Array, "T"]:
        worst = jnp.max(domains.loss, where=domains.present, initial=0)
        return jnp.maximum(t * (domains.loss - worst), LEAST)

    return _stateless_tier_rule(tilt, "losses")


def tier_equal(*, strength: float) -> Rule:
    """Moves the tiers of a cohort towards equal mass: a_t = -strength log N_t.

    The tiers' sums of weights are proportional to N_t^(1 - strength), N_t the records
    of a tier. 0 is FedAvg; 1 gives every tier that is present the same mass. Losses
    only say which clients are valid.

    Args:
        strength: in [0, 1].

    Raises:
        InputError: the strength is outside [0, 1].
    """
    require.in_range("strength", strength, 0, 1)

    def level(domains: Domains) -> Float[Array, "T"]:
        return -strength * jnp.log(jnp.maximum(jnp.sum(domains.count, axis=0), 1))

    return _stateless_tier_rule(level, "records")


def tier_gap(*, rate: float) -> Rule:
    """Raises a tier's weight as long as its accuracy is behind the best tier's.

        a_t <- a_t + rate (max_s accuracy_s - accuracy_t)

    Accuracies are over a tier's training records, of its own sub-models at the incoming
    model. rate = 0 is FedAvg. `compose.with_cap` bounds what the gap of a tier that
    cannot catch up adds up to. In a cohort without all tiers the gap is that to the
    best tier present, and absent tiers keep their mass, as in `agnostic`. If the gap
    were added to multipliers alone, absent tiers would lose what a middle tier gains.

    Args:
        rate: step size of the ascent, from 0.

    Raises:
        InputError: the rate is negative or not finite.
    """
    require.in_range("rate", rate, 0)

    def init(params: PyTree, facts: FederationFacts) -> AscentState:
        return AscentState(jnp.zeros(facts.num_tiers), jnp.zeros(facts.num_tiers))

    def weigh(
        state: AscentState, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        domains = client_domains(cohort.tier, stats, valid, len(state.scale))
        best = jnp.max(domains.accuracy, where=domains.present, initial=0)
        state = ascent_step(state, rate, best - domains.accuracy, domains)
        return client_weights(state.scale, domains, valid), state

    return Rule(weigh, LOSSES | {"labels"}, "losses", init=init)


def tier_afl(*, rate: float) -> Rule:
    """Agnostic federated learning over tiers: projected ascent on their masses.

        lambda <- Proj_simplex(lambda + rate F),   w_k = lambda_t(k) n_k / N_t(k),

    F_t the mean loss over a tier's records. In a cohort without all tiers the masses
    of the present tiers are projected to the sum they had, and the weights are
    lambda_t(k) n_k / N_t(k) over their sum; `fairjax.fairness.domains` says why. The
    state is u_t = lambda_t N / N_t, so that rate = 0 is FedAvg for every cohort.

    Args:
        rate: step size of the ascent, from 0.

    Raises:
        InputError: the rate is negative or not finite.

    Source: Mohri, Sivek and Suresh, "Agnostic federated learning", ICML 2019,
    arXiv:1902.00146, algorithm 1, with tiers for clients.
    """
    require.in_range("rate", rate, 0)

    def init(params: PyTree, facts: FederationFacts) -> AscentState:
        return AscentState(jnp.ones(facts.num_tiers), jnp.zeros(facts.num_tiers))

    def weigh(
        state: AscentState, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        domains = client_domains(cohort.tier, stats, valid, len(state.scale))
        is_present, round_counts = domains.present, jnp.sum(domains.count, axis=0)
        records = state.records + round_counts.astype(state.records.dtype)
        mass = simplex.normalise(
            round_counts * state.scale,
            round_counts / jnp.maximum(jnp.sum(round_counts), 1),
        )
        weights = jnp.sum(domains.count * (mass / jnp.maximum(round_counts, 1)), axis=1)

        share = records / jnp.maximum(jnp.sum(records), 1)
        all_mass = share * state.scale
        total = jnp.sum(all_mass)
        present_mass = jnp.where(
            is_present, all_mass / jnp.where(total > 0, total, 1), 0
        )
        new_mass = ascend(
            present_mass, rate, domains.loss, is_present, jnp.sum(present_mass)
        )
        scale = (
            new_mass * jnp.where(total > 0, total, 1) / jnp.where(is_present, share, 1)
        )
        scale = jnp.where(is_present, scale, state.scale).astype(state.scale.dtype)
        return simplex.renormalise(weights, valid), AscentState(scale, records)

    return Rule(weigh, LOSSES, "losses", init=init)
