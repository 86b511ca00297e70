"""Figures against scikit-learn and loops; summaries against tables by hand."""

import functools
import math
import re
import warnings

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fairjax import metrics
from fairjax.core.types import FederatedData
from fairjax.metrics import Evaluation, Figures

E, SEGMENTS, CLASSES = 40, 4, 3
COUNTS = (11, 0, 23, 1, 5)
NAN = math.nan

auroc = jax.jit(metrics.auroc, static_argnums=3)
balanced_accuracy = jax.jit(
    metrics.balanced_accuracy, static_argnums=3, static_argnames="classes"
)


def reference(scores, positive) -> float:
    """The area by scikit-learn on ranks, which keep order and ties and are finite."""
    if np.isnan(scores).any() or len(np.unique(positive)) < 2:
        return NAN
    return roc_auc_score(positive, np.unique(scores, return_inverse=True)[1])


def per_segment(scores, positive, segment, n=SEGMENTS):
    rows = [segment == s for s in range(n)]
    return [reference(scores[r], positive[r]) for r in rows]


def of_logits(logits, y, counts=COUNTS) -> FederatedData:
    """Records whose inputs are their logits."""
    offset = np.cumsum((0, *counts[:-1]))
    labels = np.zeros((len(counts), logits.shape[1]))
    return FederatedData(
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(y, jnp.int32),
        jnp.zeros((len(y), 0), jnp.int32),
        jnp.asarray(offset, jnp.int32),
        jnp.asarray(counts, jnp.int32),
        jnp.asarray(labels, jnp.int32),
    )


@jax.jit
def evaluate(data) -> Evaluation:
    return metrics.evaluate({}, data, apply=lambda params, x: x)


# -------------------------------------------------------------------------------- auroc

tied = arrays(np.int8, E, elements=st.integers(-2, 2)).map(np.float32)
anything = arrays(
    np.float32,
    E,
    elements=st.floats(width=32, allow_nan=False, allow_subnormal=False)
    | st.sampled_from([-math.inf, 0.0, 0.5, math.inf]),
    fill=st.nothing(),
)
positives = arrays(bool, E)
segments = arrays(np.int32, E, elements=st.integers(0, SEGMENTS - 1))


@given(tied, positives, segments)
def test_auroc_is_that_of_scikit_learn_with_heavy_ties(scores, positive, segment):
    area = auroc(scores, positive, segment, SEGMENTS)
    expected = per_segment(scores, positive, segment)
    np.testing.assert_allclose(area, expected, rtol=1e-6)
    assert area.dtype == jnp.float32


@given(anything, positives, segments, st.sets(st.integers(0, E - 1), max_size=2))
def test_auroc_of_any_floats_and_nan_in_segments_with_a_nan(
    scores, positive, segment, nans
):
    """Infinities are ordered like other scores; a NaN affects its segment alone."""
    scores[list(nans)] = NAN
    area = auroc(scores, positive, segment, SEGMENTS)
    np.testing.assert_allclose(
        area, per_segment(scores, positive, segment), rtol=1e-6, atol=1e-7
    )


@given(tied, positives)
def test_the_other_class_has_the_other_area(scores, positive):
    one = np.zeros(E, np.int32)
    area = auroc(scores, positive, one, SEGMENTS)[0]
    other = auroc(scores, ~positive, one, SEGMENTS)[0]
    np.testing.assert_allclose(area, 1 - other, atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ([0, 1, 2, 3], [0, 0, 1, 1], 1),
        ([0, 1, 2, 3], [1, 1, 0, 0], 0),
        ([5, 5, 5, 5], [0, 1, 0, 1], 0.5),
        ([0, 0, 0, 1], [0, 1, 1, 1], 4 / 6),
        ([-0.0, 0.0, 0.0, -0.0], [0, 1, 0, 1], 0.5),
        ([-math.inf, -math.inf, math.inf, math.inf], [0, 1, 0, 1], 0.5),
        ([0, 1, 2, NAN], [0, 0, 1, 1], NAN),
        ([0, 1, 2, 3], [1, 1, 1, 1], NAN),
        ([0, 1, 2, 3], [0, 0, 0, 0], NAN),
    ],
)
def test_auroc_by_hand(scores, positive, area):
    got = auroc(
        jnp.asarray(scores, float), jnp.asarray(positive, bool), jnp.zeros(4, int), 1
    )
    np.testing.assert_allclose(got, [area], rtol=1e-6)


