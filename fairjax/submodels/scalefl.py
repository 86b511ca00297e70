"""Narrow and short sub-models whose deepest exit teaches the earlier ones."""

import math

import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import axes as unit_axes
from fairjax.core import losses, require
from fairjax.core.method import Method
from fairjax.core.types import (
    Axes,
    Batch,
    ClientView,
    Context,
    Objective,
    OutputsAt,
    Params,
    Size,
    Submodel,
    Units,
)
from fairjax.submodels import depth
from fairjax.submodels.width import tier_sizes


def scalefl(
    axes: Axes,
    budget: tuple[float, ...],
    rounds: int,
    *,
    width: tuple[float, ...],
    exits: tuple[int, ...],
    gamma: float,
    temperature: float,
    warmup: float,
) -> Method:
    """ScaleFL: a tier trains a prefix of every hidden axis and of the exits.

        loss = sum_{j < E} (j + 1) l_j / (E (E + 1) / 2),    l_last = CE_last,
        l_j = CE_j + gamma T^2 KL(softmax(z_last / T) || softmax(z_j / T)),

    over the E exits of the client's sub-model. The KL terms begin when more than
    warmup * rounds are finished: of 40 rounds with warmup 0.25, in the 12th. The client
    predicts with its deepest exit.

    Args:
        axes: unit axes of the plain model, which has exits.
        budget: share of every tier, in (0, 1], smallest tier first; it decides what
            `width` and `exits` leave open.
        rounds: number of rounds of the whole run.
        width: share of every hidden axis per tier, of which floor(width * U) of U units
            remain, at least 1; (): sqrt(budget).
        exits: number of exits of every tier; (): ceil(budget * exits).
        gamma: strength of the distillation; 0: without.
        temperature: T.
        warmup: share of the rounds before the distillation, in [0, 1]; with 0 only the
            first round has none.

    Raises:
        InputError: a model without exits, or options that do not fit the tiers.

    Source: F. Ilhan, G. Su and L. Liu, "ScaleFL: Resource-Adaptive Federated Learning
    with Heterogeneous Clients", CVPR 2023, doi:10.1109/CVPR52729.2023.02350. Deviates:
    the teacher gets no gradient and the distillation is on (the released code does
    neither by default); KL is summed over classes and averaged over records (there over
    both); clients are weighted by the fairness rule (there each counts once: rule
    "uniform").
    """
    width_shares = width or tuple(math.sqrt(share) for share in budget)
    if len(width_shares) != len(budget):
        require.fail("width", f"{len(budget)} values, one per tier", width)
    sizes = [
        {
            name: max(1, math.floor(round(share * full_size, 9)))
            for name, full_size in unit_axes.hidden_axes(axes).items()
        }
        for share in width_shares
    ]
    num_exits = depth.counts("exits", exits, budget, len(axes.exits))
    lengths = [axes.exits[number - 1] + 1 for number in num_exits]

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        axis_sizes = tier_sizes(sizes, client.tier)
        blocks = depth.prefix(axes, jnp.asarray(lengths)[client.tier]).blocks
        forward = Units(unit_axes.prefix(axes, axis_sizes).axes, blocks)
        return Submodel(forward, scale=jnp.asarray(width_shares)[client.tier])

    def size(tier: int) -> Size:
        return Size(sizes[tier], depth.size(lengths[tier]).blocks)

    # The first whole number above it: the condition is strict.
    start = math.floor(round(warmup * rounds, 9)) + 1
    objective = _objective(axes, start, gamma=gamma, temperature=temperature)
    return Method(submodel=submodel, size=size, objective=objective)


def _objective(
    axes: Axes, start: int, *, gamma: float, temperature: float
) -> Objective:
    """The loss of `scalefl`, whose distillation begins after `start` rounds."""

    def objective(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        outputs = outputs_at(None)
        dtype = outputs.logits.dtype
        exit_mask = depth.exits(axes, context.submodel).astype(dtype)
        # An exit has a teacher where the sub-model has a deeper one.
        has_teacher = jnp.concatenate([exit_mask[1:], jnp.zeros(1, dtype)])
        is_distilling = (context.round >= start).astype(dtype)
        strength = gamma * temperature**2 * is_distilling * has_teacher
        loss = jnp.zeros((), dtype)
        for j, logits in enumerate(outputs.exits):
            example_loss = losses.cross_entropy(logits, batch.y)
            if gamma:
                example_loss = example_loss + strength[j] * losses.divergence(
                    outputs.logits, logits, temperature
                )
            loss += (j + 1) * exit_mask[j] * losses.batch_mean(batch, example_loss)
        count = jnp.sum(exit_mask)
        return loss / (count * (count + 1) / 2), {}

    return objective
