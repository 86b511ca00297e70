"""Brier, ECE and Cox's line against scikit-learn, transcriptions and theory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from fairjax import metrics
from fairjax.metrics import calibration
from tests.metrics.records import SEGMENTS, E, parts, positives, segments, tied, weights

NAN = math.nan
jitted = functools.partial(jax.jit, static_argnums=3)
brier, ece, line = map(jitted, (metrics.brier, metrics.ece, calibration.line))


def softmax(logits):
    return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("classes", [2, 3])
def test_brier_is_that_of_scikit_learn(classes):
    """The score of the positive class, or the sum over all classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, E)
    p = softmax(2 * rng.normal(size=(E, classes)).astype(np.float32))
    segment = np.arange(E) % 3 - 1
    got = brier(p, y, segment, 3)
    for s in (0, 1):
        rows = segment == s
        if classes == 2:
            expected = brier_score_loss(y[rows], p[rows, 1])
        else:
            expected = brier_score_loss(
                y[rows], p[rows], labels=range(classes), scale_by_half=False
            )
        np.testing.assert_allclose(got[s], expected, rtol=1e-6)
    assert np.isnan(got[2])


# ---------------------------------------------------------------------------------- ECE


def transcribed(p, y, bins):
    """The definition, record by record."""
    n = len(p)
    if not n:
        return NAN
    inside = [[] for _ in range(bins)]
    for i in range(n):
        inside[int(bins * np.sum(p < p[i])) // n].append(i)
    gaps = [len(b) / n * abs(p[b].mean() - y[b].mean()) for b in inside if b]
    return math.fsum(gaps)


@given(tied, positives, segments, weights)
def test_ece_is_its_definition(scores, positive, segment, weight):
    """With ties, records without a segment, and weights."""
    p = (1 / (1 + np.exp(-scores))).astype(np.float32)
    got = ece(p, positive, segment, SEGMENTS)
    expected = [
        transcribed(p[rows].astype(float), positive[rows], calibration.BINS)
        for rows in parts(segment)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    weighted = ece(p, positive, segment, SEGMENTS, weight=weight)
    again = (np.repeat(values, weight) for values in (p, positive, segment))
    np.testing.assert_allclose(weighted, ece(*again, SEGMENTS), rtol=1e-5, atol=1e-6)


def test_bins_have_equal_mass():
    """15 bins of 10 records each have the means of the sorted records."""
    rng = np.random.default_rng(0)
    p = rng.permutation(np.linspace(0.01, 0.99, 150)).astype(np.float32)
    y = rng.random(150) < p**2
    plot = jitted(calibration.reliability)(p, y, np.zeros(150, np.int32), 1)
    np.testing.assert_array_equal(plot.count, np.full((1, 15), 10))
    order = np.argsort(p).reshape(15, 10)
    np.testing.assert_allclose(plot.predicted[0], p[order].mean(1), rtol=1e-6)
    np.testing.assert_allclose(plot.observed[0], y[order].mean(1), rtol=1e-6)
    np.testing.assert_allclose(
        ece(p, y, np.zeros(150, np.int32), 1),
        np.mean(np.abs(p[order].mean(1) - y[order].mean(1))),
        rtol=1e-5,
    )


def test_ece_by_hand():
    one = np.zeros(4, np.int32)
    same = np.full(4, 0.5, np.float32)
    came = np.array([0, 1, 1, 1], bool)
    np.testing.assert_allclose(ece(same, came, one, 1), 0.25)  # one bin holds the tie
    apart = np.float32([0.1, 0.2, 0.8, 0.9])
    right = np.array([0, 0, 1, 1], bool)
    np.testing.assert_allclose(ece(apart, right, one, 1), 0.15, rtol=1e-6)
    assert np.isnan(ece(np.float32([0.1, NAN, 0.8, 0.9]), right, one, 1)).all()
    assert np.isnan(ece(apart, right, one - 1, 1)).all()


def test_two_classes_use_the_positive_one_and_more_the_predicted_one():
    p, y = jnp.asarray([[0.9, 0.1], [0.2, 0.8]]), jnp.asarray([0, 1])
    confidence, came = calibration.confidence(p, y)
    np.testing.assert_array_equal(confidence, p[:, 1])
    np.testing.assert_array_equal(came, [False, True])
    p = jnp.asarray([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    confidence, came = calibration.confidence(p, y)
    np.testing.assert_array_equal(confidence, np.float32([0.5, 0.6]))
    np.testing.assert_array_equal(came, [True, False])


# -------------------------------------------------------------------------- Cox's line


def fitted(logit, positive):
    """(slope, intercept) of an unpenalised logistic regression."""
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12)
    model.fit(logit[:, None], positive)
    return model.coef_[0, 0], model.intercept_[0]


def miscalibrated(seed, n=200):
    """Logits that are twice too large and shifted by one."""
    rng = np.random.default_rng(seed)
    true = 1.5 * rng.normal(size=n)
    return 2 * true + 1, rng.random(n) < 1 / (1 + np.exp(-true))


@pytest.mark.parametrize("wide", [True, False])
def test_the_line_is_the_logistic_regression_on_the_logit(wide):
    """To 1e-6 in float64; in float32 to the precision of its sums."""
    logit, positive = miscalibrated(0)
    segment = np.arange(200) % 3 - 1
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        got = line(logit.astype(dtype), positive, segment, 2)
    for s in (0, 1):
        expected = fitted(logit[segment == s], positive[segment == s])
        rtol = 1e-6 if wide else 1e-4
        np.testing.assert_allclose([leaf[s] for leaf in got], expected, rtol=rtol)


@given(weights)
def test_the_line_by_weight(weight):
    logit, positive = miscalibrated(1, E)
    logit, one = logit.astype(np.float32), np.zeros(E, np.int32)
    weighted = line(logit, positive, one, 1, weight=weight)
    again = (np.repeat(values, weight) for values in (logit, positive, one))
    for ours, theirs in zip(weighted, line(*again, 1), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_calibrated_model_has_slope_one_and_intercept_zero():
    logit = np.random.default_rng(2).normal(size=20_000)
    positive = np.random.default_rng(3).random(20_000) < 1 / (1 + np.exp(-logit))
    one = np.zeros(20_000, np.int32)
    got = line(logit.astype(np.float32), positive, one, 1)
    np.testing.assert_allclose(got.slope, 1, atol=0.05)
    np.testing.assert_allclose(got.intercept, 0, atol=0.05)


def test_classes_that_hardly_overlap_have_a_steep_line():
    """A far record does not make the steps diverge."""
    logit = np.concatenate([np.linspace(-3, 0, 30), np.linspace(-0.1, 3, 30), [40.0]])
    positive = np.repeat([False, True], [30, 31])
    with jax.enable_x64(True):
        got = line(logit, positive, np.zeros(61, np.int32), 1)
    np.testing.assert_allclose(np.ravel(got), fitted(logit, positive), rtol=1e-6)
    assert got.slope > 15


@pytest.mark.parametrize(
    ("logit", "positive"),
    [
        ([-1, 0, 1, 2], [1, 1, 1, 1]),
        ([-1, 0, 1, 2], [0, 0, 0, 0]),
        ([-1, 0, 1, 2], [0, 0, 1, 1]),  # separated
        ([-1, 0, 1, 2], [1, 1, 0, 0]),
        ([-1, 0, 0, 2], [0, 0, 1, 1]),  # separated but for a tie
        ([1, 1, 1, 1], [0, 1, 0, 1]),
        ([-1, NAN, 1, 2], [0, 1, 0, 1]),
        ([-1, math.inf, 1, 2], [0, 1, 0, 1]),
    ],
)
def test_a_line_that_does_not_exist_is_nan(logit, positive):
    """It spoils no other segment."""
    logit = np.float32([*logit, -1, 0, 1, 2])
    positive = np.array([*positive, 0, 1, 0, 1], bool)
    segment = np.repeat(np.int32([0, 1]), 4)
    got = line(logit, positive, segment, 3)
    for leaf in got:
        assert np.isnan(leaf[0])
        assert np.isfinite(leaf[1])
        assert np.isnan(leaf[2])  # no records


def test_the_line_turns_with_the_logits():
    logit, positive = miscalibrated(4)
    one = np.zeros(200, np.int32)
    with jax.enable_x64(True):
        base = line(logit, positive, one, 1)
        turned = line(3 * logit - 2, positive, one, 1)
    slope, intercept = map(np.asarray, base)
    assert slope.dtype == np.float64
    np.testing.assert_allclose(turned.slope, slope / 3, rtol=1e-6)
    np.testing.assert_allclose(turned.intercept, intercept + 2 * slope / 3, rtol=1e-6)
