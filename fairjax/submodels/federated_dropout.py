"""Random sub-models: a client trains a random subset of every hidden layer."""

import jax
from jaxtyping import Array

from fairjax.core import rng
from fairjax.core.types import Axes, Kept, Member, Method, Params, Units
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

    A client of tier t keeps the ceil(budget_t * U) units that come first in a random
    order of the U units of an axis. All layers on one axis keep the same units, so a
    residual stream stays aligned. Input features and classes are never dropped.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, in (0, 1], smallest tier first.
        shared: one order per axis and round for all clients, of which every tier takes
            the lead, so that in a round the tiers nest; else every client has an order
            of its own.
        scaler: divide hidden activations by the tier's share; see `heterofl`.
        masked_loss: set the logits of classes that the client does not hold to 0 in its
            loss, and leave the head's rows of those classes out of its update.

    A tier is evaluated on the subset drawn for one of its clients in the next round.

    Source: Caldas et al. 2018 (arXiv 1812.07210), whose clients all keep one share;
    shares per tier and HeteroFL's two options as in the code of FedRolex (Alam et al.
    2022). Deviates from that code, which draws per convolution and so adds channels of
    different subsets in residual blocks; clients are weighted by the fairness rule
    (there each counts once: rule "uniform"), and attention is cut by heads, as in
    `heterofl`.
    """
    per_tier = width.sizes(axes, budget)

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        if not shared:
            key = rng.at(key, member.client)
        kept = {}
        for i, (name, size) in enumerate(width.at(per_tier, member.tier).items()):
            place = jax.random.permutation(rng.at(key, i), axes.units[name])
            kept[name] = place < size
        return width.kept(
            Units(kept, {}),
            budget,
            member.tier,
            member,
            scaler=scaler,
            masked_loss=masked_loss,
        )

    return Method(
        units=units,
        size=lambda tier: width.size(per_tier, tier),
        objective=width.masked_cross_entropy if masked_loss else None,
    )
