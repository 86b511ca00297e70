"""Agnostic federated averaging: the worst mixture of domains."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, FederationFacts, Rule
from fairjax.core.types import Batch, Cohort, Context, Objective, OutputsAt
from fairjax.fairness.domains import (
    AscentState,
    Domains,
    ascent_step,
    client_domains,
    client_weights,
    multiplier,
    sum_domains,
)
from fairjax.fairness.weights import LOSSES

DOMAINS = ("tier", "client", "client_group", "group")


def agnostic(*, rate: float, domain: str, client_groups: Sequence[int] = ()) -> Rule:
    """Exponentiated gradient ascent on the domains.

        minimise over the model, maximise over lambda    sum_d lambda_d F_d,

    F_d the mean loss over a domain's records, N_d of them. In every round

        alpha_d = lambda_d / N_d,    beta_k = sum_d alpha_d n_kd,
        client k minimises (1 / beta_k) sum_i alpha_d(i) l_i,    w_k ~ beta_k,
        lambda_d <- lambda_d exp(rate F_d) / Z,    lambda_d = N_d / N at first;

    with Z such that the masses of the domains in a cohort keep their sum, see
    `fairjax.fairness.domains`. (The published code gives an absent domain the loss 0.)
    rate = 0 is FedAvg.

    Patient groups differ inside a client: a batch of b of its n_k records has the loss
    (1 / b) sum_i v_i l_i, v_i = n_k alpha_d(i) / beta_k, whose mean is the client's
    objective. (The published code leaves out n_k / b, a factor on the learning rate.)
    Records of unknown group are a domain too, so none is left out. For a client with
    one domain v = 1.

    The state is a_d = log(lambda_d N / N_d), so that in alpha and beta N_d cancels,
    which the published algorithm estimates over a window of cohorts.

    Args:
        rate: step size of the ascent, from 0.
        domain: "tier", "client", "client_group" or "group" (of patients).
        client_groups: group of every client, for "client_group".

    Raises:
        InputError: the rate is negative or not finite, or `domain` is unknown.

    Source: Ro et al., "Communication-efficient agnostic federated averaging",
    Interspeech 2021, arXiv:2104.02748, algorithm 1; Mohri, Sivek and Suresh, "Agnostic
    federated learning", ICML 2019, arXiv:1902.00146.
    """
    require.in_range("rate", rate, 0)
    require.one_of("domain", domain, DOMAINS)

    def init(params: PyTree, facts: FederationFacts) -> AscentState:
        number = {
            "tier": facts.num_tiers,
            "client": len(facts.count),
            "client_group": max(client_groups, default=-1) + 1,
            "group": facts.num_groups + 1,
        }
        return AscentState(jnp.zeros(number[domain]), jnp.zeros(number[domain]))

    def cohort_domains(
        state: AscentState, cohort: Cohort, stats: CohortStats
    ) -> tuple[Domains, Bool[Array, "K"]]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        if domain == "group":
            assert stats.group_stats is not None
            return sum_domains(stats.group_stats, stats, valid), valid
        client_domain = cohort.tier if domain == "tier" else cohort.client
        if domain == "client_group":
            client_domain = jnp.asarray(client_groups)[cohort.client]
        return client_domains(client_domain, stats, valid, len(state.scale)), valid

    def weigh(
        state: AscentState, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        domains, valid = cohort_domains(state, cohort, stats)
        new_state = ascent_step(state, rate, domains.loss, domains)
        return client_weights(state.scale, domains, valid), new_state

    def broadcast(
        state: AscentState, cohort: Cohort, stats: CohortStats
    ) -> Float[Array, "K D"]:
        """The factors v of all domains, for every client."""
        domains, _ = cohort_domains(state, cohort, stats)
        return _record_factors(state, domains)

    rule = Rule(weigh, LOSSES, "losses", init=init)
    if domain == "group":
        return rule._replace(broadcast=broadcast, wrap=_weight_records)
    return rule


def _record_factors(state: AscentState, domains: Domains) -> Float[Array, "K D"]:
    """v_kd = n_k alpha_d / beta_k, what client k multiplies a record's loss by."""
    alpha = multiplier(state.scale, domains)
    records = jnp.sum(domains.count, axis=1, keepdims=True)
    beta = jnp.sum(domains.count * alpha, axis=1, keepdims=True)
    return alpha * records / jnp.where(beta > 0, beta, 1)


def _weight_records(objective: Objective) -> Objective:
    """The objective with every record's loss times the factor of its patient group."""

    def weighted_objective(
        outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
    ):
        if context.message is not None:
            assert batch.group is not None
            # An unknown group, -1, indexes the last domain.
            batch = batch._replace(factor=context.message[batch.group])
        return objective(outputs_at, batch, key, context)

    return weighted_objective
