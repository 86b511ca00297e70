"""One client: it receives a sub-model, trains it and hands back a delta.

    receive   the plain model -> the parameters that the client holds
    update    S local steps -> a delta and the coordinates that it covers
    restore   the delta of a sliced network -> plain coordinates

Each is a pure function, and the two ends may be two machines: a server calls `receive`
and `restore` for its clients, and a client calls `update`. `update_sliced` composes the
three for a dense network of the sub-model's own size; `update` alone is the masked
form, at full width.

Example:
    >>> import jax.numpy as jnp, numpy as np, optax
    >>> from fairjax.core import batching, client, objectives
    >>> from fairjax.core.problem import LocalProblem
    >>> from fairjax.core.types import Size, Submodel, Units
    >>> from fairjax.models.mlp import mlp
    >>> from fairjax.submodels.fedavg import fedavg
    >>> model = mlp(classes=2, hidden=(4,))
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> schedule = batching.local_schedule(np.array([2]), batch_size=2, steps=1)
    >>> loss, sgd = objectives.mean_cross_entropy(), optax.sgd(0.1)
    >>> local = LocalProblem(model, fedavg(model.axes), loss, sgd, schedule)
    >>> half = Submodel(Units({"hidden0": np.arange(4) < 2}, {}))
    >>> small = client.receive(params, half, local=local, size=Size({"hidden0": 2}, {}))
    >>> small.params["hidden0"]["kernel"].shape
    (3, 2)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from fairjax.core import axes, batching, local_step, problem, rng, trees
from fairjax.core.problem import ClientInfo, LocalProblem
from fairjax.core.types import (
    ClientData,
    ClientView,
    Masks,
    Params,
    Size,
    Submodel,
)


class LocalModel(NamedTuple):
    """What a client trains: parameters, and the local problem at their size."""

    params: Params
    local: LocalProblem
    slice_index: axes.Part | None
    """Where the parameters lie in the plain model; None: they are the plain model."""


def receive(
    params: Params, submodel: Submodel, *, local: LocalProblem, size: Size | None = None
) -> LocalModel:
    """The parameters that a client is sent, and the network that runs them.

    Args:
        params: the plain model, at full size.
        submodel: the client's sub-model; `forward` keeps as many units as `size` says.
        local: the local problem, with the plain model.
        size: the static size of a sliced network, from `Method.size`; None: the client
            runs the plain network, masked.
    """
    if size is None:
        return LocalModel(params, local, None)
    model = local.model
    assert model.resize is not None
    slice_index = axes.locate_slice(submodel.forward, size)
    return LocalModel(
        axes.take(params, model.axes, slice_index),
        local._replace(model=model.resize(size)),
        slice_index,
    )


def restore(
    delta: Params,
    cover: Masks,
    params: Params,
    submodel: Submodel,
    local_model: LocalModel,
    *,
    local: LocalProblem,
) -> tuple[Params, Masks]:
    """A client's (delta, cover) in plain coordinates.

    Args:
        delta: the delta of `local_model.params`.
        cover: the coordinates that it speaks for.
        params: the plain model, at full size.
        submodel: the client's sub-model.
        local_model: what the client trained.
        local: the local problem, with the plain model.
    """
    if local_model.slice_index is None:
        return delta, cover
    plain_axes, slice_index = local.model.axes, local_model.slice_index
    delta = axes.scatter(delta, plain_axes, slice_index, params)
    if local.method.local.to_update is None:
        _, cover = problem.masks(local, params, submodel)
    else:
        cover = jax.tree.map(
            lambda c, p: jnp.broadcast_to(c, p.shape), cover, local_model.params
        )
        cover = axes.scatter(cover, plain_axes, slice_index, params)
    return delta, cover


def update(
    key: Key[Array, ""],
    params: Params,
    memory: PyTree[Array],
    submodel: Submodel,
    examples: ClientData,
    *,
    client: ClientView,
    round: Int[Array, ""],
    local: LocalProblem,
    lr_scale: Float[Array, ""] | float = 1.0,
    message: PyTree[Array] = None,
    anchor: Params | None = None,
    slice_index: axes.Part | None = None,
) -> tuple[Params, Masks, PyTree[Array], ClientInfo]:
    """Trains one client for S padded steps.

        l_0 = to_local(params),   l_{s+1} = l_s + c * t * optimizer(t * grad F(l_s)),
        delta = update mask * (effective(l_S) - effective(l_0))

    F is the objective of the sub-model on the batch of step s, t the 0/1 tree of what
    is trained and c the `lr_scale`. Where `local.dp` is set, it gives the gradient.
    Gradients are masked before the optimiser and updates after it, so weight decay,
    momentum and norm clipping see and touch only the sub-model's coordinates.

    Args:
        key: the client's key of this round.
        params: the parameters that the client trains, from `receive`.
        memory: the client's state, None for methods without.
        submodel: the client's sub-model, from `Method.submodel`.
        examples: the client's records.
        client: the client as a method sees it.
        round: rounds finished before this one.
        local: the local problem, with the model that has these parameters.
        lr_scale: factor on every update (a schedule over rounds).
        message: the rule's message to this client.
        anchor: the plain model that `Context.incoming` stands for; None: `params`.
        slice_index: where `local.model` and `params` lie in the plain model, whose
            units `submodel` names; None: they are the plain model.

    Returns:
        (delta, cover, memory, info). `delta` is exactly 0 wherever `cover` is 0.

    Edge cases: a client takes only its own number of steps; a padded step changes
    nothing, optimiser state and memory included. A client without records takes no
    step, and its delta is 0.
    """
    local_submodel = axes.restrict_submodel(submodel, slice_index)
    if slice_index is not None:
        # A sliced network is its own forward pass: it masks nothing.
        local_submodel = local_submodel._replace(forward=None)
    forward_mask, update_mask = problem.masks(local, params, local_submodel)
    start, trainable_mask = _to_local(
        local,
        rng.fold_in(key, local_step.TO_LOCAL),
        params,
        local_submodel,
        memory,
        forward_mask,
        update_mask,
    )
    optimizer = local.method.local.optimizer(local.optimizer, start)
    incoming = local.method.local.effective(start)
    if anchor is not None:
        incoming = trees.multiply(anchor, forward_mask)
    schedule = local.schedule
    order = batching.stream(
        rng.fold_in(key, local_step.ORDER), examples.count, schedule.stream_length
    )
    num_units, steps_per_epoch, num_steps = _lengths(local, examples)
    local_round = local_step.LocalRound(
        key=key,
        local=local,
        examples=examples,
        client=client,
        round=round,
        lr_scale=lr_scale,
        message=message,
        submodel=submodel,
        local_submodel=local_submodel,
        slice_index=slice_index,
        trainable_mask=trainable_mask,
        optimizer=optimizer,
        incoming=incoming,
        order=order,
        num_units=num_units,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
    )
    carry, reports = jax.lax.scan(
        lambda carry, step: local_step.local_step(local_round, carry, step),
        local_step.Carry(start, optimizer.init(start), memory),
        jnp.arange(schedule.steps, dtype=jnp.int32),
        unroll=min(local.unroll, schedule.steps),
    )
    delta, cover = _to_update(local, start, carry.tree, update_mask)
    memory = carry.memory
    if local.method.memory is not None:
        end = local.method.local.effective(carry.tree)
        memory = local.method.memory.close(
            memory,
            delta,
            local_step.context_of(local_round, num_steps, submodel, memory, end),
        )
    return delta, cover, memory, _info(local_round, delta, *reports)


def update_sliced(
    key: Key[Array, ""],
    params: Params,
    memory: PyTree[Array],
    submodel: Submodel,
    examples: ClientData,
    *,
    client: ClientView,
    round: Int[Array, ""],
    local: LocalProblem,
    size: Size,
    lr_scale: Float[Array, ""] | float = 1.0,
    message: PyTree[Array] = None,
    anchor: Params | None = None,
) -> tuple[Params, Masks, PyTree[Array], ClientInfo]:
    """The same as `update`, computed by a dense network of the sub-model's own size.

    The units of the sub-model are gathered, trained and scattered back. The result is
    that of `update` up to float order, without the work that a mask only zeroes.

    Args:
        key: the client's key of this round.
        params: the plain model as it arrives, at full size.
        memory: the client's state without plain shapes
            (`ClientMemory.has_plain_shapes`).
        submodel: the client's sub-model; `forward` keeps as many units as `size` says.
        examples: the client's records.
        client: the client as a method sees it.
        round: rounds finished before this one.
        local: the local problem, with the plain model.
        size: the sub-model's static size, from `Method.size`.
        lr_scale: factor on every update.
        message: the rule's message to this client.
        anchor: as for `update`, at full size.
    """
    local_model = receive(params, submodel, local=local, size=size)
    if anchor is not None:
        assert local_model.slice_index is not None
        anchor = axes.take(anchor, local.model.axes, local_model.slice_index)
    delta, cover, memory, info = update(
        key,
        local_model.params,
        memory,
        submodel,
        examples,
        client=client,
        round=round,
        local=local_model.local,
        lr_scale=lr_scale,
        message=message,
        anchor=anchor,
        slice_index=local_model.slice_index,
    )
    delta, cover = restore(delta, cover, params, submodel, local_model, local=local)
    return delta, cover, memory, info


# -------------------------------------------------------------------- before and after


def _lengths(
    local: LocalProblem, examples: ClientData
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """(n, steps of an epoch, steps that the client takes)."""
    schedule, num_units = local.schedule, examples.count
    if local.dp is not None:
        num_units = local.dp.units(examples, schedule.max_records)
    per_epoch = batching.steps_per_epoch(num_units, schedule.batch_size)
    num_steps = schedule.steps
    if schedule.epochs is not None:
        num_steps = schedule.epochs * per_epoch
    num_steps = jnp.where(examples.count > 0, jnp.asarray(num_steps, jnp.int32), 0)
    return num_units, per_epoch, num_steps


def _to_local(
    local: LocalProblem,
    key: Key[Array, ""],
    params: Params,
    submodel: Submodel,
    memory: PyTree[Array],
    forward_mask: Masks,
    update_mask: Masks,
) -> tuple[PyTree, PyTree]:
    if local.method.local.to_local is None:
        return trees.multiply(params, forward_mask), update_mask
    return local.method.local.to_local(
        key, params, submodel, memory, forward_mask, update_mask
    )


def _to_update(
    local: LocalProblem, start: PyTree, end: PyTree, update_mask: Masks
) -> tuple[Params, Masks]:
    if local.method.local.to_update is not None:
        return local.method.local.to_update(start, end, update_mask)
    if local.method.local.to_local is None:
        return trees.multiply(trees.subtract(end, start), update_mask), update_mask
    # One compiled loop for both trees: two copies of the same sums may round in two
    # ways, and an untrained tree must give a delta of exactly 0.
    endpoints = jax.tree.map(lambda *pair: jnp.stack(pair), start, end)
    effective = jax.lax.map(local.method.local.effective, endpoints)
    delta = jax.tree.map(lambda pair: pair[1] - pair[0], effective)
    return trees.multiply(delta, update_mask), update_mask


def _info(
    local_round: local_step.LocalRound,
    delta: Params,
    losses: Float[Array, "S"],
    extras: dict[str, Array],
) -> ClientInfo:
    def mean_over_steps(values: Array) -> Array:
        return jnp.sum(values) / jnp.maximum(local_round.num_steps, 1).astype(
            values.dtype
        )

    loss = mean_over_steps(losses)
    finite = trees.is_bounded(delta)
    if local_round.local.dp is None:
        finite &= jnp.isfinite(loss)
    return ClientInfo(
        loss, local_round.num_steps, finite, jax.tree.map(mean_over_steps, extras)
    )
