"""Rolling sub-models: the window of units that a tier trains moves on every round."""

import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core.types import Axes, Kept, Member, Method, Params, Units
from fairjax.submodels import width


def fedrolex(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    scaler: bool,
    masked_loss: bool,
    overlap: float | None = None,
) -> Method:
    """FedRolex: of every hidden axis a window that wraps around.

    In round j a client of tier t keeps the units

        {(a j + i) mod U : i < w},    w = ceil(budget_t * U),

    of an axis of U units, with a = 1: after U rounds every unit has been kept w times,
    and in round 0 this is HeteroFL. Input features and classes are never dropped.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, in (0, 1], smallest tier first.
        scaler: divide hidden activations by the tier's share; see `heterofl`.
        masked_loss: set the logits of classes that the client does not hold to 0 in its
            loss, and leave the head's rows of those classes out of its update.
        overlap: share of its window that a tier keeps from one round to the next:
            a = max(1, round((1 - overlap) * w)), at each tier's and axis's own pace, so
            that tiers no longer nest. U rounds then cover units evenly only where the
            greatest common divisor of a and U divides w. None: a = 1.

    Source: Alam et al. 2022 (NeurIPS, arXiv 2212.01548), section 3. The window starts
    at j mod U as in the paper; the released code rolls the other way, to -j mod U,
    which covers units alike. Its overlap mode moves by (1 - overlap) w + 1 places
    through a random order that a bug redraws in nearly every round, counts up per
    client and wraps at w, not at U; here units keep their order and all clients of a
    tier share a window. Clients are weighted by the fairness rule (that code counts
    each once unless told otherwise: rule "uniform"), and attention is cut by heads
    (there windows cross them).
    """
    per_tier = width.sizes(axes, budget)
    pace = [
        {
            name: 1 if overlap is None else max(1, round((1 - overlap) * size))
            for name, size in tier.items()
        }
        for tier in per_tier
    ]

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        steps = width.at(pace, member.tier)
        kept = {}
        for name, size in width.at(per_tier, member.tier).items():
            count = axes.units[name]
            # The round is reduced first, lest its product overflow.
            start = steps[name] * (round % count)
            kept[name] = (jnp.arange(count) - start) % count < size
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
