"""Whether a run has diverged, from what its rounds measured.

A round shows divergence by one of these, read from its row of metrics.jsonl:

    the loss of the model on a split is not finite, or above `MAX_LOSS` nats;
    clients trained, and no training ended with finite numbers;
    the round was not evaluated, changes entered, and the training loss is not finite.

If a round was evaluated, its model decides: under `record_dp` one record with an
infinite loss makes the training loss infinite and moves nothing.

A run has diverged if its last round shows divergence. It has diverged since the first
round after which no evaluation showed anything else. A run that recovered has not
diverged.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]

MAX_LOSS = -math.log(float(np.finfo(np.float32).tiny))
"""87.3 nats. At a larger mean loss the geometric mean of the probabilities of the true
classes is below the smallest normal float32, which is no probability. The constant
prediction 1 / C loses log C nats, 6.9 nats for 1,000 classes."""


def symptom(row: Row, split: str) -> str | None:
    """The sign of divergence that a round shows; None if it shows none.

    Args:
        row: a row of metrics.jsonl.
        split: the split whose loss counts: "eval" (the test records), or "val", which
            alone selects a round.
    """
    num_trained = sum(
        count for name, count in row.items() if name.startswith("cohort/trained_tier_")
    )
    if num_trained and row.get("cohort/not_finite") == num_trained:
        return "no hospital's training ends with finite numbers"
    name = f"{split}/loss"
    if name in row:
        return (
            None
            if _is_plausible(row[name])
            else f"{name} is {_describe_loss(row[name])}"
        )
    if row.get("cohort/valid") and "train/loss" in row and row["train/loss"] is None:
        return "train/loss is not finite"
    return None


def find_divergence(rows: Sequence[Row]) -> dict[str, Any] | None:
    """{"round": its first round, "why": symptom of the last round}; None without one.

    An evaluated round that shows no symptom ends a divergence. A round that was not
    evaluated and shows no symptom does not end it.

    Args:
        rows: the rows of metrics.jsonl, in order.
    """
    reason = symptom(rows[-1], "eval") if rows else None
    if reason is None:
        return None
    first_round = rows[-1]["round"]
    for row in reversed(rows):
        if symptom(row, "eval") is not None:
            first_round = row["round"]
        elif row.get("eval/loss") is not None:
            break
    return {"round": first_round, "why": reason}


def describe(divergence: Mapping[str, Any]) -> str:
    """One line about a run from its `find_divergence`."""
    return f"diverged: since round {divergence['round']} {divergence['why']}"


def _is_plausible(loss: float | None) -> bool:
    return loss is not None and loss <= MAX_LOSS


def _describe_loss(loss: float | None) -> str:
    if loss is None:
        return "not finite"
    return f"{loss:.3g} nats, beyond the {MAX_LOSS:.3g} of any probability"
