"""Shadow models: the whole run again and again, on records that are in or out by lot.

Every shadow is a federation of the run's own shape (as many hospitals, tiers, records
and rounds) whose hospitals train on a random part of their candidates, here the run's
training and test records. Each goes through `round.run`, protection included; all are
one vmapped program. An attacker who has such records and knows the config can do so.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from fairjax import metrics
from fairjax.core import round
from fairjax.core.types import Cohort, Federation, Layout, Member, RunState
from fairjax.evaluation import deployed


class Pool(NamedTuple):
    """The candidates, hospital after hospital."""

    data: Federation
    member: Bool[np.ndarray, "E"]
    """Whether the attacked run was trained on a candidate."""
    owner: Int[np.ndarray, "E"]
    """Its hospital."""


def pool(train: Federation, test: Federation) -> Pool:
    """Members and non-members of a run: a hospital's training, then its test records.

    `data.labels` stays that of the training records.
    """
    owners = [np.asarray(metrics.owner_of(part)) for part in (train, test)]
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")

    def joined(name: str) -> np.ndarray:
        parts = [np.asarray(getattr(part, name)) for part in (train, test)]
        return np.concatenate(parts)[order]

    count = np.asarray(train.count) + np.asarray(test.count)
    data = Federation(
        joined("x"),
        joined("y"),
        joined("group"),
        (np.cumsum(count) - count).astype(np.int32),
        count.astype(np.int32),
        np.asarray(train.labels),
    )
    member = np.arange(len(owner)) < len(owners[0])
    return Pool(data, member[order], owner[order].astype(np.int32))


def split(
    key: Key[Array, ""], candidates: Pool, counts: Int[np.ndarray, "N"]
) -> tuple[Federation, Bool[Array, "E"]]:
    """A federation of `counts[k]` random candidates of every hospital k.

    Returns:
        (the federation, which candidates are in it).
    """
    data = jax.tree.map(jnp.asarray, candidates.data)
    owner = jnp.asarray(candidates.owner)
    draw = jax.random.bits(key, owner.shape, jnp.uint32)
    number = jnp.arange(owner.shape[0], dtype=jnp.int32)
    order = jax.lax.sort((owner, draw, number), num_keys=2)[2]
    counts = np.asarray(counts)
    offset = np.cumsum(counts) - counts
    # Where the first counts[k] of every hospital stand in that order.
    first = np.repeat(np.asarray(candidates.data.offset) - offset, counts)
    index = order[jnp.asarray(first + np.arange(counts.sum()), jnp.int32)]
    y, who = data.y[index], owner[index]
    part = Federation(
        data.x[index],
        y,
        data.group[index],
        jnp.asarray(offset, jnp.int32),
        jnp.asarray(counts, jnp.int32),
        jnp.zeros_like(data.labels).at[who, y].add(1),
    )
    return part, jnp.zeros(owner.shape, bool).at[index].set(True)


def train(
    keys: Key[Array, "M"],
    candidates: Pool,
    counts: Int[np.ndarray, "N"],
    tiers: Int[Array, "N"],
    members: Member,
    *,
    begin: Callable[[Key[Array, ""]], RunState],
    draw: Callable[[RunState], Cohort],
    spec: round.Spec,
    layout: Layout,
    rounds: int,
    chunk: int,
    validation: Federation | None = None,
) -> tuple[Float[Array, "M E C"], Bool[Array, "M E"]]:
    """M shadow runs, and what their full models answer on every candidate.

    Args:
        keys: one for every shadow.
        candidates: of whom each hospital trains on a part.
        counts: training records of every hospital.
        tiers: budget tier of every hospital, as for `deployed.answers`.
        members: one hospital of every tier, as for `deployed.answers`.
        begin: key -> the state before the first round.
        draw: state -> the cohort of the next round.
        spec: what a round does.
        layout: how every cohort is laid.
        rounds: of a run.
        chunk: shadows side by side, which bounds the memory.
        validation: for rules that need it.

    Returns:
        (logits, which candidates each shadow was trained on).
    """

    def one(key: Array) -> tuple[Array, Array]:
        lot, own = jax.random.split(key)
        part, inside = split(lot, candidates, counts)
        end = round.run(
            begin(own),
            part,
            draw,
            spec=spec,
            layout=layout,
            rounds=rounds,
            validation=validation,
        )
        x = jnp.asarray(candidates.data.x)
        full, _ = deployed.answers(end, x, part, tiers, members, spec=spec)
        return full, inside

    return jax.lax.map(one, keys, batch_size=chunk)