def test_counts_are_exact_in_float32():
    """More than 800 000 pairs, some of them tied."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 500, 2000).astype(np.float32)
    positive = rng.random(2000) < 0.3
    segment = np.zeros(2000, np.int32)
    got = auroc(scores, positive, segment, 1)[0]
    np.testing.assert_allclose(got, reference(scores, positive), rtol=1e-6)


# -------------------------------------------------------------------- balanced accuracy


@given(
    arrays(np.int32, E, elements=st.integers(0, CLASSES - 1)),
    arrays(np.int32, E, elements=st.integers(0, CLASSES - 1)),
    segments,
)
def test_balanced_accuracy_is_that_of_scikit_learn(y, answer, segment):
    """Also if a segment lacks a class or has no records."""
    got = balanced_accuracy(answer == y, y, segment, SEGMENTS, classes=CLASSES)
    for s in range(SEGMENTS):
        rows = segment == s
        expected = NAN
        if rows.any():
            # scikit-learn warns of a prediction that is no true class.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = balanced_accuracy_score(y[rows], answer[rows])
        np.testing.assert_allclose(got[s], expected, rtol=1e-6)
    assert got.dtype == jnp.float32


# ----------------------------------------------------------------------------- evaluate


@functools.cache
def noisy(classes, seed=0):
    """(logits, labels); the third client has every class, the fourth one record."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, E)
    logits = 2 * rng.normal(size=(E, classes)) + 1.5 * np.eye(classes)[y]
    return np.round(logits, 1).astype(np.float32), y


def rows_of(client):
    start = sum(COUNTS[:client])
    return slice(start, start + COUNTS[client])


def test_figures_of_clients_are_those_of_a_loop():
    """The client without records is NaN, not 0."""
    logits, y = noisy(CLASSES)
    got = evaluate(of_logits(logits, y)).clients
    wide = logits.astype(float)
    loss = np.log(np.exp(wide).sum(1)) - wide[np.arange(E), y]
    right = logits.argmax(1) == y
    np.testing.assert_array_equal(got.count, COUNTS)
    for k, n in enumerate(COUNTS):
        rows = rows_of(k)
        expected = (NAN, NAN, NAN)
        if n:
            recalls = [right[rows][y[rows] == c].mean() for c in set(y[rows])]
            expected = (loss[rows].mean(), right[rows].mean(), np.mean(recalls))
        figures = (got.loss[k], got.accuracy[k], got.balanced_accuracy[k])
        np.testing.assert_allclose(figures, expected, rtol=1e-5)


def test_pooled_figures_are_over_all_records():
    logits, y = noisy(CLASSES)
    got = evaluate(of_logits(logits, y)).pooled
    wide = logits.astype(float)
    p = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    assert got.count == E
    np.testing.assert_allclose(got.accuracy, np.mean(logits.argmax(1) == y), rtol=1e-6)
    recall = balanced_accuracy_score(y, logits.argmax(1))
    np.testing.assert_allclose(got.balanced_accuracy, recall, rtol=1e-6)
    np.testing.assert_allclose(got.loss, -np.log(p[np.arange(E), y]).mean(), rtol=1e-5)
    expected = roc_auc_score(y, p, multi_class="ovr", average="macro")
    np.testing.assert_allclose(got.auroc, expected, rtol=1e-5)


def test_two_classes_are_scored_by_the_margin():
    """Also if the probability saturates: both records below have p = 1."""
    logits, y = noisy(2)
    got = evaluate(of_logits(logits, y))
    margin = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(got.pooled.auroc, reference(margin, y == 1), rtol=1e-6)
    for k in range(len(COUNTS)):
        rows = rows_of(k)
        expected = reference(margin[rows], y[rows] == 1)
        np.testing.assert_allclose(got.clients.auroc[k], expected, rtol=1e-6)
    saturated = of_logits(np.float32([[0, 200], [0, 300]]), [0, 1], counts=(2,))
    assert evaluate(saturated).pooled.auroc == 1


def test_macro_auroc_is_the_mean_over_classes_that_can_be_estimated():
    """Clients 2 and 4 lack class 2; client 0 has one class only."""
    logits, y = noisy(CLASSES, seed=1)
    y = y.copy()
    y[rows_of(0)] = 1
    y[rows_of(2)] %= 2
    y[rows_of(4)] = [0, 1, 0, 1, 1]
    got = evaluate(of_logits(logits, y)).clients.auroc
    log_p = np.asarray(jax.nn.log_softmax(logits))
    for k in (2, 4):
        rows = rows_of(k)
        areas = [reference(log_p[rows, c], y[rows] == c) for c in (0, 1)]
        np.testing.assert_allclose(got[k], np.mean(areas), rtol=1e-5)
    assert np.isnan(got[jnp.asarray([0, 1, 3])]).all()


def test_a_model_that_diverged_has_no_auroc():
    logits, y = noisy(CLASSES)
    logits = logits.copy()
    logits[rows_of(2).start, 0] = NAN
    got = evaluate(of_logits(logits, y))
    assert np.isnan(got.pooled.auroc)
    assert np.isnan(got.clients.auroc[2])
    assert not np.isnan(got.clients.auroc[0])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 11, 512])
