"""PropFair: proportional fairness of clients' utilities, in their objective."""

import math

import jax.numpy as jnp
from jaxtyping import Array

from fairjax.core import require
from fairjax.core.rule import Rule
from fairjax.core.types import Batch, Context, Objective, OutputsAt


def propfair(*, bound: float, epsilon: float) -> Rule:
    """Proportional fairness of the utilities bound - loss.

        -log(1 - l / M) if M - l >= epsilon, else l / M

    for the loss l of a batch, M the bound. To first order a client weighs
    n_k / (M - F_k). M has to exceed typical losses, log C for C classes at the start;
    M -> infinity is FedAvg at a learning rate divided by M.

    Args:
        bound: M, nats.
        epsilon: utility below which the loss is used as it is, nats.

    Raises:
        InputError: the bound is not positive, or epsilon is outside (0, bound].

    Source: Zhang et al., "Proportional fairness in federated learning", 2022,
    arXiv:2202.01666, eq. (3.7) and its code.
    """
    require.positive("bound", bound)
    require.in_range("epsilon", epsilon, 0, bound, open_low=True)

    def wrap(objective: Objective) -> Objective:
        def fair_objective(
            outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
        ):
            loss, info = objective(outputs_at, batch, key, context)
            utility = bound - loss
            # The branch not taken must be finite: its gradient is multiplied by 0.
            safe_utility = jnp.maximum(utility, epsilon)
            logarithm = math.log(bound) - jnp.log(safe_utility)
            return jnp.where(utility >= epsilon, logarithm, loss / bound), info

        return fair_objective

    return Rule(wrap=wrap)
