"""Folds under masks: against NumPy, against liars, and inside a round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from fairjax.core import aggregate, layout, require, round
from fairjax.core.types import Cohort, Sent
from fairjax.fairness import weights
from fairjax.robust import folds
from fairjax.submodels.heterofl import heterofl
from tests import fakes

K = 7
KEY = jax.random.key(0)


def stack(values, masks=None, valid=None, weight=None):
    """A stack of one leaf, and of one tiers' leaf with the same content."""
    values = np.asarray(values, np.float32)
    masks = np.ones_like(values) if masks is None else np.asarray(masks, np.float32)
    valid = np.ones(len(values), bool) if valid is None else np.asarray(valid)
    weight = np.full(len(values), 1.0) if weight is None else np.asarray(weight)
    num, den = jnp.asarray(values * masks), jnp.asarray(masks)
    weight = jnp.asarray(np.where(valid, weight, 0), jnp.float32)
    sent = Sent({"a": num}, {"a": den}, {"b": (num, den)})
    return folds.Stack(sent, weight, weight, jnp.asarray(valid))


def found(fold, stacked):
    """The fold's result of the leaf, where somebody holds it."""
    sums, entered = jax.jit(fold)(stacked)
    mean = aggregate.masked_mean(sums.num, sums.den)["a"]
    np.testing.assert_array_equal(mean, aggregate.masked_mean(*sums.tiers["b"]))
    return np.asarray(mean), np.asarray(entered)


def masked(seed=0, shape=(5, 3)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(K, *shape)), rng.integers(0, 2, (K, *shape))


# ---------------------------------------------------------------------- by coordinate


@pytest.mark.parametrize("seed", range(3))
def test_the_median_is_numpys_over_who_holds_a_coordinate(seed):
    values, masks = masked(seed)
    masks[:, 0, 0] = 0
    valid = np.array([True, True, False, True, True, True, True])
    got, entered = found(folds.median(), stack(values, masks, valid))
    held = (masks > 0) & valid[:, None, None]
    seen = np.where(held, values, np.nan)
    seen[:, 0, 0] = 0
    np.testing.assert_allclose(got, np.nanmedian(seen, axis=0), atol=1e-6)
    np.testing.assert_array_equal(entered, valid)


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.45])
def test_the_trimmed_mean_is_scipys_over_who_holds_a_coordinate(beta):
    values, masks = masked()
    got, _ = found(folds.trimmed_mean(beta=beta), stack(values, masks))
    for i, j in np.ndindex(5, 3):
        mine = values[:, i, j][masks[:, i, j] > 0]
        expected = scipy.stats.trim_mean(mine, beta) if len(mine) else 0
        np.testing.assert_allclose(got[i, j], expected, atol=1e-6)


