"""Aggregators under masks: against NumPy, Byzantine clients, and inside a round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from fairjax.core import aggregate, layout, participants, require, round
from fairjax.core.types import Cohort, Upload
from fairjax.fairness import weights
from fairjax.robust import aggregators, norm_bound
from fairjax.robust.breakdown import breakdown, rings
from fairjax.submodels.heterofl import heterofl
from tests import fakes

K = 7
KEY = jax.random.key(0)


def stack(values, masks=None, valid=None, weight=None):
    """A stack of one shared leaf and one tier leaf with the same content."""
    values = np.asarray(values, np.float32)
    masks = np.ones_like(values) if masks is None else np.asarray(masks, np.float32)
    valid = np.ones(len(values), bool) if valid is None else np.asarray(valid)
    weight = np.full(len(values), 1.0) if weight is None else np.asarray(weight)
    num, den = jnp.asarray(values * masks), jnp.asarray(masks)
    weight = jnp.asarray(np.where(valid, weight, 0), jnp.float32)
    uploads = Upload({"a": num}, {"a": den}, {"b": (num, den)})
    return aggregators.Stack(uploads, weight, weight, jnp.asarray(valid))


def aggregated(aggregator, stacked):
    """The aggregate of the leaf, where any client holds it, and what share entered."""
    sums, entered = jax.jit(aggregator)(stacked)
    mean = aggregate.masked_mean(sums.num, sums.den)["a"]
    np.testing.assert_array_equal(mean, aggregate.masked_mean(*sums.tiers["b"]))
    return np.asarray(mean), np.asarray(entered)


def masked(seed=0, shape=(5, 3)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(K, *shape)), rng.integers(0, 2, (K, *shape))


# ----------------------------------------------------------------------- by coordinate


@pytest.mark.parametrize("seed", range(3))
def test_the_median_is_numpys_over_the_holders_of_a_coordinate(seed):
    values, masks = masked(seed)
    masks[:, 0, 0] = 0
    valid = np.array([True, True, False, True, True, True, True])
    got, entered = aggregated(aggregators.median(), stack(values, masks, valid))
    is_holder = (masks > 0) & valid[:, None, None]
    known = np.where(is_holder, values, np.nan)
    known[:, 0, 0] = 0
    np.testing.assert_allclose(got, np.nanmedian(known, axis=0), atol=1e-6)
    np.testing.assert_array_equal(entered, valid)


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.45])
def test_the_trimmed_mean_is_scipys_over_the_holders_of_a_coordinate(beta):
    values, masks = masked()
    got, _ = aggregated(aggregators.trimmed_mean(beta=beta), stack(values, masks))
    for i, j in np.ndindex(5, 3):
        held_values = values[:, i, j][masks[:, i, j] > 0]
        expected = scipy.stats.trim_mean(held_values, beta) if len(held_values) else 0
        np.testing.assert_allclose(got[i, j], expected, atol=1e-6)


def test_the_trim_count_does_not_fall_short_by_rounding():
    holders = jnp.arange(1, 201)
    for percent in range(50):
        num_trimmed = aggregators.trim_count(percent / 100, holders)
        np.testing.assert_array_equal(num_trimmed, percent * np.arange(1, 201) // 100)


def test_the_trim_count_is_no_more_than_the_floor():
    assert aggregators.trim_count(0.3333, jnp.asarray(3)) == 0
    assert aggregators.trim_count(0.1999, jnp.asarray(5)) == 0


def test_some_values_are_left_however_near_beta_is_to_a_half():
    holders = jnp.arange(1, 201)
    num_trimmed = aggregators.trim_count(np.nextafter(0.5, 0), holders)
    assert np.all(2 * num_trimmed < holders)
    assert aggregators.trim_count(0.49, jnp.asarray(0)) == 0


@given(st.integers(0, 2**31 - 1), st.sampled_from(["median", "trimmed_mean"]))
def test_as_many_byzantine_clients_as_stated_leave_it_between_honest_values(seed, name):
    aggregator = (
        aggregators.median() if name == "median" else aggregators.trimmed_mean(beta=0.3)
    )
    rng = np.random.default_rng(seed)
    values, masks = masked(seed)
    byzantine = {}
    for i, j in np.ndindex(5, 3):
        holders = rng.permutation(np.flatnonzero(masks[:, i, j]))
        withstood = breakdown(name, len(holders), beta=0.3)
        byzantine[i, j] = holders[:withstood]
        values[byzantine[i, j], i, j] = rng.choice([-1e6, 1e6, 1e3], withstood)
    got, _ = aggregated(aggregator, stack(values, masks))
    for i, j in np.ndindex(5, 3):
        honest = np.setdiff1d(np.flatnonzero(masks[:, i, j]), byzantine[i, j])
        if len(honest):
            honest_values = values[honest, i, j].astype(np.float32)
            assert honest_values.min() - 1e-6 <= got[i, j] <= honest_values.max() + 1e-6


def test_one_byzantine_client_more_moves_it_anywhere():
    """So the breakdown points are not understated."""
    for holders in range(1, K + 1):
        for name, aggregator in (
            ("median", aggregators.median()),
            ("trimmed_mean", aggregators.trimmed_mean(beta=0.3)),
        ):
            withstood = breakdown(name, holders, beta=0.3)
            values = np.ones((holders, 1))
            values[: withstood + 1] = 1e6
            assert aggregated(aggregator, stack(values))[0] > 1e3


# ------------------------------------------------------------------------- by distance


def krum_scores(values, masks, valid, num_byzantine):
    """Krum's scores in loops, with means over common coordinates."""
    n = valid.sum()
    scores = np.full(len(values), np.inf)
    for k in np.flatnonzero(valid):
        apart = []
        for j in np.flatnonzero(valid):
            both = (masks[k] * masks[j]) > 0
            if j != k:
                square = np.square(values[k] - values[j])[both]
                apart.append(square.mean() if both.any() else np.inf)
        scores[k] = np.sort(apart)[: n - num_byzantine - 2].sum()
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_krum_and_multi_krum_choose_as_by_hand(seed):
    values, masks = masked(seed)
    valid = np.array([True, True, True, True, False, True, True])
    scores = krum_scores(values, masks, valid, 1)
    got, entered = aggregated(
        aggregators.krum(num_byzantine=1), stack(values, masks, valid)
    )
    best = np.argmin(scores)
    assert np.flatnonzero(entered).tolist() == [best]
    np.testing.assert_allclose(got, (values * masks)[best], atol=1e-6)
    weight = np.arange(1.0, K + 1)
    got, entered = aggregated(
        aggregators.multi_krum(num_byzantine=1), stack(values, masks, valid, weight)
    )
    chosen = np.argsort(scores, kind="stable")[: valid.sum() - 3]
    assert np.flatnonzero(entered).tolist() == sorted(chosen)
    total = np.einsum("k,kij->ij", weight[chosen], (values * masks)[chosen])
    cover = np.einsum("k,kij->ij", weight[chosen], masks[chosen])
    np.testing.assert_allclose(got, total / np.where(cover > 0, cover, 1), atol=1e-5)


