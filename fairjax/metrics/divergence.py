"""Whether a run has diverged: a property of what its rounds measured.

A round shows it by one of these, read from its row of metrics.jsonl:

    the loss of the model on a split is not finite, or above `MOST` nats;
    hospitals trained, and nobody's change or loss was finite;
    in a round that was not evaluated, hospitals entered and their training loss is not
    finite.

Where a round was evaluated, its model decides: under `record_dp` one record with an
infinite loss makes the training loss infinite and moves nothing.

A run has diverged if its last round shows it, since the first round after which no
evaluation showed anything else. What a run recovered from is no divergence.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]

MOST = -math.log(float(np.finfo(np.float32).tiny))
"""87.3 nats. With a larger mean loss, what a model gives to the classes that came true
is below the smallest normal float32, as a geometric mean: no probability. The constant
answer 1 / C loses log C nats, 6.9 of them for 1,000 classes."""


def sign(row: Row, split: str) -> str | None:
    """What a round shows of divergence; None if it shows nothing.

    Args:
        row: of metrics.jsonl.
        split: whose loss counts, "eval" (the test records) or "val", by which alone a
            round is selected.
    """
    trained = sum(
        count for name, count in row.items() if name.startswith("cohort/trained_tier_")
    )
    if trained and row.get("cohort/not_finite") == trained:
        return "no hospital's training ends with finite numbers"
    name = f"{split}/loss"
    if name in row:
        return None if _sound(row[name]) else f"{name} is {_shown(row[name])}"
    if row.get("cohort/valid") and "train/loss" in row and row["train/loss"] is None:
        return "train/loss is not finite"
    return None


def diverged(rows: Sequence[Row]) -> dict[str, Any] | None:
    """{"round": since when, "why": what the last round shows}; None if it has not.

    A round that was not evaluated and shows nothing says nothing either: it ends no
    divergence. An evaluated one that shows nothing does.

    Args:
        rows: of metrics.jsonl, in order.
    """
    why = sign(rows[-1], "eval") if rows else None
    if why is None:
        return None
    since = rows[-1]["round"]
    for row in reversed(rows):
        if sign(row, "eval") is not None:
            since = row["round"]
        elif row.get("eval/loss") is not None:
            break
    return {"round": since, "why": why}


def said(diverged: Mapping[str, Any]) -> str:
    """One line about a run that `diverged` says something of."""
    return f"diverged: since round {diverged['round']} {diverged['why']}"


def _sound(loss: float | None) -> bool:
    return loss is not None and loss <= MOST


def _shown(loss: float | None) -> str:
    if loss is None:
        return "not finite"
    return f"{loss:.3g} nats, beyond the {MOST:.3g} of any probability"
