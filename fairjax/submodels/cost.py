"""The bill of every tier: what its sub-model weighs and what it sends."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array

from fairjax.submodels import axes
from fairjax.types import Kept, Masks, Model, Params


def _held(params: Params, masks: Masks, price: Callable[[Array], int]) -> int:
    def one(param: Array, mask: Array) -> int:
        kept = np.broadcast_to(np.asarray(mask), param.shape)
        return int(np.count_nonzero(kept)) * price(param)

    return sum(jax.tree.leaves(jax.tree.map(one, params, masks)))


def ledger(model: Model, params: Params, kept: Kept) -> dict[str, int]:
    """Parameters and bytes per round of one tier.

    `parameters` are those of the forward pass, which the client receives (`bytes_down`);
    it sends back those it trains (`bytes_up`). Which units are kept follows from tier and
    round, so indices cost nothing.
    """
    forward = axes.masks(params, model.axes, kept.forward)
    update = axes.masks(params, model.axes, kept.update or kept.forward)

    def itemsize(leaf: Array) -> int:
        return leaf.dtype.itemsize

    return {
        "parameters": _held(params, forward, lambda leaf: 1),
        "bytes_down": _held(params, forward, itemsize),
        "bytes_up": _held(params, update, itemsize),
    }