def test_batches_do_not_change_logits(batch_size):
    """Rows are in order, none twice, none left out, and no batch is too large."""
    seen = []

    def apply(params, x):
        seen.append(x.shape[0])
        return x @ params

    x, w = jnp.arange(20.0).reshape(10, 2), jnp.asarray([[1.0, 0, 2], [0, 1, -1]])
    got = metrics.logits_of(w, x, apply=apply, batch_size=batch_size)
    np.testing.assert_array_equal(got, x @ w)
    assert max(seen) <= batch_size


# --------------------------------------------------------------------------- summaries


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([0.1, 0.5, 0.9, 0.3], 0.25, 0.1),
        ([0.1, 0.5, 0.9, 0.3], 0.5, 0.2),
        ([0.1, 0.5, 0.9, 0.3], 0.26, 0.2),  # ceil: two of four
        ([0.1, NAN, 0.9, NAN], 0.5, 0.1),  # half of the two that are known
        ([0.1, NAN, 0.9, NAN], 1.0, 0.5),
        ([NAN, NAN], 0.1, NAN),
    ],
)
def test_worst_is_the_mean_of_the_lowest(values, share, expected):
    np.testing.assert_allclose(metrics.worst(np.array(values), share), expected)


@pytest.mark.parametrize("clients", [1, 9, 10, 11, 30, 100])
def test_the_worst_tenth_rounds_up(clients):
    values = np.arange(clients, dtype=float)[::-1]
    lowest = range(-(-clients // 10))
    np.testing.assert_allclose(metrics.worst(values, 0.1), np.mean(lowest))


def test_mean_is_over_known_values():
    assert metrics.mean(np.array([1, NAN, 4])) == 2.5
    assert math.isnan(metrics.mean(np.array([NAN])))
    assert math.isnan(metrics.mean(np.array([])))


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([0.7, 0.7, 0.7], 1),
        ([0.7, 0, 0, 0], 1 / 4),
        ([1, 2, 3], 36 / (3 * 14)),
        ([1, NAN, 2, NAN, 3], 36 / (3 * 14)),
        ([0, 0], NAN),
        ([NAN], NAN),
        ([], NAN),
    ],
)
def test_jain_by_hand(values, index):
    np.testing.assert_allclose(metrics.jain(np.array(values, float)), index)


share = st.just(0.0) | st.floats(1e-3, 1)


@given(st.lists(share, min_size=1, max_size=8), st.floats(0.01, 100))
def test_jain_lies_between_one_client_and_all_and_has_no_unit(values, unit):
    values = np.array(values)
    index = metrics.jain(values)
    if values.any():
        assert 1 / len(values) - 1e-12 <= index <= 1 + 1e-12
        np.testing.assert_allclose(metrics.jain(unit * values), index)
    else:
        assert math.isnan(index)


@pytest.mark.parametrize(
    ("values", "entropy"),
    [
        ([0.7, 0.7, 0.7], 1),
        ([0.7, 0, 0, 0], 0),
        ([1, NAN, 3], -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)),
        ([0.5, 0.5, 0, 0], 1 / 2),
        ([0, 0], NAN),
        ([0.7], NAN),
        ([NAN, 0.7], NAN),
        ([], NAN),
    ],
)
def test_entropy_by_hand(values, entropy):
    np.testing.assert_allclose(metrics.entropy(np.array(values, float)), entropy)


@given(st.lists(share, min_size=2, max_size=8), st.floats(0.01, 100))
def test_entropy_lies_between_one_client_and_all_and_has_no_unit(values, unit):
    values = np.array(values)
    if values.any():
        entropy = metrics.entropy(values)
        assert -1e-12 <= entropy <= 1 + 1e-12
        np.testing.assert_allclose(metrics.entropy(unit * values), entropy, atol=1e-12)
    else:
        assert math.isnan(metrics.entropy(values))


def table(accuracy, own, tiers, counts=1, **more):
    """The summary of these accuracies, [N] and [T, N]."""

    def figures(values, counts=1):
        values = jnp.asarray(values)
        count = jnp.ones(values.shape, int) * jnp.asarray(counts)
        return Figures(count, 2 * values, values, values / 2, values / 4)

    full = Evaluation(figures(0.6), figures(accuracy, counts))
    depth = jnp.arange(len(own)) / 8
    return metrics.summary(
        full, Evaluation(figures(depth), figures(own)), np.array(tiers), **more
    )


