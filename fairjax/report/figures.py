"""The figures of a report, each of which answers the question in its title."""

import math

import numpy as np

from fairjax.report import bars, dots, formats, reliability, roc
from fairjax.report.canvas import (
    ACCURACY,
    AUROC,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    Image,
    Unit,
)
from fairjax.report.curves import by_hospital, by_tier, curve, lines, names, spread
from fairjax.report.run import Run

NAMED = 40
"""Up to this many hospitals the figure names each one, and the table lists them all."""
LINES = 10
"""Up to this many hospitals each has a line of its own."""

_LOSS = Unit("loss (nats per record)", 1, formats.decimal, math.inf)
_WEIGHT = Unit("share of the weight (%)", 100, formats.percent, least=0.02)
_JAIN = Unit("Jain's index (1 = all equal)", 1, formats.decimal)


def learning(run: Run) -> list[Image]:
    """Quality over rounds: on all records, tier by tier, hospital by hospital."""
    pooled = "The full model on the records of all hospitals together."
    of_tiers = [
        by_tier(run, f"eval/accuracy/{kind}")
        for kind in ("tier_{}", "tier_{}/own", "submodel_{}")
    ]
    # The three tier figures are read against each other: one range for all.
    reach = [value for group in of_tiers for curve in group for value in curve.y]
    shared = (min(reach), max(reach)) if reach else None
    each = spread(run)
    if len(run.clients) <= LINES:
        each = lines(
            "each_hospital",
            "How well does the full model serve each hospital?",
            "Full model on each hospital's own test records. Hospitals of one tier "
            "share a colour: light for the smallest tier, dark for the largest."
            f"{names(run).key}",
            ACCURACY,
            by_hospital(run, "accuracy"),
            record=run.one_record.hospital,
        )
    return _drawn(
        lines(
            "accuracy",
            "How accurate is the model on all records?",
            pooled,
            ACCURACY,
            [
                curve(run, "val/accuracy", "validation", ORANGE),
                curve(run, "eval/accuracy", "test", BLUE),
            ],
            record=run.one_record.pooled,
        ),
        lines(
            "loss",
            "Is the loss still falling?",
            f"{pooled} Training is the local objective, each hospital by its weight.",
            _LOSS,
            [
                curve(run, "train/loss", "training", GREY),
                curve(run, "val/loss", "validation", ORANGE),
                curve(run, "eval/loss", "test", BLUE),
            ],
        ),
        lines(
            "auroc",
            "How well does the model rank records by risk?",
            f"{pooled} 0.5 is chance, 1 is perfect.",
            AUROC,
            [
                curve(run, "val/auroc", "validation", ORANGE),
                curve(run, "eval/auroc", "test", BLUE),
            ],
            record=run.one_record.pooled,
        ),
        lines(
            "tiers_full_model",
            "How well does the full model serve each tier?",
            "Full model; mean over the hospitals of a tier.",
            ACCURACY,
            of_tiers[0],
            shared,
            record=run.one_record.tier,
        ),
        lines(
            "tiers_own_submodel",
            "How well does its own sub-model serve each tier?",
            "The sub-model that a tier can carry; mean over the tier's hospitals.",
            ACCURACY,
            of_tiers[1],
            shared,
            record=run.one_record.tier,
        ),
        lines(
            "submodels_all_records",
            "What does a smaller sub-model cost in accuracy?",
            "Every tier's sub-model on the test records of all hospitals together.",
            ACCURACY,
            of_tiers[2],
            shared,
            record=run.one_record.tier,
        ),
        each,
    )


def hospitals(run: Run) -> list[Image]:
    """How quality is spread over hospitals, and what a budget has to do with it."""
    served = [
        curve(run, "eval/accuracy/client_mean", "mean", BLUE),
        curve(run, "eval/accuracy/client_worst10", "worst tenth", GREEN),
        curve(run, "eval/accuracy/client_worst", "worst", VERMILION),
    ]
    few = ""
    if any(map(run.small, run.clients)):
        few = f" The worst: of hospitals with at least {run.least} test records."
    if np.array_equal(served[1].y, served[2].y):
        del served[1]  # at most ten hospitals: the worst tenth is the worst one
    return _drawn(
        dots.named(run) if len(run.clients) <= NAMED else dots.distribution(run),
        dots.budgets(run),
        lines(
            "hospitals_over_rounds",
            "Do the worst-served hospitals keep up with the mean?",
            "Full model; the worst tenth as a mean. Who is worst may change by round. "
            f"The lowest of several noisy figures looks worse than it is.{few}",
            ACCURACY,
            served,
            record=run.one_record.hospital,
        ),
        lines(
            "jain",
            "How evenly is accuracy spread over hospitals?",
            "Jain's index of the hospitals' accuracies under the full model.",
            _JAIN,
            [curve(run, "fairness/jain", "index", BLUE)],
        ),
    )


def weights(run: Run) -> list[Image]:
    """Who shapes the model: by tier, and by hospital where there are few."""
    tiers = lines(
        "weights",
        "How much does each tier weigh in the average?",
        "Aggregation weights of the round's hospitals, added up by tier.",
        _WEIGHT,
        by_tier(run, "fairness/weight_tier_{}"),
    )
    each = None
    if len(run.clients) <= LINES:
        each = lines(
            "hospital_weights",
            "How much does each hospital weigh in the average?",
            "Aggregation weight in evaluated rounds; none where a hospital was not in "
            f"the cohort.{names(run).key}",
            _WEIGHT,
            by_hospital(run, "weight"),
        )
    return _drawn(tiers, each)


def calibration(run: Run) -> list[Image]:
    """Whether predicted probabilities are what happens."""
    return _drawn(reliability.diagram(run))


def privacy(run: Run) -> list[Image]:
    """What attacks on membership find at low false positive rates."""
    return _drawn(roc.diagram(run.attacks))


def tiers(run: Run) -> list[Image]:
    """What a tier pays."""
    return _drawn(bars.costs(run))


def data(run: Run) -> list[Image]:
    """What hospitals hold."""
    few = len(run.hospitals) <= NAMED
    return _drawn(bars.records(run) if few else dots.sizes(run))


def _drawn(*images: Image | None) -> list[Image]:
    return [image for image in images if image is not None]
