"""Mean losses of tiers, released with noise: all that a fairness rule is shown.

A rule normalises its weights over the cohort. So one client's loss moves the weights of
all others, by more than any clip bounds. Under client-level privacy a rule is therefore
shown

    F_t = B/2 + (sum_k (min(F_k, B) - B/2) + N(0, (z B/2)^2)) / m_t

over the cohort's clients k of tier t, with m_t the number of clients of the tier that a
cohort has on average, a public number. The losses are centred, so an absent client
moves one entry of the sums by B/2 at most, and a client with other records moves it by
B at most, twice that. So z is the noise multiplier of this release. It joins that of
the changes, see `clip.update_multiplier`. This holds although the weights of the
changes follow from this release, by the following argument.

Given who else is drawn, a Poisson round has the law (1 - q) P_0 + q P_U with one
client's records, (1 - q) P_0 + q P_V with other records ("replace_one"), P_0 without
the client ("zero_out"). In units of its noise U and V move release i by at most r_i, in
a direction that earlier releases of the round may decide; let m^2 = sum_i r_i^2.
Gaussian releases compose adaptively: an event A with P_U(A) = t has

    P_0(A) >= Phi(Phi^-1(t) - m),    P_V(A) >= Phi(Phi^-1(t) - 2 m).

For alpha >= 1 the hockey-stick divergence is the supremum over A of

    q P_U(A) - (alpha - 1)(1 - q) P_0(A) - alpha q P_V(A),

which is largest where both are equalities, as they are for half-lines under N(m, 1),
N(0, 1), N(-m, 1). For alpha < 1 the laws change places, with 1/alpha for alpha. So one
release of noise multiplier 1/m, of contributions m and -m, dominates the round: this is
the pair that the accountant composes. With a fixed cohort the round, as a mechanism on
its sample, is likewise dominated by one Gaussian release, and theorem 27 of Wang, Balle
and Kasiviswanathan 2019 (see `fairjax.privacy.accounting`, which uses it there) reads
moments of that release alone.

The weights of tiers are a function of what is released. The rule weights the tiers as
if each were one client with the records of all its clients, which gives

    factor_t = w_t / p_t,    p_t the tier's share of the records.

Every client's own, public weight is multiplied by the factor of its tier. Inside a tier
the weights of clients differ by their numbers of records alone.

Sources: for the noised sum, McMahan et al. 2018 (see `client_level.central`); for
centring, Andrew et al. 2021 (see `clip.Adaptive`); for adaptive composition of Gaussian
trade-offs, Dong, Roth and Su, "Gaussian differential privacy", JRSS B 2022,
arXiv:1905.02383; for dominating pairs of sampled mechanisms, Zhu, Dong and Wang,
"Optimal accounting of differential privacy via characteristic function", AISTATS 2022,
arXiv:2106.08567.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import Cohort, GroupStats
from fairjax.privacy import noise


class TierLossRelease(NamedTuple):
    """How mean losses of tiers are released."""

    bound: float
    """B, in nats; a larger loss, or one that is NaN, counts as B."""
    noise_multiplier: float
    """z."""
    expected_clients: Float[Array, "T"]
    """m_t; 0: no client of the tier takes part."""
    records: Int[Array, "T"]
    """Training records of every tier, over the clients that take part."""

    def centred_loss(
        self, tier: Int[Array, ""], valid: Bool[Array, ""], loss: Float[Array, ""]
    ) -> Float[Array, "T"]:
        """A client's addend of the sums: at most B/2 at its tier, and 0 elsewhere.

        Args:
            tier: of the client.
            valid: whether the client is in the cohort; if not, the addend is 0.
            loss: the client's loss F_k.
        """
        loss = loss.astype(jnp.float32)
        # A comparison with NaN is false, so NaN counts as B.
        loss = jnp.where(loss <= self.bound, jnp.maximum(loss, 0), self.bound)
        in_tier = valid & (jnp.arange(len(self.records)) == tier)
        return jnp.where(in_tier, loss - self.bound / 2, 0)

    def release(
        self, key: Key[Array, ""], sums: Float[Array, "T"]
    ) -> Float[Array, "T"]:
        """F_t from the sums of `centred_loss`, within [0, B].

        Args:
            key: of the noise.
            sums: over the cohort.
        """
        half_bound = self.bound / 2
        noisy = noise.gaussian(key, sums, self.noise_multiplier * half_bound)
        mean = half_bound + noisy / jnp.where(
            self.expected_clients > 0, self.expected_clients, 1
        )
        return jnp.clip(mean, 0, self.bound)

    def factors(
        self,
        rule: Rule,
        state: PyTree,
        means: Float[Array, "T"],
        lr_scale: Float[Array, ""] | float = 1.0,
    ) -> tuple[Float[Array, "T"], Any]:
        """(factor_t, the rule's state), from released and public numbers alone.

        Args:
            rule: a rule whose weights follow from losses, with a state over tiers.
            state: of the rule.
            means: F_t.
            lr_scale: the round's factor on the local learning rate.
        """
        assert rule.weights is not None
        tiers = jnp.arange(len(self.records), dtype=jnp.int32)
        cohort = Cohort(tiers, tiers, self.expected_clients > 0)
        count = self.records.astype(jnp.float32)[:, None, None]
        # The release does not say which predictions are correct.
        group_stats = GroupStats(
            count, count * means[:, None, None], jnp.full_like(count, jnp.nan)
        )
        stats = CohortStats(self.records, means, group_stats, lr_scale)
        weights, state = rule.weights(state, cohort, stats)
        share = count[:, 0, 0] / jnp.sum(count)
        has_records = share > 0
        return jnp.where(
            has_records, weights / jnp.where(has_records, share, 1), 0
        ), state
