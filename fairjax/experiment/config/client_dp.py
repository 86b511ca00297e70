"""The guarantee of client_dp: clipped updates, and noise on their sum.

The builder goes through its stages in order: how cohorts are sampled, what the clip
follows, what a rule by losses sees, and whether sums are secure.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fairjax.core import require, simplex
from fairjax.core.protocols import Population, Protection
from fairjax.core.rule import CohortStats
from fairjax.core.types import ClientView, Cohort, Scalar
from fairjax.experiment.config import calibration
from fairjax.experiment.config.calibration import RunFacts
from fairjax.experiment.config.schema import Config
from fairjax.privacy import client_level, poisson, securesum
from fairjax.privacy import clip as clipping
from fairjax.privacy.accounting import Mechanism
from fairjax.privacy.guarantee import Guarantee, PoissonCohort
from fairjax.privacy.means import TierLossRelease


class _Sampling(NamedTuple):
    """How the cohorts of a run are drawn."""

    rate: float
    """Expected share of the clients in a cohort."""
    draw: PoissonCohort | None
    """None: cohorts of a fixed size."""
    mechanism_args: dict[str, Any]
    """Fields of `Mechanism` that all tiers share."""


class _Losses(NamedTuple):
    """What a rule by losses sees of the tiers; nothing without such a rule."""

    is_released: bool
    expected_clients: Float[np.ndarray, "T"]
    """Clients of every tier in an average cohort."""
    tier_records: Int[np.ndarray, "T"]
    bound: float
    noise_multiplier: float | None
    """None: sqrt(10) times that of the updates."""

    def release(self, sigma: float) -> TierLossRelease | None:
        """The noisy mean losses, beside updates of noise multiplier `sigma`."""
        if not self.is_released:
            return None
        noise_multiplier = self.noise_multiplier
        return TierLossRelease(
            self.bound,
            math.sqrt(10) * sigma if noise_multiplier is None else noise_multiplier,
            jnp.asarray(self.expected_clients, jnp.float32),
            jnp.asarray(self.tier_records),
        )


class _Mechanisms(NamedTuple):
    """Everything that a noise multiplier turns into mechanisms and a protection."""

    clips: tuple[float, ...]
    tiers: Int[np.ndarray, "N"]
    population: Population
    sampling: _Sampling
    is_fixed_size: bool
    adaptive: clipping.Adaptive | None
    losses: _Losses
    secure_sum: securesum.SecureSum | None

    def parties(self, sigma: float) -> dict[str, Mechanism]:
        """What each tier is exposed to per round."""
        mechanisms = {}
        other_releases = client_level.extra_releases(
            self.adaptive, self.losses.release(sigma)
        )
        for tier in np.unique(self.tiers):
            share = self.clips[tier] / max(self.clips)
            if self.is_fixed_size:
                # One of any tier is drawn in place of a client: the sum moves by both
                # clips.
                share = (1 + share) / 2
            noise_multiplier = clipping.client_multiplier(sigma, share, other_releases)
            mechanisms[f"tier {tier}"] = Mechanism(
                noise_multiplier, **self.sampling.mechanism_args
            )
        return mechanisms

    def protection(
        self, sigma: Scalar, loss_release: TierLossRelease | None = None
    ) -> Protection:
        """Clipping, noise and secure sums at the server."""
        return client_level.central(
            self.population,
            clip=self.clips,
            noise_multiplier=sigma,
            adaptive=self.adaptive,
            loss_release=loss_release,
            secure_sum=self.secure_sum,
        )


def client_dp(c: Config, facts: RunFacts) -> Guarantee:
    """Clipped updates and noise on their sum, by a trusted server.

    Args:
        c: a checked config.
        facts: those of its run.

    Raises:
        InputError: delta is too large, a cohort is all clients without
            privacy.sampling full, or a secure sum would be over too few clients.
    """
    p, clients = c.privacy, len(facts.tiers)
    calibration.check_delta(c, clients, "hospitals")
    clips = p.tier_clip or (p.clip,) * len(c.tiers.budget)
    weight = _weights(facts)
    settings = calibration.accounting_settings(c)
    sampling = _sampling(c, facts)
    losses = _losses(c, facts, weight)
    mechanisms = _Mechanisms(
        clips,
        facts.tiers,
        Population(
            jnp.asarray(facts.tiers), jnp.asarray(weight, jnp.float32), sampling.rate
        ),
        sampling,
        p.sampling == "fixed",
        _adaptive(c, sampling.rate, weight),
        losses,
        _secure_sum(c, losses),
    )
    has_other_releases = mechanisms.adaptive is not None or losses.is_released
    sigma = calibration.noise_multiplier(c, settings, mechanisms.parties)
    tier_records = tuple(losses.tier_records.tolist()) if losses.is_released else ()
    return Guarantee(
        "client_dp",
        "client",
        mechanisms.parties(sigma),
        num_units=clients,
        sampling=p.sampling,
        clip=clips,
        budget=p.epsilon,
        on_budget=p.on_budget,
        public=calibration.public_facts(c, "number of hospitals and their weights"),
        protection=mechanisms.protection(sigma, losses.release(sigma)),
        draw=sampling.draw,
        tier_records=tier_records,
        with_noise=None
        if has_other_releases
        else lambda sigma: (mechanisms.protection(sigma), None),
        **settings,
    )


def _weights(facts: RunFacts) -> Float[np.ndarray, "N"]:
    """The rule's weights of all clients at once, of mean 1 over those that take part.

    A rule weights the clients of a cohort. Here all clients count as present, so that a
    weight depends on sizes, which are public, and not on the cohort. A rule by losses,
    which are not public, begins from record counts.
    """
    # Compile-time evaluation also where the noise is traced: no weight depends on it.
    with jax.ensure_compile_time_eval():
        clients = len(facts.tiers)
        ids = jnp.arange(clients, dtype=jnp.int32)
        tiers, counts = jnp.asarray(facts.tiers), jnp.asarray(facts.counts)
        labels = jnp.ones((clients, facts.classes), jnp.int32)
        client_views = ClientView(ids, tiers, jnp.ones(clients, bool), counts, labels)
        cohort = Cohort(ids, tiers, jax.vmap(facts.method.accepts)(client_views))
        stats = CohortStats(counts)
        weights = simplex.record_weights(stats, cohort.valid)
        if facts.rule.weights is not None and not facts.rule.reads:
            weights, _ = facts.rule.weights((), cohort, stats)
        return np.asarray(weights) * int(np.sum(cohort.valid))


def _sampling(c: Config, facts: RunFacts) -> _Sampling:
    p, clients = c.privacy, len(facts.tiers)
    rate = 1.0 if p.sampling == "full" else c.clients_per_round / clients
    if rate == 1 and p.sampling != "full":
        expected = (
            f"fewer than the {clients} hospitals with privacy.sampling {p.sampling}"
        )
        require.fail("clients_per_round", expected, c.clients_per_round)
    neighbours = p.neighbours or (
        "replace_one" if p.sampling == "fixed" else "zero_out"
    )
    # A round releases the updates, a count, and a loss of every tier.
    num_coordinates = calibration.upload_size(c, facts) + 1 + len(c.tiers.budget)
    mechanism_args: dict[str, Any] = {
        "neighbours": neighbours,
        "num_coordinates": num_coordinates,
    }
    if p.sampling == "fixed":
        mechanism_args |= {"fixed": (clients, c.clients_per_round)}
    if p.sampling != "poisson":
        return _Sampling(rate, None, mechanism_args)
    total_slots, overflow = poisson.capacity(clients, rate)
    sizes = np.bincount(facts.tiers, minlength=len(c.tiers.budget))
    capacities = [poisson.capacity(int(size), rate) for size in sizes]
    overflow = max(overflow, math.fsum(tail for _, tail in capacities))
    by_tier = tuple(slots for slots, _ in capacities)
    draw = PoissonCohort(rate, total_slots, by_tier, overflow)
    mechanism_args |= {"sampling_rate": rate, "overflow": overflow}
    return _Sampling(rate, draw, mechanism_args)


def _adaptive(
    c: Config, sampling_rate: float, weight: Float[np.ndarray, "N"]
) -> clipping.Adaptive | None:
    """The clip that follows a quantile; None for a fixed clip."""
    options = c.privacy.adaptive
    if options.quantile is None:
        return None
    expected_clients = sampling_rate * float(np.count_nonzero(weight))
    noise = options.count_noise
    return clipping.Adaptive(
        expected_clients,
        expected_clients / 20 if noise is None else noise,
        options.quantile,
        options.rate,
    )


def _losses(c: Config, facts: RunFacts, weight: Float[np.ndarray, "N"]) -> _Losses:
    clients, options = len(facts.tiers), c.privacy.losses
    by_tier = functools.partial(np.bincount, facts.tiers, minlength=len(c.tiers.budget))
    tier_records = by_tier(np.where(weight > 0, facts.counts, 0)).astype(np.int32)
    # Integers before the division: whole numbers stay whole.
    expected_clients = by_tier(weight > 0) * (c.clients_per_round or clients) / clients
    return _Losses(
        facts.weights_follow_losses,
        expected_clients,
        tier_records,
        options.bound,
        options.noise_multiplier,
    )


def _secure_sum(c: Config, losses: _Losses) -> securesum.SecureSum | None:
    """The secure sum of a cohort, which must be over enough clients of every tier.

    Losses are summed by tier, so a rule by losses needs enough clients in each.
    """
    p = c.privacy
    if p.secure_sum == "off":
        return None
    expected_clients = losses.expected_clients
    min_clients = float(expected_clients[expected_clients > 0].min())
    if losses.is_released and min_clients < 2:
        expected = "off with a rule by losses, which are summed by tier, where an "
        expected += (
            f"average cohort has {min_clients:g} hospitals of one: a sum takes 2"
        )
        require.fail("privacy.secure_sum", expected, p.secure_sum)
    if losses.is_released and min_clients < p.secure.minimum:
        expected = (
            f"at most {min_clients:g} with a rule by losses, which are summed by "
        )
        expected += "tier: what an average cohort has of the smallest one"
        require.fail("privacy.secure.minimum", expected, p.secure.minimum)
    return securesum.SecureSum(p.secure_sum, p.secure.bits, p.secure.minimum, jnp.trunc)
