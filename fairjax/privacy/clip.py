"""Clipping norms: fixed ones, and one that follows a quantile of the norms."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from fairjax.core import require, trees

MIN_NORM = 2.0**-40
"""The smallest clipping norm. Below it float32 would not see by how much a change
exceeds it: the squares of its entries vanish below 2^-126."""


def check(field: str, bound: Any) -> None:
    """Refuses a clipping norm at which float32 does not clip.

    No change is longer than `trees.MAX_NORM`, and sums of longer ones might overflow.

    Args:
        field: the name of the clipping norm in the message.
        bound: the clipping norm.

    Raises:
        InputError: the norm is outside [MIN_NORM, trees.MAX_NORM].
    """
    require.in_range(field, bound, MIN_NORM, trees.MAX_NORM)


def to_norm(
    tree: PyTree[Float[Array, "..."]], bound: float | Float[Array, ""]
) -> tuple[PyTree[Array], Float[Array, ""]]:
    """The tree scaled down to Euclidean norm `bound` over all its leaves, and its norm.

        u min(1, C / |u|)

    Edge cases: a tree of zeros stays, with norm 0; a tree of norm exactly C stays as it
    is. The norm afterwards exceeds C by float rounding at most.

    Args:
        tree: u.
        bound: C.

    Returns:
        (the clipped tree, |u| in float32 before the clip).
    """
    norm = optax.tree.norm(tree).astype(jnp.float32)
    factor = jnp.minimum(1, bound / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree), norm


class Adaptive(NamedTuple):
    """A clipping norm that finds the quantile gamma of the norms that it clips.

        b_k = 1 if |u_k| <= C, else 0       (1 means: not clipped)
        b~  = 1/2 + (sum_k (b_k - 1/2) + N(0, sigma_b^2)) / m
        C  <- C exp(-eta (b~ - gamma))

    with m the expected size of the cohort, a public number. C shrinks where more
    changes stay unclipped than gamma asks for. It stays within the norms at which
    float32 clips (`check`). A client moves the centred count by 1/2 at most.

    Source: Andrew, Thakkar, McMahan and Ramaswamy, "Differentially private learning
    with adaptive clipping", NeurIPS 2021, arXiv:1905.03871, algorithm 1 and its remark
    on centring. Deviates: m is fixed, so that the drawn cohort has no influence on it.
    """

    expected_clients: float
    """m."""
    count_noise: float
    """sigma_b; the paper takes m / 20."""
    quantile: float = 0.5
    """gamma."""
    step_size: float = 0.2
    """eta."""

    def next_clip(
        self, clip: Float[Array, "T"], centred_count: Float[Array, ""]
    ) -> Float[Array, "T"]:
        """The clipping norms of the next round.

        Args:
            clip: C of every tier in this round.
            centred_count: the noisy sum of b_k - 1/2.
        """
        unclipped_share = 0.5 + centred_count / self.expected_clients
        clip = clip * jnp.exp(-self.step_size * (unclipped_share - self.quantile))
        return jnp.clip(clip, MIN_NORM, trees.MAX_NORM)


def update_multiplier(
    noise_multiplier: float, extra_multipliers: Mapping[str, float]
) -> float:
    """The noise multiplier of changes beside other releases of the same contributions.

        sigma_Delta = (sigma^-2 - sum_i z_i^-2)^(-1/2),

    so that all together are one Gaussian release of noise multiplier sigma.

    Args:
        noise_multiplier: sigma.
        extra_multipliers: name of what sets a release's noise -> z_i. The z_i of a
            count of sensitivity 1/2 with noise sigma_b is 2 sigma_b.

    Raises:
        InputError: the other releases alone would spend as much. The message names the
            release that spends most.

    Source: Andrew et al. 2021 (see `Adaptive`), theorem 1, for one count.
    """
    if noise_multiplier == 0:
        return 0.0
    remaining_precision = noise_multiplier**-2 - math.fsum(
        z**-2 for z in extra_multipliers.values()
    )
    if remaining_precision <= 0:
        field = min(extra_multipliers, key=lambda name: extra_multipliers[name])
        requirement = (
            f"more noise: multiplier {noise_multiplier:g} is that of all releases of "
        )
        require.fail(
            field,
            requirement + "a round, and this leaves none for the changes",
            extra_multipliers[field],
        )
    return 1 / math.sqrt(remaining_precision)


def client_multiplier(
    noise_multiplier: float, share: float, extra_multipliers: Mapping[str, float]
) -> float:
    """The noise multiplier of a client whose change is clipped at `share` of the norm.

        (share^2 sigma_Delta^-2 + sum_i z_i^-2)^(-1/2),

    with sigma_Delta as `update_multiplier` gives it; sigma for share 1.

    Args:
        noise_multiplier: sigma.
        share: the client's clipping norm over the largest one.
        extra_multipliers: as for `update_multiplier`.
    """
    if noise_multiplier == 0:
        return 0.0
    extra_precision = math.fsum(z**-2 for z in extra_multipliers.values())
    precision = share**2 * noise_multiplier**-2 + (1 - share**2) * extra_precision
    return 1 / math.sqrt(precision)
