"""How good a model is, and for whom: pooled, per client and per tier.

A figure that cannot be estimated is NaN here and null in every file, never 0 or 0.5:
the AUROC of a hospital with one class, the accuracy of one without test records.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from fairjax import losses
from fairjax.types import Federation, Params


class Figures(NamedTuple):
    """Quality over some records; NaN where it cannot be estimated."""

    count: Int[Array, "..."]
    loss: Float[Array, "..."]
    """Mean cross-entropy in nats."""
    accuracy: Float[Array, "..."]
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


def auroc(
    scores: Float[Array, "E"],
    positive: Bool[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
) -> Float[Array, "segments"]:
    """Area under the ROC curve of every segment, ties counted half.

        AUROC = (1 / (n+ n-)) sum_{i in +} sum_{j in -} ([s_i > s_j] + [s_i = s_j] / 2),

    by one sort: O(E log E), with exact counts.

    Args:
        scores: higher means positive.
        positive: the true class.
        segment: which segment a record belongs to, in [0, segments).
        segments: how many there are.

    Returns:
        One area per segment; NaN where a segment lacks positives or negatives, or holds
        a score that is not a number.
    """
    rows = scores.shape[0]
    segment, scores, positive = jax.lax.sort(
        (segment.astype(jnp.int32), scores, positive.astype(jnp.int32)), num_keys=2
    )
    negative = 1 - positive
    first = jnp.concatenate(
        [
            jnp.ones((1,), bool),
            (segment[1:] != segment[:-1]) | (scores[1:] != scores[:-1]),
        ]
    )
    tie = jnp.cumsum(first) - 1

    def per_segment(values: Array) -> Array:
        return jax.ops.segment_sum(values, segment, segments)

    tied = jax.ops.segment_sum(negative, tie, rows)
    below_all = (jnp.cumsum(tied) - tied)[tie]
    plus, minus = per_segment(positive), per_segment(negative)
    below = below_all - (jnp.cumsum(minus) - minus)[segment]
    minus_here = jnp.maximum(minus, 1)[segment].astype(scores.dtype)
    wins = (
        below.astype(scores.dtype) + 0.5 * tied[tie].astype(scores.dtype)
    ) / minus_here
    area = per_segment(wins * positive.astype(scores.dtype))
    area = area / jnp.maximum(plus, 1).astype(scores.dtype)
    unknown = per_segment(jnp.isnan(scores).astype(jnp.int32)) > 0
    return jnp.where((plus > 0) & (minus > 0) & ~unknown, area, jnp.nan)


def balanced_accuracy(
    right: Bool[Array, "E"],
    y: Int[Array, "E"],
    segment: Int[Array, "E"],
    segments: int,
    *,
    classes: int,
) -> Float[Array, "segments"]:
    """Mean recall of every segment over the classes that it has.

        (1 / |C_s|) sum_{c in C_s} (records of class c answered rightly) / n_sc

    Args:
        right: whether the answer is the true class.
        y: the true class.
        segment: which segment a record belongs to, in [0, segments).
        segments: how many there are.
        classes: C.

    Returns:
        One mean per segment; NaN for a segment without records.
    """

    def per_class(values: Array) -> Array:
        cell = segment.astype(jnp.int32) * classes + y.astype(jnp.int32)
        total = jax.ops.segment_sum(values, cell, segments * classes)
        return total.reshape(segments, classes)

    count = per_class(jnp.ones(y.shape, jnp.float32))
    recall = per_class(right.astype(jnp.float32)) / jnp.maximum(count, 1)
    return jnp.mean(recall, axis=1, where=count > 0)


def _macro_auroc(
    logits: Float[Array, "E C"], y: Int[Array, "E"], segment: Int[Array, "E"], n: int
) -> Float[Array, "n"]:
    classes = logits.shape[1]
    if classes == 2:
        # The logit margin orders as the probability does and never saturates.
        return auroc(logits[:, 1] - logits[:, 0], y == 1, segment, n)
    log_p = jax.nn.log_softmax(logits)
    positive = jnp.arange(classes)[:, None] == y
    areas = jax.vmap(lambda s, p: auroc(s, p, segment, n))(log_p.T, positive)
    return jnp.nanmean(areas, axis=0)


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
    data: Federation,
    *,
    apply: Callable[[Params, Array], Float[Array, "B C"]],
) -> Evaluation:
    """One model on one split: pooled figures and those of every client.

    Args:
        params: parameters for `apply`.
        data: the split, at least one record.
        apply: (params, x [B, ...]) -> logits [B, C].
    """
    records = jax.tree.map(jnp.asarray, data)
    rows, clients = records.y.shape[0], records.count.shape[0]
    logits = logits_of(params, records.x, apply=apply)
    owner = jnp.repeat(
        jnp.arange(clients, dtype=jnp.int32), records.count, total_repeat_length=rows
    )
    loss = losses.cross_entropy(logits, records.y)
    right = jnp.argmax(logits, axis=-1) == records.y

    def figures(segment: Array, n: int) -> Figures:
        count = jax.ops.segment_sum(jnp.ones_like(segment), segment, n)

        def average(values: Array) -> Array:
            total = jax.ops.segment_sum(values, segment, n)
            known = total / jnp.maximum(count, 1).astype(values.dtype)
            return jnp.where(count > 0, known, jnp.nan)

        return Figures(
            count,
            average(loss),
            average(right.astype(loss.dtype)),
            balanced_accuracy(right, records.y, segment, n, classes=logits.shape[1]),
            _macro_auroc(logits, records.y, segment, n),
        )

    pooled = jax.tree.map(lambda leaf: leaf[0], figures(jnp.zeros_like(owner), 1))
    return Evaluation(pooled, figures(owner, clients))


# -------------------------------------------------- summaries over clients, on the host


def mean(values: np.ndarray) -> float:
    """Mean of the known values; NaN when none is known."""
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if len(known) else math.nan


def worst(values: np.ndarray, share: float) -> float:
    """Mean of the ceil(share * K) lowest known values; NaN when none is known."""
    known = np.sort(values[~np.isnan(values)])
    return mean(known[: math.ceil(round(share * len(known), 9))])


def jain(values: np.ndarray) -> float:
    """Jain's index (sum a)^2 / (K sum a^2): 1 if all are equal, 1/K if one has all."""
    known = values[~np.isnan(values)]
    square = float(np.sum(known**2))
    return float(np.sum(known) ** 2 / (len(known) * square)) if square else math.nan


