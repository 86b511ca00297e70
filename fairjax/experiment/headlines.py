"""The worst client, the worst tier and the gap between tiers.

The lowest of several measured figures is most often that of the client with the fewest
test records, whichever client is served worst. So headlines consider only clients and
tiers with enough test records, and give the number of records and an interval. Clients
and tiers with fewer records are listed.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fairjax import metrics
from fairjax.experiment.io import workdir as files
from fairjax.metrics import bootstrap, clients

LEVEL = 0.95
"""Coverage of an interval."""
BETTER = {
    "accuracy": 1,
    "balanced_accuracy": 1,
    "loss": -1,
    "auroc": 1,
    "auprc": 1,
    "sensitivity": 1,
    "specificity": 1,
    "brier": -1,
    "ece": -1,
}
"""{metric: 1 if more is better, else -1}; the calibration line has no better side."""
DISTANCES = ("ece",)
"""Metrics that cannot be negative: quantiles of their resamples are no interval, see
`bootstrap`."""


class Headlines:
    """The worst client, the worst tier and the tier gap, with enough test records each.

    Intervals resample patients within clients, so they hold for these clients only.
    They do not account for the choice of the worst: the lowest of several measured
    figures lies below the true figure of its client on average, and more so with more
    clients and fewer records.

    Args:
        client_entries: the entries of all clients in the summary.
        quality: the quality of every client and of its resamples, [1 + R, N] a leaf.
        tiers: T.
        min_records: test records that are enough.
    """

    def __init__(
        self,
        client_entries: list[dict[str, Any]],
        quality: metrics.Quality,
        tiers: int,
        min_records: int,
    ):
        self._entries, self._quality = client_entries, quality
        self._min_records = min_records
        self._tier_of = np.array([row["tier"] for row in client_entries])
        self._n = np.array([row["n"] for row in client_entries])
        self._records = np.bincount(self._tier_of, self._n, minlength=tiers)
        self.has_enough, self._compared = clients.has_enough_records(
            self._n, self._tier_of, tiers, min_records
        )

    def worst(self, name: str) -> dict[str, Any] | None:
        """The worst client in a metric, and its interval; None if none is known."""
        values = np.array([row[name] for row in self._entries], float)
        ranked = np.where(
            self.has_enough & ~np.isnan(values), BETTER[name] * values, np.inf
        )
        k = int(np.argmin(ranked))
        if np.isinf(ranked[k]):
            return None
        resamples = getattr(self._quality, name)[:, k]
        resamples = resamples[:1] if name in DISTANCES else resamples
        head = {"client": self._entries[k]["client"], "n": int(self._n[k])}
        return head | _interval(resamples)

    def entry(self) -> dict[str, Any]:
        """The summary's "headlines", which all concern accuracy."""
        present_tiers = np.unique(self._tier_of)
        compared_tiers = [tier for tier in present_tiers if self._compared[tier]]
        accuracy = np.asarray(self._quality.accuracy, np.float64)
        means = {t: self._mean(accuracy, t) for t in compared_tiers}
        ranked_tiers = [t for t in compared_tiers if not np.isnan(means[t][0])]
        headline: dict[str, Any] = {
            "min_test_records": self._min_records,
            "below": {
                "clients": [
                    {"client": row["client"], "n": row["n"]}
                    for row, enough in zip(self._entries, self.has_enough, strict=True)
                    if not enough
                ],
                "tiers": [
                    {"tier": int(t), "n": int(self._records[t])}
                    for t in present_tiers
                    if not self._compared[t]
                ],
            },
            "client_worst": self.worst("accuracy") or self._none("hospital"),
            "tier_worst": self._none("tier"),
            "tier_gap": self._none("second tier" if len(ranked_tiers) == 1 else "tier"),
        }
        if ranked_tiers:
            t = min(ranked_tiers, key=lambda tier: means[tier][0])
            head = {"tier": int(t), "n": int(self._records[t])}
            headline["tier_worst"] = head | _interval(means[t])
        if len(ranked_tiers) > 1 or len(ranked_tiers) == len(present_tiers) == 1:
            ends = ranked_tiers[0], ranked_tiers[-1]
            head = {"tiers": [int(t) for t in ends]}
            head["n"] = [int(self._records[t]) for t in ends]
            headline["tier_gap"] = head | _interval(means[ends[0]] - means[ends[1]])
        return headline

    def _mean(self, accuracy: Float[np.ndarray, "R N"], tier: int) -> np.ndarray:
        """The mean over the clients of a tier whose accuracy is known, [R]."""
        tier_accuracy = accuracy[:, self._tier_of == tier]
        finite_accuracy = tier_accuracy[:, ~np.isnan(tier_accuracy[0])]
        return (
            finite_accuracy.mean(axis=1)
            if finite_accuracy.shape[1]
            else tier_accuracy[:, 0]
        )

    def _none(self, noun: str) -> dict[str, Any]:
        reason = f"no {noun} has {self._min_records} test records and a known accuracy"
        return {"value": None, "why": reason}


def _interval(resamples: Float[np.ndarray, "R"]) -> dict[str, Any]:
    """A figure and its interval from resamples; null bounds if no resample differs."""
    ends = files.number(resamples[0]), None, None
    if np.any(resamples[1:] != resamples[0]):
        low, high = map(
            files.number, bootstrap.bounds(jnp.asarray(resamples[1:]), LEVEL)
        )
        ends = (ends[0], low, high) if None not in (low, high) else ends
    return dict(zip(("value", "low", "high"), ends, strict=True))


def client_spread(
    client_entries: list[dict[str, Any]], headlines: Headlines
) -> dict[str, dict[str, Any]]:
    """Every metric's spread over the clients whose figure is known.

    The worst client and the worst and best tenth are taken among clients with enough
    test records.

    Args:
        client_entries: the entries of all clients in the summary.
        headlines: made from these entries.
    """
    spreads = {}
    for name, sign in BETTER.items():
        values = np.array(
            [row[name] for row in client_entries], float
        )  # null becomes NaN
        ranked = sign * values[headlines.has_enough]
        figures = {
            "mean": clients.mean(values),
            "std": clients.std(values),
            "worst": sign * clients.minimum(ranked),
            "worst10": sign * clients.worst(ranked, 0.1),
            "best10": sign * clients.best(ranked, 0.1),
            "jain": clients.jain(values),
            "gini": clients.gini(values),
        }
        spreads[name] = {key: files.number(value) for key, value in figures.items()}
        spreads[name]["worst_client"] = headlines.worst(name)
    return spreads
