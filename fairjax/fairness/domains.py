"""Rules that weigh domains: tiers, hospitals, groups of them or of patients.

A rule keeps one multiplier u_d = exp(a_d) per domain, or sets it anew from the round's
losses, and a client weighs

    w_k proportional to sum_d n_kd u_d,

n_kd its records in domain d. With all u_d alike this is FedAvg, whoever is in the
cohort. The tier rules are ours: no budget may buy a hospital less attention.

A rule that climbs (`agnostic`, `tier_gap`, `tier_afl`) moves masses,

    lambda_d = N_d u_d / sum_e N_e u_e,    N_d the records of d in all cohorts so far,

those of the domains that are present in a cohort alone, and leaves the sum of these
masses as it was: a domain that is away keeps its own. Had it just kept its multiplier,
it would lose: multipliers mean something only relative to each other, so that those who
are there would gain on it by up to exp(rate F_d) a round, and a domain that is often
away would be left with nothing, however badly it is served. The published answer, F_d
over the probability that d is present (DRFA), is right on average; its noise moves
masses even where all losses are alike. Here nothing moves then, whoever comes; and a
cohort of one domain moves nothing at all. Where all are present the step is the
published one.

Source: mirror ascent on the coordinates that are seen. For DRFA, Deng, Kamani and
Mahdavi 2020, "Distributionally robust federated averaging", algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fairjax.core import require, simplex
from fairjax.core.types import (
    Batch,
    Cells,
    Cohort,
    Context,
    Objective,
    OutputsAt,
    Rule,
    Scores,
)
from fairjax.fairness.weights import LOSS, ascend

DOMAINS = ("tier", "client", "hospital_group", "group")


class Ascent(NamedTuple):
    """What a rule that climbs carries."""

    scale: Float[Array, "D"]
    """a_d, or u_d where a mass may be 0."""
    records: Float[Array, "D"]
    """N_d."""


class Domains(NamedTuple):
    """A cohort's records by domain; D of them."""

    count: Float[Array, "K D"]
    loss: Float[Array, "D"]
    """Mean over the domain's records."""
    accuracy: Float[Array, "D"]
    present: Bool[Array, "D"]


def _domains(cells: Cells, scores: Scores, valid: Bool[Array, "K"]) -> Domains:
    """Of cells with a row per domain."""
    dtype = simplex.loss(scores).dtype

    def by_domain(cell: Float[Array, "K D C"]) -> Float[Array, "K D"]:
        rows = jnp.sum(cell.astype(dtype), axis=-1)
        return jnp.where(valid[:, None], rows, 0)

    count, loss, right = map(by_domain, cells)
    total = jnp.sum(count, axis=0)
    records = jnp.maximum(total, 1)
    loss, accuracy = (jnp.sum(cell, axis=0) / records for cell in (loss, right))
    # Sums of losses that are finite may not be.
    loss = jnp.minimum(loss, jnp.finfo(dtype).max)
    return Domains(count, loss, accuracy, total > 0)


def _of_clients(
    domain: Int[Array, "K"], scores: Scores, valid: Bool[Array, "K"], number: int
) -> Domains:
    """Where all records of a client are in the same domain."""
    assert scores.cells is not None

    def placed(cell: Float[Array, "K rows C"]) -> Float[Array, "K D C"]:
        member = domain[:, None] == jnp.arange(number)
        whole = jnp.sum(cell, axis=1, keepdims=True)
        return jnp.where(member[:, :, None], whole, 0)

    return _domains(Cells(*map(placed, scores.cells)), scores, valid)


