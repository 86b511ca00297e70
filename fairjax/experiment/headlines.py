"""Who is worst, and by how much tiers differ: the figures that a reader takes away.

The lowest of several measured figures is most often that of the hospital with the
fewest test records, whoever is served worst. So it is taken over those with enough
records, shown with their number and an interval; who has fewer is named.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fairjax import metrics
from fairjax.experiment.io import workdir as files
from fairjax.metrics import bootstrap, clients

LEVEL = 0.95
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
"""Whether more is better; of Cox's line neither more nor less is."""
DISTANCES = ("ece",)
"""Cannot be negative: quantiles of resamples are no interval, see `bootstrap`."""


class Headlines:
    """The worst hospital and tier, and the gap: of those with enough test records.

    Intervals draw patients within hospitals, so they are of these very hospitals. They
    do not know that one was chosen for its figure: the lowest of several measured
    figures lies below the true one of its hospital on average, the more so the more
    hospitals there are and the fewer records they have.

    Args:
        hospitals: the entries of all.
        drawn: their quality and that of resamples, [1 + R, N].
        tiers: T.
        least: test records that are enough.
    """

    def __init__(
        self,
        hospitals: list[dict[str, Any]],
        drawn: metrics.Quality,
        tiers: int,
        least: int,
    ):
        self._hospitals, self._drawn, self._least = hospitals, drawn, least
        self._tier_of = np.array([row["tier"] for row in hospitals])
        self._n = np.array([row["n"] for row in hospitals])
        self._records = np.bincount(self._tier_of, self._n, minlength=tiers)
        self.judged, self._compared = clients.enough(
            self._n, self._tier_of, tiers, least
        )

    def worst(self, name: str) -> dict[str, Any] | None:
        """Of a metric: the worst hospital, its test records, and its interval."""
        each = np.array([row[name] for row in self._hospitals], float)
        ranked = np.where(self.judged & ~np.isnan(each), BETTER[name] * each, np.inf)
        k = int(np.argmin(ranked))
        if np.isinf(ranked[k]):
            return None
        drawn = getattr(self._drawn, name)[:, k]
        drawn = drawn[:1] if name in DISTANCES else drawn
        head = {"client": self._hospitals[k]["client"], "n": int(self._n[k])}
        return head | _within(drawn)

    def entry(self) -> dict[str, Any]:
        """The summary's "headlines", all of accuracy."""
        present = np.unique(self._tier_of)
        compared = [tier for tier in present if self._compared[tier]]
        accuracy = np.asarray(self._drawn.accuracy, np.float64)
        means = {t: self._mean(accuracy, t) for t in compared}
        known = [t for t in compared if not np.isnan(means[t][0])]
        made: dict[str, Any] = {
            "min_test_records": self._least,
            "below": {
                "clients": [
                    {"client": row["client"], "n": row["n"]}
                    for row, enough in zip(self._hospitals, self.judged, strict=True)
                    if not enough
                ],
                "tiers": [
                    {"tier": int(t), "n": int(self._records[t])}
                    for t in present
                    if not self._compared[t]
                ],
            },
            "client_worst": self.worst("accuracy") or self._none("hospital"),
            "tier_worst": self._none("tier"),
            "tier_gap": self._none("second tier" if len(known) == 1 else "tier"),
        }
        if known:
            t = min(known, key=lambda tier: means[tier][0])
            head = {"tier": int(t), "n": int(self._records[t])}
            made["tier_worst"] = head | _within(means[t])
        if len(known) > 1 or len(known) == len(present) == 1:
            ends = known[0], known[-1]
            head = {"tiers": [int(t) for t in ends]}
            head["n"] = [int(self._records[t]) for t in ends]
            made["tier_gap"] = head | _within(means[ends[0]] - means[ends[1]])
        return made

    def _mean(self, accuracy: Float[np.ndarray, "R N"], tier: int) -> np.ndarray:
        """Over the hospitals of a tier, [R]."""
        mine = accuracy[:, self._tier_of == tier]
        known = mine[:, ~np.isnan(mine[0])]
        return known.mean(axis=1) if known.shape[1] else mine[:, 0]

    def _none(self, what: str) -> dict[str, Any]:
        why = f"no {what} has {self._least} test records and a known accuracy"
        return {"value": None, "why": why}


def _within(drawn: Float[np.ndarray, "R"]) -> dict[str, Any]:
    """A figure, and its interval by resamples; none where no resample differs."""
    ends = files.number(drawn[0]), None, None
    if np.any(drawn[1:] != drawn[0]):
        low, high = map(files.number, bootstrap.bounds(jnp.asarray(drawn[1:]), LEVEL))
        ends = (ends[0], low, high) if None not in (low, high) else ends
    return dict(zip(("value", "low", "high"), ends, strict=True))


def over(
    hospitals: list[dict[str, Any]], headlines: Headlines
) -> dict[str, dict[str, Any]]:
    """Every metric's spread over the hospitals whose figure is known.

    The worst, and the worst and best tenth, are of those with enough test records.
    """
    made = {}
    for name, sign in BETTER.items():
        each = np.array([row[name] for row in hospitals], float)  # null becomes NaN
        ranked = sign * each[headlines.judged]
        spread = {
            "mean": clients.mean(each),
            "std": clients.std(each),
            "worst": sign * clients.lowest(ranked),
            "worst10": sign * clients.worst(ranked, 0.1),
            "best10": sign * clients.best(ranked, 0.1),
            "jain": clients.jain(each),
            "gini": clients.gini(each),
        }
        made[name] = {key: files.number(value) for key, value in spread.items()}
        made[name]["worst_client"] = headlines.worst(name)
    return made
