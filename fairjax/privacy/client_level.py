"""Protections of whole hospitals: noise on the sum, or on every upload.

What a hospital sends is one vector: the changes of the plain model and of its tier's
copies. It is clipped as one, so no leaf passes by the bound.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from fairjax.core import aggregate, require, rng, trees
from fairjax.core.types import (
    Cohort,
    Member,
    Population,
    Protection,
    Rule,
    Scalar,
    Scores,
    Sent,
)
from fairjax.privacy import clip as clipping
from fairjax.privacy import noise, securesum
from fairjax.privacy.means import Means

_CHANGE, _COUNT, _LOSSES, _MASKS = range(4)


def central(
    population: Population,
    *,
    clip: Sequence[float],
    noise_multiplier: Scalar,
    adaptive: clipping.Adaptive | None = None,
    means: Means | None = None,
    secret: securesum.Sums | None = None,
) -> Protection:
    """DP-FedAvg under masks: client-level differential privacy by a trusted server.

        u_k = w_k m_k d_k min(1, C_t / |w_k m_k d_k|),     t the tier of k
        S   = sum_k u_k + N(0, (sigma C)^2),               C = max_t C_t
        released: S_j / D_j,    D_j = q sum_k w_k m_kj     over all N hospitals

    The noise is on every coordinate, also of those that nobody in the cohort covers;
    D_j, a public number, hides who came. Where D_j = 0 nothing is released. Were the
    sum divided by the weights that came, one hospital could move a coordinate that it
    alone holds by C instead of C / D_j.

    A hospital whose change is not finite adds 0 and counts among those who came: under
    secure sums it sends integers of 0.

    Guarantees: a hospital's presence or absence moves the sum by at most C_t in
        Euclidean norm, whatever the others send. So a hospital of tier t is exposed to
        a Gaussian release of noise multiplier sigma C / C_t.

    The weight comes before the clip, so w_k may be anything that the hospital itself or
    an earlier release decides. With `means` it is the public one times a factor of its
    tier, by a fairness rule that sees noisy losses alone; D_j stays the public one, so
    that a larger factor is a larger step, up to the clip.

    With `secret` hospitals send integers, and the server is trusted with their exact
    sum alone, to which it adds the noise. They are rounded towards zero: no entry
    grows, so that the norm stays C_t (rounded to the nearest, P entries could add
    sqrt(P) / 2 steps to it). None saturates. Which coordinates have too few holders
    follows from the population, not from who came: of one that fewer than the minimum
    hold in an average cohort nothing is released, whoever comes. A cohort that by
    chance has fewer is summed all the same, and the server sees that sum before its
    noise: to leave it out would tell who came.

    Args:
        population: whose tiers, weights and sampling rate are public.
        clip: C_t of every tier; with `adaptive` where it starts.
        noise_multiplier: sigma, of all that is released in a round; a number, not
            traced, with `adaptive` or `means`.
        adaptive: moves all C_t by one factor a round. The noise of a round is that of
            the norm which clipped it.
        means: what a rule that weighs by losses is shown; None: weights are the public
            ones, by no rule.
        secret: sums in secret, rounded towards zero, of entries up to max_t C_t; None:
            the server sees what it clips.

    Source: DP-FedAvg, McMahan et al. 2018, with the fixed denominator f~_f. Deviates:
    a denominator for every coordinate, and clips by tier.
    """
    for bound in clip:
        clipping.check("privacy.clip", bound)
    require.in_range("privacy.noise_multiplier", noise_multiplier, 0)
    sigma, beside = noise_multiplier, others(adaptive, means)
    if beside:
        sigma = clipping.split(float(noise_multiplier), beside)

    def weigh(
        key: Key[Array, ""],
        clips: Float[Array, "T"],
        rule: Rule,
        rule_state: PyTree,
        cohort: Cohort,
        scores: Scores,
    ) -> tuple[Float[Array, "K"], Float[Array, "K"], PyTree]:
        public = jnp.where(cohort.valid, population.weight[cohort.client], 0)
        if means is None:
            return public, public, rule_state
        assert scores.loss is not None
        addends = jax.vmap(means.centred)(cohort.tier, cohort.valid, scores.loss)
        if secret is None:
            sums = jnp.sum(addends, axis=0)
        else:
            masks = rng.at(key, _MASKS, _LOSSES)
            sums = secret.sum_of(masks, cohort, addends, means.bound / 2)
        noisy = means.release(rng.at(key, _LOSSES), sums)
        factors, rule_state = means.factors(rule, rule_state, noisy, scores.rate)
        return public * factors[cohort.tier], public, rule_state

    def protect(
        key: Key[Array, ""],
        clips: Float[Array, "T"],
        cohort: Cohort,
        member: Member,
        sent: Sent,
        weight: Float[Array, ""],
        base: Float[Array, ""],
    ) -> Any:
        bound = clips[member.tier]
        change = aggregate.scale(aggregate.change(sent), weight)
        change, norm = clipping.to_norm(change, bound)
        centred = jnp.where(norm <= bound, 0.5, -0.5)
        addend = change, jnp.where(member.valid, centred, 0.0)
        if secret is None:
            return addend
        masks = rng.at(key, _MASKS, _CHANGE)
        who, valid = member.client, member.valid
        return secret.sent(masks, cohort, who, valid, addend, (jnp.max(clips), 0.5))

    def release(
        key: Key[Array, ""],
        clips: Float[Array, "T"],
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: Any,
        public: Sent | None,
    ) -> tuple[Sent, Float[Array, "T"]]:
        assert public is not None
        if secret is not None:
            masks, bounds = rng.at(key, _MASKS, _CHANGE), (jnp.max(clips), 0.5)
            sums = secret.summed(masks, cohort, valid, sums, bounds)
            public = _held(public, secret.minimum / population.rate)
        change, centred = sums
        std = sigma * jnp.max(clips)
        num, tiers = noise.gaussian(rng.at(key, _CHANGE), change, std)
        if adaptive is not None:
            draw = noise.normal(rng.at(key, _COUNT))
            clips = adaptive.moved(clips, centred + adaptive.count_noise * draw)
        dens = {path: den for path, (_, den) in public.tiers.items()}
        shares = {path: (tiers[path], dens[path]) for path in tiers}
        return Sent(num, public.den, shares), clips

    start = jnp.asarray(clip, jnp.float32)
    return Protection(
        protect,
        release,
        lambda: start,
        hides_failure=True,
        population=population,
        weigh=weigh,
    )


def _held(public: Sent, minimum: float) -> Sent:
    """Without denominators where fewer of the population hold a coordinate."""

    def one(holders: Array, den: Array) -> Array:
        return jnp.where(holders >= minimum, den, jnp.zeros_like(den))

    tiers = {path: (num, one(num, den)) for path, (num, den) in public.tiers.items()}
    return Sent(public.num, jax.tree.map(one, public.num, public.den), tiers)


def others(adaptive: clipping.Adaptive | None, means: Means | None) -> dict[str, float]:
    """What is released beside the changes: field of the config -> noise multiplier."""
    named = {}
    if adaptive is not None:
        named["privacy.adaptive.count_noise"] = 2 * adaptive.count_noise
    if means is not None:
        named["privacy.losses.noise_multiplier"] = means.noise_multiplier
    return named


def local(*, clip: Sequence[float], noise_multiplier: Scalar) -> Protection:
    """Local differential privacy: every hospital noises its own upload.

        u_k = m_k (d_k min(1, C_t / |m_k d_k|) + N(0, (sigma C_t)^2))

    Weights, sums and denominators come after, at a server that may see every u_k and
    every mask.

    A hospital that comes sends an upload. One whose change is not finite sends noise
    around 0: that nothing came would tell of its records.

    Guarantees: whatever records a hospital holds, its upload moves by at most 2 C_t:
        one round is a Gaussian release with neighbours "replace_one". Masks must not
        depend on records.

    Args:
        clip: C_t of every tier.
        noise_multiplier: sigma.
    """
    for bound in clip:
        clipping.check("privacy.clip", bound)
    require.in_range("privacy.noise_multiplier", noise_multiplier, 0)
    bounds = jnp.asarray(clip, jnp.float32)

    def protect(
        key: Key[Array, ""],
        state: Any,
        cohort: Cohort,
        member: Member,
        sent: Sent,
        weight: Float[Array, ""],
        base: Float[Array, ""],
    ) -> Sent:
        bound = bounds[member.tier]
        change, _ = clipping.to_norm(aggregate.change(sent), bound)
        own = rng.at(key, _CHANGE, member.client)
        noisy = noise.gaussian(own, change, noise_multiplier * bound)
        cover = sent.den, {path: den for path, (_, den) in sent.tiers.items()}
        upload = aggregate.changed(sent, trees.multiply(noisy, cover))
        return aggregate.weigh(upload, weight, base)

    return aggregate.OPEN._replace(protect=protect, hides_failure=True)
