"""What a sub-model computes: its outputs, its predictions, and how well it does."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

from fairjax.core import axes, losses, trees
from fairjax.core.method import Method
from fairjax.core.problem import LocalProblem
from fairjax.core.types import (
    ClientData,
    GroupStats,
    Model,
    Moments,
    Outputs,
    Params,
    Submodel,
)


def apply_submodel(
    model: Model,
    params: Params,
    x: Num[Array, "B ..."],
    submodel: Submodel,
    *,
    train: bool = False,
    key: Key[Array, ""] | None = None,
    where: Bool[Array, "B"] | None = None,
    stats: PyTree[Moments] = None,
) -> Outputs:
    """The sub-model's outputs: the full-width model at params * mask."""
    mask = axes.masks(params, model.axes, submodel.forward)
    return model.apply(
        trees.multiply(params, mask),
        x,
        train=train,
        key=key,
        where=where,
        stats=stats,
        submodel=submodel,
    )


def masked_params(method: Method, params: Params, submodel: Submodel) -> Params:
    """The incoming parameters, with 0 at single coordinates that a sub-model drops."""
    if method.mask is None:
        return params
    return trees.multiply(params, method.mask(params, submodel))


def predict(
    local: LocalProblem,
    params: Params,
    x: Num[Array, "B ..."],
    submodel: Submodel,
    *,
    where: Bool[Array, "B"] | None = None,
    stats: PyTree[Moments] = None,
) -> Float[Array, "B C"]:
    """The logits of a deployed sub-model.

    Args:
        local: the local problem.
        params: the plain model.
        x: inputs of a batch.
        submodel: the sub-model.
        where: valid records, for norms with batch statistics.
        stats: moments that batch norms normalise by; None: those of the batch.
    """
    params = masked_params(local.method, params, submodel)
    outputs = apply_submodel(local.model, params, x, submodel, where=where, stats=stats)
    return local.method.predict(outputs, submodel)


def score(
    params: Params,
    submodel: Submodel,
    examples: ClientData,
    *,
    local: LocalProblem,
    max_records: int | None = None,
    groups: int = 0,
) -> GroupStats:
    """How a client's sub-model does on all its records, in evaluation mode.

    Rules read it at the incoming model, before any local step. Batch norms use the
    moments of each batch, as they do in training. A client without records has sums
    of 0.

    Args:
        params: the plain model.
        submodel: the client's sub-model.
        examples: the client's records.
        local: the local problem.
        max_records: records of the largest client; None: as the schedule of `local`
            says.
        groups: G of the attribute in `examples.group`; 0 without one.
    """
    size = local.schedule.batch_size
    max_records = local.schedule.max_records if max_records is None else max_records
    shape = jax.eval_shape(lambda: predict(local, params, examples.x[:1], submodel))
    classes = shape.shape[1]

    def one_batch(total: Array, start: Array):
        rows = start + jnp.arange(size, dtype=jnp.int32)
        where = rows < examples.count
        index = examples.offset + jnp.where(where, rows, 0)
        label = examples.y[index]
        group = jnp.full(size, groups, jnp.int32)
        if examples.group is not None:
            group_id = examples.group[index]
            group = jnp.where(group_id < 0, group, group_id)
        logits = predict(local, params, examples.x[index], submodel, where=where)
        loss = losses.cross_entropy(logits, label)
        correct = (jnp.argmax(logits, axis=-1) == label).astype(loss.dtype)
        values = jnp.where(where, jnp.stack([jnp.ones_like(loss), loss, correct]), 0)
        cell = group * classes + label
        return total.at[:, cell].add(values.astype(total.dtype), mode="drop"), None

    starts = jnp.arange(math.ceil(max_records / size), dtype=jnp.int32) * size
    # A sum of ones in bfloat16 ends at 256.
    sum_dtype = shape.dtype if jnp.finfo(shape.dtype).bits >= 32 else jnp.float32
    empty = jnp.zeros((3, (groups + 1) * classes), sum_dtype)
    total, _ = jax.lax.scan(one_batch, empty, starts)
    return GroupStats(*total.reshape(3, groups + 1, classes))


def mean_loss(group_stats: GroupStats) -> Float[Array, "..."]:
    """A client's mean cross-entropy over all groups and classes; 0 without records."""
    total = jnp.sum(group_stats.loss, axis=(-2, -1))
    return total / jnp.maximum(jnp.sum(group_stats.count, axis=(-2, -1)), 1)