def test_weights_decide_nothing_in_krum_and_who_enters_in_multi_krum():
    """Also if a rule's weight differs from the weight of the denominator."""
    values, _ = masked()
    plain, chosen = aggregated(aggregators.krum(num_byzantine=1), stack(values))
    uneven = stack(values, weight=1.0 - chosen)._replace(denominator_weight=jnp.ones(K))
    got, entered = aggregated(aggregators.krum(num_byzantine=1), uneven)
    np.testing.assert_array_equal(got, plain)
    np.testing.assert_array_equal(entered, chosen)
    _, several = aggregated(aggregators.multi_krum(num_byzantine=1), stack(values))
    _, entered = aggregated(aggregators.multi_krum(num_byzantine=1), uneven)
    assert several.sum() == K - 3
    np.testing.assert_array_equal(entered, several - chosen)


def test_a_small_sub_model_is_not_close_for_being_small():
    """Sums of squares would put the small ones together, though they disagree."""
    rng = np.random.default_rng(0)
    values = 1 + 0.01 * rng.normal(size=(K, 100))
    masks = np.ones((K, 100))
    masks[:3, 2:] = 0
    values[:3, :2] = [[4, 4], [-4, -4], [0, 9]]
    _, entered = aggregated(
        aggregators.multi_krum(num_byzantine=2), stack(values, masks)
    )
    assert not entered[:3].any()
    assert entered.sum() == K - 4


