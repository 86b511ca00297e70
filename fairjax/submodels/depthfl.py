"""Depth prefixes with an exit at every end: local exits teach each other."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fairjax.core import losses, require
from fairjax.core.types import (
    Axes,
    Batch,
    Context,
    Kept,
    Member,
    Method,
    Outputs,
    OutputsAt,
    Params,
    Size,
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
    """DepthFL: a tier keeps the first exits of the model and trains all of them.

        loss = sum_i CE_i + lambda(t) sum_i sum_{j != i} KL(z_j -> z_i) / (M - 1),
        lambda(t) = exp(-5 (1 - min(t, ramp) / ramp)^2),

    over the M exits that the client keeps; t rounds are finished, and the exit z_j that
    teaches gets no gradient.

    Args:
        axes: unit axes of the plain model, which has exits.
        budget: share of the exits per tier, in (0, 1], smallest tier first.
        stages: exits that every tier keeps; (): ceil(budget * exits).
        distill: whether exits teach each other.
        ramp: rounds after which lambda is 1.
        ensemble: answer with the mean of the kept exits' logits, not with the deepest.
        feddyn: alpha of `feddyn`; 0: without.
        exclusive: a tier, whose depth all train that can; poorer clients take no part,
            and what lies deeper never moves. None: every tier trains its own depth.

    Raises:
        InputError: a model without exits, a number of exits that it does not have, or
            an exclusive tier that there is not.

    Edge cases: with one exit there is nobody to teach, and the loss is its own.

    Source: Kim et al. 2023 (DepthFL, ICLR), eqs. 1 to 3, whose released code has FedDyn
    on with alpha 0.1; its baselines of exclusive learning by depth, whose counterpart
    by width is `fedavg`'s. Deviates: clients are weighted by the fairness rule (there
    alike: "uniform"); FedDyn's state on the server, see `feddyn`.
    """
    kept_exits = depth.counts(
        "submodel.depthfl.stages", stages, budget, len(axes.exits)
    )
    require.positive("submodel.depthfl.ramp", ramp)
    if exclusive is not None:
        last = len(budget) - 1
        require.in_range("submodel.depthfl.exclusive", exclusive, 0, last)
        kept_exits = (kept_exits[exclusive],) * len(budget)
    lengths = [axes.exits[number - 1] + 1 for number in kept_exits]

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        return Kept(depth.prefix(axes, jnp.asarray(lengths)[member.tier]))

    def objective(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        exits = outputs_at(None).exits
        dtype = exits[0].dtype
        present = depth.exits(axes, context.kept).astype(dtype)
        loss = taught = jnp.zeros((), dtype)
        for i, pupil in enumerate(exits):
            each = losses.cross_entropy(pupil, batch.y)
            loss += present[i] * losses.over(batch, each)
            for j, teacher in enumerate(exits):
                if distill and i != j:
                    each = losses.divergence(teacher, pupil)
                    both = present[i] * present[j]
                    taught += both * losses.over(batch, each)
        progress = jnp.minimum(context.round.astype(dtype) / ramp, 1)
        strength = jnp.exp(-5 * (1 - progress) ** 2)
        return loss + strength * taught / jnp.maximum(jnp.sum(present) - 1, 1), {}

    def predict(outputs: Outputs, kept: Kept) -> Float[Array, "B C"]:
        exits = jnp.stack(outputs.exits)
        present = depth.exits(axes, kept)[: len(outputs.exits)].astype(exits.dtype)
        return jnp.tensordot(present / jnp.sum(present), exits, 1)

    def size(tier: int) -> Size:
        return depth.size(lengths[tier])

    def admits(member: Member) -> Bool[Array, ""]:
        return member.valid & (member.tier >= (exclusive or 0))

    method = Method(units=units, size=size, admits=admits, objective=objective)
    if ensemble:
        method = method._replace(predict=predict)
    return with_feddyn(method, feddyn) if feddyn else method
