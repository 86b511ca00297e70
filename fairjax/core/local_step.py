"""One local step: a batch, its gradient, and what the step changes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from fairjax.core import axes, batching, inference, rng, trees
from fairjax.core.problem import LocalProblem
from fairjax.core.types import (
    Batch,
    ClientData,
    ClientView,
    Context,
    Outputs,
    Params,
    Submodel,
)

TO_LOCAL, ORDER, STEP = range(3)
"""Roles of keys below the client's key of a round."""
_PER_STEP, _MODEL, _OBJECTIVE, _DRAW, _NOISE, _AUGMENT = range(6)
"""Roles of keys below the key of a step."""


class LocalRound(NamedTuple):
    """What stays the same over a client's steps of one round."""

    key: Key[Array, ""]
    local: LocalProblem
    examples: ClientData
    client: ClientView
    round: Int[Array, ""]
    lr_scale: Float[Array, ""] | float
    message: PyTree[Array]
    submodel: Submodel
    """In units of the plain model."""
    local_submodel: Submodel
    """In units of the network that runs."""
    slice_index: axes.Part | None
    trainable_mask: PyTree[Array]
    optimizer: optax.GradientTransformation
    incoming: Params
    order: Int[Array, "length"]
    num_units: Int[Array, ""]
    steps_per_epoch: Int[Array, ""]
    num_steps: Int[Array, ""]


class Carry(NamedTuple):
    """What a step changes."""

    tree: PyTree[Array]
    opt_state: optax.OptState
    memory: PyTree[Array]


LossFn = Callable[[PyTree, Batch], tuple[Array, dict[str, Array]]]
"""(local tree, batch) -> (loss, info)."""


def local_step(
    local_round: LocalRound, carry: Carry, step: Int[Array, ""]
) -> tuple[Carry, tuple[Float[Array, ""], dict[str, Array]]]:
    """One step of `client.update`.

    Args:
        local_round: what stays the same over the client's steps.
        carry: what the step changes.
        step: the step's number, from 0.

    Returns:
        (carry, (loss, info)). A padded step leaves the carry unchanged and reports 0.
    """
    method = local_round.local.method
    step_key = rng.fold_in(local_round.key, STEP, step)
    rows = _rows(local_round, step_key, step)
    submodel, local_submodel = local_round.submodel, local_round.local_submodel
    if method.local.per_step is not None:
        submodel = method.local.per_step(
            rng.fold_in(step_key, _PER_STEP), step, submodel
        )
        local_submodel = axes.restrict_submodel(submodel, local_round.slice_index)

    def loss_fn(tree: PyTree, rows: Batch) -> tuple[Array, dict[str, Array]]:
        plain = method.local.effective(tree)

        def outputs_at(alternative: Submodel | None = None) -> Outputs:
            return inference.apply_submodel(
                local_round.local.model,
                plain,
                rows.x,
                local_submodel
                if alternative is None
                else axes.restrict_submodel(alternative, local_round.slice_index),
                train=True,
                key=rng.fold_in(step_key, _MODEL),
                where=rows.where,
            )

        return local_round.local.objective(
            outputs_at,
            rows,
            rng.fold_in(step_key, _OBJECTIVE),
            context_of(local_round, step, submodel, carry.memory, plain),
        )

    (loss, extra), grads = _gradient(local_round, step_key, loss_fn, carry.tree, rows)
    updates, opt_state = local_round.optimizer.update(
        trees.multiply(grads, local_round.trainable_mask), carry.opt_state, carry.tree
    )
    updates = jax.tree.map(
        lambda u, t: (
            u * (t * jnp.asarray(local_round.lr_scale, u.dtype)).astype(u.dtype)
        ),
        updates,
        local_round.trainable_mask,
    )
    tree, memory = optax.apply_updates(carry.tree, updates), carry.memory
    if method.memory is not None:
        context = context_of(local_round, step, submodel, memory, local_round.incoming)
        memory = method.memory.observe(memory, carry.tree, grads, context)
    active = step < local_round.num_steps
    carry = trees.select(active, Carry(tree, opt_state, memory), carry)
    report = jax.tree.map(
        lambda value: jnp.where(active, value, jnp.zeros_like(value)), (loss, extra)
    )
    return carry, report


def _rows(
    local_round: LocalRound, step_key: Key[Array, ""], step: Int[Array, ""]
) -> Batch:
    """The records of a step, augmented."""
    local, dp = local_round.local, local_round.local.dp
    if dp is None or dp.slots is None:
        size = local.schedule.batch_size
        rows = batching.batch(local_round.examples, local_round.order, step, size)
    else:
        rows = dp.batch(
            rng.fold_in(step_key, _DRAW),
            local_round.examples,
            local.schedule.max_records,
        )
    if local.augment is not None:
        rows = rows._replace(x=local.augment(rng.fold_in(step_key, _AUGMENT), rows.x))
    return rows


def _gradient(
    local_round: LocalRound,
    step_key: Key[Array, ""],
    loss_fn: LossFn,
    tree: PyTree,
    rows: Batch,
) -> tuple[tuple[Array, dict[str, Array]], PyTree]:
    """((loss, info), gradient) of a step, private where the local problem says so."""
    if local_round.local.dp is None:
        return jax.value_and_grad(loss_fn, has_aux=True)(tree, rows)
    return local_round.local.dp.gradient(
        rng.fold_in(step_key, _NOISE),
        loss_fn,
        tree,
        rows,
        local_round.trainable_mask,
        local_round.num_units,
    )


def context_of(
    local_round: LocalRound,
    step: Int[Array, ""],
    submodel: Submodel,
    memory: PyTree[Array],
    params: Params,
) -> Context:
    """What an objective or a memory may read in this step, at these parameters."""
    return Context(
        local_round.round,
        step,
        step % jnp.maximum(local_round.steps_per_epoch, 1),
        local_round.client,
        submodel,
        memory,
        local_round.incoming,
        params,
        local_round.message,
    )
