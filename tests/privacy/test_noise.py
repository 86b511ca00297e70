"""Gaussian draws: every exponent they can have, their law, and where they end."""

import ast
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fairjax.privacy import noise

ALL = 2**32 - 1
END = math.sqrt(2 * 65 * math.log(2))
"""Where the largest draw is."""


def pairs(*words):
    return jax.jit(noise.pairs)(jnp.asarray(np.stack(words), jnp.uint32))


def leading(zeros):
    """(first, second) words that begin with so many zeros and then hold ones."""
    both = (1 << (64 - zeros)) - 1
    return both >> 32, both & ALL


def words(zeros, third, fourth):
    """Four columns of words, broadcast against each other."""
    first, second = np.vectorize(leading, otypes=[np.uint64, np.uint64])(zeros)
    flat = np.broadcast_arrays(first, second, third, fourth)
    return [np.ravel(column).astype(np.uint64) for column in flat]


def ideal(first, second, third, fourth):
    """The docstring's equations in float64."""
    both = zip(first.tolist(), second.tolist(), strict=True)
    zeros = [64 - ((a << 32) + b).bit_length() for a, b in both]
    low = np.where(first == 0, 0.5, second + 0.5)
    energy = np.array(zeros) * math.log(2)
    energy -= np.log1p(-(third * 2.0**-33 + low * 2.0**-65))
    angle = ((fourth.astype(np.uint64) >> np.uint64(3)) + 0.5) * math.pi / 4 * 2.0**-29
    turned = [(fourth.astype(int) & bit) != 0 for bit in (4, 2, 1)]
    swap, left, down = turned
    x = np.where(swap, np.sin(angle), np.cos(angle)) * np.where(left, -1, 1)
    y = np.where(swap, np.cos(angle), np.sin(angle)) * np.where(down, -1, 1)
    return np.sqrt(2 * energy) * np.stack([x, y])