def _weigh(
    scale: Float[Array, "D"], domains: Domains, valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    """The equation of this module's docstring."""
    mass = jnp.sum(domains.count * _multiplier(scale, domains), axis=1)
    return simplex.over_valid(mass, valid)


def _multiplier(scale: Float[Array, "D"], domains: Domains) -> Float[Array, "D"]:
    """exp(a_d) over its maximum, 0 for a domain that is absent."""
    top = jnp.max(scale, where=domains.present, initial=-jnp.inf)
    factor = jnp.exp(scale - jnp.where(jnp.isfinite(top), top, 0))
    return jnp.where(domains.present, factor, 0)


def agnostic(
    *, rate: float, domain: str, groups: int = 0, hospitals: Sequence[int] = ()
) -> Rule:
    """Agnostic federated averaging: exponentiated gradient ascent on the domains.

        minimise over the model, maximise over lambda    sum_d lambda_d F_d,

    F_d the mean loss over a domain's records, N_d of them. In every round

        alpha_d = lambda_d / N_d,    beta_k = sum_d alpha_d n_kd,
        client k minimises (1 / beta_k) sum_i alpha_d(i) l_i,    w_k ~ beta_k,
        lambda_d <- lambda_d exp(rate F_d) / Z,    lambda_d = N_d / N at first;

    with Z such that the masses of the domains in a cohort add up to what they did: see
    the head of this module. (The published code gives an absent domain the loss 0.)
    rate = 0 is FedAvg. Patient groups are told apart inside a client: a batch of b of
    its n_k records has the loss (1 / b) sum_i v_i l_i, v_i = n_k alpha_d(i) / beta_k,
    whose mean is the client's objective. (The published code leaves out n_k / b, a
    factor on the learning rate.) Records of unknown group are a domain of their own:
    none is left out. Where a client has one domain, v = 1.

    Carried as a_d = log(lambda_d N / N_d), so that in alpha and beta N_d cancels, which
    the published algorithm estimates over a window of cohorts.

    Args:
        rate: of the ascent.
        domain: "tier", "client", "hospital_group" or "group" (of patients).
        groups: G, for "group".
        hospitals: group of every hospital, for "hospital_group".

    Source: Ro et al. 2021, "Communication-efficient agnostic federated averaging",
    algorithm 1; Mohri et al. 2019.
    """
    require.in_range("fairness.agnostic.rate", rate, 0)
    require.one_of("fairness.agnostic.domain", domain, DOMAINS)

    def init(params: PyTree, counts: Int[Array, "N"], tiers: int) -> Ascent:
        number = {
            "tier": tiers,
            "client": len(counts),
            "hospital_group": max(hospitals, default=-1) + 1,
            "group": groups + 1,
        }
        return Ascent(jnp.zeros(number[domain]), jnp.zeros(number[domain]))

    def divided(
        state: Ascent, cohort: Cohort, scores: Scores
    ) -> tuple[Domains, Bool[Array, "K"]]:
        valid = simplex.known(scores, cohort.valid)
        if domain == "group":
            assert scores.cells is not None
            return _domains(scores.cells, scores, valid), valid
        whose = cohort.tier if domain == "tier" else cohort.client
        if domain == "hospital_group":
            whose = jnp.asarray(hospitals)[cohort.client]
        return _of_clients(whose, scores, valid, len(state.scale)), valid

    def weigh(
        state: Ascent, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        domains, valid = divided(state, cohort, scores)
        moved = _moved(state, rate, domains.loss, domains)
        return _weigh(state.scale, domains, valid), moved

    def tell(state: Ascent, cohort: Cohort, scores: Scores) -> Float[Array, "K D"]:
        """The factors v of all domains, for every client."""
        domains, _ = divided(state, cohort, scores)
        alpha = _multiplier(state.scale, domains)
        records = jnp.sum(domains.count, axis=1, keepdims=True)
        beta = jnp.sum(domains.count * alpha, axis=1, keepdims=True)
        return alpha * records / jnp.where(beta > 0, beta, 1)

    if domain == "group":
        return Rule(weigh, LOSS, init=init, tell=tell, wrap=_by_record)
    return Rule(weigh, LOSS, init=init)


def _by_record(objective: Objective) -> Objective:
    """With records' losses times what the rule tells of their groups."""

    def reweighed(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        if context.told is not None:
            assert batch.group is not None
            # Unknown, -1, is the last domain.
            batch = batch._replace(factor=context.told[batch.group])
        return objective(outputs_at, batch, key, context)

    return reweighed


_LEAST = -100.0
"""A log-multiplier that exp cannot tell from -infinity."""


def _moved(
    state: Ascent, rate: float, value: Float[Array, "D"], domains: Domains
) -> Ascent:
    """After a step of exponentiated gradient by those who are present, P.

        lambda_d <- lambda_d exp(rate value_d) M_P / sum_P lambda_e exp(rate value_e),

    M_P = sum_P lambda_e. Only differences count: the largest a_d is kept at 0, and none
    falls below `_LEAST`, so that a lost domain can return. Up to such a shift, those
    who are present move by rate value_d, as they do where all are, and those who are
    away by the logarithm of what that multiplies M_P by.

    Args:
        state: its a_d between `_LEAST` and 0.
        rate: of the step.
        value: of a domain, from 0.
        domains: which are present.
    """
    here = domains.present
    records = state.records + jnp.sum(domains.count, axis=0).astype(state.records.dtype)
    value = jnp.where(here, value, 0)
    # Relative to the largest nothing overflows that would not end at the floor.
    step = jnp.maximum(rate * (value - jnp.max(value)), 2 * _LEAST)
    step = step.astype(state.scale.dtype)
    mass = jnp.log(jnp.where(here, records, 1)) + state.scale
    gain = _log_sum(mass + step, here) - _log_sum(mass, here)
    moved = state.scale + jnp.where(here, step, gain)
    return Ascent(jnp.maximum(moved - jnp.max(moved), _LEAST), records)


def _log_sum(log_mass: Float[Array, "D"], where: Bool[Array, "D"]) -> Float[Array, ""]:
    """The logarithm of sum_d exp(log_mass_d); 0 where there is nobody."""
    total = jax.nn.logsumexp(log_mass, where=where)
    return jnp.where(jnp.any(where), total, 0)


# -------------------------------------------------------------------------------- tiers


def _by_tier(scale: Callable[[Domains], Float[Array, "T"]]) -> Rule:
    """A rule that sets the tiers' multipliers from the cohort alone."""

    def weigh(
        state: Float[Array, "T"], cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.known(scores, cohort.valid)
        domains = _of_clients(cohort.tier, scores, valid, len(state))
        state = scale(domains).astype(state.dtype)
        return _weigh(state, domains, valid), state

    return Rule(weigh, LOSS, init=_level)


def _level(params: PyTree, counts: Int[Array, "N"], tiers: int) -> Float[Array, "T"]:
    return jnp.zeros(tiers)


def tier_term(*, t: float) -> Rule:
    """Tilts between tiers, averages by records inside: a_t = t F_t.

    F_t is the mean loss over a tier's records; t = 0 is FedAvg, t -> infinity trains
    for the worst tier alone, as does any t at which the tilt of every other overflows.
    """
    require.in_range("fairness.tier_term.t", t, 0)

    def tilt(domains: Domains) -> Float[Array, "T"]:
        worst = jnp.max(domains.loss, where=domains.present, initial=0)
        return jnp.maximum(t * (domains.loss - worst), _LEAST)

    return _by_tier(tilt)


def tier_equal(*, strength: float) -> Rule:
    """Moves the tiers of a cohort towards equal mass: a_t = -strength log N_t.

    The tiers' sums of weights are proportional to N_t^(1 - strength), N_t the records
    of a tier: 0 is FedAvg, 1 gives every tier that is present the same.
    """
    require.in_range("fairness.tier_equal.strength", strength, 0, 1)

    def level(domains: Domains) -> Float[Array, "T"]:
        return -strength * jnp.log(jnp.maximum(jnp.sum(domains.count, axis=0), 1))

    return _by_tier(level)


def tier_gap(*, rate: float) -> Rule:
    """Raises a tier's weight as long as its accuracy is behind the best tier's.

        a_t <- a_t + rate (max_s accuracy_s - accuracy_t)

    Accuracies are over a tier's training records, of its own sub-models at the incoming
    model. rate = 0 is FedAvg; `capped` bounds what the gap of a tier that cannot catch
    up adds up to. In a cohort without all tiers the gap is that to the best of those
    who are there, and the tiers that are away keep their mass, as in `agnostic`: added
    to multipliers alone, the gap of a middle tier would be taken from them.
    """
    require.in_range("fairness.tier_gap.rate", rate, 0)

    def init(params: PyTree, counts: Int[Array, "N"], tiers: int) -> Ascent:
        return Ascent(jnp.zeros(tiers), jnp.zeros(tiers))

    def weigh(
        state: Ascent, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.known(scores, cohort.valid)
        domains = _of_clients(cohort.tier, scores, valid, len(state.scale))
        best = jnp.max(domains.accuracy, where=domains.present, initial=0)
        state = _moved(state, rate, best - domains.accuracy, domains)
        return _weigh(state.scale, domains, valid), state

    return Rule(weigh, LOSS, init=init)


def tier_afl(*, rate: float) -> Rule:
    """Agnostic federated learning over tiers: projected ascent on their masses.

        lambda <- Proj_simplex(lambda + rate F),   w_k = lambda_t(k) n_k / N_t(k),

    F_t the mean loss over a tier's records. In a cohort without all tiers the masses
    of those that are there are projected to the sum they had, and its weights are
    lambda_t(k) n_k / N_t(k) over their sum: the head of this module says why. Carried
    is u_t = lambda_t N / N_t, so that rate = 0 is FedAvg for every cohort.

    Source: Mohri et al. 2019, algorithm 1, with tiers for clients.
    """
    require.in_range("fairness.tier_afl.rate", rate, 0)

    def init(params: PyTree, counts: Int[Array, "N"], tiers: int) -> Ascent:
        return Ascent(jnp.ones(tiers), jnp.zeros(tiers))

    def weigh(
        state: Ascent, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.known(scores, cohort.valid)
        domains = _of_clients(cohort.tier, scores, valid, len(state.scale))
        here, now = domains.present, jnp.sum(domains.count, axis=0)
        records = state.records + now.astype(state.records.dtype)
        mass = simplex.restricted(now * state.scale, now / jnp.maximum(jnp.sum(now), 1))
        weights = jnp.sum(domains.count * (mass / jnp.maximum(now, 1)), axis=1)

        share = records / jnp.maximum(jnp.sum(records), 1)
        everybody = share * state.scale
        total = jnp.sum(everybody)
        held = jnp.where(here, everybody / jnp.where(total > 0, total, 1), 0)
        climbed = ascend(held, rate, domains.loss, here, jnp.sum(held))
        scale = climbed * jnp.where(total > 0, total, 1) / jnp.where(here, share, 1)
        scale = jnp.where(here, scale, state.scale).astype(state.scale.dtype)
        return simplex.over_valid(weights, valid), Ascent(scale, records)

    return Rule(weigh, LOSS, init=init)
