"""Dynamic regularisation: every client's memory corrects its drift."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fairjax.core import trees
from fairjax.core.method import ClientMemory, Method
from fairjax.core.types import Batch, Context, OutputsAt, Params


def feddyn(method: Method, alpha: float) -> Method:
    """FedDyn on top of a method that has an objective F_k of its own.

    Client k remembers the gradient state g_k (0 at first) and trains

        F_k(w) - <g_k, w> + alpha/2 ||w - w_in||^2,    then g_k <- g_k - alpha delta_k,

    on the coordinates of its sub-model: the others are 0 in w, w_in and delta_k. The
    server steps

        h <- h - alpha (K / N) mean,    w <- w + mean - h / alpha,

    with the masked mean of the deltas. As h / alpha = -(K / N) times the sum of all
    means so far, the server's state is that sum and alpha cancels
    (`ServerStep.optimizer`).

    Args:
        method: the method of the sub-models and the objective; it has no memory.
        alpha: strength, > 0.

    Source: D. A. E. Acar et al., "Federated Learning Based on Dynamic Regularization",
    ICLR 2021, arXiv:2111.04263, algorithm 1. Deviates: the paper divides the sum of the
    cohort's deltas by the number of all clients; here the mean of a coordinate is over
    the clients of the cohort that cover it, times K / N. Both agree where all cover it.
    The released code of DepthFL takes another form: its h moves by the share of all
    clients that cover a leaf, and corrects deep leaves less.
    """
    objective = method.objective
    assert objective is not None
    assert method.memory is None

    def regularised_objective(
        outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
    ):
        loss, info = objective(outputs_at, batch, key, context)
        drift = trees.subtract(context.params, context.incoming)
        pull = optax.tree.vdot(context.memory, context.params)
        distance = optax.tree.norm(drift, squared=True)
        term = 0.5 * alpha * distance - pull
        return loss + term.astype(loss.dtype), info

    def close(memory: Any, delta: Params, context: Context) -> Any:
        return jax.tree.map(lambda g, d: g - alpha * d, memory, delta)

    return method._replace(
        objective=regularised_objective,
        memory=ClientMemory(
            lambda params: jax.tree.map(jnp.zeros_like, params), close=close
        ),
        server=method.server._replace(
            optimizer=lambda server, share: optax.chain(_accumulate(share), server)
        ),
    )


def _accumulate(share: float) -> optax.GradientTransformation:
    """Adds `share` times the sum of all gradients so far, the present one included."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        total = jax.tree.map(lambda s, g: s + share * g, state, updates)
        return jax.tree.map(jnp.add, updates, total), total

    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )
