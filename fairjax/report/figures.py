"""The figures of a report, each of which answers the question in its title."""

import math
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from fairjax.report import dots, formats
from fairjax.report.canvas import (
    ACCURACY,
    BLUE,
    GREEN,
    GREY,
    HEIGHT,
    INK,
    RULE,
    VERMILION,
    Image,
    Unit,
    blank,
    png,
    span,
    tier_colour,
)
from fairjax.report.run import Run

NAMED = 40
"""Up to this many hospitals the figure names each one, and the table lists them all."""


class _Curve(NamedTuple):
    label: str
    colour: Any
    x: np.ndarray
    y: np.ndarray


_LOSS = Unit("loss (nats per record)", 1, formats.decimal, math.inf)
_AUROC = Unit("area under the ROC curve", 1, formats.decimal)
_WEIGHT = Unit("share of the weight (%)", 100, formats.percent)
_JAIN = Unit("Jain's index (1 = all equal)", 1, formats.decimal)


def learning(run: Run) -> list[Image]:
    """Quality over rounds: the model on all records, then tier by tier."""
    pooled = "The full model on the test records of all hospitals together."
    curves = [
        _by_tier(run, f"eval/accuracy/{kind}")
        for kind in ("tier_{}", "tier_{}/own", "submodel_{}")
    ]
    # The three tier figures are read against each other: one range for all.
    reach = [value for group in curves for curve in group for value in curve.y]
    shared = (min(reach), max(reach)) if reach else None
    return _drawn(
        _lines(
            "accuracy",
            "How accurate is the model on all test records?",
            pooled,
            ACCURACY,
            [_curve(run, "eval/accuracy", "test", BLUE)],
        ),
        _lines(
            "loss",
            "Is the loss still falling?",
            f"{pooled} Training is the local objective, each hospital by its weight.",
            _LOSS,
            [
                _curve(run, "train/loss", "training", GREY),
                _curve(run, "eval/loss", "test", BLUE),
            ],
        ),
        _lines(
            "auroc",
            "How well does the model rank records by risk?",
            f"{pooled} 0.5 is chance, 1 is perfect.",
            _AUROC,
            [_curve(run, "eval/auroc", "test", BLUE)],
        ),
        _lines(
            "tiers_full_model",
            "How well does the full model serve each tier?",
            "Full model; mean over the hospitals of a tier.",
            ACCURACY,
            curves[0],
            shared,
        ),
        _lines(
            "tiers_own_submodel",
            "How well does its own sub-model serve each tier?",
            "The sub-model that a tier can carry; mean over the tier's hospitals.",
            ACCURACY,
            curves[1],
            shared,
        ),
        _lines(
            "submodels_all_records",
            "What does a smaller sub-model cost in accuracy?",
            "Every tier's sub-model on the test records of all hospitals together.",
            ACCURACY,
            curves[2],
            shared,
        ),
    )


def hospitals(run: Run) -> list[Image]:
    """How quality is spread over hospitals, and who shapes the model."""
    spread = [
        _curve(run, "eval/accuracy/client_mean", "mean", BLUE),
        _curve(run, "eval/accuracy/client_worst10", "worst tenth", GREEN),
        _curve(run, "eval/accuracy/client_worst", "worst", VERMILION),
    ]
    if np.array_equal(spread[1].y, spread[2].y):
        del spread[1]  # at most ten hospitals: the worst tenth is the worst one
    return _drawn(
        dots.named(run) if len(run.clients) <= NAMED else dots.distribution(run),
        _lines(
            "hospitals_over_rounds",
            "Do the worst-served hospitals keep up with the mean?",
            "Full model; the worst tenth as a mean. Who is worst may change by round.",
            ACCURACY,
            spread,
        ),
        _lines(
            "jain",
            "How evenly is accuracy spread over hospitals?",
            "Jain's index of the hospitals' accuracies under the full model.",
            _JAIN,
            [_curve(run, "fairness/jain", "index", BLUE)],
        ),
        _lines(
            "weights",
            "How much does each tier weigh in the average?",
            "Aggregation weights of the round's hospitals, added up by tier.",
            _WEIGHT,
            _by_tier(run, "fairness/weight_tier_{}"),
        ),
    )


def _by_tier(run: Run, key: str) -> list[_Curve]:
    numbers = [tier["tier"] for tier in run.tiers]
    return [
        _curve(run, key.format(t), f"tier {t}", tier_colour(run, t)) for t in numbers
    ]


def _curve(run: Run, key: str, label: str, colour: Any) -> _Curve:
    return _Curve(label, colour, *run.series(key))


def _drawn(*images: Image | None) -> list[Image]:
    return [image for image in images if image is not None]


def _lines(
    name: str,
    title: str,
    caption: str,
    unit: Unit,
    curves: list[_Curve],
    limits: tuple[float, float] | None = None,
) -> Image | None:
    """Curves over rounds, each named at its end; None when nothing is known."""
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return None
    figure, axes = blank(title, HEIGHT)
    values = np.concatenate([curve.y for curve in curves])
    low, high = limits or (values.min(), values.max())
    low, high = span(low, high, unit)
    axes.set_ylim(low, high)
    axes.set_ylabel(unit.label, fontsize=9, color=INK)
    axes.set_xlabel("round", fontsize=9, color=INK)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    rounds = np.unique(np.concatenate([curve.x for curve in curves]))
    if len(rounds) == 1:
        axes.set_xticks(rounds)
    else:
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10])
        )
    for curve in curves:
        axes.plot(
            curve.x,
            unit.scale * curve.y,
            color=curve.colour,
            linewidth=1.7,
            marker="o" if len(curve.x) <= 12 else None,
            markersize=4,
        )
    ends = [unit.scale * curve.y[-1] for curve in curves]
    heights = _apart([(end - low) / (high - low) for end in ends], 0.085)
    for curve, end, height in zip(curves, ends, heights, strict=True):
        axes.annotate(
            f"{curve.label} {unit.show(curve.y[-1])}",
            (curve.x[-1], end),
            (1.06, height),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=8.5,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": curve.colour, "linestyle": ":"},
        )
    ends_text = ", ".join(f"{c.label} {unit.show(c.y[-1])}" for c in curves)
    alt = f"{title} Line chart of {unit.label} over rounds; at the end: {ends_text}."
    return Image(name, caption, alt, png(figure))


def _apart(heights: list[float], gap: float) -> list[float]:
    """Heights in [0, 1], order kept, moved as little as sets them `gap` apart."""
    gap = min(gap, 1 / len(heights))
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    # Least squares under an order constraint: pool neighbours that would cross.
    pools: list[list[float]] = []
    for target in np.asarray(heights)[order] - steps:
        pools.append([target])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    moved = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    moved = np.clip(moved, 0, 1 - steps[-1]) + steps
    result = np.empty_like(moved)
    result[order] = moved
    return result.tolist()
