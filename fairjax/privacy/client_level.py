"""Protections of whole clients: noise on the sum, or on every upload.

A client sends one vector: the changes of the plain model and of its tier's copies of
leaves. The vector is clipped as one, so no leaf passes by the bound.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from fairjax.core import aggregate, require, rng, trees
from fairjax.core.protocols import Population, Protection
from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import ClientView, Cohort, Scalar, Upload
from fairjax.privacy import clip as clipping
from fairjax.privacy import noise, securesum
from fairjax.privacy.means import TierLossRelease

_UPDATE, _COUNT, _LOSSES, _MASKS = range(4)


def central(
    population: Population,
    *,
    clip: Sequence[float],
    noise_multiplier: Scalar,
    adaptive: clipping.Adaptive | None = None,
    loss_release: TierLossRelease | None = None,
    secure_sum: securesum.SecureSum | None = None,
) -> Protection:
    """DP-FedAvg under masks: client-level differential privacy by a trusted server.

        u_k = w_k m_k d_k min(1, C_t / |w_k m_k d_k|),     t the tier of k
        S   = sum_k u_k + N(0, (sigma C)^2),               C = max_t C_t
        released: S_j / D_j,    D_j = q sum_k w_k m_kj     over all N clients

    Every coordinate gets noise, also the coordinates that nobody in the cohort covers.
    D_j is a public number and hides who was in the cohort. Where D_j = 0 nothing is
    released. If the sum were divided by the weights of the cohort, one client could
    move a coordinate that it alone has by C instead of C / D_j.

    A client whose change is not finite adds 0 and counts as present: under secure sums
    it sends integers of 0.

    Guarantees: a client's presence or absence moves the sum by at most C_t in Euclidean
        norm, whatever the others send. So a client of tier t is exposed to a Gaussian
        release of noise multiplier sigma C / C_t.

    The weight comes before the clip, so w_k may be anything that the client itself or
    an earlier release decides. With `loss_release` it is the public weight times a
    factor of the client's tier, by a fairness rule that sees noisy losses alone. D_j
    stays the public one, so that a larger factor is a larger step, up to the clip.

    With `secure_sum` clients send integers, and the server is trusted with their exact
    sum alone, to which it adds the noise. The integers are rounded towards zero: no
    entry grows, so the norm stays within C_t (rounded to the nearest, P entries could
    add sqrt(P) / 2 steps to it). No entry saturates. Which coordinates have too few
    holders follows from the population, not from the cohort: nothing is released of a
    coordinate that fewer than the minimum hold in an average cohort, whoever is in the
    cohort. A cohort that by chance has fewer holders is summed all the same, and the
    server sees that sum before its noise: to leave the coordinate out would tell who
    was in the cohort.

    Args:
        population: the tiers, weights and sampling rate, all public.
        clip: C_t of every tier; with `adaptive` the first one.
        noise_multiplier: sigma, of all releases of a round together; a number, not
            traced, with `adaptive` or `loss_release`.
        adaptive: moves all C_t by one factor a round. The noise of a round is that of
            the norm which clipped it.
        loss_release: the losses that a rule which reads losses is shown; None: the
            weights are the public ones, by no rule.
        secure_sum: sums in secret, rounded towards zero, of entries up to max_t C_t;
            None: the server sees the uploads that it clips.

    Raises:
        InputError: a clip or the noise multiplier is out of range, or the releases
            beside the changes spend the whole budget of a round.

    Source: DP-FedAvg, McMahan, Ramage, Talwar and Zhang, "Learning differentially
    private recurrent language models", ICLR 2018, arXiv:1710.06963, with the fixed
    denominator f~_f. Deviates: a denominator for every coordinate, and clips by tier.
    """
    for bound in clip:
        clipping.check("clip", bound)
    require.in_range("noise_multiplier", noise_multiplier, 0)
    sigma, extra_multipliers = noise_multiplier, extra_releases(adaptive, loss_release)
    if extra_multipliers:
        sigma = clipping.update_multiplier(float(noise_multiplier), extra_multipliers)
    setting = _Central(population, sigma, adaptive, loss_release, secure_sum)
    initial_clips = jnp.asarray(clip, jnp.float32)
    return Protection(
        functools.partial(_protect, setting),
        functools.partial(_release, setting),
        lambda: initial_clips,
        hides_failure=True,
        population=population,
        weights=functools.partial(_weights, setting),
    )


class _Central(NamedTuple):
    """The settings of `central`."""

    population: Population
    sigma: Scalar
    """The noise multiplier of the changes."""
    adaptive: clipping.Adaptive | None
    loss_release: TierLossRelease | None
    secure_sum: securesum.SecureSum | None


def _weights(
    setting: _Central,
    key: Key[Array, ""],
    clips: Float[Array, "T"],
    rule: Rule,
    rule_state: PyTree,
    cohort: Cohort,
    stats: CohortStats,
) -> tuple[Float[Array, "K"], Float[Array, "K"], PyTree]:
    """(weights, public weights, the rule's state)."""
    population, loss_release = setting.population, setting.loss_release
    public_weights = jnp.where(cohort.valid, population.weight[cohort.client], 0)
    if loss_release is None:
        return public_weights, public_weights, rule_state
    assert stats.loss is not None
    addends = jax.vmap(loss_release.centred_loss)(cohort.tier, cohort.valid, stats.loss)
    if setting.secure_sum is None:
        sums = jnp.sum(addends, axis=0)
    else:
        mask_key = rng.fold_in(key, _MASKS, _LOSSES)
        sums = setting.secure_sum.sum_rows(
            mask_key, cohort, addends, loss_release.bound / 2
        )
    noisy = loss_release.release(rng.fold_in(key, _LOSSES), sums)
    factors, rule_state = loss_release.factors(rule, rule_state, noisy, stats.lr_scale)
    return public_weights * factors[cohort.tier], public_weights, rule_state


def _protect(
    setting: _Central,
    key: Key[Array, ""],
    clips: Float[Array, "T"],
    cohort: Cohort,
    client: ClientView,
    upload: Upload,
    weight: Float[Array, ""],
    denominator_weight: Float[Array, ""],
) -> Any:
    """(u_k, the centred indicator that it was not clipped), as the server gets them."""
    bound = clips[client.tier]
    weighted_update = aggregate.scale(aggregate.update(upload), weight)
    weighted_update, norm = clipping.to_norm(weighted_update, bound)
    centred_indicator = jnp.where(norm <= bound, 0.5, -0.5)
    addend = weighted_update, jnp.where(client.valid, centred_indicator, 0.0)
    if setting.secure_sum is None:
        return addend
    mask_key = rng.fold_in(key, _MASKS, _UPDATE)
    client_index, valid = client.client, client.valid
    return setting.secure_sum.encode(
        mask_key, cohort, client_index, valid, addend, (jnp.max(clips), 0.5)
    )


def _release(
    setting: _Central,
    key: Key[Array, ""],
    clips: Float[Array, "T"],
    cohort: Cohort,
    valid: Bool[Array, "K"],
    sums: Any,
    public_sums: Upload | None,
) -> tuple[Upload, Float[Array, "T"]]:
    """(the noisy sum with its public denominators, the clips of the next round)."""
    assert public_sums is not None
    secure_sum, adaptive = setting.secure_sum, setting.adaptive
    if secure_sum is not None:
        mask_key, bounds = rng.fold_in(key, _MASKS, _UPDATE), (jnp.max(clips), 0.5)
        sums = secure_sum.decode(mask_key, cohort, valid, sums, bounds)
        public_sums = _drop_rare_coordinates(
            public_sums, secure_sum.minimum / setting.population.sampling_rate
        )
    update_sum, centred_count = sums
    std = setting.sigma * jnp.max(clips)
    num, tiers = noise.gaussian(rng.fold_in(key, _UPDATE), update_sum, std)
    if adaptive is not None:
        draw = noise.normal(rng.fold_in(key, _COUNT))
        clips = adaptive.next_clip(clips, centred_count + adaptive.count_noise * draw)
    dens = {path: den for path, (_, den) in public_sums.tiers.items()}
    tier_sums = {path: (tiers[path], dens[path]) for path in tiers}
    return Upload(num, public_sums.den, tier_sums), clips


def _drop_rare_coordinates(public_sums: Upload, minimum: float) -> Upload:
    """The public sums with denominator 0 where too few of the population hold it."""

    def per_leaf(holders: Array, den: Array) -> Array:
        return jnp.where(holders >= minimum, den, jnp.zeros_like(den))

    tiers = {
        path: (num, per_leaf(num, den))
        for path, (num, den) in public_sums.tiers.items()
    }
    return Upload(
        public_sums.num, jax.tree.map(per_leaf, public_sums.num, public_sums.den), tiers
    )


def extra_releases(
    adaptive: clipping.Adaptive | None, loss_release: TierLossRelease | None
) -> dict[str, float]:
    """The releases beside the changes: argument that sets one -> noise multiplier."""
    multipliers = {}
    if adaptive is not None:
        multipliers["adaptive"] = 2 * adaptive.count_noise
    if loss_release is not None:
        multipliers["loss_release"] = loss_release.noise_multiplier
    return multipliers


def local(*, clip: Sequence[float], noise_multiplier: Scalar) -> Protection:
    """Local differential privacy: every client adds noise to its own upload.

        u_k = m_k (d_k min(1, C_t / |m_k d_k|) + N(0, (sigma C_t)^2))

    Weights, sums and denominators come after, at a server that may see every u_k and
    every mask.

    Every client of the cohort sends an upload. A client whose change is not finite
    sends noise around 0: a missing upload would tell of its records.

    Guarantees: whatever records a client has, its upload moves by at most 2 C_t: one
        round is a Gaussian release with neighbours "replace_one". Masks must not depend
        on records.

    Args:
        clip: C_t of every tier.
        noise_multiplier: sigma.

    Raises:
        InputError: a clip or the noise multiplier is out of range.
    """
    for bound in clip:
        clipping.check("clip", bound)
    require.in_range("noise_multiplier", noise_multiplier, 0)
    bounds = jnp.asarray(clip, jnp.float32)

    def protect(
        key: Key[Array, ""],
        state: Any,
        cohort: Cohort,
        client: ClientView,
        upload: Upload,
        weight: Float[Array, ""],
        denominator_weight: Float[Array, ""],
    ) -> Upload:
        bound = bounds[client.tier]
        update, _ = clipping.to_norm(aggregate.update(upload), bound)
        noise_key = rng.fold_in(key, _UPDATE, client.client)
        noisy = noise.gaussian(noise_key, update, noise_multiplier * bound)
        cover = upload.den, {path: den for path, (_, den) in upload.tiers.items()}
        noisy_upload = aggregate.with_update(upload, trees.multiply(noisy, cover))
        return aggregate.scale_upload(noisy_upload, weight, denominator_weight)

    return aggregate.OPEN._replace(protect=protect, hides_failure=True)
