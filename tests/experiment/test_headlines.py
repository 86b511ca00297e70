"""The worst client and the tier gap, of made-up figures."""

import numpy as np
import pytest

from fairjax import metrics
from fairjax.experiment import headlines

RESAMPLES = 40
NAMES = ("A", "B", "C", "D")


def made(accuracy, n, tiers=(0, 1, 1, 2), least=10, spread=0.1):
    """Clients with these accuracies, and resamples around them."""
    accuracy = np.array(accuracy, float)
    noise = np.random.default_rng(0).normal(0, spread, (RESAMPLES, len(accuracy)))
    drawn = np.concatenate([accuracy[None], accuracy + noise]).astype(np.float32)
    quality = metrics.Quality(*[drawn] * len(metrics.Quality._fields))
    rows = [
        {"client": name, "tier": tier, "n": records}
        | {metric: None if np.isnan(a) else float(a) for metric in headlines.BETTER}
        for name, tier, records, a in zip(NAMES, tiers, n, accuracy, strict=True)
    ]
    return headlines.Headlines(rows, quality, 3, least), rows, drawn


def test_who_has_too_few_records_is_listed_and_not_the_worst():
    heads, rows, drawn = made([0.0, 0.75, 0.5, 1.0], n=[1, 9, 12, 30])
    entry = heads.entry()
    assert entry["min_test_records"] == 10
    below = [{"client": "A", "n": 1}, {"client": "B", "n": 9}]
    assert entry["below"] == {"clients": below, "tiers": [{"tier": 0, "n": 1}]}
    worst = entry["client_worst"]
    assert (worst["client"], worst["n"], worst["value"]) == ("C", 12, 0.5)
    ends = np.quantile(drawn[1:, 2], [0.025, 0.975])
    np.testing.assert_allclose([worst["low"], worst["high"]], ends, rtol=1e-5)
    # Two tiers are left; tier 1 has the mean over its two clients.
    assert (entry["tier_worst"]["tier"], entry["tier_worst"]["n"]) == (1, 21)
    gap = entry["tier_gap"]
    assert (gap["tiers"], gap["n"]) == ([1, 2], [21, 30])
    assert gap["value"] == 0.625 - 1
    each = drawn[1:, 1:3].mean(axis=1) - drawn[1:, 3]
    ends = np.quantile(each, [0.025, 0.975])
    np.testing.assert_allclose([gap["low"], gap["high"]], ends, rtol=1e-5)
    over = headlines.client_spread(rows, heads)
    assert over["accuracy"]["worst"] == 0.5
    assert over["accuracy"]["worst10"] == 0.5
    assert over["accuracy"]["best10"] == over["loss"]["worst"] == 1.0
    assert over["accuracy"]["mean"] == 0.5625  # over all clients with a figure
    assert over["accuracy"]["worst_client"] == worst


@pytest.mark.parametrize(
    ("accuracy", "n", "unknown", "why"),
    [
        ([0.5] * 4, [9] * 4, "client_worst", "no hospital has 10 test records"),
        ([0.5] * 4, [9, 4, 4, 9], "tier_worst", "no tier has 10 test records"),
        ([0.5] * 4, [9, 9, 9, 9], "tier_gap", "no second tier has 10 test records"),
        ([np.nan] * 4, [20] * 4, "client_worst", "no hospital has 10 test records"),
        ([np.nan] * 4, [20] * 4, "tier_gap", "no tier has 10 test records"),
    ],
)
def test_what_nobody_can_be_is_null_with_the_reason(accuracy, n, unknown, why):
    entry = made(accuracy, n)[0].entry()
    assert entry[unknown] == {"value": None, "why": f"{why} and a known accuracy"}


def test_a_single_tier_has_no_gap_to_itself():
    entry = made([0.5, 0.75, 0.5, 1.0], [20] * 4, tiers=(1, 1, 1, 1))[0].entry()
    assert entry["tier_gap"]["value"] == 0


def test_an_interval_without_width_is_none():
    """Resamples of records with one prediction for all give no interval."""
    worst = made([1.0] * 4, [12] * 4, spread=0)[0].worst("accuracy")
    assert worst == {"client": "A", "n": 12, "value": 1.0, "low": None, "high": None}


def test_an_error_that_cannot_be_negative_has_no_interval_of_quantiles():
    worst = made([0.1, 0.2, 0.3, 0.4], [12] * 4)[0].worst("ece")
    assert (worst["client"], worst["low"]) == ("D", None)
