"""What a hospital has for itself: a personal model, the plain one tuned, or its own.

Each is a model per hospital, which answers on that hospital's records only; batch norms
use moments of its own training records.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from fairjax import metrics
from fairjax.core import client, rng, round, scopes
from fairjax.core.rng import Role
from fairjax.core.types import (
    Examples,
    Federation,
    Kept,
    Layout,
    Masks,
    Member,
    Params,
    RunState,
)
from fairjax.evaluation import deployed

Own = Callable[[Member], tuple[Params, Kept]]
"""member -> the hospital's own model, and what is kept of it."""


def answers(
    own: Own,
    data: Federation,
    train: Federation,
    members: Member,
    *,
    spec: round.Spec,
    longest: int,
) -> Float[Array, "E C"]:
    """Logits of all records of a split, each by the model of its own hospital.

    Args:
        own: every hospital's model.
        data: the split.
        train: the training split, for the moments of batch norms.
        members: all hospitals, [N] a leaf.
        spec: what a round does.
        longest: records of the split's largest hospital.
    """
    local = spec.local
    records = jax.tree.map(jnp.asarray, data)
    row = jnp.arange(longest, dtype=jnp.int32)

    def one(member: Member) -> tuple[Array, Array]:
        params, kept = own(member)
        stats = None
        if local.moments != "batch":
            stats = deployed.calibrate(
                params,
                kept,
                train,
                jnp.ones(1, bool),
                local=local,
                clients=member.client[None],
            )
        count = records.count[member.client]
        index = records.offset[member.client] + jnp.where(row < count, row, 0)
        logits = metrics.logits_of(
            params,
            records.x[index],
            apply=lambda params, x: client.answer(local, params, x, kept, stats=stats),
        )
        return jnp.where(row < count, index, records.y.shape[0]), logits

    index, logits = jax.lax.map(one, members)
    classes = logits.shape[-1]
    empty = jnp.zeros((records.y.shape[0], classes), logits.dtype)
    return empty.at[index.ravel()].set(logits.reshape(-1, classes), mode="drop")


def personal(state: RunState, *, spec: round.Spec) -> Own:
    """What each hospital keeps: its personal model, or the plain one with its leaves.

    The sub-model is its tier's in the coming round.
    """

    def own(member: Member) -> tuple[Params, Kept]:
        params = scopes.gather(state.private, state.params, member)
        if state.personal is not None:
            params = jax.tree.map(lambda leaf: leaf[member.client], state.personal)
        return params, _units(state, state.round, params, member, spec)

    return own


def tuned(state: RunState, train: Federation, *, spec: round.Spec) -> Own:
    """The plain model after one more round's training at each hospital, not sent back.

    A hospital trains and keeps the sub-model of its tier in the coming round.
    """

    def own(member: Member) -> tuple[Params, Kept]:
        params, memory, kept = received(state, member, spec=spec)
        delta, _, _, _ = update(
            state, state.round, params, memory, kept, member, train, spec
        )
        return optax.apply_updates(params, delta), kept

    return own


def alone(
    state: RunState,
    train: Federation,
    members: Member,
    *,
    spec: round.Spec,
    layout: Layout,
    rounds: int,
) -> Params:
    """Every hospital trained without the others, for as many rounds, [N, ...] a leaf.

    From the run's first model, on the batches that it would have in the federation if
    it were in every cohort, with its tier's sub-model of the first round throughout.

    Args:
        state: of the run before its first round.
        train: the training split.
        members: all hospitals, [N] a leaf.
        spec: what a round does.
        layout: how hospitals are laid on the hardware, masked.
        rounds: how many.
    """
    memory = spec.local.method.memory

    def one(member: Member, tier: int | None) -> Params:
        start = scopes.gather(state.private, state.params, member)
        kept = _units(state, state.round, start, member, spec)

        def again(number: Array, carry: tuple) -> tuple:
            params, held = carry
            delta, _, held, _ = update(
                state, number, params, held, kept, member, train, spec
            )
            return optax.apply_updates(params, delta), held

        first = start, None if memory is None else memory.init(start)
        return jax.lax.fori_loop(0, rounds, again, first)[0]

    return layout.stack(one, members)


def by_itself(models: Params, state: RunState, *, spec: round.Spec) -> Own:
    """The models of `alone`; `state` is the run's before its first round."""

    def own(member: Member) -> tuple[Params, Kept]:
        params = jax.tree.map(lambda leaf: leaf[member.client], models)
        return params, _units(state, state.round, params, member, spec)

    return own


def _units(
    state: RunState, number: Array, params: Params, member: Member, spec: round.Spec
) -> Kept:
    key = rng.at(state.key, Role.UNITS, number)
    return spec.local.method.units(key, number, params, member)


def received(state: RunState, member: Member, *, spec: round.Spec) -> tuple:
    """(params, memory, kept) that a hospital starts the coming round with."""
    params = scopes.gather(state.private, state.params, member)
    memory = None
    if state.memory is not None:
        memory = jax.tree.map(lambda leaf: leaf[member.client], state.memory)
    return params, memory, _units(state, state.round, params, member, spec)


def update(
    state: RunState,
    number: Array,
    params: Params,
    memory: PyTree[Array],
    kept: Kept,
    member: Member,
    train: Federation,
    spec: round.Spec,
) -> tuple[Params, Masks, PyTree[Array], client.ClientInfo]:
    """One hospital's local training as in round `number`, masked; see `client`."""
    who = member.client
    offset = jnp.asarray(train.offset)[who]
    examples = Examples(
        jnp.asarray(train.x),
        jnp.asarray(train.y),
        offset,
        member.count,
        patient=None if train.patient is None else jnp.asarray(train.patient),
    )
    return client.update(
        rng.at(state.key, Role.LOCAL, number, who),
        params,
        memory,
        kept,
        examples,
        member=member,
        round=number,
        local=spec.local,
        rate=spec.schedule(number),
    )
