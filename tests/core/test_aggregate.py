"""The masked fold against a loop over clients and coordinates."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from fairjax.core import aggregate, trees
from fairjax.core.types import Upload
from tests import fakes

K = 4
PARAMS = {"rows": jnp.arange(6.0).reshape(3, 2) / 7, "free": jnp.asarray([-0.0, 1e-8])}

number = st.floats(-8, 8, width=32)
cohorts = st.fixed_dictionaries(
    {
        "deltas": st.fixed_dictionaries(
            {
                "rows": arrays(np.float32, (K, 3, 2), elements=number),
                "free": arrays(np.float32, (K, 2), elements=number),
            }
        ),
        "masks": st.fixed_dictionaries(  # whole rows, and single coordinates
            {"rows": arrays(bool, (K, 3, 1)), "free": arrays(bool, (K, 2))}
        ),
        "weights": arrays(np.float32, K, elements=st.floats(2**-6, 8, width=32)),
    }
)


@jax.jit
def fold(deltas, masks, weights):
    """(num, den) of a cohort."""
    masks = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), masks)
    return trees.sum_first(jax.vmap(aggregate.weighted_update)(deltas, masks, weights))


masked_mean = jax.jit(aggregate.masked_mean)


def mean_of(cohort):
    args = cohort["deltas"], cohort["masks"], jnp.asarray(cohort["weights"])
    return masked_mean(*fold(*args))


def looped(cohort):
    """The same mean in float64, one coordinate after the other."""
    means = {}
    for name, deltas in cohort["deltas"].items():
        masks = np.broadcast_to(cohort["masks"][name], deltas.shape)
        means[name] = np.zeros(deltas.shape[1:])
        for where in np.ndindex(means[name].shape):
            top = bottom = 0.0
            for k, weight in enumerate(cohort["weights"].astype(float)):
                if masks[k][where]:
                    top += weight * deltas[k][where]
                    bottom += weight
            means[name][where] = top / bottom if bottom else 0.0
    return means


def close(got, expected, **tolerance):
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], **tolerance)


def somebody(masks):
    """Coordinates that at least one client holds."""
    return jax.tree.map(
        lambda mask, leaf: np.broadcast_to(mask.any(0), leaf.shape), masks, PARAMS
    )


# ---------------------------------------------------------------------------- the mean


@given(cohorts)
def test_masked_mean_is_the_loop(cohort):
    close(mean_of(cohort), looped(cohort), rtol=1e-5, atol=1e-5)


@given(cohorts)
def test_what_nobody_covers_has_mean_exactly_zero(cohort):
    got, covered = mean_of(cohort), somebody(cohort["masks"])
    for name in got:
        assert np.all(got[name][~covered[name]] == 0)


@given(cohorts, st.integers(0, K - 1))
def test_the_weight_of_a_lone_holder_cancels(cohort, k):
    lone = np.arange(K) == k
    masks = {
        "rows": np.broadcast_to(lone[:, None, None], (K, 3, 1)),
        "free": np.broadcast_to(lone[:, None], (K, 2)),
    }
    expected = jax.tree.map(lambda leaf: leaf[k], cohort["deltas"])
    close(mean_of(cohort | {"masks": masks}), expected, rtol=1e-6, atol=1e-30)


@given(cohorts, st.floats(2**-9, 2**9, width=32))
def test_only_the_ratios_of_weights_matter(cohort, scale):
    scaled = cohort | {"weights": cohort["weights"] * np.float32(scale)}
    close(mean_of(scaled), mean_of(cohort), rtol=1e-5, atol=1e-5)
    doubled = cohort | {"weights": cohort["weights"] * np.float32(2)}
    assert fakes.equal(mean_of(doubled), mean_of(cohort))


@given(cohorts, st.permutations(range(K)))
def test_the_order_of_clients_is_float_order(cohort, order):
    permuted = jax.tree.map(lambda leaf: leaf[np.array(order)], cohort)
    close(mean_of(permuted), mean_of(cohort), rtol=1e-5, atol=1e-5)


@given(cohorts, st.integers(0, K - 1))
def test_a_weight_of_zero_is_as_if_absent(cohort, k):
    """Also for a coordinate that only this client holds: then nobody does."""
    weights = np.where(np.arange(K) == k, np.float32(0), cohort["weights"])
    silent = cohort | {"weights": weights}
    without = jax.tree.map(lambda leaf: np.delete(leaf, k, axis=0), cohort)
    close(mean_of(silent), looped(without), rtol=1e-5, atol=1e-5)


def test_share_is_one_addend_in_the_dtype_of_the_change():
    delta = {"a": jnp.asarray([[2.0, 4.0]], jnp.bfloat16)}
    cover = {"a": jnp.asarray([[1.0, 0.0]], jnp.bfloat16)}
    num, den = aggregate.weighted_update(delta, cover, jnp.asarray(0.5))
    np.testing.assert_array_equal(num["a"].astype(jnp.float32), [[1, 0]])
    np.testing.assert_array_equal(den["a"].astype(jnp.float32), [[0.5, 0]])
    assert num["a"].dtype == den["a"].dtype == jnp.bfloat16


def test_open_weighs_what_is_sent_and_releases_the_sums_as_they_are():
    tree = {"a": jnp.ones(2)}
    sent = Upload(tree, tree, {"b": (jnp.ones((3, 1)), jnp.ones((3, 1)))})
    weight, base = jnp.asarray(0.5), jnp.asarray(0.25)
    state = cohort = member = None
    addend = aggregate.OPEN.protect(None, state, cohort, member, sent, weight, base)
    np.testing.assert_array_equal(addend.num["a"], [0.5, 0.5])
    np.testing.assert_array_equal(addend.den["a"], [0.25, 0.25])
    for value, expected in zip(addend.tiers["b"], (0.5, 0.25), strict=True):
        np.testing.assert_array_equal(value, np.full((3, 1), expected))
    released, after = aggregate.OPEN.release(None, state, cohort, None, addend, None)
    assert released is addend
    assert after is state


# ------------------------------------------------------------------------------- finish

SERVERS = {
    "sgd": optax.sgd(0.5),
    "momentum": optax.sgd(0.5, momentum=0.9),
    "adam": optax.adam(0.1),
    "yogi": optax.yogi(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
}
FULL = {"rows": jnp.full((3, 1), 2.0), "free": jnp.full(2, 0.5)}
PART = {"rows": jnp.asarray([[0.0], [2.0], [0.0]]), "free": jnp.asarray([0.0, 0.5])}
NUM = jax.tree.map(lambda leaf: jnp.cos(9 * leaf) / 3, PARAMS)


def finish(server, state, params, num, den):
    return jax.jit(
        lambda *args: aggregate.finish(fakes.relaxed(server), *args),
    )(state, params, num, den)


def test_sgd_with_rate_one_adds_the_mean():
    server = optax.sgd(1.0)
    new, _ = finish(server, server.init(PARAMS), PARAMS, NUM, FULL)
    mean = aggregate.masked_mean(NUM, FULL)
    assert fakes.equal(new, jax.tree.map(jnp.add, PARAMS, mean))
    assert fakes.gap(mean, jax.tree.map(lambda n, d: n / d, NUM, FULL)) < 1e-7


def coordinates(state):
    """The moments of a server's state: what has the shape of a parameter."""
    shapes = {leaf.shape: name for name, leaf in PARAMS.items()}
    return [
        (shapes[leaf.shape], leaf)
        for leaf in jax.tree.leaves(state)
        if leaf.shape in shapes
    ]


