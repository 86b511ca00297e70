"""Image figures beside a transcription in SciPy with the published constants."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from fairjax.attacks import images


def picture(seed, shape=(16, 13, 3)):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), "float32")


def published(a, b):
    """Wang et al. 2004: 11 x 11 Gaussian window, K1 0.01, K2 0.03, range L 1."""
    place = np.arange(-5, 6)
    window = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blurred(x):
        return scipy.signal.convolve2d(x, window, mode="valid")

    values = []
    for x, y in zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0), strict=True):
        x, y = x.astype(float), y.astype(float)
        mx, my = blurred(x), blurred(y)
        vx, vy = blurred(x * x) - mx**2, blurred(y * y) - my**2
        cov = blurred(x * y) - mx * my
        values.append(
            (2 * mx * my + 1e-4)
            * (2 * cov + 9e-4)
            / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        )
    return np.mean(values)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_is_the_published_one(noise):
    true = picture(0)
    found = jnp.clip(true + noise * (picture(1) - 0.5), 0, 1)
    expected = published(np.asarray(found), np.asarray(true))
    assert images.ssim(found, true) == pytest.approx(expected, abs=1e-4)
    other = float(images.ssim(true, found))
    assert images.ssim(found, true) == pytest.approx(other, abs=1e-6)
    assert images.ssim(true, true) == pytest.approx(1, abs=1e-5)


def test_psnr_of_a_known_error():
    true = jnp.full((12, 12, 1), 0.5)
    assert images.psnr(true + 0.1, true) == pytest.approx(20, abs=1e-4)
    assert images.psnr(true, true) == np.inf


def test_an_image_is_recognised_only_among_all_of_them():
    true = jnp.stack([picture(i) for i in range(3)])
    others = jnp.stack([picture(i) for i in range(3, 8)])
    assert int(images.nearest_index(others[2], others)) == 2
    # The second looks like another image, the third like another victim's.
    found = true.at[1].set(others[4]).at[2].set(true[0])
    hits = images.rank1_hits(found, true, others)
    assert hits.tolist() == [True, False, False]