def test_summary_by_hand():
    """Five clients on tiers 0, 0, 2, 2, 2; none on tier 1; one without records."""
    row = table(
        [0.5, NAN, 0.75, 1.0, 0.5],
        [[0.25, NAN, 9, 9, 9], [9] * 5, [9, 9, 0.5, 1.0, 0.75]],
        [0, 0, 2, 2, 2],
    )
    known = np.array([0.5, 0.75, 1.0, 0.5])
    expected = {
        "eval/accuracy": 0.6,
        "eval/loss": 1.2,
        "eval/auroc": 0.15,
        "eval/accuracy/client_mean": 0.6875,
        "eval/accuracy/client_std": np.std(known),
        "eval/accuracy/client_worst": 0.5,
        "eval/accuracy/client_worst10": 0.5,
        "eval/accuracy/tier_0": 0.5,
        "eval/accuracy/tier_0/own": 0.25,
        "eval/accuracy/submodel_0": 0.0,
        "eval/accuracy/tier_1": NAN,
        "eval/accuracy/tier_1/own": NAN,
        "eval/accuracy/submodel_1": 0.125,
        "eval/accuracy/tier_2": 0.75,
        "eval/accuracy/tier_2/own": 0.75,
        "eval/accuracy/submodel_2": 0.25,
        "eval/accuracy/tier_gap": -0.25,
        "fairness/jain": 2.75**2 / (4 * np.sum(known**2)),
        "fairness/entropy": metrics.entropy(known),
    }
    # The other figures that `table` derives from an accuracy.
    expected |= {
        name.replace("accuracy", other): value * share
        for other, share in (("balanced_accuracy", 1 / 2), ("auroc", 1 / 4))
        for name, value in expected.items()
        if re.fullmatch("eval/accuracy(/tier_.(/own)?|/submodel_.)?", name)
    }
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(row[name], value, rtol=1e-6, err_msg=name)
    assert {type(value) for value in row.values()} == {float}


def test_the_gap_is_lowest_minus_highest_tier_with_clients():
    def gap(tiers):
        own = [[0.0] * 4] * 4
        return table([0.5, 0.75, 1.0, 0.25], own, tiers)["eval/accuracy/tier_gap"]

    assert gap([0, 1, 2, 3]) == 0.25
    assert gap([1, 2, 2, 1]) == 0.375 - 0.875
    assert gap([2, 2, 2, 2]) == 0


def test_the_worst_and_the_gap_are_over_clients_with_enough_records():
    """One record gives an accuracy of 0 or 1, whichever client is served worst."""
    given = [0.0, 0.75, 0.5, 1.0], [[0.0] * 4] * 3, [0, 1, 1, 2]
    row = table(*given, counts=[1, 9, 12, 3], min_records=10)
    assert row["eval/accuracy/client_worst"] == 0.5
    assert row["eval/accuracy/client_worst10"] == 0.5
    assert row["eval/accuracy/client_mean"] == 0.5625  # of all that are known
    assert row["eval/accuracy/tier_0"] == 0
    assert math.isnan(row["eval/accuracy/tier_gap"])  # one tier of three alone has 10
    row = table(*given, counts=[10, 9, 12, 10], min_records=10)
    assert row["eval/accuracy/client_worst"] == 0
    assert row["eval/accuracy/tier_gap"] == -1
    row = table(*given, counts=9, min_records=10)
    assert math.isnan(row["eval/accuracy/client_worst"])
    assert table(*given)["eval/accuracy/client_worst"] == 0


def test_the_worst_client_is_one_client_however_many_there_are():
    """1 / K * K is subject to rounding; it must not become two clients."""
    for clients in range(1, 120):
        accuracy = np.linspace(0.5, 1, clients)
        assert metrics.worst(accuracy, 1 / clients) == 0.5


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_model_without_finite_logits_has_no_accuracy(broken):
    """`argmax` takes a NaN for the largest logit: accuracy would be a class's share."""
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(40, 2)), rng.integers(2, size=40)
    logits[12, 0] = broken  # a record of the third hospital
    found = evaluate(of_logits(logits, y))
    sound = evaluate(of_logits(np.where(np.isfinite(logits), logits, 0), y))
    for name in ("accuracy", "balanced_accuracy"):
        assert np.isnan(getattr(found.pooled, name))
        ours, theirs = (np.array(getattr(e.clients, name)) for e in (found, sound))
        assert np.isnan(ours[2])
        assert np.isfinite(theirs[2])
        np.testing.assert_array_equal(np.delete(ours, 2), np.delete(theirs, 2))
    quality = metrics.quality(
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(y, jnp.int32),
        jnp.zeros(40, jnp.int32),
        1,
        threshold=jnp.float32(0.5),
    )
    for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity"):
        assert np.isnan(getattr(quality, name)[0])


def test_a_federation_without_test_records_is_nan_throughout():
    row = table([NAN, NAN], [[NAN, NAN]], [0, 0])
    pooled = {"eval/accuracy", "eval/balanced_accuracy", "eval/loss", "eval/auroc"}
    names = ("accuracy", "balanced_accuracy", "auroc")
    pooled |= {f"eval/{name}/submodel_0" for name in names}
    for name, value in row.items():
        assert math.isnan(value) == (name not in pooled), name