def test_a_draw_is_its_equation_to_float_rounding_whatever_its_bits():
    """Words of all magnitudes, and all smallest and largest ones together."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 2**32, (4, 20_000), dtype=np.uint64)
    drawn >>= rng.integers(0, 33, drawn.shape).astype(np.uint64)
    ends = [0, 1, 2, 2**31 - 1, 2**31, ALL - 1, ALL]
    corners = np.stack(np.meshgrid(*[ends] * 4)).reshape(4, -1).astype(np.uint64)
    bits = np.concatenate([drawn, corners], axis=1)
    exact = ideal(*bits)
    np.testing.assert_allclose(np.stack(pairs(*bits)), exact, rtol=4e-7)
    assert np.all(np.isfinite(exact))


def test_every_exponent_is_reached_and_bits_order_the_radius():
    third = np.array([0, 1, 2**31, ALL])
    x, y = pairs(*words(np.arange(65)[:, None], third, 2**30))
    radius = np.hypot(x, y).reshape(65, 4)
    # All angles give the same radius.
    np.testing.assert_array_less(radius[:-1, -1], radius[1:, 0] * (1 + 1e-6))
    assert np.all(np.diff(radius.ravel()) > -1e-6)
    edges = np.sqrt(2 * math.log(2) * np.arange(1, 66))
    np.testing.assert_allclose(radius[:, -1], edges, rtol=1e-6)
    np.testing.assert_allclose(radius[1:, 0], edges[:-1], rtol=1e-6)
    assert radius[0, 0] < 1e-4


def test_draws_end_where_a_real_one_is_with_probability_2_to_the_minus_65():
    far = max(np.max(np.abs(z)) for z in pairs(*words(64, ALL, np.arange(8))))
    assert far == pytest.approx(END, rel=1e-6)
    assert pytest.approx(9.4926, abs=1e-4) == END
    assert math.exp(-(END**2) / 2) == pytest.approx(2.0**-65, rel=1e-12)
    assert math.exp(-(noise.RADIUS**2) / 2) == pytest.approx(2.0**-64, rel=1e-12)
    alone = math.log(2) + scipy.special.log_ndtr(-END)
    assert alone < -65 * math.log(2)


def test_signs_and_the_swap_turn_a_draw_exactly():
    bits = words(3, 12345, 8 * 77 + np.arange(8))
    x, y = (np.asarray(z) for z in pairs(*bits))
    assert len({(abs(a), abs(b)) for a, b in zip(x, y, strict=True)}) == 2
    assert len({(a, b) for a, b in zip(x, y, strict=True)}) == 8
    assert x.sum() == y.sum() == 0


@pytest.fixture(scope="module")
def law():
    """(draws, their probability): all exponents, and even grids within each.

    An exponent of k zeros has probability 2^-(k + 1), the last one that of the rest.
    """
    zeros = np.arange(65)
    weight = 2.0 ** -np.minimum(zeros + 1.0, 64)
    parts = (np.arange(64) + 0.5) * 2**26
    angles = np.uint64(8) * ((np.arange(256) + 0.5) * 2**21).astype(np.uint64)
    angles = np.concatenate([angles, angles + np.uint64(4)])
    x, _ = pairs(*words(zeros[:, None, None], parts[:, None], angles))
    each = np.broadcast_to(weight[:, None, None], (65, 64, 512)) / (64 * 512)
    assert each.sum() == pytest.approx(1, abs=1e-15)
    return np.abs(np.asarray(x, np.float64)), each.ravel()


@pytest.mark.parametrize("beyond", [0.01, 0.3, 1, 2, 3, 4, 5, 5.3, 5.42, 6, 7, 8, 8.9])
def test_tails_have_the_mass_of_a_normal_law(law, beyond):
    """To a percent, from the bits and not a sample; jax.random.normal ends at 5.42."""
    draws, weight = law
    real = math.exp(math.log(2) + scipy.special.log_ndtr(-beyond))
    assert weight[draws > beyond].sum() == pytest.approx(real, rel=0.01)


def test_moments_are_those_of_a_normal_law(law):
    draws, weight = law
    for order, known in ((2, 1), (4, 3), (6, 15), (8, 105)):
        assert np.dot(weight, draws**order) == pytest.approx(known, rel=2e-3)


def test_a_sample_has_the_law_and_pairs_are_independent():
    z = np.asarray(jax.jit(lambda key: noise.normal(key, (2, 500_000)))(SEED))
    edges = np.array([-4.4, -4, -3.5, -3, -2, -1, -0.3, 0, 0.3, 1, 2, 3, 3.5, 4, 4.4])
    expected = np.diff(scipy.stats.norm.cdf(edges), prepend=0, append=1) * z.size
    expected[0], expected[-1] = scipy.stats.norm.cdf([edges[0], -edges[-1]]) * z.size
    count = np.bincount(np.searchsorted(edges, z.ravel()), minlength=len(expected))
    assert scipy.stats.chisquare(count, expected).pvalue > 1e-3
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    # The first row has the first draw of every pair, the second row its second.
    for f in (lambda x: x, np.abs, np.square, lambda x: x > 2):
        a, b = f(z).astype(float)
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(a.size)


SEED = jax.random.key(11)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (0,)])
def test_any_shape_is_drawn_and_every_draw_has_64_bits(shape, monkeypatch):
    asked = []
    real = jax.random.bits

    def bits(key, shape, dtype):
        asked.append(math.prod(shape) * jnp.iinfo(dtype).bits)
        return real(key, shape, dtype)

    monkeypatch.setattr(jax.random, "bits", bits)
    drawn = jax.eval_shape(lambda: noise.normal(SEED, shape))
    assert drawn.shape == shape
    assert drawn.dtype == jnp.float32
    assert asked[0] >= 64 * drawn.size


def test_the_noise_of_a_tree_reaches_beyond_a_float_of_23_bits(monkeypatch):
    """Noise of jax.random.normal would not read these bits."""
    none = lambda key, shape, dtype: jnp.zeros(shape, dtype)  # noqa: E731
    monkeypatch.setattr(jax.random, "bits", none)
    tree = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    noisy = jax.jit(lambda: noise.gaussian(SEED, tree, 2.0))()
    assert max(float(jnp.max(leaf)) for leaf in jax.tree.leaves(noisy)) > 19


def test_nothing_that_protects_draws_from_cut_tails():
    rooms = pathlib.Path(noise.__file__).parent
    drawing = {
        path.name
        for path in rooms.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node)
        in ("jax.random.normal", "jax.random.laplace", "jax.random.truncated_normal")
    }
    assert not drawing


# ------------------------------------------------------- what a neighbour cannot draw


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.5, 1.0, 2.0, 5.0, 9.0])
def test_one_pair_is_beyond_its_neighbour_as_seldom_as_said(shift):
    """Exactly the mass outside of a disc that is moved, by Rice's law."""
    exact = scipy.stats.ncx2.sf(noise.RADIUS**2, 2, shift**2) if shift else 2.0**-64
    said = noise.tail_bound(1, shift)
    assert exact <= said * (1 + 1e-9)
    assert said == pytest.approx(math.exp(-((noise.RADIUS - shift) ** 2) / 2))


@pytest.mark.parametrize("shift", [0.5, 2.0, 6.0])
def test_no_way_of_spreading_a_shift_is_worse_than_said(shift):
    rng = np.random.default_rng(1)
    for numbers in (2, 10, 1000):
        said = noise.tail_bound(numbers, shift)
        for power in (0, 1, 4, 20):
            share = rng.dirichlet(np.full(numbers, 4.0**-power))
            moved = shift * np.sqrt(share)
            mass = np.exp(-((noise.RADIUS - moved) ** 2) / 2).sum()
            assert mass <= said * (1 + 1e-12)


def test_without_a_shift_it_is_the_mass_beyond_times_the_numbers():
    assert noise.tail_bound(1000, 0.0) == pytest.approx(1000 * 2.0**-64, rel=1e-12)
    assert noise.tail_bound(0, 1.0) == 0
    assert noise.tail_bound(1, noise.RADIUS) == noise.tail_bound(5, 20.0) == 1
    assert noise.tail_bound(10**10, 5.0) == 1
