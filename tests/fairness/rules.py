"""The rules that give weights, by name, cohorts for them, and their weights."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis.extra.numpy import arrays

from fairjax.core.rule import CohortStats, FederationFacts
from fairjax.core.types import Cohort, GroupStats
from fairjax.fairness import compose, weights
from fairjax.fairness.afl import afl
from fairjax.fairness.agnostic import agnostic
from fairjax.fairness.fairfed import fairfed
from fairjax.fairness.gifair import gifair
from fairjax.fairness.ordered_weights import cvar, ordered
from fairjax.fairness.q_ffl import q_ffl
from fairjax.fairness.tier_rules import tier_afl, tier_equal, tier_gap, tier_term
from fairjax.fairness.tilted import term

K, T = 5, 3
MOST = float(np.finfo(np.float32).max)
TIERS = np.array([0, 0, 1, 2, 1], np.int32)
CLIENT_GROUPS = (1, 0, 2, 1, 2)
"""Group of every client."""
BY_CLIENT_GROUP = {"domain": "client_group", "client_groups": CLIENT_GROUPS}
BY_GROUP = {"domain": "group"}

ROUNDS = 3
counts = arrays(np.int32, K, elements=st.integers(1, 2**20))
losses = arrays(np.float32, K, elements=st.floats(0, 2.0**99, width=32))
common = arrays(np.float32, K, elements=st.floats(2.0**-6, 2.0**4, width=32))
subsets = arrays(bool, K)
dtypes = st.sampled_from([jnp.float32, jnp.bfloat16])

NEUTRAL = {
    "q_ffl": q_ffl(q=0.0),
    "term": term(t=0.0),
    "cvar": cvar(alpha=1.0),
    "ordered": ordered(power=1.0),
    "gifair": gifair(c=0.0, groups="client"),
    "gifair_tier": gifair(c=0.0, groups="tier"),
    "afl": afl(rate=0.0),
    "agnostic_tier": agnostic(rate=0.0, domain="tier"),
    "agnostic_client": agnostic(rate=0.0, domain="client"),
    "agnostic_client_group": agnostic(rate=0.0, **BY_CLIENT_GROUP),
    "agnostic_group": agnostic(rate=0.0, **BY_GROUP),
    "tier_afl": tier_afl(rate=0.0),
    "tier_term": tier_term(t=0.0),
    "tier_equal": tier_equal(strength=0.0),
    "tier_gap": tier_gap(rate=0.0),
    "fairfed": fairfed(beta=0.0),
    "capped": compose.with_cap(term(t=9.0), 1.0),
    "waiting": compose.with_warmup(term(t=9.0), 10**6),
}
"""Rules at the settings at which they are FedAvg, in every round."""

RULES = {
    "size": weights.size(),
    "uniform": weights.uniform(),
    "q_ffl_1": q_ffl(q=1.0),
    "q_ffl_9": q_ffl(q=9.0),
    "term": term(t=2.0),
    "cvar": cvar(alpha=0.3),
    "ordered": ordered(power=0.5),
    "gifair": gifair(c=0.9, groups="client"),
    "gifair_tier": gifair(c=0.9, groups="tier"),
    "gifair_client_group": gifair(
        c=0.9, groups="client_group", client_groups=CLIENT_GROUPS
    ),
    "afl": afl(rate=0.5),
    "agnostic_tier": agnostic(rate=0.5, domain="tier"),
    "agnostic_client": agnostic(rate=0.5, domain="client"),
    "agnostic_client_group": agnostic(rate=0.5, **BY_CLIENT_GROUP),
    "agnostic_group": agnostic(rate=0.5, **BY_GROUP),
    "tier_afl": tier_afl(rate=0.5),
    "tier_term": tier_term(t=2.0),
    "tier_equal": tier_equal(strength=1.0),
    "tier_gap": tier_gap(rate=3.0),
    "fairfed": fairfed(beta=1.0),
    "capped": compose.with_cap(term(t=9.0), 2.0),
    "waiting": compose.with_warmup(term(t=2.0), 1),
    **{
        f"{name}_most": make(MOST)
        for name, make in {
            "q_ffl": lambda most: q_ffl(q=most),
            "term": lambda most: term(t=most),
            "afl": lambda most: afl(rate=most),
            "tier_term": lambda most: tier_term(t=most),
            "tier_afl": lambda most: tier_afl(rate=most),
            "tier_gap": lambda most: tier_gap(rate=most),
            "agnostic": lambda most: agnostic(rate=most, domain="client"),
        }.items()
    },
}


def cells(count, loss) -> GroupStats:
    """Two groups and unknown ones, two classes; the mean loss is `loss` in each.

    The share 1 / (1 + loss) of a client's records is predicted correctly.
    """
    spread = jnp.asarray([[2, 1], [1, 3], [1, 0]], jnp.float32) / 8
    count = jnp.asarray(count, jnp.float32)[:, None, None] * spread
    loss = loss.astype(jnp.float32)[:, None, None]
    return GroupStats(count, count * loss, count / (1 + loss))


def scores(count, loss) -> CohortStats:
    count = jnp.asarray(count, jnp.int32)
    loss = jnp.asarray(loss)
    return CohortStats(count, loss, cells(count, loss))


def cohort(valid=None, client=None, tier=TIERS) -> Cohort:
    return Cohort(
        jnp.arange(K) if client is None else jnp.asarray(client),
        jnp.asarray(tier),
        jnp.ones(K, bool) if valid is None else jnp.asarray(valid),
    )


@functools.cache
def jitted(rule):
    """The weights of every round, from a fresh state, with the same losses."""

    def run(count, loss, valid, client, tier, counts):
        state, each = rule.init({}, FederationFacts(counts, T, 2)), []
        for _ in range(ROUNDS):
            got, state = rule.weights(
                state, Cohort(client, tier, valid), scores(count, loss)
            )
            each.append(got)
        return jnp.stack(each)

    return jax.jit(run)


def weigh(name, count, loss=None, valid=None, *, order=None, table=RULES):
    """[ROUNDS, K] weights as a NumPy array; client k of the federation has count[k]."""
    loss = np.ones(K, np.float32) if loss is None else loss
    valid = np.ones(K, bool) if valid is None else valid
    order = np.arange(K) if order is None else np.asarray(order)
    count, loss = np.asarray(count, np.int32), np.asarray(loss)
    args = count[order], loss[order], np.asarray(valid)[order], order, TIERS[order]
    got = jitted(table[name])(*map(jnp.asarray, args), jnp.asarray(count))
    return np.asarray(got.astype(jnp.float32))


def once(rule, count, loss=None, valid=None, tier=TIERS, state=(), **more):
    """The weights of one round from a given state, and the state after it."""
    loss = np.ones(K, np.float32) if loss is None else loss
    known = scores(np.asarray(count), np.float32(loss))._replace(**more)
    got, after = rule.weights(state, cohort(valid, tier=tier), known)
    return np.asarray(got), after
