"""What is drawn, what becomes of it, and that an interval covers what it should."""

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


def test_hospitals_are_drawn_and_then_their_patients_anew():
    weights = np.asarray(jax.vmap(clustered)(KEYS))
    inside = np.add.reduceat(weights, OFFSET, axis=1)
    times = inside / np.array(COUNT)
    # Whole hospitals, as many as there are, each as often as any other.
    np.testing.assert_array_equal(times, np.round(times))
    assert (times.sum(1) == len(COUNT)).all()
    np.testing.assert_allclose(times.mean(0), 1, atol=0.1)
    np.testing.assert_allclose(times.var(0), 0.75, atol=0.1)
    # Given m draws, patients are multinomial: were the second draw of a hospital that
    # of the first over again, their variance would be m times as large.
    for m in (1, 2, 3):
        drawn = weights[times[:, 3] == m][:, OFFSET[3] :]
        np.testing.assert_allclose(drawn.var(0).mean(), m * 29 / 30, rtol=0.1)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_an_interval_is_the_quantiles_of_a_loop(chunk):
    """Whatever the chunk."""
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


@pytest.mark.parametrize(("share", "known"), [(0.4, True), (0.6, False)])
def test_what_most_resamples_cannot_estimate_has_no_interval(share, known):
    def statistic(weight):
        return jnp.where(weight[0] == 0, jnp.nan, 1.0)

    def draw(key):
        return (jax.random.uniform(key, (1,)) > share).astype(jnp.int32)

    got = bootstrap.interval(statistic, draw, jax.random.key(0), resamples=400)
    assert np.isnan(got.low).all() != known
    assert np.isnan(got.high).all() != known


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


def test_only_the_clustered_interval_knows_that_hospitals_differ():
    """A mean over 20 hospitals of 15 records with a deviation of their own."""
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
