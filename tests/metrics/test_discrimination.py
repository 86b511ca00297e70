"""Figures of scores and of one threshold, against scikit-learn and by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from fairjax import metrics
from tests.metrics.records import SEGMENTS, E, parts, positives, segments, tied, weights

NAN = math.nan
jitted = functools.partial(jax.jit, static_argnums=3)
auroc, auprc = jitted(metrics.auroc), jitted(metrics.auprc)
sensitivity, specificity = jitted(metrics.sensitivity), jitted(metrics.specificity)
balanced_accuracy = jax.jit(
    functools.partial(metrics.balanced_accuracy, classes=2), static_argnums=3
)
youden = jax.jit(metrics.youden)


def reference(of_scikit_learn, positive, other):
    """Its figure; NaN with one class."""
    if len(np.unique(positive)) < 2:
        return NAN
    return of_scikit_learn(positive, other)


@given(tied, positives, segments)
def test_auprc_is_the_average_precision_of_scikit_learn(scores, positive, segment):
    """With heavy ties and records without a segment."""
    got = auprc(scores, positive, segment, SEGMENTS)
    expected = [
        reference(average_precision_score, positive[rows], scores[rows])
        for rows in parts(segment)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.dtype == jnp.float32


@given(tied, positives, segments)
def test_auroc_leaves_out_records_without_a_segment(scores, positive, segment):
    got = auroc(scores, positive, segment, SEGMENTS)
    expected = [
        reference(roc_auc_score, positive[rows], scores[rows])
        for rows in parts(segment)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ([0, 1, 2, 3], [0, 0, 1, 1], 1),
        ([3, 2, 1, 0], [0, 0, 1, 1], (1 / 3 + 2 / 4) / 2),
        ([5, 5, 5, 5], [0, 1, 0, 0], 0.25),  # all tied: the prevalence
        ([0, 0, 0, 1], [0, 1, 1, 1], (1 + 2 * 3 / 4) / 3),
        ([0, 1, 2, NAN], [0, 0, 1, 1], NAN),
        ([0, 1, 2, 3], [1, 1, 1, 1], NAN),
        ([0, 1, 2, 3], [0, 0, 0, 0], NAN),
    ],
)
def test_auprc_by_hand(scores, positive, area):
    scores, positive = jnp.asarray(scores, float), jnp.asarray(positive, bool)
    got = metrics.auprc(scores, positive, jnp.zeros(4, int), 1)
    np.testing.assert_allclose(got, [area], rtol=1e-6)


@given(tied, positives, segments, weights)
def test_a_record_counts_as_often_as_its_weight(scores, positive, segment, weight):
    again = [np.repeat(values, weight) for values in (scores, positive, segment)]
    for figure in (auroc, auprc):
        weighted = figure(scores, positive, segment, SEGMENTS, weight=weight)
        np.testing.assert_allclose(weighted, figure(*again, SEGMENTS), rtol=1e-6)
    for figure in (sensitivity, specificity):
        weighted = figure(scores > 0, positive, segment, SEGMENTS, weight=weight)
        repeated = figure(again[0] > 0, *again[1:], SEGMENTS)
        np.testing.assert_allclose(weighted, repeated, rtol=1e-6)


@given(tied, positives, segments, weights)
def test_areas_depend_on_the_order_of_scores_alone(scores, positive, segment, weight):
    """Neither a permutation of records nor a monotone map of scores changes them."""
    mixed = np.argsort(weight, kind="stable")[::-1]
    for figure in (auroc, auprc):
        area = figure(scores, positive, segment, SEGMENTS)
        other = figure(scores[mixed], positive[mixed], segment[mixed], SEGMENTS)
        np.testing.assert_allclose(area, other, rtol=1e-6)
        stretched = figure(np.exp(3 * scores) - 7, positive, segment, SEGMENTS)
        np.testing.assert_allclose(area, stretched, rtol=1e-6)


def test_macro_is_the_mean_over_classes_that_can_be_estimated():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, E)
    logits = (rng.normal(size=(E, 4)) + np.eye(4)[y]).astype(np.float32)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    macro = jax.jit(metrics.macro, static_argnums=(0, 4))
    for ours, theirs in (
        (metrics.auroc, roc_auc_score),
        (metrics.auprc, average_precision_score),
    ):
        expected = np.mean([theirs(y == c, log_p[:, c]) for c in range(3)])
        got = macro(ours, logits, y, np.zeros(E, np.int32), 1)
        np.testing.assert_allclose(got, [expected], rtol=1e-6)


@given(tied, positives, segments)
def test_sensitivity_and_specificity_are_recalls(scores, positive, segment):
    predicted = scores > 0
    for figure, label in ((sensitivity, True), (specificity, False)):
        got = figure(predicted, positive, segment, SEGMENTS)
        expected = [
            recall_score(positive[rows], predicted[rows], pos_label=label)
            if np.any(positive[rows] == label)
            else NAN
            for rows in parts(segment)
        ]
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@given(tied, positives, segments, weights)
def test_balanced_accuracy_by_weight(scores, positive, segment, weight):
    right, y = (scores > 0) == positive, positive.astype(np.int32)
    got = balanced_accuracy(right, y, segment, SEGMENTS, weight=weight)
    for s, rows in enumerate(parts(segment)):
        of = np.repeat(np.flatnonzero(rows), weight[rows])
        expected = NAN
        if len(of):
            recalls = [np.mean(right[of][y[of] == c]) for c in set(y[of])]
            expected = np.mean(recalls)
            if len(recalls) == 2:
                both = balanced_accuracy_score(positive[of], scores[of] > 0)
                np.testing.assert_allclose(expected, both)
        np.testing.assert_allclose(got[s], expected, rtol=1e-6)


# ------------------------------------------------------------------------ the threshold


@given(tied, positives)
def test_no_threshold_has_a_larger_youden_index(scores, positive):
    threshold = float(youden(scores, positive))
    if len(np.unique(positive)) < 2:
        assert math.isnan(threshold)
        return
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    predicted = scores >= threshold
    index = predicted[positive].mean() - predicted[~positive].mean()
    np.testing.assert_allclose(index, max(0, np.max(true - false)), atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "positive", "threshold"),
    [
        ([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1], 0.6),
        # 0.4 and 0.9 have J = 1/2 each; the lower one misses no positive.
        ([0.1, 0.4, 0.6, 0.9], [0, 1, 0, 1], 0.4),
        ([0.9, 0.9, 0.1, 0.1], [0, 0, 1, 1], 0.1),  # never below "all positive"
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1], 0.5),
        ([0.1, NAN, 0.6, 0.9], [0, 0, 1, 1], NAN),
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1], NAN),
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0], NAN),
    ],
)
def test_the_threshold_by_hand(scores, positive, threshold):
    got = youden(jnp.asarray(scores, float), jnp.asarray(positive, bool))
    np.testing.assert_allclose(got, threshold, rtol=1e-6)
