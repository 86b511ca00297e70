"""How near a reconstructed image comes to the true one, and what guessing would do.

Images are [H, W, channels] with pixels in [0, 1].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def psnr(
    found: Float[Array, "H W ch"], true: Float[Array, "H W ch"]
) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in decibels: -10 log10 of the mean squared error.

    Infinite for equal images. Source: Wang and Bovik 2009, eq. (2), for a peak of 1.
    """
    return -10 * jnp.log10(jnp.mean((found - true) ** 2))


WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def ssim(
    found: Float[Array, "H W ch"], true: Float[Array, "H W ch"]
) -> Float[Array, ""]:
    """Structural similarity, the mean over windows and channels, in [-1, 1].

        (2 m_a m_b + c_1)(2 s_ab + c_2) / ((m_a^2 + m_b^2 + c_1)(s_a^2 + s_b^2 + c_2))

    with means, variances and covariance under an 11 x 11 Gaussian window of deviation
    1.5 wherever it lies inside the image, c_1 = 0.01^2 and c_2 = 0.03^2. The images
    have at least 11 x 11 pixels.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004, section III-C, for pixels in
    [0, 1].
    """
    place = jnp.arange(WINDOW, dtype=found.dtype) - WINDOW // 2
    kernel = jnp.exp(-(place**2) / (2 * SIGMA**2))
    kernel = kernel / jnp.sum(kernel)

    def windowed(image: Array) -> Array:
        def along(line: Array) -> Array:
            return jnp.convolve(line, kernel, mode="valid")

        rows = jax.vmap(jax.vmap(along, 1, 1), 2, 2)(image)
        return jax.vmap(jax.vmap(along, 0, 0), 2, 2)(rows)

    mean_a, mean_b = windowed(found), windowed(true)
    var_a = windowed(found**2) - mean_a**2
    var_b = windowed(true**2) - mean_b**2
    both = windowed(found * true) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return jnp.mean(top / bottom)


def nearest(
    image: Float[Array, "H W ch"], gallery: Float[Array, "M H W ch"]
) -> Int[Array, ""]:
    """Which image of a gallery has the least squared distance; the first of equals."""
    return jnp.argmin(jnp.mean((gallery - image) ** 2, axis=(1, 2, 3)))


def recognised(
    found: Float[Array, "n H W ch"],
    true: Float[Array, "n H W ch"],
    others: Float[Array, "M H W ch"],
) -> Bool[Array, "n"]:
    """Rank-1 re-identification: is the true image the nearest one to what was found?

    The gallery of image i are all n true images and M others of the same kind; an
    attacker who knows nothing hits with probability 1 / (n + M).
    """
    gallery = jnp.concatenate([true, others])
    hits = jax.lax.map(lambda image: nearest(image, gallery), found)
    return hits == jnp.arange(len(true))
