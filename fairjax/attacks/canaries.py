"""Runs with a canary in them, many at once, and what the released models say of it.

The attacker chooses all records, sees the model after every round, and sums up how far
it moved in the canary's direction.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from fairjax import client, hospitals, losses, round, trees
from fairjax.types import (
    Cohort,
    Federation,
    Layout,
    Member,
    Params,
    RunState,
)

Direction = Callable[[RunState], Params]
"""state -> where the canary pulls the plain model in the coming round."""

LOUD = 10.0
"""What a canary's inputs are multiplied by."""


def record(data: Federation, row: int, classes: int) -> tuple[Federation, Federation]:
    """(with, without): all records hold nothing but, in the first, a loud one.

    What holds nothing is no number: its gradient counts nowhere, its place stays, and
    sizes are those of the data. A guarantee is for all records that others may have, so
    it is for none too; and nothing then hides the canary but the noise.
    """
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    nothing = jnp.full_like(x, jnp.nan)
    loud = nothing.at[row].set(x[row] * jnp.asarray(LOUD, x.dtype))
    without = dataclasses.replace(data, x=nothing)
    wrong = y.at[row].set((y[row] + 1) % classes)
    return dataclasses.replace(data, x=loud, y=wrong), without


def hospital(data: Federation, who: int, classes: int) -> tuple[Federation, Federation]:
    """(with, without): nobody sends anything but, in the first, a loud hospital.

    Who has no records keeps the place in cohorts and weights that the protection's
    population gives.
    """
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    count = jnp.asarray(data.count)
    alone = jnp.where(jnp.arange(count.shape[0]) == who, count, 0)
    loud = dataclasses.replace(
        data, x=x * jnp.asarray(LOUD, x.dtype), y=(y + 1) % classes, count=alone
    )
    return loud, dataclasses.replace(loud, count=jnp.zeros_like(count))


def of_record(
    data: Federation, row: int, member: Member, *, spec: round.Spec
) -> Direction:
    """Against the gradient of a record at its hospital's sub-model, of length 1."""
    local = spec.local
    x, y = jnp.asarray(data.x)[row][None], jnp.asarray(data.y)[row][None]

    def direction(state: RunState) -> Params:
        params, _, kept = hospitals.received(state, member, spec=spec)

        def loss(params: Params) -> Array:
            outputs = client.apply_kept(local.model, params, x, kept, train=True)
            return losses.cross_entropy(outputs.logits, y)[0]

        _, trained = client.masks(local, params, kept)
        gradient = jax.grad(loss)(client.held(local.method, params, kept))
        return _unit(jax.tree.map(jnp.negative, trees.multiply(gradient, trained)))

    return direction


def of_hospital(data: Federation, member: Member, *, spec: round.Spec) -> Direction:
    """Along the change that a hospital's training makes, of length 1."""

    def direction(state: RunState) -> Params:
        params, memory, kept = hospitals.received(state, member, spec=spec)
        delta, _, _, _ = hospitals.update(
            state, state.round, params, memory, kept, member, data, spec
        )
        return _unit(delta)

    return direction


def scores(
    runs: Key[Array, "M"],
    start: RunState,
    data: Federation,
    direction: Direction,
    draw: Callable[[RunState], Cohort],
    *,
    spec: round.Spec,
    layout: Layout,
    rounds: int,
    chunk: int,
) -> Float[Array, "M"]:
    """Sum over rounds of <w_{r+1} - w_r, direction of w_r> in M runs.

    Args:
        runs: the key of every run: of its cohorts, batches and noise.
        start: the state before the first round, but for its key.
        data: with the canary, or without.
        direction: where the canary pulls.
        draw: state -> the cohort of the next round.
        spec: what a round does.
        layout: how every cohort is laid.
        rounds: of a run.
        chunk: runs side by side, which bounds the memory.
    """

    def one(key: Array) -> Array:
        def again(_: Int[Array, ""], carry: tuple) -> tuple:
            state, total = carry
            new, _info = round.step(state, data, draw(state), spec=spec, layout=layout)
            moved = trees.subtract(new.params, state.params)
            return new, total + jnp.asarray(
                optax.tree.vdot(moved, direction(state)), jnp.float32
            )

        begin = dataclasses.replace(start, key=key), jnp.zeros((), jnp.float32)
        return jax.lax.fori_loop(0, rounds, again, begin)[1]

    return jax.lax.map(one, runs, batch_size=chunk)


def _unit(tree: Params) -> Params:
    norm = optax.tree.norm(tree)
    scale = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), tree)
