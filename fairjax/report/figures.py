"""The figures of every section; each figure answers the question in its title."""

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
from fairjax.report.curves import by_client, by_tier, curve, lines, names, quartiles
from fairjax.report.run import Run

MAX_NAMED = 40
"""The most hospitals for which figures name each one and tables list all of them."""
MAX_LINES = 10
"""The most hospitals for which each one has its own line."""

_LOSS = Unit("loss (nats per record)", 1, formats.decimal, math.inf)
_WEIGHT = Unit("share of the weight (%)", 100, formats.percent, min_span=0.02)
_JAIN = Unit("Jain's index (1 = all equal)", 1, formats.decimal)


def learning(run: Run) -> list[Image]:
    """Quality over rounds: on all records, tier by tier, hospital by hospital."""
    images = (*_pooled_quality(run), *_tier_quality(run), _client_quality(run))
    return _filter_images(*images)


def _pooled_quality(run: Run) -> tuple[Image | None, ...]:
    """Accuracy, loss and AUROC of the full model on the records of all hospitals."""
    pooled = "The full model on the records of all hospitals together."
    return (
        lines(
            "accuracy",
            "How accurate is the model on all records?",
            pooled,
            ACCURACY,
            [
                curve(run, "val/accuracy", "validation", ORANGE),
                curve(run, "eval/accuracy", "test", BLUE),
            ],
            resolution=run.resolution.pooled,
        ),
        lines(
            "loss",
            "Is the loss still falling?",
            f"{pooled} The training loss is the local objective, averaged over "
            "hospitals by weight.",
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
            resolution=run.resolution.pooled,
        ),
    )


def _tier_quality(run: Run) -> tuple[Image | None, ...]:
    """Accuracy of the full model and of sub-models, by tier.

    The three figures share one range of accuracy, so that they can be compared.
    """
    tier_curves = [
        by_tier(run, f"eval/accuracy/{kind}")
        for kind in ("tier_{}", "tier_{}/own", "submodel_{}")
    ]
    values = [value for group in tier_curves for curve in group for value in curve.y]
    limits = (min(values), max(values)) if values else None
    return (
        lines(
            "tiers_full_model",
            "How well does the full model serve each tier?",
            "Full model; mean over the hospitals of a tier.",
            ACCURACY,
            tier_curves[0],
            limits,
            resolution=run.resolution.tier,
        ),
        lines(
            "tiers_own_submodel",
            "How well does its own sub-model serve each tier?",
            "The sub-model that a tier can carry; mean over the tier's hospitals.",
            ACCURACY,
            tier_curves[1],
            limits,
            resolution=run.resolution.tier,
        ),
        lines(
            "submodels_all_records",
            "What does a smaller sub-model cost in accuracy?",
            "Every tier's sub-model on the test records of all hospitals together.",
            ACCURACY,
            tier_curves[2],
            limits,
            resolution=run.resolution.tier,
        ),
    )


def _client_quality(run: Run) -> Image | None:
    """Accuracy over rounds, a line per hospital or, where there are many, quartiles."""
    if len(run.clients) > MAX_LINES:
        return quartiles(run)
    return lines(
        "each_hospital",
        "How well does the full model serve each hospital?",
        "Full model on each hospital's own test records. Hospitals of one tier "
        "share a colour: light for the smallest tier, dark for the largest."
        f"{names(run).key}",
        ACCURACY,
        by_client(run, "accuracy"),
        resolution=run.resolution.client,
    )


def clients(run: Run) -> list[Image]:
    """The distribution of accuracy over hospitals, and how it depends on budgets."""
    client_curves = [
        curve(run, "eval/accuracy/client_mean", "mean", BLUE),
        curve(run, "eval/accuracy/client_worst10", "worst tenth", GREEN),
        curve(run, "eval/accuracy/client_worst", "worst", VERMILION),
    ]
    note = ""
    if any(map(run.is_small, run.clients)):
        note = (
            " The worst hospital is one of those with at least "
            f"{run.min_test_records} test records."
        )
    if np.array_equal(client_curves[1].y, client_curves[2].y):
        del client_curves[1]  # at most ten hospitals: the worst tenth is the worst one
    return _filter_images(
        dots.accuracy_by_client(run)
        if len(run.clients) <= MAX_NAMED
        else dots.distribution(run),
        dots.budgets(run),
        lines(
            "hospitals_over_rounds",
            "Do the worst-served hospitals keep up with the mean?",
            "Full model; the worst tenth as a mean. Who is worst may change by round. "
            f"The lowest of several noisy figures looks worse than it is.{note}",
            ACCURACY,
            client_curves,
            resolution=run.resolution.client,
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
    """Aggregation weights by tier, and by hospital where there are few."""
    tiers = lines(
        "weights",
        "How much does each tier weigh in the average?",
        "Aggregation weights of the round's hospitals, added up by tier.",
        _WEIGHT,
        by_tier(run, "fairness/weight_tier_{}"),
    )
    client_image = None
    if len(run.clients) <= MAX_LINES:
        client_image = lines(
            "hospital_weights",
            "How much does each hospital weigh in the average?",
            "Aggregation weight in evaluated rounds; none where a hospital was not in "
            f"the cohort.{names(run).key}",
            _WEIGHT,
            by_client(run, "weight"),
        )
    return _filter_images(tiers, client_image)


def calibration(run: Run) -> list[Image]:
    """The reliability diagram: observed frequency against predicted probability."""
    return _filter_images(reliability.diagram(run))


def privacy(run: Run) -> list[Image]:
    """ROC curves of membership attacks, with emphasis on low false positive rates."""
    return _filter_images(roc.diagram(run.attacks))


def tiers(run: Run) -> list[Image]:
    """The costs of every tier."""
    return _filter_images(bars.costs(run))


def data(run: Run) -> list[Image]:
    """The records of every hospital, or their numbers by tier where there are many."""
    has_few_clients = len(run.client_counts) <= MAX_NAMED
    return _filter_images(bars.records(run) if has_few_clients else dots.sizes(run))


def _filter_images(*images: Image | None) -> list[Image]:
    return [image for image in images if image is not None]
