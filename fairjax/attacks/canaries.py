"""Neighbouring federations that differ by a canary, and what is seen of their runs.

A guarantee is for any records that anybody may have. So the attacker chooses those of
the place that is protected, extreme ones too, and lets everybody else hold nothing
where nothing but the noise is then left to hide the canary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core import client, losses, round, trees
from fairjax.core.types import (
    Cohort,
    Federation,
    Layout,
    Member,
    Params,
    Protection,
    RunState,
    Sent,
)
from fairjax.evaluation import personalised

# ----------------------------------------------------------------------------- canaries


class Place(NamedTuple):
    """What is protected: in a neighbouring federation it holds something else."""

    client: int
    """The hospital that it is at."""
    rows: Int[np.ndarray, "n"]
    """Its records in the flat block."""
    whole: bool
    """Whether it is the hospital itself."""


Records = tuple[Float[np.ndarray, "n ..."], Int[np.ndarray, "n"]]
"""(inputs, labels) of a place."""
LOUD = 10.0
"""What a loud canary's inputs are multiplied by."""
LARGEST = float(np.finfo(np.float32).max)


def _loud(x: np.ndarray, y: np.ndarray, classes: int) -> Records:
    return x * np.float32(LOUD), (y + 1) % classes


def _spike(x: np.ndarray, y: np.ndarray, classes: int) -> Records:
    """One input as large as a fill value; loss and gradient are finite, and huge."""
    huge = np.zeros_like(x)
    huge.reshape(len(x), -1)[:, 0] = 0.9 * LARGEST
    return huge, y


def _overflow(x: np.ndarray, y: np.ndarray, classes: int) -> Records:
    """All inputs so large that a step makes the model, or the loss, infinite."""
    return np.where(x < 0, -1, 1).astype(x.dtype) * np.float32(1e30), y


def _class(x: np.ndarray, y: np.ndarray, classes: int) -> Records:
    return x, np.full_like(y, classes - 1)


CANARIES: dict[str, Callable[[np.ndarray, np.ndarray, int], Records]] = {
    "loud": _loud,
    "spike": _spike,
    "overflow": _overflow,
    "class": _class,
}
"""Name -> (inputs, labels, classes) -> those of a canary: loud and mislabelled, nobody
else holding anything; with one huge input; such that training overflows; of a class
that nobody else has."""


def neighbours(
    canary: str, data: Federation, place: Place, classes: int, *, replaced: bool
) -> tuple[Federation, Federation]:
    """(with, without) the canary.

    What is public is alike in both: sizes, and of a place that is absent that it is
    there. A record that is absent is no number, which trains nothing; a hospital that
    is absent has no records, and keeps its place in the population.

    Args:
        canary: of `CANARIES`.
        data: records that others hold, if they do.
        place: where the canary is.
        classes: C.
        replaced: whether other records take its place ("replace_one"): those that are
            there, and of a loud canary its opposite; or none ("zero_out").
    """
    x, y = np.array(data.x, np.float32), np.array(data.y)
    mine, count = place.rows, np.array(data.count)
    away = count * (np.arange(len(count)) != place.client)
    before = x[mine].copy(), y[mine].copy()
    if canary == "class":
        y[y == classes - 1] = 0
        before = before[0], y[mine].copy()
    if canary == "loud":
        if place.whole:
            count = count - away
        else:
            x[:] = np.nan
    inside = _held(data, x, y, count, mine, CANARIES[canary](*before, classes))
    if not replaced:
        if place.whole:
            return inside, _held(data, x, y, np.where(away, count, 0), mine, before)
        nothing = np.full_like(before[0], np.nan), before[1]
        return inside, _held(data, x, y, count, mine, nothing)
    other = before
    if canary == "loud":
        other = -np.asarray(inside.x)[mine], np.asarray(inside.y)[mine]
    return inside, _held(data, x, y, count, mine, other)


def _held(
    data: Federation,
    x: np.ndarray,
    y: np.ndarray,
    count: np.ndarray,
    rows: np.ndarray,
    records: Records,
) -> Federation:
    """The federation with these records, and others in some rows."""
    x, y = x.copy(), y.copy()
    x[rows], y[rows] = records
    labels = np.zeros_like(np.asarray(data.labels))
    for k, (start, number) in enumerate(zip(data.offset, count, strict=True)):
        np.add.at(labels[k], y[start : start + number], 1)
    return dataclasses.replace(data, x=x, y=y, count=count, labels=labels)