def test_what_is_cut_does_not_fall_short_by_rounding():
    holders = jnp.arange(1, 201)
    for percent in range(50):
        cut = folds.cut_of(percent / 100, holders)
        np.testing.assert_array_equal(cut, percent * np.arange(1, 201) // 100)


def test_what_is_cut_is_no_more_than_the_floor():
    assert folds.cut_of(0.3333, jnp.asarray(3)) == 0
    assert folds.cut_of(0.1999, jnp.asarray(5)) == 0


def test_something_is_left_however_near_a_half_is_cut():
    holders = jnp.arange(1, 201)
    cut = folds.cut_of(np.nextafter(0.5, 0), holders)
    assert np.all(2 * cut < holders)
    assert folds.cut_of(0.49, jnp.asarray(0)) == 0


@given(st.integers(0, 2**31 - 1), st.sampled_from(["median", "trimmed_mean"]))
def test_as_many_liars_as_stated_leave_it_between_honest_values(seed, name):
    fold = folds.median() if name == "median" else folds.trimmed_mean(beta=0.3)
    rng = np.random.default_rng(seed)
    values, masks = masked(seed)
    liars = {}
    for i, j in np.ndindex(5, 3):
        holders = rng.permutation(np.flatnonzero(masks[:, i, j]))
        bears = folds.breakdown(name, len(holders), beta=0.3)
        liars[i, j] = holders[:bears]
        values[liars[i, j], i, j] = rng.choice([-1e6, 1e6, 1e3], bears)
    got, _ = found(fold, stack(values, masks))
    for i, j in np.ndindex(5, 3):
        honest = np.setdiff1d(np.flatnonzero(masks[:, i, j]), liars[i, j])
        if len(honest):
            mine = values[honest, i, j].astype(np.float32)
            assert mine.min() - 1e-6 <= got[i, j] <= mine.max() + 1e-6


def test_one_liar_more_moves_it_anywhere():
    """So the breakdown points are not understated."""
    for holders in range(1, K + 1):
        for name, fold in (
            ("median", folds.median()),
            ("trimmed_mean", folds.trimmed_mean(beta=0.3)),
        ):
            bears = folds.breakdown(name, holders, beta=0.3)
            values = np.ones((holders, 1))
            values[: bears + 1] = 1e6
            assert found(fold, stack(values))[0] > 1e3


# ------------------------------------------------------------------------- by hospital


def by_hand(values, masks, valid, hostile):
    """Scores of Krum, with means over what two hold in common."""
    n = valid.sum()
    scores = np.full(len(values), np.inf)
    for k in np.flatnonzero(valid):
        apart = []
        for j in np.flatnonzero(valid):
            both = (masks[k] * masks[j]) > 0
            if j != k:
                square = np.square(values[k] - values[j])[both]
                apart.append(square.mean() if both.any() else np.inf)
        scores[k] = np.sort(apart)[: n - hostile - 2].sum()
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_krum_chooses_as_by_hand(seed):
    values, masks = masked(seed)
    valid = np.array([True, True, True, True, False, True, True])
    scores = by_hand(values, masks, valid, 1)
    got, entered = found(folds.krum(hostile=1), stack(values, masks, valid))
    best = np.argmin(scores)
    assert np.flatnonzero(entered).tolist() == [best]
    np.testing.assert_allclose(got, (values * masks)[best], atol=1e-6)
    weight = np.arange(1.0, K + 1)
    got, entered = found(
        folds.multi_krum(hostile=1), stack(values, masks, valid, weight)
    )
    chosen = np.argsort(scores, kind="stable")[: valid.sum() - 3]
    assert np.flatnonzero(entered).tolist() == sorted(chosen)
    total = np.einsum("k,kij->ij", weight[chosen], (values * masks)[chosen])
    held = np.einsum("k,kij->ij", weight[chosen], masks[chosen])
    np.testing.assert_allclose(got, total / np.where(held > 0, held, 1), atol=1e-5)


def test_weights_decide_nothing_in_krum_and_who_enters_in_multi_krum():
    """Also where a rule's weight is not the base that its change is divided by."""
    values, _ = masked()
    plain, chosen = found(folds.krum(hostile=1), stack(values))
    uneven = stack(values, weight=1.0 - chosen)._replace(base=jnp.ones(K))
    got, entered = found(folds.krum(hostile=1), uneven)
    np.testing.assert_array_equal(got, plain)
    np.testing.assert_array_equal(entered, chosen)
    _, several = found(folds.multi_krum(hostile=1), stack(values))
    _, entered = found(folds.multi_krum(hostile=1), uneven)
    assert several.sum() == K - 3
    np.testing.assert_array_equal(entered, several - chosen)


def test_a_small_sub_model_is_not_close_for_being_small():
    """By sums of squares they would lie together, though they disagree."""
    rng = np.random.default_rng(0)
    values = 1 + 0.01 * rng.normal(size=(K, 100))
    masks = np.ones((K, 100))
    masks[:3, 2:] = 0
    values[:3, :2] = [[4, 4], [-4, -4], [0, 9]]
    _, entered = found(folds.multi_krum(hostile=2), stack(values, masks))
    assert not entered[:3].any()
    assert entered.sum() == K - 4


def test_masks_that_broadcast_count_every_coordinate():
    """One leaf of 100 coordinates by 5 entries of its mask, one of 2."""
    rng = np.random.default_rng(1)
    wide, narrow = rng.normal(size=(K, 5, 20)), rng.normal(size=(K, 2))
    mask = np.ones((K, 5, 1))
    mask[0, 3:] = 0
    sent = Sent(
        {"w": jnp.asarray(wide * mask), "n": jnp.asarray(narrow)},
        {"w": jnp.asarray(mask), "n": jnp.ones((K, 2))},
        {},
    )
    got = folds.distances(sent, jnp.ones(K, bool))
    square = (
        np.square(wide[0] - wide[1])[:3].sum() + np.square(narrow[0] - narrow[1]).sum()
    )
    np.testing.assert_allclose(got[0, 1], square / 62, rtol=1e-5)
    np.testing.assert_allclose(got, got.T, rtol=1e-5)
    assert np.all(np.isinf(np.diagonal(got)))


@pytest.mark.parametrize("fold", [folds.krum, folds.multi_krum])
def test_fewer_than_twice_the_liars_and_three_change_nothing(fold):
    values, _ = masked()
    for came in range(K + 1):
        valid = np.arange(K) < came
        got, entered = found(fold(hostile=2), stack(values, valid=valid))
        assert entered.any() == (came >= 7)
        assert got.any() == (came >= 7)


# -------------------------------------------------------------------------- norm bound


def test_changes_are_bounded_by_what_was_usual_in_their_tier():
    """Three rounds of two tiers by hand; the first one measures."""
    bound = folds.bounded(aggregate.OPEN, factor=2.0, tiers=3)
    cohort = Cohort(
        jnp.asarray([4, 2, 7, 0], jnp.int32),
        jnp.asarray([0, 0, 0, 1], jnp.int32),
        jnp.asarray([True, True, True, True]),
    )
    lengths = np.array([[3.0, 1.0, 2.0, 8.0], [2.0, 100.0, 8.0, 8.0], [1, 1, 1, 20]])
    usual = [[2.0, 8.0], [np.sqrt(2 * 8), 8.0]]
    state = bound.init()
    data = fakes.federation(counts=(5,) * 8)
    members = round.members(data, cohort)
    for number, norms in enumerate(lengths):
        unit = jnp.asarray([0.6, 0.8])
        num = jnp.asarray(norms, jnp.float32)[:, None] * unit
        sent = Sent({"a": num}, {"a": jnp.ones((4, 2))}, {})
        one = jnp.ones(4)
        protect = functools.partial(bound.protect, KEY, state, cohort)
        sums = jax.tree.map(
            lambda leaf: leaf.sum(0), jax.vmap(protect)(members, sent, one, one)
        )
        share = bound.entered(state, cohort, cohort.valid, sums)
        released, state = bound.release(KEY, state, cohort, cohort.valid, sums, None)
        if number == 0:
            expected = np.zeros(4)
        else:
            most = 2 * np.array(usual[number - 1])[np.asarray(cohort.tier)]
            expected = np.minimum(1, most / norms)
        np.testing.assert_allclose(share, expected, rtol=1e-5)
        np.testing.assert_allclose(
            released.num["a"], (expected * norms).sum() * unit, rtol=1e-5
        )
        if number < 2:
            np.testing.assert_allclose(state.median, [*usual[number], 0], rtol=1e-5)


def test_a_tier_without_clients_keeps_its_bound():
    bound = folds.bounded(aggregate.OPEN, factor=1.0, tiers=2)
    state = folds._Bounds((), jnp.asarray([3.0, 5.0]))
    cohort = fakes.cohort((0, 1), (1, 1), (True, False))
    sums = Sent({}, {}, {}), jnp.asarray([20.0, 0.0])
    _, after = bound.release(KEY, state, cohort, cohort.valid, sums, None)
    np.testing.assert_allclose(after.median, [3, 10], rtol=1e-6)


# --------------------------------------------------------------------- breakdown points


def test_rings_are_what_the_same_tiers_hold():
    params = {"a": jnp.zeros((4, 3)), "b": jnp.zeros(5)}
    holders = {
        "a": np.asarray([[4, 0, 0, 0], [3, 3, 0, 0], [2, 2, 2, 0]])[..., None],
        # Of tier 1 not all hold them, and the third no more than one.
        "b": np.asarray([[0] * 5, [3, 2, 1, 2, 3], [2, 2, 0, 2, 2]]),
    }
    assert folds.rings(params, holders) == [
        ((0, 1, 2), 3, 9),
        ((1, 2), 7, 4),
        ((1,), 1, 1),
        ((2,), 3, 2),
        ((), 3, 0),
    ]


@pytest.mark.parametrize(
    ("fold", "bears"),
    [
        ("mean", [0, 0, 0, 0, 0, 0]),
        ("median", [0, 0, 0, 1, 2, 4]),
        ("trimmed_mean", [0, 0, 0, 0, 1, 2]),
        ("krum", [0, 0, 0, 0, 0, 0]),
        ("multi_krum", [0, 0, 0, 0, 0, 0]),
    ],
)
def test_breakdown_points(fold, bears):
    got = [folds.breakdown(fold, holders, beta=0.2) for holders in (0, 1, 2, 3, 5, 10)]
    assert got == bears


def test_krum_may_move_one_coordinate_beyond_every_honest_value():
    """Why it has no breakdown point there: near in 99 coordinates is near."""
    values = np.random.default_rng(0).normal(size=(K, 100))
    values[0] = values[1:].mean(axis=0)
    values[0, 0] = 5.0
    got, entered = found(folds.krum(hostile=1), stack(values))
    assert np.flatnonzero(entered).tolist() == [0]
    assert got[0] > values[1:, 0].max() + 1


# ----------------------------------------------------------------------- inside a round

DATA = fakes.federation(counts=(10, 7, 23, 5, 12))
COHORT = fakes.cohort((0, 1, 2, 3, 4), (0, 1, 2, 1, 2))


def ended(protection, laid=None, cohort=COHORT, **more):
    model = fakes.small_mlp()
    spec = fakes.spec(
        model,
        heterofl(model.axes, (0.5, 0.75, 1.0), scaler=True, masked_loss=False),
        counts=(10, 7, 23, 5, 12),
        protection=protection,
        **more,
    )
    state = fakes.start(spec, DATA)
    step = functools.partial(round.step, spec=spec, layout=laid or layout.vmapped())
    return state, *jax.jit(step)(state, DATA, cohort)


ALL = {
    "median": folds.median(),
    "trimmed_mean": folds.trimmed_mean(beta=0.2),
    "krum": folds.krum(hostile=1),
    "multi_krum": folds.multi_krum(hostile=1),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "multi_krum" else [])
        for name in ALL
    ],
)
def test_a_fold_is_the_same_under_every_layout_and_order(name):
    protection = folds.folded(aggregate.OPEN, ALL[name])
    _, state, info = ended(protection)
    order = jnp.asarray([3, 0, 4, 2, 1])
    turned = jax.tree.map(lambda leaf: leaf[order], COHORT)
    _, other, told = ended(protection, layout.scanned(), turned)
    assert fakes.gap(state.params, other.params) < 1e-5
    np.testing.assert_array_equal(info.valid[order], told.valid)
    np.testing.assert_array_equal(state.attendance.came, np.ones(5))
    np.testing.assert_array_equal(state.attendance.entered, other.attendance.entered)


