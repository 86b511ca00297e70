"""What a server sees of a run, held against the gradients of single records."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.attacks import scores
from fairjax.core import client, losses, rng, round, trees
from fairjax.core.rng import Role
from fairjax.core.types import (
    Cohort,
    Federation,
    Kept,
    Layout,
    Masks,
    Member,
    Params,
    Protection,
    RunState,
)
from fairjax.evaluation import personalised


def alignments(
    state: RunState,
    train: Federation,
    candidates: Federation,
    owner: Int[Array, "E"],
    everybody: Callable[[Int[Array, ""]], Member],
    draw: Callable[[RunState], Cohort],
    *,
    spec: round.Spec,
    layout: Layout,
    rounds: int,
    uploads: Protection | None,
    chunk: int = 64,
    validation: Federation | None = None,
) -> Float[Array, "2 E"]:
    """`membership.alignment` of every candidate, as a mean over the rounds.

    With the upload of the hospital that holds it, over the rounds in which that one
    came; and with the change of the plain model, which everybody sees. The run is run
    again: a hospital's update follows from the key, the round and its number alone. A
    record's gradient is its cross-entropy's at the sub-model that its hospital received
    (batch norms see that record alone), on the coordinates of which the upload speaks.

    Args:
        state: of the run before its first round.
        train: what it was trained on.
        candidates: members and non-members.
        owner: the hospital of every candidate.
        everybody: rounds finished -> all hospitals, [N] a leaf.
        draw: state -> the cohort of the next round.
        spec: what a round does.
        layout: how every cohort is laid.
        rounds: of the run.
        uploads: what stands between a hospital and the server that sees its upload, its
            `protect` giving a `Sent`; None: the change as it is.
        chunk: candidates side by side.
        validation: for rules that need it.

    Returns:
        (by upload, by change of the plain model); the first is NaN for candidates of a
        hospital that never came.
    """
    records = jax.tree.map(jnp.asarray, (train, candidates))
    local = spec.local

    def sends(state: RunState, cohort: Cohort, member: Member) -> tuple[Params, Masks]:
        params, memory, kept = personalised.received(state, member, spec=spec)
        delta, cover, _, _ = personalised.update(
            state, state.round, params, memory, kept, member, records[0], spec
        )
        message = round.sent(state, trees.multiply(delta, cover), cover, member.tier)
        if uploads is not None:
            key = rng.at(state.key, Role.RELEASE, state.round)
            one = jnp.ones(())
            message = uploads.protect(
                key, state.protection, cohort, member, message, one, one
            )
        return message.num, message.den

    def loss(params: Params, x: Array, y: Array, kept: Kept) -> Array:
        outputs = client.apply_kept(local.model, params, x[None], kept)
        return losses.cross_entropy(outputs.logits, y[None])[0]

    def again(carry: tuple, _: None) -> tuple[tuple, None]:
        state, sums, often = carry
        cohort = draw(state)
        members = everybody(state.round)
        came = _came(cohort, members.client.shape[0])
        new, _info = round.step(
            state,
            records[0],
            cohort,
            spec=spec,
            layout=layout,
            validation=validation,
        )
        moved = trees.subtract(new.params, state.params)
        sent, covers = jax.lax.map(lambda m: sends(state, cohort, m), members)

        def one(at: tuple[Array, Array, Array]) -> Array:
            x, y, who = at
            member = trees.pick(members, who)
            params, _, kept = personalised.received(state, member, spec=spec)
            held = client.held(local.method, params, kept)
            gradient = jax.grad(loss)(held, x, y, kept)
            gradient = trees.multiply(gradient, trees.pick(covers, who))
            seen = trees.pick(sent, who), trees.multiply(moved, trees.pick(covers, who))
            return jnp.stack([scores.alignment(upload, gradient) for upload in seen])

        at = records[1].x, records[1].y, owner
        alignments = jax.lax.map(one, at, batch_size=chunk).T
        counts = jnp.stack([came[owner], jnp.ones_like(came[owner])])
        counts = counts.astype(alignments.dtype)
        return (new, sums + counts * alignments, often + counts), None

    start = state, *[jnp.zeros((2, *owner.shape))] * 2
    (_, sums, often), _ = jax.lax.scan(again, start, length=rounds)
    return jnp.where(often > 0, sums / jnp.maximum(often, 1), jnp.nan)


def _came(cohort: Cohort, clients: int) -> Bool[Array, "N"]:
    slot = jnp.where(cohort.valid, cohort.client, clients)
    return jnp.zeros(clients, bool).at[slot].set(True, mode="drop")
