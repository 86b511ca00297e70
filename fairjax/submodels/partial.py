"""Partial training: a client runs the whole model and trains a few of its blocks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import require
from fairjax.core.method import Method
from fairjax.core.types import Axes, ClientView, Params, Size, Submodel, Units

MODES = ("top", "rolling", "random")

_BLOCKS, _STEM = "blocks", "stem"


def partial(axes: Axes, budget: tuple[float, ...], *, mode: str) -> Method:
    """Trains and sends back k = ceil(budget_t * n) of a model's n residual blocks.

    The forward pass runs all blocks; the other n - k are frozen. The blocks trained in
    round j, counted from the input:

    - top: the last k;
    - rolling: {(j + i) mod n : i < k};
    - random: the first k in a random order, drawn once per round for all clients, so
      that in a round the tiers nest.

    The head is always trained. The stem, everything before the first block, is trained
    if all blocks are; so a backward pass ends at the first trained block. A client
    receives and deploys the whole model; it saves uploads and optimiser state, and with
    "top" most of the backward pass.

    Args:
        axes: unit axes of a model with a block list "blocks". Leaves in a list "stem"
            of length 1 are its stem; leaves in neither list are the head.
        budget: share of the blocks of every tier, in (0, 1], smallest tier first.
        mode: see above.

    Raises:
        InputError: the model has no block list, or an unknown mode.

    Source: partly trainable networks of H. Sidahmed et al., "Efficient and Private
    Federated Learning with Partially Trainable Networks" (FedPT), 2021,
    arXiv:2110.03450; rolling and random blocks after FedRolex (see
    `fairjax.submodels.fedrolex`) and Federated Dropout (see
    `fairjax.submodels.federated_dropout`), with blocks for units. Deviates: in FedPT
    all clients freeze the same layers for the whole run, at values that follow from a
    seed and need not be sent; here every tier freezes as many blocks as its budget
    asks, other clients train them, and so they travel down.
    """
    require.one_of("mode", mode, MODES)
    if _BLOCKS not in axes.blocks:
        require.fail("axes", f'a block list "{_BLOCKS}"', list(axes.blocks))
    count = axes.blocks[_BLOCKS]
    num_trained = [unit_axes.prefix_size(share, count) for share in budget]

    def order(key: Array, round: Array) -> Array:
        """Rank of every block; the first ones are trained."""
        position = jnp.arange(count, dtype=jnp.int32)
        if mode == "top":
            return count - 1 - position
        if mode == "rolling":
            return (position - round) % count
        return jax.random.permutation(key, position)

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        blocks = order(key, round) < jnp.asarray(num_trained, jnp.int32)[client.tier]
        lists = {_BLOCKS: blocks}
        if _STEM in axes.blocks:
            lists[_STEM] = jnp.all(blocks)[None]
        return Submodel(update=Units({}, lists))

    return Method(submodel=submodel, size=lambda tier: Size({}, {}))
