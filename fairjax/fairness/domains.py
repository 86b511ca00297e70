"""Domains of records: tiers, clients, groups of clients or of patients.

A rule over domains keeps one multiplier u_d = exp(a_d) per domain, or sets it anew from
the round's losses, and a client weighs

    w_k proportional to sum_d n_kd u_d,

n_kd its records in domain d. If all u_d are equal this is FedAvg, whoever is in the
cohort.

A rule that climbs (`agnostic`, `tier_gap`, `tier_afl`) moves masses,

    lambda_d = N_d u_d / sum_e N_e u_e,    N_d the records of d in all cohorts so far.

It moves only the masses of the domains that are present in a cohort and leaves their
sum unchanged, so that an absent domain keeps its mass. An absent domain that only kept
its multiplier would lose: multipliers mean something only relative to each other, so
the present domains would gain on it by up to exp(rate F_d) a round, and a domain that
is often absent would be left with nothing, however badly it is served. The published
answer, F_d over the probability that d is present (DRFA), is right on average, but its
noise moves masses even if all losses are equal. Here equal losses move nothing, whoever
is present, and a cohort of one domain moves nothing at all. If all domains are present
the step is the published one.

Source: mirror ascent on the coordinates that are seen. For DRFA, Deng, Kamani and
Mahdavi, "Distributionally robust federated averaging", NeurIPS 2020, arXiv:2102.12660,
algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.core import simplex
from fairjax.core.rule import CohortStats
from fairjax.core.types import GroupStats

LEAST = -100.0
"""A log-multiplier that exp cannot tell from -infinity."""


class AscentState(NamedTuple):
    """The state of a rule that climbs."""

    scale: Float[Array, "D"]
    """a_d, or u_d for a rule whose masses may be 0."""
    records: Float[Array, "D"]
    """N_d."""


class Domains(NamedTuple):
    """A cohort's records by domain; D is the number of domains."""

    count: Float[Array, "K D"]
    loss: Float[Array, "D"]
    """Mean over the domain's records, in nats."""
    accuracy: Float[Array, "D"]
    """Share of the domain's records that are predicted correctly."""
    present: Bool[Array, "D"]


def sum_domains(
    group_stats: GroupStats, stats: CohortStats, valid: Bool[Array, "K"]
) -> Domains:
    """The domains of a cohort whose `group_stats` have a row per domain."""
    dtype = simplex.loss(stats).dtype

    def by_domain(cell: Float[Array, "K D C"]) -> Float[Array, "K D"]:
        rows = jnp.sum(cell.astype(dtype), axis=-1)
        return jnp.where(valid[:, None], rows, 0)

    count, loss, correct = map(by_domain, group_stats)
    total = jnp.sum(count, axis=0)
    records = jnp.maximum(total, 1)
    loss, accuracy = (jnp.sum(cell, axis=0) / records for cell in (loss, correct))
    # A sum of finite losses may be infinite.
    loss = jnp.minimum(loss, jnp.finfo(dtype).max)
    return Domains(count, loss, accuracy, total > 0)


def client_domains(
    domain: Int[Array, "K"], stats: CohortStats, valid: Bool[Array, "K"], number: int
) -> Domains:
    """The domains of a cohort in which all records of a client share a domain.

    Args:
        domain: the domain of every client.
        stats: what is known of the cohort.
        valid: the clients that count.
        number: D.
    """
    assert stats.group_stats is not None

    def by_domain(cell: Float[Array, "K rows C"]) -> Float[Array, "K D C"]:
        in_domain = domain[:, None] == jnp.arange(number)
        client_sums = jnp.sum(cell, axis=1, keepdims=True)
        return jnp.where(in_domain[:, :, None], client_sums, 0)

    return sum_domains(GroupStats(*map(by_domain, stats.group_stats)), stats, valid)


def client_weights(
    scale: Float[Array, "D"], domains: Domains, valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    """w_k proportional to sum_d n_kd exp(a_d), a simplex point over valid clients."""
    mass = jnp.sum(domains.count * multiplier(scale, domains), axis=1)
    return simplex.renormalise(mass, valid)


def multiplier(scale: Float[Array, "D"], domains: Domains) -> Float[Array, "D"]:
    """exp(a_d) over its maximum, 0 for a domain that is absent."""
    top = jnp.max(scale, where=domains.present, initial=-jnp.inf)
    factor = jnp.exp(scale - jnp.where(jnp.isfinite(top), top, 0))
    return jnp.where(domains.present, factor, 0)


def ascent_step(
    state: AscentState, step_size: float, value: Float[Array, "D"], domains: Domains
) -> AscentState:
    """A step of exponentiated gradient ascent by the present domains P.

        lambda_d <- lambda_d exp(step_size value_d) M_P
                    / sum_P lambda_e exp(step_size value_e),

    M_P = sum_P lambda_e. Only differences count: the largest a_d is kept at 0, and none
    falls below `LEAST`, so that a lost domain can return. Up to such a shift, present
    domains move by step_size value_d, as they do if all are present. Absent domains
    move by the logarithm of the factor by which the step multiplies M_P.

    Args:
        state: its a_d lie between `LEAST` and 0.
        step_size: the step size of the ascent.
        value: what each domain climbs by, from 0.
        domains: which domains are present, and their records.
    """
    is_present = domains.present
    records = state.records + jnp.sum(domains.count, axis=0).astype(state.records.dtype)
    value = jnp.where(is_present, value, 0)
    # Relative to the largest value, whatever overflows would end at the floor anyway.
    step = jnp.maximum(step_size * (value - jnp.max(value)), 2 * LEAST)
    step = step.astype(state.scale.dtype)
    mass = jnp.log(jnp.where(is_present, records, 1)) + state.scale
    gain = _log_sum(mass + step, is_present) - _log_sum(mass, is_present)
    new_scale = state.scale + jnp.where(is_present, step, gain)
    return AscentState(jnp.maximum(new_scale - jnp.max(new_scale), LEAST), records)


def _log_sum(log_mass: Float[Array, "D"], where: Bool[Array, "D"]) -> Float[Array, ""]:
    """The logarithm of sum_d exp(log_mass_d); 0 for an empty sum."""
    total = jax.nn.logsumexp(log_mass, where=where)
    return jnp.where(jnp.any(where), total, 0)
