"""Random sub-models: a client trains a random subset of every hidden layer."""

import jax
from jaxtyping import Array

from fairjax.core import rng
from fairjax.core.method import Method
from fairjax.core.types import Axes, ClientView, Units
from fairjax.submodels import width


def federated_dropout(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    shared: bool,
    scaler: bool,
    masked_loss: bool,
) -> Method:
    """Federated Dropout: a random subset per hidden axis, drawn anew in every round.

    A client of tier t trains the ceil(budget_t * U) units that come first in a random
    order of the U units of an axis. All layers on one axis have the same units, so a
    residual stream stays aligned. Input features and classes are never dropped. A tier
    is evaluated on the subset drawn for one of its clients in the next round.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, in (0, 1], smallest tier first.
        shared: all clients of a round share one order per axis and every tier takes
            its first units, so that the tiers nest; else every client has an order of
            its own.
        scaler: divide hidden activations by the tier's share; see `heterofl`.
        masked_loss: set the logits of classes without records at the client to 0 in its
            loss, and leave the head's rows of those classes out of its update.

    Source: S. Caldas, J. Konecny, H. B. McMahan and A. Talwalkar, "Expanding the Reach
    of Federated Learning by Reducing Client Resource Requirements", 2018,
    arXiv:1812.07210, where one share holds for all clients; shares per tier and
    HeteroFL's two options as in the released code of FedRolex (see
    `fairjax.submodels.heterofl` and `fairjax.submodels.fedrolex`). Deviates: that code
    draws per convolution and so adds channels of different subsets in residual blocks;
    clients are weighted by the fairness rule (there each counts once: rule "uniform"),
    and attention is cut by heads, as in `heterofl`.
    """
    per_tier = width.sizes(axes, budget)

    def units(key: Array, round: Array, client: ClientView) -> Units:
        if not shared:
            key = rng.fold_in(key, client.client)
        unit_masks = {}
        for i, (name, size) in enumerate(
            width.tier_sizes(per_tier, client.tier).items()
        ):
            rank = jax.random.permutation(rng.fold_in(key, i), axes.units[name])
            unit_masks[name] = rank < size
        return Units(unit_masks, {})

    return width.width_method(
        units, per_tier, budget, scaler=scaler, masked_loss=masked_loss
    )
