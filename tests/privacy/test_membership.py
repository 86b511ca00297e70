"""Scores of membership against loops, and what they find where there is something."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairjax import metrics
from fairjax.privacy import membership

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
    got = membership.margin(jnp.asarray(z), jnp.asarray(y))
    np.testing.assert_allclose(got, np.log(p / (1 - p)), rtol=1e-4, atol=1e-4)
    sure = jnp.asarray([[90.0, -90.0]])
    assert float(membership.margin(sure, jnp.asarray([0]))[0]) == 180.0


def test_a_class_has_the_thresholds_of_its_own_non_members():
    got = membership.by_class(jnp.asarray(LOSS), jnp.asarray(Y), *SHADOWS, classes=C)
    for i in range(E):
        others = SHADOW[~INSIDE & (Y == Y[i])]
        assert got[i] == pytest.approx(1 - np.mean(others < LOSS[i]), abs=1e-5)
    none = membership.by_class(
        jnp.asarray(LOSS),
        jnp.asarray(Y),
        SHADOWS[0],
        jnp.asarray(INSIDE | (Y == 1)),
        classes=C,
    )
    np.testing.assert_array_equal(np.isnan(none), Y == 1)


def test_a_calibrated_loss_is_that_beyond_models_without_the_record():
    got = np.asarray(membership.calibrated(jnp.asarray(LOSS), *SHADOWS))
    for i in range(1, E):
        expected = SHADOW[~INSIDE[:, i], i].mean() - LOSS[i]
        assert got[i] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.isnan(got[0])  # no model is without it
    blind = membership.difficulty(*SHADOWS)
    np.testing.assert_allclose(got[1:], (-blind - LOSS)[1:], rtol=1e-5)


def test_the_likelihood_ratio_is_that_of_two_gaussians_of_pooled_variance():
    phi = RNG.normal(0, 2, E).astype(np.float32)
    got = np.asarray(membership.likelihood(jnp.asarray(phi), *SHADOWS))
    ratio = np.zeros(E)
    for sign, where in ((1, INSIDE), (-1, ~INSIDE)):
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(where, SHADOW, 0).sum(0) / where.sum(0)
        variance = np.mean((SHADOW - mean)[where] ** 2)
        density = -0.5 * np.log(variance) - (phi - mean) ** 2 / (2 * variance)
        ratio += sign * density
    assert np.isnan(got[:2]).all()
    np.testing.assert_allclose(got[2:], ratio[2:], rtol=1e-3, atol=1e-4)


def test_alignment_is_a_cosine_against_the_gradient():
    gradient = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    step = jax.tree.map(lambda leaf: -0.1 * leaf, gradient)
    assert float(membership.alignment(step, gradient)) == pytest.approx(1)
    assert float(membership.alignment(gradient, gradient)) == pytest.approx(-1)
    nothing = jax.tree.map(jnp.zeros_like, gradient)
    assert float(membership.alignment(nothing, gradient)) == 0
    assert float(membership.alignment(gradient, nothing)) == 0


# --------------------------------------------------------------------- what is found


@functools.partial(jax.jit, static_argnames="rate")
def found(score, member, where, rate):
    return membership.found(score, member, where, rate=rate)


@given(
    seed=st.integers(0, 2**16),
    rate=st.sampled_from([0.01, 0.05, 0.29]),
    coarse=st.booleans(),
)
def test_no_more_non_members_are_accused_than_allowed(seed, rate, coarse):
    rng = np.random.default_rng(seed)
    member, where = rng.random(400) < 0.4, rng.random(400) < 0.9
    score = rng.normal(0, 1, 400) + member
    score = np.round(score, 1 if coarse else 9).astype(np.float32)
    got = float(found(jnp.asarray(score), member, where, rate))
    out, inside = score[where & ~member], score[where & member]
    # By hand: the lowest threshold that accuses few enough.
    best = max(
        np.mean(inside > t)
        for t in [*out, np.inf]
        if np.sum(out > t) <= np.floor(rate * len(out) + 1e-9)
    )
    assert got == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("others", "known"), [(99, False), (100, True)])
def test_too_few_non_members_show_no_low_rate(others, known):
    member = np.arange(others + 10) < 10
    score = np.where(member, 2.0, 0.0).astype(np.float32)
    got = float(found(jnp.asarray(score), member, np.ones_like(member), 0.01))
    assert got == 1.0 if known else np.isnan(got)


@pytest.mark.parametrize("leak", [0.0, 2.0])
def test_attacks_find_what_is_there_and_nothing_else(leak):
    """Hard and easy records: only calibration tells fit from ease."""
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
        "blind": auc(membership.difficulty(loss[1:], shadows)),
        "loss": auc(-loss[0]),
        "calibrated": auc(membership.calibrated(loss[0], loss[1:], shadows)),
        "likelihood": auc(membership.likelihood(phi[0], phi[1:], shadows)),
    }
    assert area["blind"] == pytest.approx(0.5, abs=0.06)
    if leak:
        assert 0.6 < area["loss"] < area["calibrated"] - 0.1
        assert area["calibrated"] < area["likelihood"]
        assert area["likelihood"] > 0.88
    else:
        assert all(abs(value - 0.5) < 0.06 for value in area.values())
