"""Shadow models: the whole run again and again, on random parts of its records.

Every shadow is a federation of the run's own shape (as many clients, tiers, records and
rounds). Its clients train on a random part of their candidates, here the run's training
and test records. Each shadow goes through `round.run`, protection included, and all are
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
from fairjax.core.protocols import Layout
from fairjax.core.spec import Spec
from fairjax.core.types import ClientView, Cohort, FederatedData, RunState
from fairjax.evaluation import deployed


class Pool(NamedTuple):
    """The candidates, client after client."""

    data: FederatedData
    member: Bool[np.ndarray, "E"]
    """Whether the attacked run was trained on a candidate."""
    owner: Int[np.ndarray, "E"]
    """The candidate's client."""


def pool_candidates(train: FederatedData, test: FederatedData) -> Pool:
    """Members and non-members of a run: each client's training, then its test records.

    The label counts of the result are those of the training records.

    Args:
        train: members.
        test: non-members.
    """
    owners = [np.asarray(metrics.owner_of(dataset)) for dataset in (train, test)]
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")

    def concat_field(name: str) -> np.ndarray:
        arrays = [np.asarray(getattr(dataset, name)) for dataset in (train, test)]
        return np.concatenate(arrays)[order]

    count = np.asarray(train.count) + np.asarray(test.count)
    data = FederatedData(
        concat_field("x"),
        concat_field("y"),
        concat_field("group"),
        (np.cumsum(count) - count).astype(np.int32),
        count.astype(np.int32),
        np.asarray(train.labels),
    )
    member = np.arange(len(owner)) < len(owners[0])
    return Pool(data, member[order], owner[order].astype(np.int32))


def split(
    key: Key[Array, ""], candidates: Pool, counts: Int[np.ndarray, "N"]
) -> tuple[FederatedData, Bool[Array, "E"]]:
    """A federation of `counts[k]` random candidates of every client k.

    Args:
        key: of the draw.
        candidates: all candidates.
        counts: training records of every client.

    Returns:
        (the federation, which candidates are in it).
    """
    data = jax.tree.map(jnp.asarray, candidates.data)
    owner = jnp.asarray(candidates.owner)
    random_bits = jax.random.bits(key, owner.shape, jnp.uint32)
    number = jnp.arange(owner.shape[0], dtype=jnp.int32)
    order = jax.lax.sort((owner, random_bits, number), num_keys=2)[2]
    counts = np.asarray(counts)
    offset = np.cumsum(counts) - counts
    # Where the first counts[k] candidates of every client stand in that order.
    shift = np.repeat(np.asarray(candidates.data.offset) - offset, counts)
    index = order[jnp.asarray(shift + np.arange(counts.sum()), jnp.int32)]
    y, client_index = data.y[index], owner[index]
    subset = FederatedData(
        data.x[index],
        y,
        data.group[index],
        jnp.asarray(offset, jnp.int32),
        jnp.asarray(counts, jnp.int32),
        jnp.zeros_like(data.labels).at[client_index, y].add(1),
    )
    return subset, jnp.zeros(owner.shape, bool).at[index].set(True)


def train(
    keys: Key[Array, "M"],
    candidates: Pool,
    counts: Int[np.ndarray, "N"],
    tiers: Int[Array, "N"],
    clients: ClientView,
    *,
    init_state: Callable[[Key[Array, ""]], RunState],
    draw: Callable[[RunState], Cohort],
    spec: Spec,
    layout: Layout,
    rounds: int,
    chunk: int,
    validation: FederatedData | None = None,
) -> tuple[Float[Array, "M E C"], Bool[Array, "M E"]]:
    """M shadow runs, and the logits of their full models on every candidate.

    Args:
        keys: one for every shadow.
        candidates: all candidates; every client trains on a part of its own.
        counts: training records of every client.
        tiers: budget tier of every client, as for `deployed.predict`.
        clients: one client of every tier, as for `deployed.predict`.
        init_state: key -> the state before the first round.
        draw: state -> the cohort of the next round.
        spec: what a round does.
        layout: how a cohort is laid out.
        rounds: rounds of a run.
        chunk: shadows at the same time, which bounds the memory.
        validation: for rules that read it.

    Returns:
        (logits, which candidates each shadow was trained on).
    """

    def per_shadow(key: Array) -> tuple[Array, Array]:
        split_key, run_key = jax.random.split(key)
        subset, membership = split(split_key, candidates, counts)
        final_state = round.run(
            init_state(run_key),
            subset,
            draw,
            spec=spec,
            layout=layout,
            rounds=rounds,
            validation=validation,
        )
        x = jnp.asarray(candidates.data.x)
        logits, _ = deployed.predict(final_state, x, subset, tiers, clients, spec=spec)
        return logits, membership

    return jax.lax.map(per_shadow, keys, batch_size=chunk)
