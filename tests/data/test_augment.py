"""Augmentations: possible outcomes, frequencies, and their use in training."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from fairjax.core import require
from fairjax.data import augment
from fairjax.experiment.config import build, validate
from tests import fakes
from tests.core.test_client import run_client

IMAGE = jax.random.normal(jax.random.key(0), (16, 8, 3))
MANY = jnp.broadcast_to(IMAGE, (2000, *IMAGE.shape))


def counted(images, possible):
    """How often each possible image occurs; every image must be a possible one."""
    is_equal = np.array(
        [
            [np.array_equal(image, candidate) for candidate in possible]
            for image in images
        ]
    )
    assert np.all(is_equal.sum(1) == 1)
    return is_equal.sum(0)


def test_half_of_the_images_are_turned():
    images = np.asarray(augment.flip(jax.random.key(1), MANY))
    as_is, turned = counted(images, [IMAGE, IMAGE[:, ::-1]])
    assert abs(as_is - turned) < 5 * np.sqrt(len(MANY))


def test_every_move_up_to_an_eighth_is_as_likely():
    images = np.asarray(augment.crop(jax.random.key(1), MANY))
    wide = np.pad(IMAGE, ((2, 2), (1, 1), (0, 0)))
    moves = itertools.product(range(5), range(3))
    number = counted(images, [wide[r : r + 16, c : c + 8] for r, c in moves])
    expected = len(MANY) / 15
    assert np.sum((number - expected) ** 2 / expected) < 36  # chi2(14) at 0.1 %


def test_changes_are_chained_in_order_with_keys_of_their_own():
    assert augment.chain(()) is None
    changed_images = augment.chain(("crop", "flip"))(jax.random.key(3), MANY[:50])
    wide = np.pad(IMAGE, ((2, 2), (1, 1), (0, 0)))
    moves = itertools.product(range(5), range(3))
    shifted = [wide[r : r + 16, c : c + 8] for r, c in moves]
    number = counted(
        np.asarray(changed_images), [*shifted, *(image[:, ::-1] for image in shifted)]
    )
    assert np.count_nonzero(number) > 15


def test_steps_train_on_what_the_change_gives():
    """With records set to 0, the last bias learns and the first kernel does not."""

    def trained(augment):
        local = fakes.spec().local._replace(augment=augment)
        return run_client(local, fakes.federation())[1][0]

    nothing = trained(lambda key, x: jnp.zeros_like(x))
    assert not np.any(nothing["hidden0"]["kernel"])
    assert np.any(nothing["head"]["bias"])
    assert fakes.equal(trained(lambda key, x: x), trained(None))


def test_unknown_changes_and_tables_are_refused():
    config = default.get_config()
    config.data.augment = ("flop",)
    with pytest.raises(require.InputError, match=r'data\.augment: .*"flip"'):
        validate.check(config)
    config.data.augment = ("flip",)
    with pytest.raises(require.InputError, match=r"data\.augment: expected \(\) for"):
        build.run(config)
