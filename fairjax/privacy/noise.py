"""Gaussian noise whose tails are not cut where those of `jax.random.normal` are.

`jax.random.normal` makes a float32 of 23 random bits: it has 2^23 values and ends at
5.42 standard deviations, where a shifted sum has numbers that its neighbour never has.
Here a pair of draws is made of 128 random bits, in float32,

    z = R (cos A, sin A),    R^2 / 2 = E ~ Exp(1),    A uniform,
    E = k log 2 - log(1 - f),    k the zeros that 64 bits begin with, f in (0, 1/2),

since E has no memory: it is log 2 times a geometric number of ratio 1/2, plus an
independent rest that is cut at log 2. A is an angle below 45 degrees, two signs and a
swap, so that draws are exactly symmetric.

Guarantees: the pair is N(0, I), up to the rounding of floats, in the disc of radius
    `RADIUS` = sqrt(2 * 64 log 2), and lies outside of it with probability 2^-64, as a
    real pair does; there it ends at sqrt(2 * 65 log 2). The rounding of floats is not
    covered: Mironov, "On significance of the least significant bits for differential
    privacy", CCS 2012, doi:10.1145/2382196.2382264.

The bits are those of JAX's generator, which the run's seed fixes. This makes an
experiment repeatable, and it keeps no secret.

Sources: Box and Muller, "A note on the generation of random normal deviates", Annals of
Mathematical Statistics 1958, doi:10.1214/aoms/1177706645; for E, Ahrens and Dieter,
"Computer methods for sampling from the exponential and normal distributions",
Communications of the ACM 1972, doi:10.1145/355604.361593, algorithm SA.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree, UInt32

from fairjax.core import rng

_ZEROS = 64
"""The number of bits whose leading zeros are counted: two words."""
RADIUS = math.sqrt(2 * _ZEROS * math.log(2))
"""9.42 standard deviations; a pair of draws is beyond it with probability 2^-64."""


def gaussian(
    key: Key[Array, ""],
    tree: PyTree[Float[Array, "..."]],
    std: float | Float[Array, ""],
) -> PyTree[Array]:
    """The tree plus independent N(0, std^2) on every coordinate, see `normal`.

    Args:
        key: of the noise; every leaf has a key of its own below it.
        tree: the tree without noise.
        std: the standard deviation.
    """

    def per_leaf(index: int, leaf: Array) -> Array:
        samples = normal(rng.fold_in(key, index), leaf.shape)
        return leaf + (jnp.asarray(std, jnp.float32) * samples).astype(leaf.dtype)

    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([per_leaf(i, leaf) for i, leaf in enumerate(leaves)])


def normal(key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
    """Independent N(0, 1) in float32, from 64 random bits each.

    Args:
        key: of the draws.
        shape: of the result.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, (4, (size + 1) // 2), jnp.uint32)
    return jnp.concatenate(pairs(words))[:size].reshape(shape)


def pairs(
    words: UInt32[Array, "4 n"],
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Pairs of independent N(0, 1), see the head of this file.

    Args:
        words: random bits. The first two words give k. The third word gives the high
            bits of f, and the unused bits of the second its low ones. The last word
            gives the angle.
    """
    first, second, third, fourth = words
    first_is_zero = first == 0
    zeros = jnp.where(first_is_zero, 32 + jax.lax.clz(second), jax.lax.clz(first))
    low = jnp.where(first_is_zero, 0.5, _float(second) + 0.5)
    fraction = _float(third) * 2.0**-33 + low * 2.0**-65
    exponential = _float(zeros) * math.log(2) - jnp.log1p(-fraction)
    radius = jnp.sqrt(2 * exponential)
    cosine, sine = _circle((_float(fourth >> 3) + 0.5) * (math.pi / 4 * 2.0**-29))
    swap, flip_x, flip_y = ((fourth & bit) != 0 for bit in (4, 2, 1))
    x, y = jnp.where(swap, sine, cosine), jnp.where(swap, cosine, sine)
    return radius * jnp.where(flip_x, -x, x), radius * jnp.where(flip_y, -y, y)


def tail_bound(num_coordinates: int, shift: float) -> float:
    """An upper bound on the probability of noise that its shifted twin cannot draw.

    Take a release of P pairs whose law is moved by s standard deviations, by s_p in
    pair p. The other law makes a draw never, or less often, only where
    |z_p| > R - s_p:

        sum_p P(|z_p| > R - s_p) = sum_p exp(-(R - s_p)^2 / 2),    sum_p s_p^2 <= s^2
                                <= (P - 1) exp(-R (R - s) / 2) + exp(-(R - s)^2 / 2)

    since R s_p <= R s / 2 + R s_p^2 / (2 s) makes every term convex in s_p^2, so that
    one pair with all of the shift is the worst case. Directions may depend on earlier
    draws. For s = 0 the bound is 2^-64 for each.

    Args:
        num_coordinates: coordinates that get noise; P is at most as many.
        shift: s, over the standard deviation of the noise.
    """
    if not num_coordinates:
        return 0.0
    if shift >= RADIUS:
        return 1.0
    margin = RADIUS - shift
    bound = (num_coordinates - 1) * math.exp(-RADIUS * margin / 2) + math.exp(
        -(margin**2) / 2
    )
    return min(bound, 1.0)


def _float(words: UInt32[Array, "n"]) -> Float[Array, "n"]:
    return words.astype(jnp.float32)


def _circle(angle: Float[Array, "n"]) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Cosine and sine of angles up to pi / 4.

    They are Taylor's series to an error of 2e-9. Such angles need no reduction, which
    costs `jnp.sin` more than this whole function.
    """
    square = angle * angle
    cosine = _series(square, (10, 8, 6, 4, 2, 0))
    return cosine, angle * _series(square, (9, 7, 5, 3, 1))


def _series(square: Float[Array, "n"], orders: tuple[int, ...]) -> Float[Array, "n"]:
    """sum_n (-1)^(n // 2) x^(n - n % 2) / n!, from the highest order down."""
    total = jnp.zeros_like(square)
    for n in orders:
        total = total * square + (-1) ** (n // 2) / math.factorial(n)
    return total
