import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from fairjax.core import losses
from fairjax.core.types import Batch

B, C = 6, 3
LABELS = jnp.asarray([0, 2, 1, 1, 0, 2])
cross_entropy = jax.jit(losses.cross_entropy)
mean = jax.jit(losses.mean)

single = st.floats(-100, 100, width=32)
values = arrays(np.float32, B, elements=single)
positive = arrays(np.float32, B, elements=st.floats(0.125, 8, width=32))
subsets = arrays(bool, B)


@given(arrays(np.float32, (B, C), elements=single))
def test_cross_entropy_is_minus_log_softmax(logits):
    wide = logits.astype(np.float64)
    log_z = np.log(np.sum(np.exp(wide), axis=1))
    expected = log_z - wide[np.arange(B), LABELS]
    got = cross_entropy(logits, LABELS)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


def test_cross_entropy_does_not_overflow():
    logits = jnp.asarray([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]])
    got = losses.cross_entropy(logits, jnp.asarray([0, 2]))
    np.testing.assert_allclose(got, [0, 2e4])


@given(values, subsets, positive)
def test_mean_is_the_weighted_mean_of_the_valid(each, where, weights):
    for value, got in (
        (np.ones(B), mean(each, where)),
        (weights, mean(each, where, weights)),
    ):
        total = np.sum(value[where])
        expected = np.sum((value * each)[where]) / total if where.any() else 0
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@given(values, subsets, st.sampled_from([jnp.nan, jnp.inf, -jnp.inf]))
def test_what_padding_holds_does_not_matter(each, where, junk):
    """Not jitted: XLA turns 0 * NaN into a select, which would hide a product."""
    filled, where = jnp.asarray(np.where(where, each, junk)), jnp.asarray(where)
    expected = losses.mean(jnp.asarray(each), where)
    assert losses.mean(filled, where) == expected


def test_a_weight_of_zero_is_padding():
    each = jnp.asarray([1.0, jnp.nan, 3.0])
    everybody = jnp.ones(3, bool)
    assert losses.mean(each, everybody, jnp.asarray([1.0, 0.0, 3.0])) == 2.5
    assert losses.mean(each, everybody, jnp.zeros(3)) == 0


@pytest.mark.parametrize("weights", [None, jnp.ones(2)])
def test_no_valid_record_gives_zero_and_no_gradient(weights):
    nobody = jnp.zeros(2, bool)
    each = jnp.asarray([1.0, jnp.inf])
    value, slope = jax.value_and_grad(losses.mean)(each, nobody, weights)
    assert value == 0
    np.testing.assert_array_equal(slope, [0, 0])


def test_the_gradient_through_a_masked_infinity_is_that_without_it():
    """A padded record whose true class has probability 0."""
    labels = jnp.asarray([0, 1])

    def loss(logits, where):
        return losses.mean(losses.cross_entropy(logits, labels), where)

    logits = jnp.asarray([[0.0, 1.0], [0.0, -jnp.inf]])
    where = jnp.asarray([True, False])
    assert jnp.isinf(losses.cross_entropy(logits, labels)[1])
    slope = jax.grad(loss)(logits, where)
    p = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(slope, [[-p, p], [0, 0]], rtol=1e-6)


def test_a_factor_scales_a_batch_that_a_weight_does_not():
    each, where = jnp.asarray([1.0, jnp.inf, 3.0]), jnp.asarray([True, False, True])
    plain = Batch(each, LABELS[:3], where)
    twice = plain._replace(factor=jnp.full(3, 2.0))
    assert losses.batch_mean(plain, each) == 2
    assert losses.batch_mean(twice, each) == 4
    assert losses.batch_mean(plain, each, jnp.full(3, 2.0)) == 2
    ours = losses.batch_mean(twice._replace(factor=jnp.asarray([0.5, 9, 3])), each)
    assert ours == (0.5 * 1 + 3 * 3) / 2
