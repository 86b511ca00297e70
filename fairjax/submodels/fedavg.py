"""No shared sub-models: the full model for every client, and three baselines."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from fairjax.core import axes as unit_axes
from fairjax.core import require
from fairjax.core.method import Method
from fairjax.core.types import Axes, ClientView, Params, Size, Submodel
from fairjax.submodels import width

MODES = ("full", "smallest", "exclusive", "decoupled")


def fedavg(
    axes: Axes,
    budget: tuple[float, ...] = (1.0,),
    *,
    mode: str = "full",
    tier: int = 0,
) -> Method:
    """FedAvg on the full model, or on width prefixes without sharing between tiers.

    - full: every client trains the whole model, whatever its budget. A federation with
      poor clients cannot run it: it is an upper bound.
    - smallest: every client trains the width prefix of tier 0.
    - exclusive: clients of `tier` and above train the prefix of `tier`; poorer ones
      take no part.
    - decoupled: every tier trains a model of its own, its width prefix, on its own
      clients alone.

    The prefix of tier t is that of HeteroFL: ceil(budget_t * U) units of every hidden
    axis. Every client deploys the model that it trained (in "exclusive" poorer clients
    are evaluated on the model of `tier`, which they cannot carry). Coordinates outside
    the prefix never move, so in modes other than "full" only the tiers' own sub-models
    are results, and the whole plain model is none.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, smallest first; "full" ignores it.
        mode: see above.
        tier: the tier of "exclusive".

    Raises:
        InputError: an unknown mode.

    Source: H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks
    from Decentralized Data", AISTATS 2017, arXiv:1602.05629, algorithm 1; the weights
    are the fairness rule's. "smallest" and "exclusive" are baselines of DepthFL (see
    `fairjax.submodels.depthfl`, which has them by depth), and "decoupled" is one of
    C. Jia et al., "AdaptiveFL: Adaptive Heterogeneous Federated Learning for
    Resource-Constrained AIoT Systems", DAC 2024, arXiv:2311.13166. Deviates: a
    decoupled tier takes the mean of its clients as it is, without the server optimiser.
    """
    require.one_of("mode", mode, MODES)
    per_tier = width.sizes(axes, budget)

    common_tier = {"smallest": 0, "exclusive": tier}.get(mode)

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        if mode == "full":
            return Submodel()
        model_tier = client.tier if common_tier is None else jnp.asarray(common_tier)
        return Submodel(unit_axes.prefix(axes, width.tier_sizes(per_tier, model_tier)))

    def size(client_tier: int) -> Size:
        if mode == "full":
            return Size({}, {})
        return width.size(per_tier, client_tier if common_tier is None else common_tier)

    def accepts(client: ClientView) -> Bool[Array, ""]:
        if mode == "exclusive":
            return client.valid & (client.tier >= tier)
        return client.valid

    def scopes(params: Params) -> PyTree[str]:
        return jax.tree.map(lambda leaf: "tier", params)

    return Method(
        submodel=submodel,
        size=size,
        accepts=accepts,
        scopes=scopes if mode == "decoupled" else None,
    )
