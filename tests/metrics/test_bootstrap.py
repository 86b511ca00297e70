"""Resamples, the statistics of them, and the coverage of intervals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import metrics
from fairjax.metrics import bootstrap

COUNT = (5, 1, 12, 30)
OFFSET = (0, 5, 6, 18)
ROWS = sum(COUNT)
clustered = functools.partial(
    bootstrap.clustered,
    offset=jnp.asarray(OFFSET),
    count=jnp.asarray(COUNT),
    rows=ROWS,
    longest=max(COUNT),
)
KEYS = jax.random.split(jax.random.key(0), 2000)


def test_records_are_drawn_with_replacement():
    weights = np.asarray(jax.vmap(lambda key: bootstrap.records(key, 20))(KEYS))
    assert (weights.sum(1) == 20).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.1)
    np.testing.assert_allclose(weights.var(0), 0.95, atol=0.12)  # multinomial: 1 - 1/n


def test_clients_are_drawn_and_then_their_patients_anew():
    weights = np.asarray(jax.vmap(clustered)(KEYS))
    inside = np.add.reduceat(weights, OFFSET, axis=1)
    times = inside / np.array(COUNT)
    # N whole clients are drawn, each as often as any other.
    np.testing.assert_array_equal(times, np.round(times))
    assert (times.sum(1) == len(COUNT)).all()
    np.testing.assert_allclose(times.mean(0), 1, atol=0.1)
    np.testing.assert_allclose(times.var(0), 0.75, atol=0.1)
    # Given m draws of a client, its patients are multinomial. If the second draw
    # repeated the first, their variance would be m times as large.
    for m in (1, 2, 3):
        drawn = weights[times[:, 3] == m][:, OFFSET[3] :]
        np.testing.assert_allclose(drawn.var(0).mean(), m * 29 / 30, rtol=0.1)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_an_interval_is_the_quantiles_of_a_loop(chunk):
    """For every chunk size."""
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=ROWS).astype(np.float32))
    positive, one = jnp.asarray(rng.random(ROWS) < 0.4), jnp.zeros(ROWS, int)

    def statistic(weight):
        area = metrics.auroc(scores, positive, one, 1, weight=weight)[0]
        return {"auroc": area, "twice": jnp.stack([area, 2 * area])}

    key = jax.random.key(1)
    got = bootstrap.interval(
        statistic, clustered, key, resamples=50, level=0.9, chunk=chunk
    )
    again = jax.jit(lambda key: statistic(clustered(key))["auroc"])
    values = [float(again(jax.random.fold_in(key, r))) for r in range(1, 51)]
    expected = np.nanquantile(values, [0.05, 0.95])
    np.testing.assert_allclose(
        [got.low["auroc"], got.high["auroc"]], expected, rtol=1e-6
    )
    np.testing.assert_allclose(
        got.high["twice"], expected[1] * np.array([1, 2]), rtol=1e-6
    )


def test_within_clients_every_client_keeps_its_number_of_patients():
    count = np.array([3, 1, 6])
    draw = functools.partial(
        bootstrap.clustered,
        offset=jnp.asarray([0, 3, 4]),
        count=jnp.asarray(count),
        rows=10,
        longest=6,
    )
    keys = jax.random.split(jax.random.key(0), 50)
    times = np.array(jax.vmap(functools.partial(draw, within_clients=True))(keys))
    per_hospital = np.add.reduceat(times, [0, 3, 4], axis=1)
    assert np.all(per_hospital == count)
    assert len(np.unique(times, axis=0)) > 40
    freely = np.add.reduceat(np.array(jax.vmap(draw)(keys)), [0, 3, 4], axis=1)
    assert not np.all(freely == count)


@pytest.mark.parametrize(("share", "known"), [(0.4, True), (0.6, False)])
def test_a_figure_that_most_resamples_lack_has_no_interval(share, known):
    def statistic(weight):
        return jnp.where(weight[0] == 0, jnp.nan, 1.0)

    def draw(key):
        return (jax.random.uniform(key, (1,)) > share).astype(jnp.int32)

    got = bootstrap.interval(statistic, draw, jax.random.key(0), resamples=400)
    assert np.isnan(got.low).all() != known
    assert np.isnan(got.high).all() != known


def gap_of(weight, outcome, group, number):
    """Shares by group over weighted records."""
    return metrics.groups.rates(
        outcome, jnp.ones_like(outcome), group, number, weight=weight
    ).selection


@pytest.mark.parametrize("shares", [(0.4, 0.4), (0.3, 0.3, 0.3, 0.3), (0.2, 0.5, 0.5)])
def test_the_interval_of_a_gap_covers_it_where_percentiles_do_not(shares):
    """It covers even a gap of 0, which no resample of unequal shares has."""
    rng = np.random.default_rng(2)
    number, size, turns = len(shares), 40, 200
    group = jnp.arange(number * size) % number
    drawn = rng.random((turns, number * size)) < np.asarray(shares)[group]
    truth = max(shares) - min(shares)

    @jax.jit
    def both(outcome, key):
        statistic = functools.partial(
            gap_of, outcome=outcome, group=group, number=number
        )
        draw = functools.partial(bootstrap.records, rows=number * size)
        made = bootstrap.resample_statistic(statistic, draw, key, jnp.arange(201))
        values, found = made[1:], made[0]
        gap = metrics.groups.difference(found)
        errors = metrics.groups.errors(values, found)
        far = bootstrap.reach(metrics.groups.difference(errors))
        return gap, far, bootstrap.bounds(metrics.groups.difference(values))

    keys = jax.random.split(jax.random.key(4), turns)
    gap, far, percentiles = jax.lax.map(
        lambda each: both(*each), (jnp.asarray(drawn), keys)
    )
    ours = bootstrap.Interval(jnp.maximum(gap - far, 0), gap + far)
    assert covered(ours, truth) >= 0.94
    assert np.all((ours.low <= gap) & (gap <= ours.high))
    if truth == 0:
        assert covered(percentiles, truth) < 0.6


def test_reach_is_a_quantile_of_known_distances():
    away = jnp.asarray([[0.3, 1.0], [0.1, math.nan], [0.2, math.nan], [0.4, math.nan]])
    far = bootstrap.reach(away, 0.5)
    np.testing.assert_allclose(far, [0.25, math.nan], rtol=1e-6)


def covered(interval, truth):
    return float(np.mean((interval.low <= truth) & (truth <= interval.high)))


def test_plain_intervals_of_auroc_cover_at_their_level():
    """Binormal scores one deviation apart: AUROC = Phi(1 / sqrt 2)."""
    rng = np.random.default_rng(0)
    positive = np.arange(120) % 3 == 0
    scores = (rng.normal(size=(200, 120)) + positive).astype(np.float32)
    positive, one = jnp.asarray(positive), jnp.zeros(120, int)

    @jax.jit
    def intervals(scores, key):
        return bootstrap.interval(
            lambda w: metrics.auroc(scores, positive, one, 1, weight=w)[0],
            functools.partial(bootstrap.records, rows=120),
            key,
            resamples=400,
        )

    keys = jax.random.split(jax.random.key(2), 200)
    truth = 0.5 * (1 + math.erf(0.5))
    found = jax.lax.map(lambda each: intervals(*each), (jnp.asarray(scores), keys))
    assert 0.91 <= covered(found, truth) <= 0.98


def test_only_the_clustered_interval_accounts_for_differences_between_clients():
    """A mean over 20 clients of 15 records, with a deviation per client."""
    rng = np.random.default_rng(1)
    hospitals, records = 20, 15
    values = rng.normal(size=(100, hospitals, 1)) + rng.normal(
        size=(100, hospitals, records)
    )
    values = values.reshape(100, -1).astype(np.float32)
    rows = hospitals * records
    draws = {
        "plain": functools.partial(bootstrap.records, rows=rows),
        "clustered": functools.partial(
            bootstrap.clustered,
            offset=jnp.arange(hospitals) * records,
            count=jnp.full((hospitals,), records),
            rows=rows,
            longest=records,
        ),
    }
    keys = jax.random.split(jax.random.key(3), 100)
    shares = {}
    for name, draw in draws.items():

        @jax.jit
        def intervals(values, key, draw=draw):
            return bootstrap.interval(
                lambda w: jnp.average(values, weights=w.astype(jnp.float32)),
                draw,
                key,
                resamples=200,
            )

        found = jax.lax.map(lambda a, f=intervals: f(*a), (values, keys))
        shares[name] = covered(found, 0.0)
    assert shares["plain"] < 0.6
    assert 0.88 <= shares["clustered"] <= 0.99