@pytest.mark.parametrize("name", SERVERS)
def test_for_what_nobody_covers_the_round_did_not_happen(name):
    """Values and moments, bit for bit, after a round that moved both."""
    server = SERVERS[name]
    params, state = finish(server, server.init(PARAMS), PARAMS, NUM, FULL)
    new, later = finish(server, state, params, NUM, PART)
    covered = jax.tree.map(lambda d, p: jnp.broadcast_to(d > 0, p.shape), PART, PARAMS)
    before = [*params.items(), *coordinates(state)]
    after = [*new.items(), *coordinates(later)]
    moments = {"sgd": 0, "momentum": 2}.get(name, 4)
    assert len(before) == len(after) == 2 + moments
    for (leaf, old), (_, now) in zip(before, after, strict=True):
        np.testing.assert_array_equal(now[~covered[leaf]], old[~covered[leaf]])
        assert np.all(now[covered[leaf]] != old[covered[leaf]])


@pytest.mark.parametrize("name", SERVERS)
def test_covered_coordinates_step_as_the_optimiser_does(name):
    server = SERVERS[name]
    params, state = finish(server, server.init(PARAMS), PARAMS, NUM, FULL)
    new, later = finish(server, state, params, NUM, FULL)
    gradient = jax.tree.map(jnp.negative, aggregate.masked_mean(NUM, FULL))
    expected, plain = PARAMS, server.init(PARAMS)
    for _ in range(2):
        updates, plain = fakes.relaxed(server).update(gradient, plain, expected)
        expected = optax.apply_updates(expected, updates)
    assert fakes.gap((new, later), (expected, plain)) < 1e-6


@pytest.mark.parametrize("name", SERVERS)
def test_a_round_of_nobody_moves_no_parameter(name):
    nothing = jax.tree.map(jnp.zeros_like, FULL)
    server = SERVERS[name]
    params, state = finish(server, server.init(PARAMS), PARAMS, NUM, FULL)
    new, _ = finish(server, state, params, NUM, nothing)
    assert fakes.equal(new, params)


# ----------------------------------------------------------------------------- coverage


@pytest.mark.parametrize(
    ("den", "expected"),
    [(FULL, 1), (PART, 3 / 8), (jax.tree.map(jnp.zeros_like, PART), 0)],
)
def test_coverage_is_the_share_of_coordinates_somebody_holds(den, expected):
    """A leaf counts by its coordinates, not by the entries of its mask."""
    np.testing.assert_allclose(aggregate.coverage(den, PARAMS), expected)
