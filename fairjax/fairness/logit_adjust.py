"""Logit adjustment: a client trains against its own class prior."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fairjax.core import require
from fairjax.core.rule import Rule
from fairjax.core.types import Batch, Context, Objective, Outputs, OutputsAt, Submodel

_MIN_COUNT = 0.01
"""A class without records counts as this share of one: its logit must stay finite."""


def logit_adjust(*, tau: float) -> Rule:
    """Adds tau log pi_c to the logit of class c while a client trains.

    pi is the client's own class prior, n_c / n of its training records (1 / 100 of a
    record for a class it lacks). A model trained this way does not learn the client's
    prior, and is used without the adjustment. tau = 0 is FedAvg, tau = 1 balances.

    Args:
        tau: strength of the adjustment, from 0.

    Raises:
        InputError: tau is negative or not finite.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021,
    arXiv:2007.07314, eq. (10); with clients' own priors Zhang et al., "Federated
    learning with label distribution skew via logits calibration", ICML 2022,
    arXiv:2209.00189.
    """
    require.in_range("tau", tau, 0)

    def wrap(objective: Objective) -> Objective:
        def adjusted_objective(
            outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
        ):
            prior = tau * _log_prior(context.client.labels)

            def outputs(submodel: Submodel | None = None) -> Outputs:
                return _shift_logits(outputs_at(submodel), prior)

            return objective(outputs, batch, key, context)

        return adjusted_objective

    return Rule(reads=frozenset({"labels"}), wrap=wrap)


def _log_prior(labels: Int[Array, "C"]) -> Float[Array, "C"]:
    count = jnp.maximum(labels.astype(jnp.float32), _MIN_COUNT)
    return jnp.log(count / jnp.sum(count))


def _shift_logits(outputs: Outputs, offset: Float[Array, "C"]) -> Outputs:
    def shift(logits: Array) -> Array:
        return logits + offset.astype(logits.dtype)

    exits = tuple(jax.tree.map(shift, list(outputs.exits)))
    return outputs._replace(logits=shift(outputs.logits), exits=exits)
