"""Attacks on simulations whose inverse is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.attacks import inversion
from fairjax.attacks.inversion import Observation, Result
from fairjax.core import trees
from fairjax.core.types import Axes, LeafAxes


@pytest.fixture(autouse=True)
def _optax_promotes():
    """Its Adam raises a float to the power of a count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


SHAPE = (3, 3, 1)
ONES = {"w": jnp.ones((1,))}


def mixing(seed, rows=24):
    """The matrix of a full-rank linear client."""
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=(rows, 9)) / 3, "float32"
    )


def linear(matrix, images, labels):
    """The upload of a client that mixes its pixels, and sends soft labels unchanged."""
    sent = jnp.concatenate([(matrix @ images.reshape(-1, 9).T).ravel(), jnp.ones(1)])
    return {"w": sent if labels.ndim == 1 else jnp.concatenate([sent, labels.ravel()])}


def truth(seed=9):
    return jax.random.uniform(jax.random.key(seed), (1, *SHAPE), minval=0.2, maxval=0.8)


def test_cosine_does_not_see_scale_nor_what_was_not_sent():
    tree = {"a": jnp.asarray([1.0, 2.0, 5.0]), "b": jnp.asarray([[3.0]])}
    cover = {"a": jnp.asarray([1.0, 1.0, 0.0]), "b": jnp.ones((1, 1))}
    other = jax.tree.map(lambda leaf: 7 * leaf, tree)
    other["a"] = other["a"].at[2].set(-100.0)
    assert inversion.cosine_distance(tree, other, cover) == pytest.approx(0, abs=1e-6)
    assert inversion.squared_distance(other, tree, cover) == pytest.approx(36)
    across = {"a": jnp.asarray([2.0, -1.0, 1.0]), "b": jnp.zeros((1, 1))}
    assert inversion.cosine_distance(across, tree, cover) == pytest.approx(1)
    flipped = jax.tree.map(jnp.negative, tree)
    assert inversion.cosine_distance(flipped, tree, cover) == pytest.approx(2)


def test_cosine_of_nothing_is_one_with_a_finite_slope():
    nothing, tree = {"w": jnp.zeros(3)}, {"w": jnp.asarray([1.0, 2.0, 3.0])}
    for pair in ((nothing, tree), (tree, nothing)):
        value, slope = jax.value_and_grad(inversion.cosine_distance)(*pair, ONES)
        assert value == 1
        assert np.all(np.isfinite(slope["w"]))


def test_total_variation_counts_both_directions():
    stripes = jnp.asarray([[0.0, 1.0, 0.0]] * 3)[None, :, :, None]
    assert inversion.total_variation(stripes) == 1
    assert inversion.total_variation(jnp.swapaxes(stripes, 1, 2)) == 1
    assert inversion.total_variation(stripes * 0) == 0


def test_classes_are_read_off_the_head():
    """From its bias, or from the sums of its columns without one."""
    body = LeafAxes((None, "h"))
    kernel, bias = LeafAxes(("h", "classes")), LeafAxes(("classes",))
    change = {
        "body": {"kernel": jnp.full((2, 3), 9.0)},
        "head": {
            "kernel": jnp.asarray([[1.0, -1.0, 0.0]] * 3),
            "bias": jnp.asarray([-3.0, -1.0, 4.0]),
        },
    }
    tree = {"body": {"kernel": body}, "head": {"kernel": kernel, "bias": bias}}
    units = {"h": 3, "classes": 3}
    signal = inversion.class_signal(change, Axes(tree, units, {}))
    np.testing.assert_array_equal(signal, [-3, -1, 4])
    assert inversion.labels(signal, 4).tolist() == [2, 1, 0, 2]
    del tree["head"]["bias"], change["head"]["bias"]
    signal = inversion.class_signal(change, Axes(tree, units, {}))
    np.testing.assert_array_equal(signal, [3, -3, 0])


def cosine(simulate, candidates, seen, iterations=200, **settings):
    return inversion.cosine(
        jax.random.key(0),
        simulate,
        candidates,
        seen,
        jnp.zeros(1, jnp.int32),
        shape=SHAPE,
        iterations=iterations,
        learning_rate=0.05,
        **{"variation": 0.0} | settings,
    )


def test_cosine_finds_the_image_and_which_client_it_was():
    """The attack starts with candidate 0, which is wrong."""
    # Like a branch, each candidate strengthens a part of the same client.
    rows = jnp.arange(24)[:, None] // 8
    candidates = jnp.stack([mixing(1) * (1 + (rows == i)) for i in range(3)])
    seen = Observation(linear(candidates[2], truth(), jnp.zeros(1)), ONES)
    found = jax.jit(lambda seen: cosine(linear, candidates, seen))(seen)
    assert int(found.choice) == 2
    assert float(found.value) < 1e-3
    np.testing.assert_allclose(found.images, truth(), atol=0.05)
    # An attacker with the wrong candidate finds another image, at a larger value.
    wrong = jax.jit(lambda seen: cosine(linear, candidates[:1], seen))(seen)
    assert float(wrong.value) > 10 * float(found.value)
    assert np.abs(wrong.images - truth()).max() > 0.1


def test_variation_makes_images_smooth():
    seen = Observation(linear(mixing(1), truth(), jnp.zeros(1)), ONES)
    rough, smooth = (
        cosine(linear, mixing(1)[None], seen, iterations=60, variation=weight)
        for weight in (0.0, 1.0)
    )
    assert inversion.total_variation(smooth.images) < 0.5 * (
        inversion.total_variation(rough.images)
    )


def test_dlg_finds_images_and_labels():
    labels = jax.nn.one_hot(jnp.asarray([2]), 4)
    seen = Observation(linear(mixing(1), truth(), labels), ONES)
    attempt = jax.jit(
        lambda seen: inversion.dlg(
            jax.random.key(0),
            linear,
            mixing(1)[None],
            seen,
            jnp.zeros(1, jnp.int32),
            shape=SHAPE,
            classes=4,
            iterations=30,
        )
    )
    found = attempt(seen)
    assert found.labels.tolist() == [2]
    np.testing.assert_allclose(found.images, truth(), atol=0.02)


def test_restarts_are_chosen_by_the_attackers_objective():
    """An infinite objective loses, and more starts keep the earlier ones."""

    def attempt(key):
        draw = jax.random.uniform(key)
        value = jnp.where(draw < 0.3, jnp.inf, draw)
        return Result(draw[None], jnp.zeros(1, jnp.int32), value, jnp.zeros((), int))

    key = jax.random.key(4)
    every = [float(attempt(jax.random.fold_in(key, i)).value) for i in range(8)]
    assert not np.all(np.isfinite(every))
    for restarts, size in ((1, None), (3, 2), (8, None)):
        best = inversion.best_of_restarts(key, attempt, restarts, size=size)
        assert float(best.value) == min(every[:restarts])
        assert float(best.images[0]) == min(every[:restarts])


def test_an_objective_that_is_not_finite_is_the_worst():
    def broken(matrix, images, labels):
        return trees.multiply(
            linear(matrix, images, labels), {"w": jnp.asarray([jnp.nan])}
        )

    seen = Observation(linear(mixing(1), truth(), jnp.zeros(1)), ONES)
    found = cosine(broken, mixing(1)[None], seen, iterations=8)
    assert float(found.value) == np.inf
    assert np.all(np.isfinite(found.images))