def entropy(values: np.ndarray) -> float:
    """Normalised entropy: 1 if all are equal, 0 if one has all.

        -sum_k p_k log p_k / log K,   p_k = a_k / sum_j a_j

    NaN for fewer than two known values, or if all are 0.
    """
    known = values[~np.isnan(values)]
    if len(known) < 2 or not np.any(known):
        return math.nan
    share = known[known > 0] / np.sum(known)
    return float(-np.sum(share * np.log(share)) / math.log(len(known)))


def summary(full: Evaluation, own: Evaluation, tiers: np.ndarray) -> dict[str, float]:
    """The evaluation keys of `metrics.jsonl`.

    Args:
        full: the full model.
        own: every tier's own sub-model, [T, ...] a leaf.
        tiers: tier of every client, [N].

    "tier_<t>" is the mean over that tier's clients, "submodel_<t>" the tier's sub-model
    on all records; deviations are over clients with ddof 0; the gap is the lowest minus
    the highest tier that have clients.
    """
    accuracy = np.asarray(full.clients.accuracy, np.float64)
    known = accuracy[~np.isnan(accuracy)]
    row = {
        "eval/accuracy": float(full.pooled.accuracy),
        "eval/balanced_accuracy": float(full.pooled.balanced_accuracy),
        "eval/loss": float(full.pooled.loss),
        "eval/auroc": float(full.pooled.auroc),
        "eval/accuracy/client_mean": mean(known),
        "eval/accuracy/client_std": float(np.std(known)) if len(known) else math.nan,
        "eval/accuracy/client_worst": worst(accuracy, 1 / max(len(known), 1)),
        "eval/accuracy/client_worst10": worst(accuracy, 0.1),
    }
    count = own.pooled.loss.shape[0]
    for tier in range(count):
        members = tiers == tier
        for name in ("accuracy", "balanced_accuracy"):
            of_full = np.asarray(getattr(full.clients, name), np.float64)
            of_own = np.asarray(getattr(own.clients, name)[tier], np.float64)
            row[f"eval/{name}/tier_{tier}"] = mean(of_full[members])
            row[f"eval/{name}/tier_{tier}/own"] = mean(of_own[members])
            pooled = getattr(own.pooled, name)[tier]
            row[f"eval/{name}/submodel_{tier}"] = float(pooled)
    means = [row[f"eval/accuracy/tier_{tier}"] for tier in range(count)]
    present = [value for value in means if not math.isnan(value)]
    row["eval/accuracy/tier_gap"] = present[0] - present[-1] if present else math.nan
    row["fairness/jain"] = jain(accuracy)
    row["fairness/entropy"] = entropy(accuracy)
    return row
