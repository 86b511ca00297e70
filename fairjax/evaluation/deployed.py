"""Models as they are deployed: logits of the full model and of every tier's own."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from fairjax import metrics
from fairjax.core import client, rng, round, scopes
from fairjax.core.rng import Role
from fairjax.core.types import Federation, Kept, Member, Moments, Params, RunState


def calibrate(
    params: Params,
    kept: Kept,
    data: Federation,
    where: Bool[Array, "M"],
    *,
    local: client.Local,
    clients: Int[Array, "M"] | None = None,
    per_client: int = 256,
) -> PyTree[Moments] | None:
    """Moments for a sub-model's batch norms, pooled over clients' training records.

    Every client runs the sub-model in training mode over batches of its first
    `per_client` records and sends, per norm, n, sum x and sum x^2; only the sums over
    clients are used:

        mean = sum n_b mean_b / sum n_b,   var = sum n_b (var_b + mean_b^2) / sum n_b
               - mean^2.

    Args:
        params: the plain model.
        kept: the sub-model.
        data: the training split.
        where: the clients that count.
        local: the local problem.
        clients: whom `where` speaks of; None: everybody.
        per_client: records that a client uses at most.

    Returns:
        The moments that `Model.apply` takes; None for a model without batch norm.

    Source: static batch normalisation of HeteroFL (Diao et al. 2021), which runs over
    all records; the bound is ours.
    """
    records = jax.tree.map(jnp.asarray, data)
    params = client.held(local.method, params, kept)
    longest = min(local.plan.longest, per_client)
    size = min(longest, 64)
    row = jnp.arange(size, dtype=jnp.int32)

    def measure(index: Array, valid: Array) -> PyTree[Moments]:
        outputs = client.apply_kept(
            local.model, params, records.x[index], kept, train=True, where=valid
        )
        return outputs.stats

    shape = jax.eval_shape(measure, row, row >= 0)
    if shape is None:
        return None
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)

    def add(sums: PyTree[Moments], at: tuple[Array, Array, Array]):
        who, counts, start = at
        valid = (start + row < jnp.minimum(records.count[who], longest)) & counts
        index = records.offset[who] + jnp.where(valid, start + row, 0)
        new = measure(index, valid)

        def one(total: Moments, batch: Moments) -> Moments:
            # Sums of n, n x and n x^2 travel in the places of the moments.
            count = batch.count * jnp.any(valid).astype(batch.count.dtype)
            square = batch.var + batch.mean**2
            return Moments(
                total.count + count,
                total.mean + count * batch.mean,
                total.var + count * square,
            )

        return jax.tree.map(one, sums, new, is_leaf=_is_moments), None

    if clients is None:
        clients = jnp.arange(records.count.shape[0], dtype=jnp.int32)
    who, starts = jnp.meshgrid(
        jnp.arange(clients.shape[0], dtype=jnp.int32),
        jnp.arange(-(-longest // size), dtype=jnp.int32) * size,
        indexing="ij",
    )
    at = clients[who.ravel()], where[who.ravel()], starts.ravel()
    sums, _ = jax.lax.scan(add, zero, at)

    def close(total: Moments) -> Moments:
        count = jnp.maximum(total.count, 1)
        mean = total.mean / count
        return Moments(total.count, mean, jnp.maximum(total.var / count - mean**2, 0))

    return jax.tree.map(close, sums, is_leaf=_is_moments)


def _is_moments(node: object) -> bool:
    return isinstance(node, Moments)


def answers(
    state: RunState,
    x: PyTree[Num[Array, "..."]],
    train: Federation,
    tiers: Int[Array, "N"],
    representatives: Member,
    *,
    spec: round.Spec,
) -> tuple[PyTree[Float[Array, "..."]], PyTree[Float[Array, "..."]]]:
    """Logits of the full model and of every tier's own sub-model.

    Where tiers keep leaves to themselves, the full model is the richest tier's.

    Args:
        state: the run.
        x: inputs [E, ...], in as many blocks as wanted.
        train: the training split, for the moments of batch norms.
        tiers: budget tier of every client.
        representatives: one client of every tier, [T] a leaf; its units stand for the
            tier's where a method draws them per client.
        spec: what a round does.

    Returns:
        (full model, sub-models): [E, C] and [T, E, C] for every block of `x`.
    """
    local = spec.local
    units_key = rng.at(state.key, Role.UNITS, state.round)
    everyone = jnp.ones(tiers.shape, bool)

    def run(params: Params, kept: Kept, whose: Array) -> PyTree[Array]:
        stats = None
        if local.moments != "batch":
            stats = calibrate(params, kept, train, whose, local=local)

        def apply(params: Params, x: Array) -> Array:
            return client.answer(local, params, x, kept, stats=stats)

        return jax.tree.map(lambda x: metrics.logits_of(params, x, apply=apply), x)

    def own(member: Member) -> PyTree[Array]:
        params = scopes.gather(state.private, state.params, member)
        kept = local.method.units(units_key, state.round, params, member)
        whose = everyone
        if local.moments == "per_tier":
            whose = tiers == member.tier
        return run(params, kept, whose)

    full = scopes.whole(state.private, state.params)
    return run(full, Kept(), everyone), jax.lax.map(own, representatives)


def evaluate(
    state: RunState,
    data: Federation,
    train: Federation,
    tiers: Int[Array, "N"],
    representatives: Member,
    *,
    spec: round.Spec,
) -> tuple[metrics.Evaluation, metrics.Evaluation]:
    """The full model and every tier's own sub-model on one split.

    Args:
        state: the run.
        data: the split.
        train: see `answers`, as the rest.
        tiers: budget tier of every client.
        representatives: one client of every tier, [T] a leaf.
        spec: what a round does.

    Returns:
        (full model, sub-models with [T, ...] a leaf).
    """
    x = jnp.asarray(data.x)
    full, own = answers(state, x, train, tiers, representatives, spec=spec)
    judge = functools.partial(metrics.evaluation_of, data=data)
    return judge(full), jax.lax.map(judge, own)
