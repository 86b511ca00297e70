"""Rules that change what a client minimises; they weigh by records."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fairjax.core import require
from fairjax.core.types import (
    Batch,
    Context,
    Kept,
    Objective,
    Outputs,
    OutputsAt,
    Rule,
)


def propfair(*, bound: float, epsilon: float) -> Rule:
    """PropFair: proportional fairness of the utilities bound - loss.

        -log(1 - l / M) if M - l >= epsilon, else l / M

    for the loss l of a batch, M the bound: to first order a client weighs
    n_k / (M - F_k). M has to exceed typical losses, log C for C classes at the start;
    M -> infinity is FedAvg at a learning rate divided by M.

    Args:
        bound: M, nats.
        epsilon: utility below which the loss is used as it is, nats.

    Source: PropFair, Zhang et al. 2022, "Proportional fairness in federated learning",
    eq. (3.7) and its code.
    """
    require.positive("fairness.propfair.bound", bound)
    require.in_range("fairness.propfair.epsilon", epsilon, 0, bound, open_low=True)

    def wrap(objective: Objective) -> Objective:
        def fair(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
            loss, info = objective(outputs_at, batch, key, context)
            utility = bound - loss
            # The branch not taken must be finite: its gradient is multiplied by 0.
            safe = jnp.maximum(utility, epsilon)
            logarithm = math.log(bound) - jnp.log(safe)
            return jnp.where(utility >= epsilon, logarithm, loss / bound), info

        return fair

    return Rule(wrap=wrap)


_RECORD = 0.01
"""A class without records counts as this share of one: its logit must stay finite."""


def logit_adjust(*, tau: float) -> Rule:
    """Adds tau log pi_c to the logit of class c while a client trains.

    pi is the client's own class prior, n_c / n of its training records (1 / 100 of a
    record for a class it lacks). A model trained so does not learn the prior of the
    hospital, and is used without the adjustment. tau = 0 is FedAvg, tau = 1 balances.

    Source: Menon et al. 2021, "Long-tail learning via logit adjustment", eq. (10); with
    clients' own priors Zhang et al. 2022, "Federated learning with label distribution
    skew via logits calibration".
    """
    require.in_range("fairness.logit_adjust.tau", tau, 0)

    def wrap(objective: Objective) -> Objective:
        def adjusted(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
            prior = tau * _log_prior(context.member.labels)

            def outputs(kept: Kept | None = None) -> Outputs:
                return _shifted(outputs_at(kept), prior)

            return objective(outputs, batch, key, context)

        return adjusted

    return Rule(wrap=wrap)


def _log_prior(labels: Int[Array, "C"]) -> Float[Array, "C"]:
    count = jnp.maximum(labels.astype(jnp.float32), _RECORD)
    return jnp.log(count / jnp.sum(count))


def _shifted(outputs: Outputs, by: Float[Array, "C"]) -> Outputs:
    shift: Callable[[Array], Array] = lambda logits: logits + by.astype(logits.dtype)  # noqa: E731
    exits = tuple(jax.tree.map(shift, list(outputs.exits)))
    return outputs._replace(logits=shift(outputs.logits), exits=exits)
