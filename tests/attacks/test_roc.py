"""Members found at few false positives, against loops and known distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fairjax.attacks import roc
from fairjax.attacks.epsilon_bound import upper_bound


@functools.partial(jax.jit, static_argnames="rate")
def found(score, member, where, rate):
    return roc.tpr_at_fpr(score, member, where, fpr=rate)


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
    # By hand: the lowest threshold with few enough false positives.
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


def naive(inside, outside, fpr):
    """Clopper-Pearson at the estimated threshold, as if it were known."""
    threshold = np.sort(outside)[::-1][int(len(outside) * fpr)]
    hits, number = int(np.sum(inside > threshold)), len(inside)
    low = 1 - upper_bound(np.asarray(number - hits), number, 0.975)
    return float(low), float(upper_bound(np.asarray(hits), number, 0.975))


def quantised(scores):
    """Scores in steps of a quarter, with many ties."""
    return np.floor(4 * scores) / 4


@pytest.mark.parametrize(("others", "shift"), [(300, 2.5), (1000, 1.5)])
@pytest.mark.parametrize("coarse", [False, True])
def test_the_interval_covers_the_share_that_is_found(others, shift, coarse):
    """Normal scores, whose share is known; the threshold is estimated too."""
    rng, repeats = np.random.default_rng(others), 150
    t = norm.isf(0.01)
    if coarse:
        # The least step that no more than 1 % of non-members exceed.
        t = np.ceil(4 * t) / 4 - 0.25
        assert norm.sf(t + 0.25) <= 0.01 < norm.sf(t)
    true = norm.sf(t + 0.25 * coarse - shift)
    missed = {roc.tpr_interval: 0, naive: 0}
    for _ in range(repeats):
        outside, inside = rng.normal(size=others), rng.normal(shift, 1, 400)
        if coarse:
            outside, inside = quantised(outside), quantised(inside)
        for bounds in missed:
            low, high = bounds(inside, outside, fpr=0.01)
            missed[bounds] += not low <= true <= high
    assert missed[roc.tpr_interval] <= 0.05 * repeats
    if not coarse:
        assert missed[naive] > 0.15 * repeats


@given(seed=st.integers(0, 2**16), coarse=st.booleans())
def test_what_is_found_lies_in_its_interval(seed, coarse):
    rng = np.random.default_rng(seed)
    member = rng.random(600) < 0.4
    score = np.round(rng.normal(0, 1, 600) + member, 1 if coarse else 9)
    score = score.astype(np.float32)
    share = float(found(jnp.asarray(score), member, np.ones_like(member), 0.05))
    low, high = roc.tpr_interval(score[member], score[~member], fpr=0.05)
    assert 0 <= low <= share <= high <= 1


def test_few_non_members_leave_the_lower_end_open():
    for others, open_ in ((436, True), (437, False)):
        low, high = roc.tpr_interval(np.ones(50), np.zeros(others), fpr=0.01)
        assert (low == 0) == open_
        assert high == 1
    assert roc.tpr_interval(np.ones(0), np.zeros(9), fpr=0.01) == (0, 1)
    assert roc.tpr_interval(np.ones(9), np.zeros(0), fpr=0.01) == (0, 1)


@given(seed=st.integers(0, 2**16), coarse=st.booleans())
def test_the_curve_has_what_is_found_at_every_one_of_its_points(seed, coarse):
    rng = np.random.default_rng(seed)
    member = rng.random(400) < 0.4
    score = rng.normal(0, 1, 400) + member
    score = np.round(score, 0 if coarse else 9)
    inside, outside = score[member], score[~member]
    points = roc.roc_curve(inside, outside, points=30)
    assert len(points) <= 30
    assert points == sorted(set(points))
    assert points[0][0] == 0
    assert points[-1] == (len(outside), len(inside))
    for wrong, right in points[:-1]:
        # The lowest of the non-members' scores with so many false positives.
        t = min(t for t in outside if np.sum(outside > t) == wrong)
        assert right == np.sum(inside > t)
    if not coarse:
        # No gap of more than a step of the logarithm.
        wrong = np.array([point[0] for point in points[1:]])
        assert np.all(wrong[1:] <= np.maximum(wrong[:-1] + 1, 1.3 * wrong[:-1]))
    assert roc.roc_curve(inside, outside[:0]) == []
