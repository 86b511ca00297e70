"""Random changes of images: which there are, how often, and that training sees them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_client import run_client

from configs import default
from fairjax.core import require
from fairjax.data import augment
from fairjax.experiment.config import build, validate
from tests import fakes

IMAGE = jax.random.normal(jax.random.key(0), (16, 8, 3))
MANY = jnp.broadcast_to(IMAGE, (2000, *IMAGE.shape))


def counted(found, possible):
    """How often each of the possible images was found; every one must be possible."""
    same = np.array(
        [[np.array_equal(image, other) for other in possible] for image in found]
    )
    assert np.all(same.sum(1) == 1)
    return same.sum(0)


def test_half_of_the_images_are_turned():
    found = np.asarray(augment.flip(jax.random.key(1), MANY))
    as_is, turned = counted(found, [IMAGE, IMAGE[:, ::-1]])
    assert abs(as_is - turned) < 5 * np.sqrt(len(MANY))


def test_every_move_up_to_an_eighth_is_as_likely():
    found = np.asarray(augment.crop(jax.random.key(1), MANY))
    wide = np.pad(IMAGE, ((2, 2), (1, 1), (0, 0)))
    moves = itertools.product(range(5), range(3))
    number = counted(found, [wide[r : r + 16, c : c + 8] for r, c in moves])
    expected = len(MANY) / 15
    assert np.sum((number - expected) ** 2 / expected) < 36  # chi2(14) at 0.1 %


def test_changes_are_chained_in_order_with_keys_of_their_own():
    assert augment.chain(()) is None
    both = augment.chain(("crop", "flip"))(jax.random.key(3), MANY[:50])
    wide = np.pad(IMAGE, ((2, 2), (1, 1), (0, 0)))
    moves = itertools.product(range(5), range(3))
    moved = [wide[r : r + 16, c : c + 8] for r, c in moves]
    number = counted(np.asarray(both), [*moved, *(each[:, ::-1] for each in moved)])
    assert np.count_nonzero(number) > 15


def test_steps_train_on_what_the_change_gives():
    """Of records set to 0 the first kernel learns nothing, the last bias does."""

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
        build.build(config)
