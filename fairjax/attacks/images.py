"""How near a reconstructed image comes to the true one.

Images are [H, W, channels] with pixels in [0, 1].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def psnr(
    image: Float[Array, "H W ch"], true: Float[Array, "H W ch"]
) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in decibels: -10 log10 of the mean squared error.

    It is infinite for equal images.

    Source: Wang and Bovik, "Mean squared error: Love it or leave it?", IEEE Signal
    Processing Magazine 2009, doi:10.1109/MSP.2008.930649, eq. (2), for a peak of 1.
    """
    return -10 * jnp.log10(jnp.mean((image - true) ** 2))


WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def ssim(
    image: Float[Array, "H W ch"], true: Float[Array, "H W ch"]
) -> Float[Array, ""]:
    """Structural similarity, the mean over windows and channels, in [-1, 1].

        (2 m_a m_b + c_1)(2 s_ab + c_2) / ((m_a^2 + m_b^2 + c_1)(s_a^2 + s_b^2 + c_2))

    with means, variances and covariance under an 11 x 11 Gaussian window of standard
    deviation 1.5 wherever it lies inside the image, c_1 = 0.01^2 and c_2 = 0.03^2. The
    images must have at least 11 x 11 pixels.

    Source: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: From error
    visibility to structural similarity", IEEE Transactions on Image Processing 2004,
    doi:10.1109/TIP.2003.819861, section III-C, for pixels in [0, 1].
    """
    offsets = jnp.arange(WINDOW, dtype=image.dtype) - WINDOW // 2
    kernel = jnp.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel = kernel / jnp.sum(kernel)

    def window_mean(image: Array) -> Array:
        def convolve(line: Array) -> Array:
            return jnp.convolve(line, kernel, mode="valid")

        rows = jax.vmap(jax.vmap(convolve, 1, 1), 2, 2)(image)
        return jax.vmap(jax.vmap(convolve, 0, 0), 2, 2)(rows)

    mean_a, mean_b = window_mean(image), window_mean(true)
    var_a = window_mean(image**2) - mean_a**2
    var_b = window_mean(true**2) - mean_b**2
    covariance = window_mean(image * true) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return jnp.mean(numerator / denominator)


def nearest_index(
    image: Float[Array, "H W ch"], gallery: Float[Array, "M H W ch"]
) -> Int[Array, ""]:
    """The index of the gallery's image at the least squared distance.

    The first of equally near images counts.
    """
    return jnp.argmin(jnp.mean((gallery - image) ** 2, axis=(1, 2, 3)))


def rank1_hits(
    images: Float[Array, "n H W ch"],
    true: Float[Array, "n H W ch"],
    distractors: Float[Array, "M H W ch"],
) -> Bool[Array, "n"]:
    """Rank-1 re-identification: whether the true image is the nearest one.

    The gallery of each reconstructed image is all n true images and M distractors. An
    attacker who knows nothing hits with probability 1 / (n + M).

    Args:
        images: reconstructed images.
        true: their true images, in the same order.
        distractors: other images of the same kind.
    """
    gallery = jnp.concatenate([true, distractors])
    indices = jax.lax.map(lambda image: nearest_index(image, gallery), images)
    return indices == jnp.arange(len(true))
