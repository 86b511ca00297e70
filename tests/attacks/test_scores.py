"""Scores of membership against loops, and their AUC on data with a known leak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import metrics
from fairjax.attacks import scores

E, M, C = 60, 12, 3
RNG = np.random.default_rng(0)
Y = RNG.integers(0, C, E).astype(np.int32)
INSIDE = RNG.random((M, E)) < 0.6
INSIDE[:, 0], INSIDE[:, 1] = True, False
LOSS = RNG.exponential(1.0, E).astype(np.float32)
SHADOW = RNG.exponential(1.0, (M, E)).astype(np.float32)
SHADOWS = jnp.asarray(SHADOW), jnp.asarray(INSIDE)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_margin_is_the_logit_of_the_true_class(classes):
    z = RNG.normal(0, 3, (4, E, classes)).astype(np.float32)
    y = (Y % classes).astype(np.int32)
    p = np.exp(z.astype(float))
    p = (p / p.sum(-1, keepdims=True))[:, np.arange(E), y]
    got = scores.margin(jnp.asarray(z), jnp.asarray(y))
    np.testing.assert_allclose(got, np.log(p / (1 - p)), rtol=1e-4, atol=1e-4)
    sure = jnp.asarray([[90.0, -90.0]])
    assert float(scores.margin(sure, jnp.asarray([0]))[0]) == 180.0


def test_a_class_has_the_thresholds_of_its_own_non_members():
    got = scores.class_quantile(jnp.asarray(LOSS), jnp.asarray(Y), *SHADOWS, classes=C)
    for i in range(E):
        others = SHADOW[~INSIDE & (Y == Y[i])]
        assert got[i] == pytest.approx(1 - np.mean(others < LOSS[i]), abs=1e-5)
    none = scores.class_quantile(
        jnp.asarray(LOSS),
        jnp.asarray(Y),
        SHADOWS[0],
        jnp.asarray(INSIDE | (Y == 1)),
        classes=C,
    )
    np.testing.assert_array_equal(np.isnan(none), Y == 1)


def test_a_calibrated_loss_is_that_beyond_models_without_the_record():
    got = np.asarray(scores.loss_calibration(jnp.asarray(LOSS), *SHADOWS))
    for i in range(1, E):
        expected = SHADOW[~INSIDE[:, i], i].mean() - LOSS[i]
        assert got[i] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.isnan(got[0])  # no model is without it
    blind = scores.difficulty(*SHADOWS)
    np.testing.assert_allclose(got[1:], (-blind - LOSS)[1:], rtol=1e-5)


def test_the_likelihood_ratio_is_that_of_two_gaussians_of_pooled_variance():
    phi = RNG.normal(0, 2, E).astype(np.float32)
    got = np.asarray(scores.likelihood_ratio(jnp.asarray(phi), *SHADOWS))
    ratio = np.zeros(E)
    for sign, where in ((1, INSIDE), (-1, ~INSIDE)):
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(where, SHADOW, 0).sum(0) / where.sum(0)
        variance = np.mean((SHADOW - mean)[where] ** 2)
        density = -0.5 * np.log(variance) - (phi - mean) ** 2 / (2 * variance)
        ratio += sign * density
    assert np.isnan(got[:2]).all()
    np.testing.assert_allclose(got[2:], ratio[2:], rtol=1e-3, atol=1e-4)


def surpassed(gamma, scale=None, *, strict=False, alone=False, swapped=False):
    """RMIA as published, record by record; the last options are wrong variants."""
    p, shadow = np.exp(-LOSS.astype(float)), np.exp(-SHADOW.astype(float))
    scores = np.full(E, np.nan)
    ratio = np.full(E, np.nan)
    for i in range(E):
        inside, outside = shadow[INSIDE[:, i], i], shadow[~INSIDE[:, i], i]
        if not len(outside) or (scale is None and not len(inside)):
            continue
        if scale is None:
            ratio[i] = p[i] / ((inside.mean() + outside.mean()) / 2)
        else:
            ratio[i] = p[i] / (((1 + scale) * outside.mean() + 1 - scale) / 2)
    for i in range(E):
        hits = []
        for z in range(E):
            if z == i or np.isnan(ratio[z]):
                continue
            of_z = p[z] if alone else ratio[z]
            lr = of_z / ratio[i] if swapped else ratio[i] / of_z
            hits.append(lr > gamma if strict else lr >= gamma)
        scores[i] = np.nan if np.isnan(ratio[i]) else np.mean(hits)
    return scores


relative = jax.jit(scores.rmia, static_argnames=("scale", "chunk"))


@pytest.mark.parametrize("scale", [None, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_rmia_is_the_share_of_others_that_a_record_surpasses(gamma, scale):
    got = relative(jnp.asarray(LOSS), *SHADOWS, gamma=gamma, scale=scale)
    got = np.asarray(got)
    np.testing.assert_allclose(got, surpassed(gamma, scale), atol=1e-6)
    assert np.isnan(got[0])  # no model is without it
    assert np.isnan(got[1]) == (scale is None)  # none is with it
    # Without the population's p(z), or inverted, the score is different.
    for wrong in ({"alone": True}, {"swapped": True}):
        assert np.nanmax(np.abs(got - surpassed(gamma, scale, **wrong))) > 0.1
    other = surpassed(gamma, 0.3 if scale is None else None)
    assert np.nanmax(np.abs(got - other)) > 0.02


def test_rmia_counts_a_tie_and_not_the_record_itself():
    """Four records alike: each surpasses the three others by a factor of just 1."""
    loss, shadow = jnp.full(4, 0.5), jnp.full((2, 4), 0.7)
    inside = jnp.asarray([[True] * 4, [False] * 4])
    for gamma, share in ((1.0, 1.0), (1.0001, 0.0)):
        got = relative(loss, shadow, inside, gamma=gamma)
        np.testing.assert_array_equal(got, share)
    alone = relative(loss[:1], shadow[:, :1], inside[:, :1], gamma=1.0)
    assert np.isnan(alone).all()


def test_rmia_survives_records_that_no_model_believes():
    loss = jnp.asarray([0.1, 500.0, 1.0])
    shadow = jnp.asarray([[0.2, 400.0, 1.0], [0.3, 600.0, 1.0]])
    inside = jnp.asarray([[True] * 3, [False] * 3])
    got = relative(loss, shadow, inside, gamma=1.0)
    # p(x) of the second is e^-400 / 2 and its ratio 2 e^-100.
    np.testing.assert_array_equal(got, [1.0, 0.0, 0.5])


def test_alignment_is_a_cosine_against_the_gradient():
    gradient = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    step = jax.tree.map(lambda leaf: -0.1 * leaf, gradient)
    assert float(scores.alignment(step, gradient)) == pytest.approx(1)
    assert float(scores.alignment(gradient, gradient)) == pytest.approx(-1)
    nothing = jax.tree.map(jnp.zeros_like, gradient)
    assert float(scores.alignment(nothing, gradient)) == 0
    assert float(scores.alignment(gradient, nothing)) == 0


@pytest.mark.parametrize("leak", [0.0, 2.0])
def test_attacks_find_what_is_there_and_nothing_else(leak):
    """Hard and easy records: only calibration separates fit from ease."""
    rng = np.random.default_rng(3)
    rows, models = 1000, 16
    hard = rng.normal(0, 3, rows)
    inside = rng.random((1 + models, rows)) < 0.5
    phi = hard + leak * inside + rng.normal(0, 1, (1 + models, rows))
    loss = np.log1p(np.exp(-phi))
    member, y = jnp.asarray(inside[0]), jnp.zeros(rows, jnp.int32)
    phi, loss = (jnp.asarray(value, jnp.float32) for value in (phi, loss))

    def auc(score):
        return float(metrics.auroc(score, member, y, 1)[0])

    shadows = jnp.asarray(inside[1:])
    area = {
        "blind": auc(scores.difficulty(loss[1:], shadows)),
        "loss": auc(-loss[0]),
        "calibrated": auc(scores.loss_calibration(loss[0], loss[1:], shadows)),
        "likelihood": auc(scores.likelihood_ratio(phi[0], phi[1:], shadows)),
        "rmia": auc(relative(loss[0], loss[1:], shadows, gamma=1.0)),
        "rmia offline": auc(relative(loss[0], loss[1:], shadows, gamma=1.0, scale=0.3)),
    }
    assert area["blind"] == pytest.approx(0.5, abs=0.06)
    if leak:
        assert 0.6 < area["loss"] < area["calibrated"] - 0.1
        assert area["calibrated"] < area["likelihood"]
        assert area["likelihood"] > 0.88
        assert area["rmia"] > area["loss"] + 0.1
        assert area["rmia offline"] > area["loss"] + 0.05
    else:
        assert all(abs(value - 0.5) < 0.06 for value in area.values())
