"""Depth prefixes with several exits, which teach each other."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fairjax.core import losses, require
from fairjax.core.method import Method
from fairjax.core.types import (
    Axes,
    Batch,
    ClientView,
    Context,
    Objective,
    Outputs,
    OutputsAt,
    Params,
    Size,
    Submodel,
)
from fairjax.submodels import depth
from fairjax.submodels.feddyn import feddyn as with_feddyn


def depthfl(
    axes: Axes,
    budget: tuple[float, ...],
    *,
    stages: tuple[int, ...],
    distill: bool,
    ramp: int,
    ensemble: bool,
    feddyn: float,
    exclusive: int | None = None,
) -> Method:
    """DepthFL: a tier has the first exits of the model and trains all of them.

        loss = sum_i CE_i + lambda(t) sum_i sum_{j != i} KL(z_j -> z_i) / (M - 1),
        lambda(t) = exp(-5 (1 - min(t, ramp) / ramp)^2),

    over the M exits of the client's sub-model; t rounds are finished, and the teaching
    exit z_j gets no gradient.

    Args:
        axes: unit axes of the plain model, which has exits.
        budget: share of the exits per tier, in (0, 1], smallest tier first.
        stages: number of exits of every tier; (): ceil(budget * exits).
        distill: whether exits teach each other.
        ramp: rounds after which lambda is 1.
        ensemble: predict with the mean of the sub-model's exits, not with the deepest.
        feddyn: alpha of `feddyn`; 0: without.
        exclusive: a tier whose depth all clients train that can; poorer clients take no
            part, and deeper blocks never move. None: every tier trains its own depth.

    Raises:
        InputError: a model without exits, a number of exits that it does not have, or
            an exclusive tier that does not exist.

    Edge cases: with one exit the loss is its cross-entropy alone.

    Source: M. Kim, S. Yu, S. Kim and S.-M. Moon, "DepthFL: Depthwise Federated Learning
    for Heterogeneous Clients", ICLR 2023, https://openreview.net/forum?id=pf8RIZTMU58,
    eqs. 1 to 3, whose released code has FedDyn on with alpha 0.1; its baselines of
    exclusive learning by depth, whose counterpart by width is `fedavg`'s. Deviates:
    clients are weighted by the fairness rule (there each counts once: rule "uniform");
    FedDyn's state on the server, see `feddyn`.
    """
    num_exits = depth.counts("stages", stages, budget, len(axes.exits))
    require.positive("ramp", ramp)
    if exclusive is not None:
        last = len(budget) - 1
        require.in_range("exclusive", exclusive, 0, last)
        num_exits = (num_exits[exclusive],) * len(budget)
    lengths = [axes.exits[number - 1] + 1 for number in num_exits]

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        return Submodel(depth.prefix(axes, jnp.asarray(lengths)[client.tier]))

    def size(tier: int) -> Size:
        return depth.size(lengths[tier])

    def accepts(client: ClientView) -> Bool[Array, ""]:
        return client.valid & (client.tier >= (exclusive or 0))

    method = Method(
        submodel=submodel,
        size=size,
        accepts=accepts,
        objective=_objective(axes, distill=distill, ramp=ramp),
    )
    if ensemble:
        method = method._replace(predict=_mean_of_exits(axes))
    return with_feddyn(method, feddyn) if feddyn else method


def _objective(axes: Axes, *, distill: bool, ramp: int) -> Objective:
    """The loss of `depthfl`."""

    def objective(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        exits = outputs_at(None).exits
        dtype = exits[0].dtype
        exit_mask = depth.exits(axes, context.submodel).astype(dtype)
        loss = distillation = jnp.zeros((), dtype)
        for i, student in enumerate(exits):
            example_loss = losses.cross_entropy(student, batch.y)
            loss += exit_mask[i] * losses.batch_mean(batch, example_loss)
            for j, teacher in enumerate(exits):
                if distill and i != j:
                    example_loss = losses.divergence(teacher, student)
                    pair_mask = exit_mask[i] * exit_mask[j]
                    distillation += pair_mask * losses.batch_mean(batch, example_loss)
        progress = jnp.minimum(context.round.astype(dtype) / ramp, 1)
        strength = jnp.exp(-5 * (1 - progress) ** 2)
        distillation = strength * distillation
        return loss + distillation / jnp.maximum(jnp.sum(exit_mask) - 1, 1), {}

    return objective


def _mean_of_exits(
    axes: Axes,
) -> Callable[[Outputs, Submodel], Float[Array, "B C"]]:
    """(outputs, sub-model) -> the mean of the logits of the sub-model's exits."""

    def predict(outputs: Outputs, submodel: Submodel) -> Float[Array, "B C"]:
        exits = jnp.stack(outputs.exits)
        is_present = depth.exits(axes, submodel)[: len(outputs.exits)]
        exit_mask = is_present.astype(exits.dtype)
        return jnp.tensordot(exit_mask / jnp.sum(exit_mask), exits, 1)

    return predict