# ------------------------------------------------------------------------- what is seen


class _Tapped(NamedTuple):
    inner: Any
    uploads: Any
    """What reached the server in the last round, [K, ...] a leaf; None before it."""


def tapped(inner: Protection) -> Protection:
    """The protection itself; its state has what every client sends besides.

    It has another structure after a round than before: see `untapped`.
    """

    def protect(
        key: Key[Array, ""],
        state: _Tapped,
        cohort: Cohort,
        member: Member,
        sent: Sent,
        weight: Float[Array, ""],
        base: Float[Array, ""],
    ) -> tuple[Any, Any]:
        addend = inner.protect(key, state.inner, cohort, member, sent, weight, base)
        # Every client's own place, so that the sum holds all of them.
        mine = cohort.valid & (cohort.client == member.client)

        def placed(leaf: Array) -> Array:
            where = mine.reshape(-1, *([1] * leaf.ndim))
            return jnp.where(where, leaf[None], jnp.zeros_like(leaf)[None])

        return addend, jax.tree.map(placed, addend)

    def release(
        key: Key[Array, ""],
        state: _Tapped,
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: tuple[Any, Any],
        public: Sent | None,
    ) -> tuple[Sent, _Tapped]:
        released, after = inner.release(
            key, state.inner, cohort, valid, sums[0], public
        )
        return released, _Tapped(after, sums[1])

    def folded(stack: tuple[Any, Any]) -> tuple[Any, Any]:
        assert inner.fold is not None
        uploads = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), stack[1])
        return inner.fold(stack[0]), uploads

    def entered(state: _Tapped, cohort: Cohort, valid: Array, sums: Any) -> Array:
        assert inner.entered is not None
        return inner.entered(state.inner, cohort, valid, sums[0])

    def weigh(key, state, rule, rule_state, cohort, scores):
        assert inner.weigh is not None
        return inner.weigh(key, state.inner, rule, rule_state, cohort, scores)

    return inner._replace(
        protect=protect,
        release=release,
        init=lambda: _Tapped(inner.init(), None),
        fold=None if inner.fold is None else folded,
        entered=None if inner.entered is None else entered,
        weigh=None if inner.weigh is None else weigh,
    )


def untapped(state: RunState) -> RunState:
    """The state as it begins a round, from one that has ended it."""
    tap = state.protection._replace(uploads=None)
    return dataclasses.replace(state, protection=tap)


def by_public(before: RunState, after: RunState, info: round.RoundInfo) -> Any:
    """What a round shows to whoever sees the models, by name.

    All that the next round follows from, but for what hospitals keep to themselves:
    that enters their changes alone.
    """
    return {
        "model": trees.subtract(after.params, before.params),
        "tiers": after.private["tier"],
        "server": after.server,
        "rule": after.rule,
        "protection": after.protection.inner,
        "coverage": info.coverage,
    }


def by_server(before: RunState, after: RunState, info: round.RoundInfo) -> Any:
    """What a round shows to the server besides: uploads, and whose they are."""
    return by_public(before, after, info) | {
        "uploads": after.protection.uploads,
        "valid": info.valid,
        "weights": info.weights,
        "attendance": after.attendance,
    }


FEW = 256
"""Numbers up to which a part of what is seen is looked at one by one."""


def features(seen: Any) -> Float[Array, "F"]:
    """What is seen as numbers that tests are made of.

    Of every part its norm, how many numbers are exactly 0, how many are not finite,
    and, where they are few, the numbers themselves.
    """

    def one(part: PyTree) -> list[Array]:
        leaves = [_number(leaf).ravel() for leaf in jax.tree.leaves(part)]
        if not leaves:
            return []
        flat = jnp.concatenate(leaves)
        told = jnp.stack(
            [
                jnp.sqrt(jnp.sum(jnp.square(flat))),
                jnp.sum(flat == 0).astype(jnp.float32),
                jnp.sum(~jnp.isfinite(flat)).astype(jnp.float32),
            ]
        )
        return [told, flat] if flat.size <= FEW else [told]

    parts = [number for part in seen.values() for number in one(part)]
    return jnp.nan_to_num(jnp.concatenate(parts))


