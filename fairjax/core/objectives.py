"""What a client minimises: the mean loss of its sub-model, and terms added to it."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fairjax.core import losses, trees
from fairjax.core.types import Batch, Context, Objective, OutputsAt


def mean_cross_entropy(*, balanced: bool = False) -> Objective:
    """The default objective: the sub-model's mean cross-entropy over valid records.

    Args:
        balanced: weigh a record of class c by n / (C' n_c), where n_c counts the
            client's own training records of class c and C' the classes that it has.
            Nothing about other clients enters.
    """

    def objective(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        weights = None
        logits = outputs_at(None).logits
        if balanced:
            weights = _class_weights(context.client.labels, logits.dtype)[batch.y]
        per_example = losses.cross_entropy(logits, batch.y)
        return losses.batch_mean(batch, per_example, weights), {}

    return objective


def _class_weights(labels: Int[Array, "C"], dtype: jnp.dtype) -> Float[Array, "C"]:
    count = labels.astype(dtype)
    num_classes = jnp.sum(labels > 0).astype(dtype)
    return jnp.where(
        labels > 0,
        jnp.sum(count) / (num_classes * jnp.maximum(count, 1)),
        jnp.zeros_like(count),
    )


def proximal(objective: Objective, strength: float | Float[Array, ""]) -> Objective:
    """Adds strength/2 * ||w - w_incoming||^2 over the client's own coordinates.

    A strength of 0 changes nothing.

    Args:
        objective: the loss that gets the term.
        strength: mu of the paper, from 0.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx),
    MLSys 2020, arXiv:1812.06127, eq. (2).
    """

    def proximal_objective(
        outputs_at: OutputsAt, batch: Batch, key: Array, context: Context
    ):
        loss, info = objective(outputs_at, batch, key, context)
        difference = trees.subtract(context.params, context.incoming)
        distance = optax.tree.norm(difference, squared=True).astype(loss.dtype)
        return loss + 0.5 * jnp.asarray(strength, loss.dtype) * distance, info

    return proximal_objective
