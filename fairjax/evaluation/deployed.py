"""Models as they are deployed: logits of the full model and of tiers' sub-models."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from fairjax import metrics
from fairjax.core import inference, rng, scopes
from fairjax.core.problem import LocalProblem
from fairjax.core.rng import Role
from fairjax.core.spec import Spec
from fairjax.core.types import (
    ClientView,
    FederatedData,
    Moments,
    Params,
    RunState,
    Submodel,
)


def calibrate(
    params: Params,
    submodel: Submodel,
    data: FederatedData,
    where: Bool[Array, "M"],
    *,
    local: LocalProblem,
    clients: Int[Array, "M"] | None = None,
    records_per_client: int = 256,
) -> PyTree[Moments] | None:
    """Moments for a sub-model's batch norms, pooled over clients' training records.

    Every client runs the sub-model in training mode over batches of its first
    `records_per_client` records and sends n, sum x and sum x^2 per norm. Only the sums
    over clients are used:

        mean = sum n_b mean_b / sum n_b,   var = sum n_b (var_b + mean_b^2) / sum n_b
               - mean^2.

    Args:
        params: the plain model.
        submodel: the sub-model.
        data: the training split.
        where: which of `clients` count.
        local: the local problem.
        clients: the clients to pool over; None: all.
        records_per_client: most records that a client uses.

    Returns:
        The moments that `Model.apply` takes; None for a model without batch norm.

    Source: the static batch normalisation of HeteroFL (see
    `fairjax.submodels.heterofl`), which runs over all records; the bound is ours.
    """
    records = jax.tree.map(jnp.asarray, data)
    params = inference.masked_params(local.method, params, submodel)
    max_records = min(local.schedule.max_records, records_per_client)
    size = min(max_records, 64)
    row = jnp.arange(size, dtype=jnp.int32)

    def batch_moments(index: Array, valid: Array) -> PyTree[Moments]:
        outputs = inference.apply_submodel(
            local.model, params, records.x[index], submodel, train=True, where=valid
        )
        return outputs.stats

    shape = jax.eval_shape(batch_moments, row, row >= 0)
    if shape is None:
        return None
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)

    def add(sums: PyTree[Moments], chunk: tuple[Array, Array, Array]):
        client_id, is_included, start = chunk
        valid = (
            start + row < jnp.minimum(records.count[client_id], max_records)
        ) & is_included
        index = records.offset[client_id] + jnp.where(valid, start + row, 0)
        moments = batch_moments(index, valid)
        add_batch = functools.partial(_add_moments, valid=valid)
        return jax.tree.map(add_batch, sums, moments, is_leaf=_is_moments), None

    if clients is None:
        clients = jnp.arange(records.count.shape[0], dtype=jnp.int32)
    client_row, starts = jnp.meshgrid(
        jnp.arange(clients.shape[0], dtype=jnp.int32),
        jnp.arange(-(-max_records // size), dtype=jnp.int32) * size,
        indexing="ij",
    )
    chunks = clients[client_row.ravel()], where[client_row.ravel()], starts.ravel()
    sums, _ = jax.lax.scan(add, zeros, chunks)
    return jax.tree.map(_from_sums, sums, is_leaf=_is_moments)


def _add_moments(total: Moments, batch: Moments, valid: Bool[Array, "B"]) -> Moments:
    """The sums n, sum x and sum x^2 in the fields of `Moments`, with a batch added."""
    count = batch.count * jnp.any(valid).astype(batch.count.dtype)
    square = batch.var + batch.mean**2
    return Moments(
        total.count + count,
        total.mean + count * batch.mean,
        total.var + count * square,
    )


def _from_sums(total: Moments) -> Moments:
    """Moments from the sums of `_add_moments`."""
    count = jnp.maximum(total.count, 1)
    mean = total.mean / count
    return Moments(total.count, mean, jnp.maximum(total.var / count - mean**2, 0))


def _is_moments(node: object) -> bool:
    return isinstance(node, Moments)


def predict(
    state: RunState,
    x: PyTree[Num[Array, "..."]],
    train: FederatedData,
    tiers: Int[Array, "N"],
    representatives: ClientView,
    *,
    spec: Spec,
) -> tuple[PyTree[Float[Array, "..."]], PyTree[Float[Array, "..."]]]:
    """Logits of the full model and of every tier's own sub-model.

    If tiers keep copies of leaves, the full model is the richest tier's.

    Args:
        state: the state of the run.
        x: inputs [E, ...], in any number of blocks.
        train: the training split, for the moments of batch norms.
        tiers: budget tier of every client.
        representatives: one client of every tier, [T] a leaf; its sub-model represents
            the tier if a method draws sub-models per client.
        spec: what a round does.

    Returns:
        (full model, sub-models): [E, C] and [T, E, C] for every block of `x`.
    """
    local = spec.local
    submodel_key = rng.fold_in(state.key, Role.UNITS, state.round)
    all_clients = jnp.ones(tiers.shape, bool)

    def model_logits(params: Params, submodel: Submodel, where: Array) -> PyTree[Array]:
        stats = None
        if local.moments != "batch":
            stats = calibrate(params, submodel, train, where, local=local)

        def apply(params: Params, x: Array) -> Array:
            return inference.predict(local, params, x, submodel, stats=stats)

        return jax.tree.map(lambda x: metrics.logits_of(params, x, apply=apply), x)

    def tier_logits(client_view: ClientView) -> PyTree[Array]:
        params = scopes.gather(state.leaf_copies, state.params, client_view)
        submodel = local.method.submodel(submodel_key, state.round, params, client_view)
        where = all_clients
        if local.moments == "per_tier":
            where = tiers == client_view.tier
        return model_logits(params, submodel, where)

    full_params = scopes.top_tier_model(state.leaf_copies, state.params)
    return model_logits(full_params, Submodel(), all_clients), jax.lax.map(
        tier_logits, representatives
    )


def evaluate(
    state: RunState,
    data: FederatedData,
    train: FederatedData,
    tiers: Int[Array, "N"],
    representatives: ClientView,
    *,
    spec: Spec,
) -> tuple[metrics.Evaluation, metrics.Evaluation]:
    """The full model and every tier's own sub-model on one split.

    Args:
        state: the state of the run.
        data: the split.
        train: the training split, for the moments of batch norms.
        tiers: budget tier of every client.
        representatives: one client of every tier, [T] a leaf.
        spec: what a round does.

    Returns:
        (full model, sub-models with [T, ...] a leaf).
    """
    x = jnp.asarray(data.x)
    full_logits, tier_logits = predict(
        state, x, train, tiers, representatives, spec=spec
    )
    evaluate_logits = functools.partial(metrics.evaluation_of, data=data)
    return evaluate_logits(full_logits), jax.lax.map(evaluate_logits, tier_logits)
