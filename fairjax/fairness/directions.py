"""Rules that choose the direction from all changes of a cohort at once.

A client's change d_k is 0 outside what it covers, so that inner products run over
common support and norms over a client's own coordinates.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fairjax.core import require, simplex
from fairjax.core.types import Cohort, Masks, Params, Rule, Scalar, Scores

_BOTH = frozenset({"loss", "update"})
_FLOOR = 1e-10
"""Added to losses, as in the reference code of q-FedAvg."""


def gram(left: Params, right: Params) -> Float[Array, "K J"]:
    """Inner products of two stacks of trees, [K, ...] and [J, ...] a leaf."""

    def one(a: Array, b: Array) -> Array:
        return a.reshape(a.shape[0], -1) @ b.reshape(b.shape[0], -1).T

    return _sum(jax.tree.map(one, left, right))


def _sum(tree: PyTree[Array]) -> Array:
    return functools.reduce(jnp.add, jax.tree.leaves(tree))


def combined(coefficients: Float[Array, "K"], stack: Params) -> Params:
    """sum_k c_k d_k, leaf by leaf."""
    return jax.tree.map(
        lambda leaf: jnp.tensordot(coefficients.astype(leaf.dtype), leaf, 1), stack
    )


def _anybody(covers: Masks, weights: Float[Array, "K"]) -> Masks:
    """1 where a client that counts covers the coordinate: the sum as it stands."""
    return jax.tree.map(
        lambda total: (total > 0).astype(total.dtype),
        combined((weights > 0).astype(weights.dtype), covers),
    )


# ----------------------------------------------------------------------------- q-FedAvg


def q_fedavg(*, q: float, learning_rate: Scalar, weight_decay: Scalar = 0.0) -> Rule:
    """q-FedAvg: every client's step divided by an estimate of its Lipschitz constant.

        g_k = -L d_k,   L = 1 / (local learning rate of the round),
        h_k = q F_k^(q-1) |g_k| (|g_k| + c |m_k w|) + L F_k^q,
        change = -sum_k F_k^q g_k / sum_k h_k

    F_k is the loss at the incoming model w, m_k w what client k holds of it, c the
    weight decay; sums run over the clients that cover a coordinate. Records do not
    enter: q = 0 is the plain mean over clients.

    L is to bound the curvature of what clients descend by plain SGD,

        G_k(v) = F_k(v) + c/2 |v|^2 + mu/2 |v - w|^2,

    as a learning rate must that is not to overshoot. One step of it has g_k = grad G_k;
    of more, the sum of their gradients stands for it, as published. h_k then bounds how
    fast F_k^q grad G_k, of which the change is made, turns at w: its derivative is

        F_k^q hess G_k + q F_k^(q-1) grad G_k grad F_k^T,
        |hess G_k| <= L,   |grad F_k| <= |grad G_k| + c |m_k w|.

    Without decay this is lemma 3 of the publication. At w the proximal term has neither
    value nor gradient; its curvature mu is inside L. Momentum and clipping would make
    g_k the gradient of nothing.

    Args:
        q: fairness, from 0.
        learning_rate: of the clients' optimiser, before the round's factor.
        weight_decay: c, added to the gradient.

    Source: Li et al. 2020, "Fair resource allocation in federated learning",
    algorithm 2 and lemma 3; its code adds 1e-10 to every loss. With decay: ours.
    """
    require.in_range("fairness.q_fedavg.q", q, 0)
    require.positive("local.learning_rate with rule q_fedavg", learning_rate)
    require.in_range("local.weight_decay with rule q_fedavg", weight_decay, 0)

    def weigh(
        state: PyTree, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        """The simplex point in proportion to F_k^q, which is what is reported."""
        valid = simplex.known(scores, cohort.valid)
        return simplex.softmax(q * jnp.log(simplex.loss(scores) + _FLOOR), valid), state

    def combine(
        state: PyTree,
        cohort: Cohort,
        scores: Scores,
        weights: Float[Array, "K"],
    ) -> tuple[Params, Masks, PyTree]:
        valid = simplex.known(scores, cohort.valid)
        loss = jnp.where(valid, simplex.loss(scores), 1) + _FLOOR
        step = learning_rate * jnp.asarray(scores.rate, loss.dtype)
        # In a round whose rate is 0 nobody has moved.
        least = jnp.finfo(loss.dtype).tiny
        length = jnp.sqrt(_squared_norms(scores.delta)) / jnp.maximum(step, least)
        assert scores.incoming is not None
        decay = weight_decay * jnp.sqrt(_held_squares(scores.incoming, scores.cover))
        # Numerator and denominator over L and the largest F^q, which cancel.
        power = jnp.where(valid, weights / jnp.maximum(jnp.max(weights), 1e-30), 0)
        h = power * (q * step * length * (length + decay) / loss + 1)
        return combined(power, scores.delta), combined(h, scores.cover), state

    return Rule(weigh, _BOTH, combine=combine)


def _held_squares(plain: Params, covers: Masks) -> Float[Array, "K"]:
    """|m_k w|^2 of every client."""

    def one(leaf: Array, cover: Array) -> Array:
        held = cover * jnp.square(leaf)
        return jnp.sum(held, axis=tuple(range(1, held.ndim)))

    return _sum(jax.tree.map(one, plain, covers))


def _squared_norms(stack: Params) -> Float[Array, "K"]:
    def one(leaf: Array) -> Array:
        return jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim)))

    return _sum(jax.tree.map(one, stack))


# ----------------------------------------------------------------------------- FedMGDA+


def min_norm(
    gram: Float[Array, "K K"],
    center: Float[Array, "K"],
    epsilon: float,
    valid: Bool[Array, "K"],
    *,
    steps: int = 500,
) -> Float[Array, "K"]:
    """Argmin |sum_k x_k u_k|^2 over the simplex with |x - center|_inf <= epsilon.

    By accelerated projected gradient steps from `center`, the step 1 / trace.

    Args:
        gram: inner products of the u_k.
        center: a simplex point over the valid clients.
        epsilon: 0 gives `center`, 1 the whole simplex.
        valid: the others get 0.
        steps: of the iteration.

    Source: FISTA, Beck and Teboulle 2009.
    """
    low = jnp.where(valid, jnp.maximum(center - epsilon, 0), 0)
    high = jnp.where(valid, jnp.minimum(center + epsilon, 1), 0)
    bound = jnp.trace(jnp.where(valid, gram, 0))
    rate = 1 / jnp.where(bound > 0, bound, 1)

    def step(carry: tuple[Array, Array, Array], _: None):
        x, ahead, momentum = carry
        new = simplex.project(ahead - rate * (gram @ ahead), low, high)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - x)
        return (new, ahead, following), None

    start = jnp.where(valid, center, 0)
    first = (start, start, jnp.ones((), start.dtype))
    return jax.lax.scan(step, first, None, length=steps)[0][0]


def fedmgda(*, epsilon: float) -> Rule:
    """FedMGDA+: the common descent direction of the normalised changes.

        u_k = d_k / |d_k|,   w = argmin |sum_k w_k u_k|^2,   |w - p|_inf <= epsilon,
        change = sum_k w_k u_k

    with w on the simplex and p_k = n_k / n. The change has at most unit length:
    `server.learning_rate` sets its scale and has to be tuned anew. epsilon = 0 is
    FedAvg of normalised changes; at epsilon = 1 the change has an inner product of at
    least |change|^2 with every u_k, so that no client is made worse, to first order. A
    coordinate is not divided by the weights that cover it, which would turn the
    direction away from the minimum.

    Source: Hu et al. 2022, "Federated learning meets multi-objective optimization",
    algorithm 1.
    """
    require.in_range("fairness.fedmgda.epsilon", epsilon, 0, 1)

    def weigh(
        state: PyTree, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        share = simplex.by_records(scores, cohort.valid)
        inner = gram(scores.delta, scores.delta)
        length = _safe(jnp.sqrt(jnp.diagonal(inner)))
        inner = inner / (length * length[:, None])
        center = share.astype(inner.dtype)
        return min_norm(inner, center, epsilon, cohort.valid), state

    def combine(
        state: PyTree,
        cohort: Cohort,
        scores: Scores,
        weights: Float[Array, "K"],
    ) -> tuple[Params, Masks, PyTree]:
        length = _safe(jnp.sqrt(_squared_norms(scores.delta)))
        change = combined(weights / length, scores.delta)
        return change, _anybody(scores.cover, weights), state

    return Rule(weigh, frozenset({"update"}), combine=combine)


def _safe(length: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(length > 0, length, 1)


# ------------------------------------------------------------------------------- FedFV


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
    first_kept = jnp.ceil((number - 1).astype(loss.dtype) * (1 - alpha))
    kept = (rank.astype(loss.dtype) >= first_kept) & (alpha > 0)
    squares = jnp.diagonal(inner)
    identity = jnp.eye(len(valid), dtype=inner.dtype)

    def against(rows: Array, j: Array):
        dot = rows @ inner[:, j]
        turns = (dot < 0) & ~kept & valid & valid[j] & (jnp.arange(len(valid)) != j)
        part = jnp.where(turns, dot / _safe(squares)[j], 0)
        return rows - part[:, None] * identity[j], None

    return jax.lax.scan(against, identity, order)[0]


class _Sent(NamedTuple):
    """What FedFV remembers of every hospital."""

    change: Params
    """Its newest change, [N, ...] a leaf."""
    age: Int[Array, "N"]
    """Rounds ago that it was sent, seen from the coming round."""
    round: Int[Array, ""]


def _against_absent(
    change: Params, sent: _Sent, cohort: Cohort, valid: Bool[Array, "K"], tau: int
) -> Params:
    """The mean change freed from conflicts with absent clients, from round tau on."""
    slot = jnp.where(valid, cohort.client, len(sent.age))
    absent = jnp.ones(len(sent.age), bool).at[slot].set(False, mode="drop")
    for age in range(tau, 0, -1):
        alone = jax.tree.map(lambda leaf: leaf[None], change)
        opposed = absent & (sent.age == age) & (gram(sent.change, alone)[:, 0] < 0)
        against = combined(opposed.astype(jnp.float32), sent.change)
        dot, square = _dot(change, against), _dot(against, against)
        turns = (dot < 0) & (sent.round >= tau)
        part = jnp.where(turns, dot / _safe(square), 0)
        change = jax.tree.map(
            lambda leaf, away, part=part: leaf - part.astype(leaf.dtype) * away,
            change,
            against,
        )
    return change


def _remember(
    sent: _Sent, deltas: Params, cohort: Cohort, valid: Bool[Array, "K"], tau: int
) -> _Sent:
    slot = jnp.where(valid, cohort.client, len(sent.age))
    bank = jax.tree.map(
        lambda old, new: old.at[slot].set(new, mode="drop"), sent.change, deltas
    )
    age = jnp.minimum(sent.age + 1, tau + 1).at[slot].set(1, mode="drop")
    return _Sent(bank, age, sent.round + 1)


def fedfv(*, alpha: float, tau: int) -> Rule:
    """FedFV: changes freed from conflicts among the cohort and with absent clients.

    Changes are projected off those they contradict (`_without_conflicts`) and averaged
    over clients, uniformly. Then for i = tau, ..., 1 the mean is projected off the sum
    of those changes that absent clients sent i rounds ago and that it contradicts, if
    it contradicts their sum. It is scaled to the length of the plain mean.

    Args:
        alpha: share of the clients, those with the largest losses, whose changes are
            left as they are; 1 and tau = 0 give the plain mean over clients.
        tau: rounds that a change is remembered; from 1 on the run keeps one change per
            hospital.

    Source: Wang et al. 2021, "Federated learning with fair averaging", algorithms 1 to
    3. The published code looks for i = tau - 1, ..., 0, that is for conflicts with the
    cohort itself instead of with those who are absent.
    """
    require.in_range("fairness.fedfv.alpha", alpha, 0, 1)
    require.in_range("fairness.fedfv.tau", tau, 0)

    def init(params: Params, counts: Int[Array, "N"], tiers: int) -> PyTree:
        if not tau:
            return ()
        bank = jax.tree.map(
            lambda leaf: jnp.zeros((len(counts), *leaf.shape), leaf.dtype), params
        )
        never = jnp.full(len(counts), tau + 1, jnp.int32)
        return _Sent(bank, never, jnp.zeros((), jnp.int32))

    def weigh(
        state: PyTree, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.known(scores, cohort.valid)
        return simplex.softmax(jnp.zeros(valid.shape), valid), state

    def combine(
        state: PyTree,
        cohort: Cohort,
        scores: Scores,
        weights: Float[Array, "K"],
    ) -> tuple[Params, Masks, PyTree]:
        valid = simplex.known(scores, cohort.valid)
        inner = gram(scores.delta, scores.delta)
        rows = _without_conflicts(inner, simplex.loss(scores), alpha, valid)
        change = combined(weights.astype(rows.dtype) @ rows, scores.delta)
        if tau:
            change = _against_absent(change, state, cohort, valid, tau)
            state = _remember(state, scores.delta, cohort, valid, tau)
        plain = weights.astype(inner.dtype)
        target = jnp.sqrt(jnp.maximum(plain @ inner @ plain, 0))
        length = jnp.sqrt(jnp.maximum(_dot(change, change), 0))
        scale = target / jnp.where(length > 0, length, 1)
        change = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), change)
        return change, combined(weights, scores.cover), state

    return Rule(weigh, _BOTH, init=init, combine=combine)


def _dot(a: Params, b: Params) -> Float[Array, ""]:
    return _sum(jax.tree.map(jnp.vdot, a, b))
