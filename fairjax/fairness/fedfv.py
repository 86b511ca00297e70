"""FedFV: changes freed from conflicts inside the cohort and with absent clients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, FederationFacts, Rule
from fairjax.core.types import Cohort, Masks, Params
from fairjax.fairness.update_stack import gram, nonzero, sum_leaves, weighted_sum


class _UpdateMemory(NamedTuple):
    """What FedFV remembers of every client."""

    update: Params
    """Its newest change, [N, ...] a leaf."""
    age: Int[Array, "N"]
    """How many rounds ago it was sent, seen from the coming round."""
    round: Int[Array, ""]
    """Rounds so far."""


def fedfv(*, alpha: float, tau: int) -> Rule:
    """Changes freed from conflicts inside the cohort and with absent clients.

    Changes are projected off those they contradict (`_without_conflicts`) and averaged
    over clients, uniformly. Then, for i = tau, ..., 1, take the changes that absent
    clients sent i rounds ago and that the mean contradicts: if the mean contradicts
    their sum, it is projected off that sum. At the end the mean is scaled to the length
    of the plain mean.

    The weights are uniform whatever the losses are. The direction follows from losses
    and changes.

    Args:
        alpha: share of the clients, those with the largest losses, whose changes are
            not projected; 1 and tau = 0 give the plain mean over clients.
        tau: rounds that a change is remembered; from 1 on the run keeps one change per
            client.

    Raises:
        InputError: alpha is outside [0, 1], or tau is negative.

    Source: Wang et al., "Federated learning with fair averaging", IJCAI 2021,
    arXiv:2104.14937, algorithms 1 to 3. The published code looks for
    i = tau - 1, ..., 0, that is for conflicts with the cohort itself instead of with
    absent clients.
    """
    require.in_range("alpha", alpha, 0, 1)
    require.in_range("tau", tau, 0)

    def init(params: Params, facts: FederationFacts) -> PyTree:
        if not tau:
            return ()
        updates = jax.tree.map(
            lambda leaf: jnp.zeros((len(facts.count), *leaf.shape), leaf.dtype), params
        )
        initial_age = jnp.full(len(facts.count), tau + 1, jnp.int32)
        return _UpdateMemory(updates, initial_age, jnp.zeros((), jnp.int32))

    def weigh(
        state: PyTree, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        return simplex.softmax(jnp.zeros(valid.shape), valid), state

    def combine(
        state: PyTree,
        cohort: Cohort,
        stats: CohortStats,
        weights: Float[Array, "K"],
    ) -> tuple[Params, Masks, PyTree]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        inner = gram(stats.delta, stats.delta)
        rows = _without_conflicts(inner, simplex.loss(stats), alpha, valid)
        update = weighted_sum(weights.astype(rows.dtype) @ rows, stats.delta)
        if tau:
            update = _project_off_absent(update, state, cohort, valid, tau)
            state = _update_memory(state, stats.delta, cohort, valid, tau)
        mean_weights = weights.astype(inner.dtype)
        target = jnp.sqrt(jnp.maximum(mean_weights @ inner @ mean_weights, 0))
        length = jnp.sqrt(jnp.maximum(_dot(update, update), 0))
        scale = target / jnp.where(length > 0, length, 1)
        update = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), update)
        return update, weighted_sum(weights, stats.cover), state

    reads = frozenset({"losses", "updates"})
    return Rule(weigh, reads, "public", init=init, combine=combine)


def _without_conflicts(
    inner: Float[Array, "K K"],
    loss: Float[Array, "K"],
    alpha: float,
    valid: Bool[Array, "K"],
) -> Float[Array, "K K"]:
    """Row i: the coefficients over clients of change i freed from conflicts.

    Every change but those of the share alpha with the largest losses is projected, in
    ascending order of the losses, onto the normal plane of each original change with
    which it has a negative inner product.
    """
    number = jnp.sum(valid)
    order = jnp.argsort(jnp.where(valid, loss, jnp.inf), stable=True)
    rank = jnp.argsort(order)
    first_exempt = jnp.ceil((number - 1).astype(loss.dtype) * (1 - alpha))
    is_exempt = (rank.astype(loss.dtype) >= first_exempt) & (alpha > 0)
    squares = jnp.diagonal(inner)
    identity = jnp.eye(len(valid), dtype=inner.dtype)

    def project_off(rows: Array, j: Array):
        dot = rows @ inner[:, j]
        has_conflict = (
            (dot < 0) & ~is_exempt & valid & valid[j] & (jnp.arange(len(valid)) != j)
        )
        coefficient = jnp.where(has_conflict, dot / nonzero(squares)[j], 0)
        return rows - coefficient[:, None] * identity[j], None

    return jax.lax.scan(project_off, identity, order)[0]


def _project_off_absent(
    update: Params,
    memory: _UpdateMemory,
    cohort: Cohort,
    valid: Bool[Array, "K"],
    tau: int,
) -> Params:
    """The mean change freed from conflicts with absent clients, from round tau on."""
    slot = jnp.where(valid, cohort.client, len(memory.age))
    absent = jnp.ones(len(memory.age), bool).at[slot].set(False, mode="drop")
    for age in range(tau, 0, -1):
        stacked_update = jax.tree.map(lambda leaf: leaf[None], update)
        is_opposing = (
            absent
            & (memory.age == age)
            & (gram(memory.update, stacked_update)[:, 0] < 0)
        )
        opposing_sum = weighted_sum(is_opposing.astype(jnp.float32), memory.update)
        dot, square = _dot(update, opposing_sum), _dot(opposing_sum, opposing_sum)
        has_conflict = (dot < 0) & (memory.round >= tau)
        coefficient = jnp.where(has_conflict, dot / nonzero(square), 0)
        update = jax.tree.map(
            lambda leaf, opposing, coefficient=coefficient: (
                leaf - coefficient.astype(leaf.dtype) * opposing
            ),
            update,
            opposing_sum,
        )
    return update


def _update_memory(
    memory: _UpdateMemory,
    deltas: Params,
    cohort: Cohort,
    valid: Bool[Array, "K"],
    tau: int,
) -> _UpdateMemory:
    slot = jnp.where(valid, cohort.client, len(memory.age))
    updates = jax.tree.map(
        lambda old, new: old.at[slot].set(new, mode="drop"), memory.update, deltas
    )
    age = jnp.minimum(memory.age + 1, tau + 1).at[slot].set(1, mode="drop")
    return _UpdateMemory(updates, age, memory.round + 1)


def _dot(a: Params, b: Params) -> Float[Array, ""]:
    return sum_leaves(jax.tree.map(jnp.vdot, a, b))
