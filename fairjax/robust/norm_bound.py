"""A norm bound on clients' changes by running medians of their tiers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core import aggregate, require
from fairjax.core.protocols import Protection
from fairjax.core.types import ClientView, Cohort, Upload
from fairjax.privacy import clip

_EMA_WEIGHT = 0.5
"""Share of the newest median's logarithm in that of the running median."""


class _NormBoundState(NamedTuple):
    inner: Any
    """The state of the inner protection."""
    median: Float[Array, "T"]
    """Running median of the norms of every tier; 0 before its first client."""


def with_norm_bound(inner: Protection, *, factor: float, tiers: int) -> Protection:
    """Scales changes down to a multiple of what is usual in their tier.

        u_k = m_k d_k min(1, factor tau_t / |m_k d_k|),   t the tier of k
        log tau_t <- (log tau_t + log median of |m_k d_k| over tier t) / 2

    The bound is by tier, since a smaller sub-model has a smaller norm. The running
    median is that of earlier rounds, so that no round needs all changes at once. Before
    a tier's first median tau is 0: its first changes are measured and do not enter.

    Args:
        inner: the protection that receives the bounded changes.
        factor: above 0.
        tiers: T.

    Raises:
        InputError: the factor is not positive.

    Guarantees: a client moves a sum by at most its weight times factor tau_t. Byzantine
        clients move tau_t itself only where they are half of a tier's clients.

    Source: norm clipping as a defence, Sun et al., "Can you really backdoor federated
    learning?", 2019, arXiv:1911.07963; the running median by tier is ours.
    """
    require.positive("factor", factor)

    def protect(
        key: Key[Array, ""],
        state: _NormBoundState,
        cohort: Cohort,
        client: ClientView,
        upload: Upload,
        weight: Float[Array, ""],
        denominator_weight: Float[Array, ""],
    ) -> tuple[Any, Float[Array, "K"]]:
        update, norm = clip.to_norm(
            aggregate.update(upload), factor * state.median[client.tier]
        )
        upload = aggregate.with_update(upload, update)
        addend = inner.protect(
            key, state.inner, cohort, client, upload, weight, denominator_weight
        )
        # Every client has its own slot, so that the sum holds all norms.
        client_slot = cohort.valid & (cohort.client == client.client)
        return addend, jnp.where(client_slot, norm, 0)

    def release(
        key: Key[Array, ""],
        state: _NormBoundState,
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: tuple[Any, Float[Array, "K"]],
        public_sums: Upload | None,
    ) -> tuple[Upload, _NormBoundState]:
        upload, inner_state = inner.release(
            key, state.inner, cohort, valid, sums[0], public_sums
        )
        new_median = _update_median(state.median, sums[1], cohort.tier, valid)
        return upload, _NormBoundState(inner_state, new_median)

    def accepted(
        state: _NormBoundState, cohort: Cohort, valid: Array, sums: Any
    ) -> Array:
        bound, norm = factor * state.median[cohort.tier], sums[1]
        share = jnp.where(norm > bound, bound / jnp.where(norm > 0, norm, 1), 1)
        inner_accepted = valid.astype(share.dtype)
        if inner.accepted is not None:
            inner_accepted = inner.accepted(state.inner, cohort, valid, sums[0])
        return inner_accepted * share

    def init() -> _NormBoundState:
        return _NormBoundState(inner.init(), jnp.zeros(tiers, jnp.float32))

    return inner._replace(
        protect=protect,
        release=release,
        init=init,
        fold=_with_norms(inner),
        accepted=accepted,
    )


def _update_median(
    median: Float[Array, "T"],
    norm: Float[Array, "K"],
    tier: Int[Array, "K"],
    valid: Bool[Array, "K"],
) -> Float[Array, "T"]:
    """The running medians after a round; a tier without valid clients keeps its own."""
    in_tier = valid & (tier == jnp.arange(len(median), dtype=jnp.int32)[:, None])
    tier_median = jnp.nanmedian(jnp.where(in_tier, norm, jnp.nan), axis=1)
    has_median = jnp.isfinite(tier_median) & (tier_median > 0)
    tier_median = jnp.where(has_median, tier_median, 1)
    running_median = tier_median**_EMA_WEIGHT * median ** (1 - _EMA_WEIGHT)
    new_median = jnp.where(median > 0, running_median, tier_median)
    return jnp.where(has_median, new_median, median)


def _with_norms(inner: Protection) -> Callable[[PyTree], PyTree] | None:
    """The inner protection's fold beside the sum of the norms; None without a fold."""
    fold = inner.fold
    if fold is None:
        return None
    return lambda stack: (fold(stack[0]), jnp.sum(stack[1], axis=0))