def test_nothing_trimmed_is_the_uniform_mean():
    _, plain, _ = ended(aggregate.OPEN, rule=weights.uniform())
    trimmed = folds.folded(aggregate.OPEN, folds.trimmed_mean(beta=0.0))
    _, robust, _ = ended(trimmed)
    assert fakes.gap(plain.params, robust.params) < 1e-5


def test_who_is_not_chosen_did_not_enter():
    protection = folds.folded(aggregate.OPEN, ALL["krum"])
    start, state, info = ended(protection)
    assert info.valid.sum() == 1
    np.testing.assert_array_equal(info.weights, info.valid)
    np.testing.assert_array_equal(state.attendance.entered, info.valid)
    assert fakes.gap(start.params, state.params) > 0


def test_a_bounded_fold_folds_what_is_bounded():
    inner = folds.folded(aggregate.OPEN, ALL["median"])
    both = folds.bounded(inner, factor=1.0, tiers=3)
    start, state, info = ended(both)
    assert fakes.equal(start.params, state.params)
    assert not info.valid.any()
    assert np.all(np.asarray(state.protection.median) > 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: folds.trimmed_mean(beta=0.5), r"robust\.trimmed_mean\.beta"),
        (lambda: folds.krum(hostile=-1), r"robust\.hostile"),
        (
            lambda: folds.bounded(aggregate.OPEN, factor=0.0, tiers=1),
            r"robust\.norm_bound",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(require.InputError, match=message):
        make()
