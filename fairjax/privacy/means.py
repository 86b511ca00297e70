"""Mean losses of tiers, released with noise: all that a fairness rule is shown.

A rule's weights are normalised over those who came, so that one hospital's loss moves
the weights of all others, by more than any clip bounds. Under client-level privacy a
rule is therefore shown

    F_t = B/2 + (sum_k (min(F_k, B) - B/2) + N(0, (z B/2)^2)) / m_t

over the cohort's hospitals k of tier t, with m_t the hospitals of the tier that a
cohort holds on average, a public number. Centred, a hospital that is absent moves one
entry of the sums by B/2 at most, as one with other records of its own does by B, twice
that. So z is the noise multiplier of this release. It joins that of the changes, see
`clip.split`, though their weights follow from it, by this argument.

Given who else is drawn, a Poisson round has the law (1 - q) P_0 + q P_U with one
hospital's records, (1 - q) P_0 + q P_V with others ("replace_one"), P_0 without it
("zero_out"). In units of its noise U and V move release i by at most r_i, in a
direction that earlier releases of the round may decide; let m^2 = sum_i r_i^2.
Gaussian releases compose adaptively: an event A with P_U(A) = t has

    P_0(A) >= Phi(Phi^-1(t) - m),    P_V(A) >= Phi(Phi^-1(t) - 2 m).

For alpha >= 1 the hockey-stick divergence is the supremum over A of

    q P_U(A) - (alpha - 1)(1 - q) P_0(A) - alpha q P_V(A),

largest where both are equalities, as they are for half-lines under N(m, 1), N(0, 1),
N(-m, 1). For alpha < 1 the laws change places, with 1/alpha for alpha. So one release
of noise multiplier 1/m, of contributions m and -m, dominates the round: the pair that
the accountant composes. Of a fixed cohort the round, as a mechanism on its sample, is
likewise dominated by one Gaussian release, and theorem 27 of Wang, Balle and
Kasiviswanathan 2019, which `accounting` uses there, reads moments of that alone.

What the rule makes of tiers is a function of what is released. It weighs them as if
each were one client with the records of all its hospitals, which gives

    factor_t = w_t / p_t,    p_t the tier's share of the records,

by which every hospital's own, public weight is multiplied. Inside a tier hospitals
differ by their records alone.

Source: the noised sum, McMahan et al. 2018; centring, Andrew et al. 2021; adaptive
composition of Gaussian trade-offs, Dong, Roth and Su 2022; dominating pairs of sampled
mechanisms, Zhu, Dong and Wang 2022.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core.types import Cells, Cohort, Rule, Scores
from fairjax.privacy import noise


class Means(NamedTuple):
    """How mean losses of tiers are released."""

    bound: float
    """B, nats; a larger loss, or one that is no number, counts as B."""
    noise_multiplier: float
    """z."""
    expected: Float[Array, "T"]
    """m_t; 0: no hospital of the tier takes part."""
    records: Int[Array, "T"]
    """Training records of every tier, of hospitals that take part."""

    def centred(
        self, tier: Int[Array, ""], valid: Bool[Array, ""], loss: Float[Array, ""]
    ) -> Float[Array, "T"]:
        """What one hospital adds to the sums: 0 but at its tier, at most B/2 there."""
        loss = loss.astype(jnp.float32)
        # A comparison with NaN is false: it counts as B.
        loss = jnp.where(loss <= self.bound, jnp.maximum(loss, 0), self.bound)
        mine = valid & (jnp.arange(len(self.records)) == tier)
        return jnp.where(mine, loss - self.bound / 2, 0)

    def release(
        self, key: Key[Array, ""], sums: Float[Array, "T"]
    ) -> Float[Array, "T"]:
        """F_t from the sums of `centred`, within [0, B]."""
        half = self.bound / 2
        noisy = noise.gaussian(key, sums, self.noise_multiplier * half)
        mean = half + noisy / jnp.where(self.expected > 0, self.expected, 1)
        return jnp.clip(mean, 0, self.bound)

    def factors(
        self,
        rule: Rule,
        state: PyTree,
        means: Float[Array, "T"],
        rate: Float[Array, ""] | float = 1.0,
    ) -> tuple[Float[Array, "T"], Any]:
        """(factor_t, the rule's state), from what is released and public alone.

        Args:
            rule: one that weighs by losses, with a state over tiers.
            state: of the rule.
            means: F_t.
            rate: the round's factor on the local learning rate.
        """
        assert rule.weigh is not None
        tiers = jnp.arange(len(self.records), dtype=jnp.int32)
        cohort = Cohort(tiers, tiers, self.expected > 0)
        count = self.records.astype(jnp.float32)[:, None, None]
        # Which answers are right is not released.
        cells = Cells(
            count, count * means[:, None, None], jnp.full_like(count, jnp.nan)
        )
        scores = Scores(self.records, means, cells, rate)
        weights, state = rule.weigh(state, cohort, scores)
        share = count[:, 0, 0] / jnp.sum(count)
        held = share > 0
        return jnp.where(held, weights / jnp.where(held, share, 1), 0), state
