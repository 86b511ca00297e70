"""The rules that weigh, by name and at their neutral setting, and cohorts for them."""

import jax.numpy as jnp
import numpy as np

from fairjax.core.types import Cells, Cohort, Scores
from fairjax.fairness import compose, domains, groups, weights

K, T = 5, 3
MOST = float(np.finfo(np.float32).max)
TIERS = np.array([0, 0, 1, 2, 1], np.int32)
HOSPITALS = (1, 0, 2, 1, 2)
"""Group of every hospital."""
BY_HOSPITALS = {"domain": "hospital_group", "hospitals": HOSPITALS}
BY_GROUP = {"domain": "group", "groups": 2}

NEUTRAL = {
    "q_ffl": weights.q_ffl(q=0.0),
    "term": weights.term(t=0.0),
    "cvar": weights.cvar(alpha=1.0),
    "ordered": weights.ordered(power=1.0),
    "gifair": weights.gifair(c=0.0, groups="client"),
    "gifair_tier": weights.gifair(c=0.0, groups="tier"),
    "afl": weights.afl(rate=0.0),
    "agnostic_tier": domains.agnostic(rate=0.0, domain="tier"),
    "agnostic_client": domains.agnostic(rate=0.0, domain="client"),
    "agnostic_hospitals": domains.agnostic(rate=0.0, **BY_HOSPITALS),
    "agnostic_group": domains.agnostic(rate=0.0, **BY_GROUP),
    "tier_afl": domains.tier_afl(rate=0.0),
    "tier_term": domains.tier_term(t=0.0),
    "tier_equal": domains.tier_equal(strength=0.0),
    "tier_gap": domains.tier_gap(rate=0.0),
    "fairfed": groups.fairfed(beta=0.0),
    "capped": compose.capped(weights.term(t=9.0), 1.0),
    "waiting": compose.after(weights.term(t=9.0), 10**6),
}
"""At these settings every rule is FedAvg, in every round."""

RULES = {
    "size": weights.size(),
    "uniform": weights.uniform(),
    "q_ffl_1": weights.q_ffl(q=1.0),
    "q_ffl_9": weights.q_ffl(q=9.0),
    "term": weights.term(t=2.0),
    "cvar": weights.cvar(alpha=0.3),
    "ordered": weights.ordered(power=0.5),
    "gifair": weights.gifair(c=0.9, groups="client"),
    "gifair_tier": weights.gifair(c=0.9, groups="tier"),
    "gifair_hospitals": weights.gifair(
        c=0.9, groups="hospital_group", hospitals=HOSPITALS
    ),
    "afl": weights.afl(rate=0.5),
    "agnostic_tier": domains.agnostic(rate=0.5, domain="tier"),
    "agnostic_client": domains.agnostic(rate=0.5, domain="client"),
    "agnostic_hospitals": domains.agnostic(rate=0.5, **BY_HOSPITALS),
    "agnostic_group": domains.agnostic(rate=0.5, **BY_GROUP),
    "tier_afl": domains.tier_afl(rate=0.5),
    "tier_term": domains.tier_term(t=2.0),
    "tier_equal": domains.tier_equal(strength=1.0),
    "tier_gap": domains.tier_gap(rate=3.0),
    "fairfed": groups.fairfed(beta=1.0),
    "capped": compose.capped(weights.term(t=9.0), 2.0),
    "waiting": compose.after(weights.term(t=2.0), 1),
    **{
        f"{name}_most": make(MOST)
        for name, make in {
            "q_ffl": lambda most: weights.q_ffl(q=most),
            "term": lambda most: weights.term(t=most),
            "afl": lambda most: weights.afl(rate=most),
            "tier_term": lambda most: domains.tier_term(t=most),
            "tier_afl": lambda most: domains.tier_afl(rate=most),
            "tier_gap": lambda most: domains.tier_gap(rate=most),
            "agnostic": lambda most: domains.agnostic(rate=most, domain="client"),
        }.items()
    },
}


def cells(count, loss) -> Cells:
    """Two groups and those unknown, two classes; the mean loss is `loss` in each.

    Of a client's records 1 / (1 + loss) are answered rightly.
    """
    spread = jnp.asarray([[2, 1], [1, 3], [1, 0]], jnp.float32) / 8
    count = jnp.asarray(count, jnp.float32)[:, None, None] * spread
    loss = loss.astype(jnp.float32)[:, None, None]
    return Cells(count, count * loss, count / (1 + loss))


def scores(count, loss) -> Scores:
    count = jnp.asarray(count, jnp.int32)
    loss = jnp.asarray(loss)
    return Scores(count, loss, cells(count, loss))


def cohort(valid=None, client=None, tier=TIERS) -> Cohort:
    return Cohort(
        jnp.arange(K) if client is None else jnp.asarray(client),
        jnp.asarray(tier),
        jnp.ones(K, bool) if valid is None else jnp.asarray(valid),
    )
