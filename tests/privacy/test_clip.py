"""Clips stay within what float32 can clip."""

import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import require, trees
from fairjax.privacy import client_level
from fairjax.privacy import clip as clipping


@pytest.mark.parametrize("steps", [-1, 1])
def test_a_clip_that_adapts_stays_where_floats_clip(steps):
    adaptive = clipping.Adaptive(expected_clients=1.0, count_noise=1.0, step_size=10.0)
    clip = jnp.ones(1)
    for _ in range(20):
        clip = adaptive.next_clip(clip, jnp.float32(-steps * 0.5))
    end = trees.MAX_NORM if steps > 0 else clipping.MIN_NORM
    assert float(clip[0]) == end
    tree = jnp.full(1000, 1e10 * end if steps < 0 else 1e18, jnp.float32)
    clipped, _ = clipping.to_norm(tree, clip[0])
    assert np.linalg.norm(np.asarray(clipped, float)) <= end * (1 + 1e-4)


def test_a_clip_that_floats_cannot_hold_is_refused():
    """At 1e-25 the squares of a change that is 10^4 clips long are 0."""
    tiny, _ = clipping.to_norm(jnp.full(100, 1e-22, jnp.float32), 1e-25)
    assert np.linalg.norm(np.asarray(tiny, float)) > 1e3 * 1e-25
    for bound in (1e-25, 1e30):
        with pytest.raises(require.InputError, match=r"^clip: expected"):
            client_level.local(clip=(bound,), noise_multiplier=1.0)