def test_masks_that_broadcast_count_every_coordinate():
    """One leaf has 100 coordinates and a mask of 5 entries, the other 2 coordinates."""
    rng = np.random.default_rng(1)
    wide, narrow = rng.normal(size=(K, 5, 20)), rng.normal(size=(K, 2))
    mask = np.ones((K, 5, 1))
    mask[0, 3:] = 0
    sent = Upload(
        {"w": jnp.asarray(wide * mask), "n": jnp.asarray(narrow)},
        {"w": jnp.asarray(mask), "n": jnp.ones((K, 2))},
        {},
    )
    got = aggregators.distances(sent, jnp.ones(K, bool))
    square = (
        np.square(wide[0] - wide[1])[:3].sum() + np.square(narrow[0] - narrow[1]).sum()
    )
    np.testing.assert_allclose(got[0, 1], square / 62, rtol=1e-5)
    np.testing.assert_allclose(got, got.T, rtol=1e-5)
    assert np.all(np.isinf(np.diagonal(got)))


@pytest.mark.parametrize("make", [aggregators.krum, aggregators.multi_krum])
def test_fewer_than_twice_the_byzantine_clients_and_three_change_nothing(make):
    values, _ = masked()
    for num_valid in range(K + 1):
        valid = np.arange(K) < num_valid
        got, entered = aggregated(make(num_byzantine=2), stack(values, valid=valid))
        assert entered.any() == (num_valid >= 7)
        assert got.any() == (num_valid >= 7)


# -------------------------------------------------------------------------- norm bound


def test_changes_are_bounded_by_what_was_usual_in_their_tier():
    """Three rounds of two tiers by hand; the first round only measures."""
    bound = norm_bound.with_norm_bound(aggregate.OPEN, factor=2.0, tiers=3)
    cohort = Cohort(
        jnp.asarray([4, 2, 7, 0], jnp.int32),
        jnp.asarray([0, 0, 0, 1], jnp.int32),
        jnp.asarray([True, True, True, True]),
    )
    lengths = np.array([[3.0, 1.0, 2.0, 8.0], [2.0, 100.0, 8.0, 8.0], [1, 1, 1, 20]])
    usual = [[2.0, 8.0], [np.sqrt(2 * 8), 8.0]]
    state = bound.init()
    data = fakes.federation(counts=(5,) * 8)
    members = participants.client_views(data, cohort)
    for number, norms in enumerate(lengths):
        unit = jnp.asarray([0.6, 0.8])
        num = jnp.asarray(norms, jnp.float32)[:, None] * unit
        sent = Upload({"a": num}, {"a": jnp.ones((4, 2))}, {})
        one = jnp.ones(4)
        protect = functools.partial(bound.protect, KEY, state, cohort)
        sums = jax.tree.map(
            lambda leaf: leaf.sum(0), jax.vmap(protect)(members, sent, one, one)
        )
        share = bound.accepted(state, cohort, cohort.valid, sums)
        released, state = bound.release(KEY, state, cohort, cohort.valid, sums, None)
        if number == 0:
            expected = np.zeros(4)
        else:
            limit = 2 * np.array(usual[number - 1])[np.asarray(cohort.tier)]
            expected = np.minimum(1, limit / norms)
        np.testing.assert_allclose(share, expected, rtol=1e-5)
        np.testing.assert_allclose(
            released.num["a"], (expected * norms).sum() * unit, rtol=1e-5
        )
        if number < 2:
            np.testing.assert_allclose(state.median, [*usual[number], 0], rtol=1e-5)


def test_a_tier_without_clients_keeps_its_bound():
    bound = norm_bound.with_norm_bound(aggregate.OPEN, factor=1.0, tiers=2)
    state = norm_bound._NormBoundState((), jnp.asarray([3.0, 5.0]))
    cohort = fakes.cohort((0, 1), (1, 1), (True, False))
    sums = Upload({}, {}, {}), jnp.asarray([20.0, 0.0])
    _, after = bound.release(KEY, state, cohort, cohort.valid, sums, None)
    np.testing.assert_allclose(after.median, [3, 10], rtol=1e-6)


# --------------------------------------------------------------------- breakdown points


def test_rings_are_what_the_same_tiers_hold():
    params = {"a": jnp.zeros((4, 3)), "b": jnp.zeros(5)}
    holders = {
        "a": np.asarray([[4, 0, 0, 0], [3, 3, 0, 0], [2, 2, 2, 0]])[..., None],
        # Not every client of tier 1 holds them; one alone holds the third.
        "b": np.asarray([[0] * 5, [3, 2, 1, 2, 3], [2, 2, 0, 2, 2]]),
    }
    assert rings(params, holders) == [
        ((0, 1, 2), 3, 9),
        ((1, 2), 7, 4),
        ((1,), 1, 1),
        ((2,), 3, 2),
        ((), 3, 0),
    ]