def _number(leaf: Array) -> Float[Array, "..."]:
    if leaf.dtype == jnp.uint32:  # integers of a secure sum
        leaf = jax.lax.bitcast_convert_type(leaf, jnp.int32)
    return leaf.astype(jnp.float32)


# ---------------------------------------------------------------------- where it pulls

Direction = Callable[[RunState, Federation], Params]
"""(state, data with the canary) -> where that pulls the plain model in the coming
round, of length 1; 0 where that has no number."""


def of_records(place: Place, member: Member, *, spec: round.Spec) -> Direction:
    """Against the gradient of a place's records at its hospital's sub-model."""
    local = spec.local

    def direction(state: RunState, data: Federation) -> Params:
        params, _, kept = personalised.received(state, member, spec=spec)
        x, y = jnp.asarray(data.x)[place.rows], jnp.asarray(data.y)[place.rows]

        def loss(params: Params) -> Array:
            outputs = client.apply_kept(local.model, params, x, kept, train=True)
            return jnp.sum(losses.cross_entropy(outputs.logits, y))

        _, trained = client.masks(local, params, kept)
        gradient = jax.grad(loss)(client.held(local.method, params, kept))
        return _unit(jax.tree.map(jnp.negative, trees.multiply(gradient, trained)))

    return direction


def of_hospital(member: Member, *, spec: round.Spec) -> Direction:
    """Along the change that a hospital's training makes."""

    def direction(state: RunState, data: Federation) -> Params:
        params, memory, kept = personalised.received(state, member, spec=spec)
        delta, _, _, _ = personalised.update(
            state, state.round, params, memory, kept, member, data, spec
        )
        return _unit(delta)

    return direction


def _unit(tree: Params) -> Params:
    norm = optax.tree.norm(tree)
    known = jnp.isfinite(norm) & (norm > 0)
    scale = jnp.where(known, 1 / jnp.where(known, norm, 1), 0)
    return jax.tree.map(
        lambda leaf: jnp.where(known, leaf, 0) * scale.astype(leaf.dtype), tree
    )


# --------------------------------------------------------------------------------- runs


def observed(
    runs: Key[Array, "M"],
    start: RunState,
    data: Federation,
    inside: Federation,
    direction: Direction | None,
    draw: Callable[[RunState], Cohort],
    *,
    spec: round.Spec,
    layout: Layout,
    rounds: int,
    chunk: int,
    server: bool,
) -> Float[Array, "M F"]:
    """The features of M runs, of every round and of all together.

    Args:
        runs: the key of every run: of its cohorts, batches and noise.
        start: the state before the first round, but for its key.
        data: with the canary, or without.
        inside: with it.
        direction: where it pulls: how far the plain model went there, in all rounds, is
            a feature more; None: it is not.
        draw: state -> the cohort of the next round.
        spec: what a round does.
        layout: how every cohort is laid.
        rounds: of a run.
        chunk: runs side by side, which bounds the memory.
        server: whether the server looks, or the public.
    """
    protection = tapped(spec.protection)
    spec = dataclasses.replace(spec, protection=protection)
    begin = dataclasses.replace(start, protection=protection.init())

    def one(key: Array) -> Array:
        def again(state: RunState, _: None) -> tuple[RunState, tuple[Array, Array]]:
            new, info = round.step(state, data, draw(state), spec=spec, layout=layout)
            seen = (by_server if server else by_public)(state, new, info)
            along = jnp.zeros(0, jnp.float32)
            if direction is not None:
                pull = optax.tree.vdot(seen["model"], direction(state, inside))
                along = jnp.asarray(pull, jnp.float32)[None]
            return untapped(new), (features(seen), along)

        state = dataclasses.replace(begin, key=key)
        _, (told, along) = jax.lax.scan(again, state, length=rounds)
        return jnp.concatenate([told.ravel(), jnp.nan_to_num(jnp.sum(along, axis=0))])

    return jax.lax.map(one, runs, batch_size=chunk)
