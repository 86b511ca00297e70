"""Rolling sub-models: the window of units that a tier trains moves on every round."""

import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core.method import Method
from fairjax.core.types import Axes, ClientView, Units
from fairjax.submodels import width


def fedrolex(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    scaler: bool,
    masked_loss: bool,
    overlap: float | None = None,
) -> Method:
    """FedRolex: a window of every hidden axis, which wraps around.

    In round j a client of tier t trains the units

        {(a j + i) mod U : i < w},    w = ceil(budget_t * U),

    among the U units of an axis, with a = 1: after U rounds every unit has been in the
    window w times, and round 0 is HeteroFL's. Input features and classes are never
    dropped.

    Args:
        axes: unit axes of the plain model.
        budget: width share of every tier, in (0, 1], smallest tier first.
        scaler: divide hidden activations by the tier's share; see `heterofl`.
        masked_loss: set the logits of classes without records at the client to 0 in its
            loss, and leave the head's rows of those classes out of its update.
        overlap: share of its window that a tier keeps from one round to the next:
            a = max(1, round((1 - overlap) * w)), at each tier's and axis's own pace, so
            that tiers no longer nest. U rounds then cover units evenly only where the
            greatest common divisor of a and U divides w. None: a = 1.

    Source: S. Alam, L. Liu, M. Yan and M. Zhang, "FedRolex: Model-Heterogeneous
    Federated Learning with Rolling Sub-Model Extraction", NeurIPS 2022,
    arXiv:2212.01548, section 3. Deviates from the released code: the window starts at
    j mod U as in the paper, where the code rolls the other way, to -j mod U, which
    covers units alike. The code's overlap mode moves by (1 - overlap) w + 1 places
    through a random order that a bug redraws in nearly every round, counts up per
    client and wraps at w, not at U; here units keep their order and all clients of a
    tier share a window. Clients are weighted by the fairness rule (by default the code
    counts each once: rule "uniform"), and attention is cut by heads (in the code
    windows cross them).
    """
    per_tier = width.sizes(axes, budget)
    pace = [
        {
            name: 1 if overlap is None else max(1, round((1 - overlap) * size))
            for name, size in tier.items()
        }
        for tier in per_tier
    ]

    def units(key: Array, round: Array, client: ClientView) -> Units:
        steps = width.tier_sizes(pace, client.tier)
        unit_masks = {}
        for name, size in width.tier_sizes(per_tier, client.tier).items():
            count = axes.units[name]
            # The round is reduced first, lest its product overflow.
            start = steps[name] * (round % count)
            unit_masks[name] = (jnp.arange(count) - start) % count < size
        return Units(unit_masks, {})

    return width.width_method(
        units, per_tier, budget, scaler=scaler, masked_loss=masked_loss
    )
