"""Clipping norms: fixed ones, and one that follows the quantile of the norms."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from fairjax.core import require, trees

SMALLEST = 2.0**-40
"""Clipping norm below which float32 would not see by how much a change exceeds it: the
squares of its entries vanish below 2^-126."""


def check(where: str, bound: Any) -> None:
    """Refuses a clipping norm at which float32 does not clip.

    Above `trees.LONGEST` no change is as long, and sums of changes might overflow.
    """
    require.in_range(where, bound, SMALLEST, trees.LONGEST)


def to_norm(
    tree: PyTree[Float[Array, "..."]], bound: float | Float[Array, ""]
) -> tuple[PyTree[Array], Float[Array, ""]]:
    """The tree scaled down to Euclidean norm `bound` over all its leaves, and its norm.

        u min(1, C / |u|)

    Edge cases: a tree of zeros stays, with norm 0; one of norm exactly C stays as it
    is. Its norm afterwards exceeds C by float rounding at most.
    """
    norm = optax.tree.norm(tree).astype(jnp.float32)
    factor = jnp.minimum(1, bound / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree), norm


class Adaptive(NamedTuple):
    """A clipping norm that finds the quantile gamma of the norms it clips.

        b_k = 1 if |u_k| <= C, else 0       (1 says: not clipped)
        b~  = 1/2 + (sum_k (b_k - 1/2) + N(0, sigma_b^2)) / m
        C  <- C exp(-eta (b~ - gamma))

    with m the expected cohort, a public number. Where more stay unclipped than gamma
    asks for, C shrinks; it stays within the norms at which float32 clips (`check`). A
    hospital moves the centred count by 1/2 at most.

    Source: Andrew, Thakkar, McMahan and Ramaswamy 2021, algorithm 1 and its remark on
    centring. Deviates: m is fixed, so that who came does not enter.
    """

    expected: float
    """m."""
    count_noise: float
    """sigma_b; the paper takes m / 20."""
    quantile: float = 0.5
    """gamma."""
    rate: float = 0.2
    """eta."""

    def moved(
        self, clip: Float[Array, "T"], centred: Float[Array, ""]
    ) -> Float[Array, "T"]:
        """The norms of the next round, from the noisy sum of b_k - 1/2."""
        unclipped = 0.5 + centred / self.expected
        clip = clip * jnp.exp(-self.rate * (unclipped - self.quantile))
        return jnp.clip(clip, SMALLEST, trees.LONGEST)


def split(noise_multiplier: float, beside: Mapping[str, float]) -> float:
    """The noise multiplier of changes beside other releases of the same contributions.

        sigma_Delta = (sigma^-2 - sum_i z_i^-2)^(-1/2),

    so that all together are one Gaussian release of noise multiplier sigma.

    Args:
        noise_multiplier: sigma.
        beside: field of the config that sets its noise -> z_i. That of a count of
            sensitivity 1/2 with noise sigma_b is 2 sigma_b.

    Raises:
        InputError: the others alone would spend as much; names who spends most.

    Source: Andrew et al. 2021, theorem 1, for one count.
    """
    if noise_multiplier == 0:
        return 0.0
    left = noise_multiplier**-2 - math.fsum(z**-2 for z in beside.values())
    if left <= 0:
        field = min(beside, key=lambda name: beside[name])
        what = (
            f"more noise: multiplier {noise_multiplier:g} is that of all releases of "
        )
        require.fail(
            field, what + "a round, and this leaves none for the changes", beside[field]
        )
    return 1 / math.sqrt(left)


def exposed(
    noise_multiplier: float, share: float, beside: Mapping[str, float]
) -> float:
    """The noise multiplier for one whose change is clipped at `share` of the norm.

        (share^2 sigma_Delta^-2 + sum_i z_i^-2)^(-1/2),

    with sigma_Delta as `split` gives it; sigma for share 1.
    """
    if noise_multiplier == 0:
        return 0.0
    others = math.fsum(z**-2 for z in beside.values())
    spent = share**2 * noise_multiplier**-2 + (1 - share**2) * others
    return 1 / math.sqrt(spent)
