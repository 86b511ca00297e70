"""One network per client and no sub-models: the full model, and the three baselines."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from fairjax.core import axes as unit_axes
from fairjax.core import require
from fairjax.core.types import Axes, Kept, Member, Method, Params, Size
from fairjax.submodels import width

MODES = ("full", "smallest", "exclusive", "decoupled")


def fedavg(
    axes: Axes,
    budget: tuple[float, ...] = (1.0,),
    *,
    mode: str = "full",
    tier: int = 0,
) -> Method:
    """FedAvg on the full model, or on width prefixes that do not share.

    - full: every client trains the whole model, whatever its budget: the bound that a
      federation with poor clients cannot reach.
    - smallest: every client trains the width prefix of tier 0.
    - exclusive: clients of `tier` and above train the prefix of `tier`; poorer ones
      take no part.
    - decoupled: every tier trains a model of its own, its width prefix, on its own
      clients alone.

    The prefix of tier t is that of HeteroFL: ceil(budget_t * U) units of every hidden
    axis. Every client deploys what it trained (in "exclusive" poorer clients are scored
    on the model of `tier`, which they cannot carry). What lies outside the prefix never
    moves, so outside "full" the whole plain model is no result: look at the tiers' own
    sub-models.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, smallest first; "full" does not read it.
        mode: see above.
        tier: the tier of "exclusive".

    Source: McMahan et al. 2017 (AISTATS, arXiv 1602.05629), algorithm 1; the weights
    are the fairness rule's. The baselines are those of DepthFL (Kim et al. 2023;
    smallest and exclusive by width; `depthfl` has them by depth) and AdaptiveFL (Jia et
    al. 2024; decoupled). Deviates: a decoupled tier takes the mean of its clients as it
    is, without the server optimiser.
    """
    require.one_of("mode", mode, MODES)
    per_tier = width.sizes(axes, budget)

    alike = {"smallest": 0, "exclusive": tier}.get(mode)

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        if mode == "full":
            return Kept()
        own = member.tier if alike is None else jnp.asarray(alike)
        return Kept(unit_axes.prefix(axes, width.at(per_tier, own)))

    def size(own: int) -> Size:
        if mode == "full":
            return Size({}, {})
        return width.size(per_tier, own if alike is None else alike)

    def admits(member: Member) -> Bool[Array, ""]:
        if mode == "exclusive":
            return member.valid & (member.tier >= tier)
        return member.valid

    def private(params: Params) -> PyTree[str]:
        return jax.tree.map(lambda leaf: "tier", params)

    return Method(
        units=units,
        size=size,
        admits=admits,
        private=private if mode == "decoupled" else None,
    )
