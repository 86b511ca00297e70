"""q-FedAvg: a step that is divided by estimated Lipschitz constants."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import Cohort, Masks, Params, Scalar
from fairjax.fairness.update_stack import squared_norms, sum_leaves, weighted_sum

_FLOOR = 1e-10
"""Added to losses, as in the reference code."""


def q_fedavg(*, q: float, learning_rate: Scalar, weight_decay: Scalar = 0.0) -> Rule:
    """Every client's step divided by an estimate of its Lipschitz constant.

        g_k = -L d_k,   L = 1 / (local learning rate of the round),
        h_k = q F_k^(q-1) |g_k| (|g_k| + c |m_k w|) + L F_k^q,
        change = -sum_k F_k^q g_k / sum_k h_k

    F_k is the loss at the incoming model w, m_k w the part of w that client k holds and
    c the weight decay. Sums run over the clients that cover a coordinate. Numbers of
    records play no part: q = 0 is the plain mean over clients.

    L bounds the curvature of what clients descend by plain SGD,

        G_k(v) = F_k(v) + c/2 |v|^2 + mu/2 |v - w|^2,

    if the learning rate does not overshoot. After one step g_k = grad G_k; after
    several, the sum of their gradients stands for it, as published. h_k then bounds how
    fast F_k^q grad G_k, from which the change is made, turns at w: its derivative is

        F_k^q hess G_k + q F_k^(q-1) grad G_k grad F_k^T,
        |hess G_k| <= L,   |grad F_k| <= |grad G_k| + c |m_k w|.

    Without decay this is lemma 3 of the publication. At w the proximal term has neither
    value nor gradient; its curvature mu is inside L. With momentum or clipping g_k
    would be the gradient of nothing.

    Args:
        q: fairness, from 0.
        learning_rate: the learning rate of the clients' optimiser, before the round's
            factor.
        weight_decay: c, which the optimiser adds to the gradient.

    Raises:
        InputError: q or the decay is negative, or the learning rate is not positive.

    Source: Li et al., "Fair resource allocation in federated learning", ICLR 2020,
    arXiv:1905.10497, algorithm 2 and lemma 3; its code adds 1e-10 to every loss. The
    form with decay is ours.
    """
    require.in_range("q", q, 0)
    require.positive("learning_rate", learning_rate)
    require.in_range("weight_decay", weight_decay, 0)

    def weigh(
        state: PyTree, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        """The simplex point in proportion to F_k^q, which is what is reported."""
        valid = simplex.has_finite_loss(stats, cohort.valid)
        return simplex.softmax(q * jnp.log(simplex.loss(stats) + _FLOOR), valid), state

    def combine(
        state: PyTree,
        cohort: Cohort,
        stats: CohortStats,
        weights: Float[Array, "K"],
    ) -> tuple[Params, Masks, PyTree]:
        valid = simplex.has_finite_loss(stats, cohort.valid)
        loss = jnp.where(valid, simplex.loss(stats), 1) + _FLOOR
        step = learning_rate * jnp.asarray(stats.lr_scale, loss.dtype)
        # In a round whose learning rate is 0 no client has moved.
        tiny = jnp.finfo(loss.dtype).tiny
        length = jnp.sqrt(squared_norms(stats.delta)) / jnp.maximum(step, tiny)
        assert stats.incoming is not None
        decay = weight_decay * jnp.sqrt(
            _masked_squared_norms(stats.incoming, stats.cover)
        )
        # Numerator and denominator are divided by L and the largest F^q, which cancel.
        power = jnp.where(valid, weights / jnp.maximum(jnp.max(weights), 1e-30), 0)
        h = power * (q * step * length * (length + decay) / loss + 1)
        return weighted_sum(power, stats.delta), weighted_sum(h, stats.cover), state

    return Rule(
        weigh,
        frozenset({"losses", "updates"}),
        "losses",
        combine=combine,
        reads_gradients=True,
    )


def _masked_squared_norms(plain: Params, covers: Masks) -> Float[Array, "K"]:
    """|m_k w|^2 of every client."""

    def per_leaf(leaf: Array, cover: Array) -> Array:
        squares = cover * jnp.square(leaf)
        return jnp.sum(squares, axis=tuple(range(1, squares.ndim)))

    return sum_leaves(jax.tree.map(per_leaf, plain, covers))
