"""One model on one split, round by round: pooled, per client and per tier."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from fairjax.core import losses
from fairjax.core.types import FederatedData, Params
from fairjax.metrics import clients
from fairjax.metrics.discrimination import auroc, balanced_accuracy, macro
from fairjax.metrics.segments import finite, mean, total


class Figures(NamedTuple):
    """Quality over some records; NaN where it cannot be estimated."""

    count: Int[Array, "..."]
    loss: Float[Array, "..."]
    """Mean cross-entropy in nats."""
    accuracy: Float[Array, "..."]
    """NaN if a logit is not finite, as is the next figure: no class is predicted."""
    balanced_accuracy: Float[Array, "..."]
    """Mean recall over the classes that the records have."""
    auroc: Float[Array, "..."]
    """For more than two classes: mean of one-versus-rest over estimable classes."""


class Evaluation(NamedTuple):
    """One model on one split."""

    pooled: Figures
    """Scalars, over all records."""
    clients: Figures
    """[N]."""


def logits_of(
    params: Params,
    x: Num[Array, "E ..."],
    *,
    apply: Callable[[Params, Array], Float[Array, "B C"]],
    batch_size: int = 512,
) -> Float[Array, "E C"]:
    """Logits of every record, `batch_size` records at a time."""
    rows = x.shape[0]
    size = min(batch_size, max(rows, 1))
    batches = math.ceil(rows / size)
    index = jnp.minimum(jnp.arange(batches * size), max(rows - 1, 0))
    out = jax.lax.map(lambda rows: apply(params, x[rows]), index.reshape(batches, size))
    return out.reshape(batches * size, -1)[:rows]


def evaluate(
    params: Params,
    data: FederatedData,
    *,
    apply: Callable[[Params, Array], Float[Array, "B C"]],
) -> Evaluation:
    """One model on one split: pooled figures and those of every client.

    Args:
        params: parameters for `apply`.
        data: the split, at least one record.
        apply: (params, x [B, ...]) -> logits [B, C].
    """
    return evaluation_of(logits_of(params, jnp.asarray(data.x), apply=apply), data)


def owner_of(data: FederatedData) -> Int[Array, "E"]:
    """The client of every record."""
    clients, rows = data.count.shape[0], data.y.shape[0]
    return jnp.repeat(
        jnp.arange(clients, dtype=jnp.int32),
        jnp.asarray(data.count),
        total_repeat_length=rows,
    )


def evaluation_of(logits: Float[Array, "E C"], data: FederatedData) -> Evaluation:
    """The figures of a split's logits, pooled and of every client."""
    y, owner = jnp.asarray(data.y), owner_of(data)
    loss = losses.cross_entropy(logits, y)
    correct = jnp.argmax(logits, axis=-1) == y

    def figures(segment: Array, n: int) -> Figures:
        is_finite = finite(logits, segment, n)
        balanced = balanced_accuracy(correct, y, segment, n, classes=logits.shape[1])
        return Figures(
            total(jnp.ones_like(segment), segment, n),
            mean(loss, segment, n),
            jnp.where(is_finite, mean(correct, segment, n), jnp.nan),
            jnp.where(is_finite, balanced, jnp.nan),
            macro(auroc, logits, y, segment, n),
        )

    pooled = jax.tree.map(lambda leaf: leaf[0], figures(jnp.zeros_like(owner), 1))
    return Evaluation(pooled, figures(owner, data.count.shape[0]))


def summary(
    full_model: Evaluation,
    tier_submodels: Evaluation,
    tiers: np.ndarray,
    *,
    min_records: int = 1,
) -> dict[str, float]:
    """The evaluation keys of `metrics.jsonl`.

    Args:
        full_model: the full model.
        tier_submodels: every tier's own sub-model, [T, ...] a leaf.
        tiers: tier of every client, [N].
        min_records: test records that a client needs to be the worst or among the worst
            tenth, and that a tier's clients need together to count in the gap.

    "tier_<t>" is the mean over that tier's clients, "submodel_<t>" the tier's sub-model
    on all records. Deviations are over clients with ddof 0. The gap is the lowest minus
    the highest tier that has clients, see `clients.tier_gap`.
    """
    accuracy = np.asarray(full_model.clients.accuracy, np.float64)
    count = tier_submodels.pooled.loss.shape[0]
    eligible_clients, eligible_tiers = clients.has_enough_records(
        np.asarray(full_model.clients.count), tiers, count, min_records
    )
    row = {
        "eval/accuracy": float(full_model.pooled.accuracy),
        "eval/balanced_accuracy": float(full_model.pooled.balanced_accuracy),
        "eval/loss": float(full_model.pooled.loss),
        "eval/auroc": float(full_model.pooled.auroc),
        "eval/accuracy/client_mean": clients.mean(accuracy),
        "eval/accuracy/client_std": clients.std(accuracy),
        "eval/accuracy/client_worst": clients.minimum(accuracy[eligible_clients]),
        "eval/accuracy/client_worst10": clients.worst(accuracy[eligible_clients], 0.1),
    }
    for tier in range(count):
        in_tier = tiers == tier
        for name in ("accuracy", "balanced_accuracy", "auroc"):
            full_values = np.asarray(getattr(full_model.clients, name), np.float64)
            tier_values = np.asarray(
                getattr(tier_submodels.clients, name)[tier], np.float64
            )
            row[f"eval/{name}/tier_{tier}"] = clients.mean(full_values[in_tier])
            row[f"eval/{name}/tier_{tier}/own"] = clients.mean(tier_values[in_tier])
            pooled = getattr(tier_submodels.pooled, name)[tier]
            row[f"eval/{name}/submodel_{tier}"] = float(pooled)
    means = [
        row[f"eval/accuracy/tier_{tier}"] if eligible_tiers[tier] else math.nan
        for tier in np.unique(tiers)
    ]
    row["eval/accuracy/tier_gap"] = clients.tier_gap(means)
    row["fairness/jain"] = clients.jain(accuracy)
    row["fairness/entropy"] = clients.entropy(accuracy)
    return row
