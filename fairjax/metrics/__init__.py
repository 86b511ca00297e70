"""How good a model is, and for whom: pooled, per client, per tier and patient group.

    discrimination  AUROC, AUPRC, balanced accuracy, sensitivity, specificity, threshold
    calibration     Brier score, expected calibration error, Cox's line
    overview        all figures of discrimination and calibration at once
    groups          demographic parity, equalised odds, equal opportunity
    bootstrap       intervals, over records or over clients and their patients
    clients         spread over clients, on the host: worst, best, Jain, Gini
    evaluation      a model on a split, as every evaluated round needs it
    principles      the five principles of fair federated learning
    divergence      whether a run has diverged

Functions of arrays are pure and vectorised over segments, see `segments`. A figure that
cannot be estimated is NaN here and null in every file, never 0 or 0.5. Examples are the
AUROC of a client with one class and the accuracy of a client without test records.

Example:
    >>> import numpy as np
    >>> accuracy = np.array([0.9, 0.7, 0.8])  # one per client
    >>> float(worst(accuracy, 0.1)), round(float(jain(accuracy)), 2)
    (0.7, 0.99)
"""

from fairjax.metrics import bootstrap, calibration, groups
from fairjax.metrics.calibration import brier, ece
from fairjax.metrics.clients import best, entropy, gini, jain, mean, std, worst
from fairjax.metrics.discrimination import (
    auprc,
    auroc,
    balanced_accuracy,
    macro,
    sensitivity,
    specificity,
    youden,
)
from fairjax.metrics.evaluation import (
    Evaluation,
    Figures,
    evaluate,
    evaluation_of,
    logits_of,
    owner_of,
    summary,
)
from fairjax.metrics.overview import Quality, margin, predict_positive, quality
from fairjax.metrics.segments import finite

__all__ = [
    "Evaluation",
    "Figures",
    "Quality",
    "auprc",
    "auroc",
    "balanced_accuracy",
    "best",
    "bootstrap",
    "brier",
    "calibration",
    "ece",
    "entropy",
    "evaluate",
    "evaluation_of",
    "finite",
    "gini",
    "groups",
    "jain",
    "logits_of",
    "macro",
    "margin",
    "mean",
    "owner_of",
    "predict_positive",
    "quality",
    "sensitivity",
    "specificity",
    "std",
    "summary",
    "worst",
    "youden",
]