@pytest.mark.parametrize(
    ("name", "withstood"),
    [
        ("mean", [0, 0, 0, 0, 0, 0]),
        ("median", [0, 0, 0, 1, 2, 4]),
        ("trimmed_mean", [0, 0, 0, 0, 1, 2]),
        ("krum", [0, 0, 0, 0, 0, 0]),
        ("multi_krum", [0, 0, 0, 0, 0, 0]),
    ],
)
def test_breakdown_points(name, withstood):
    got = [breakdown(name, holders, beta=0.2) for holders in (0, 1, 2, 3, 5, 10)]
    assert got == withstood


def test_krum_may_move_one_coordinate_beyond_every_honest_value():
    """So a coordinate has no breakdown point: near in 99 of 100 coordinates is near."""
    values = np.random.default_rng(0).normal(size=(K, 100))
    values[0] = values[1:].mean(axis=0)
    values[0, 0] = 5.0
    got, entered = aggregated(aggregators.krum(num_byzantine=1), stack(values))
    assert np.flatnonzero(entered).tolist() == [0]
    assert got[0] > values[1:, 0].max() + 1


# ----------------------------------------------------------------------- inside a round

DATA = fakes.federation(counts=(10, 7, 23, 5, 12))
COHORT = fakes.cohort((0, 1, 2, 3, 4), (0, 1, 2, 1, 2))


def run_round(protection, laid=None, cohort=COHORT, **more):
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
    "median": aggregators.median(),
    "trimmed_mean": aggregators.trimmed_mean(beta=0.2),
    "krum": aggregators.krum(num_byzantine=1),
    "multi_krum": aggregators.multi_krum(num_byzantine=1),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "multi_krum" else [])
        for name in ALL
    ],
)
def test_an_aggregator_is_the_same_under_every_layout_and_order(name):
    protection = aggregators.with_aggregator(aggregate.OPEN, ALL[name])
    _, state, info = run_round(protection)
    order = jnp.asarray([3, 0, 4, 2, 1])
    turned = jax.tree.map(lambda leaf: leaf[order], COHORT)
    _, other, other_info = run_round(protection, layout.scanned(), turned)
    assert fakes.gap(state.params, other.params) < 1e-5
    np.testing.assert_array_equal(info.valid[order], other_info.valid)
    np.testing.assert_array_equal(state.participation.selected, np.ones(5))
    np.testing.assert_array_equal(
        state.participation.accepted, other.participation.accepted
    )


def test_nothing_trimmed_is_the_uniform_mean():
    _, plain, _ = run_round(aggregate.OPEN, rule=weights.uniform())
    trimmed = aggregators.with_aggregator(
        aggregate.OPEN, aggregators.trimmed_mean(beta=0.0)
    )
    _, robust, _ = run_round(trimmed)
    assert fakes.gap(plain.params, robust.params) < 1e-5


def test_clients_that_are_not_chosen_do_not_enter():
    protection = aggregators.with_aggregator(aggregate.OPEN, ALL["krum"])
    start, state, info = run_round(protection)
    assert info.valid.sum() == 1
    np.testing.assert_array_equal(info.weights, info.valid)
    np.testing.assert_array_equal(state.participation.accepted, info.valid)
    assert fakes.gap(start.params, state.params) > 0


def test_a_norm_bound_comes_before_the_aggregator():
    inner = aggregators.with_aggregator(aggregate.OPEN, ALL["median"])
    both = norm_bound.with_norm_bound(inner, factor=1.0, tiers=3)
    start, state, info = run_round(both)
    assert fakes.equal(start.params, state.params)
    assert not info.valid.any()
    assert np.all(np.asarray(state.protection.median) > 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aggregators.trimmed_mean(beta=0.5), "^beta: expected"),
        (lambda: aggregators.krum(num_byzantine=-1), "^num_byzantine: expected"),
        (
            lambda: norm_bound.with_norm_bound(aggregate.OPEN, factor=0.0, tiers=1),
            "^factor: expected",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(require.InputError, match=message):
        make()
