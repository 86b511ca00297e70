"""ScaleFL: sizes and loss by hand, and the dense network cut in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import require
from fairjax.submodels.scalefl import scalefl
from tests import fakes
from tests.submodels.residual import member, moved, residual, trained

MODEL = residual(hidden=(6, 5), width=9)
BUDGET = (0.25, 1.0)
ROUNDS, GAMMA, T = 8, 0.5, 3.0


def scaled(model=MODEL, budget=BUDGET, **options):
    defaults = {"width": (0.7, 1.0), "exits": (), "gamma": GAMMA, "temperature": T}
    options = {**defaults, "warmup": 0.25} | options
    return scalefl(model.axes, budget, ROUNDS, **options)


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("warmup", [0.25, 0.3])
def test_the_loss_by_hand(warmup):
    """The released condition, `round > num_rounds * 0.25` with rounds from 0: with 8
    rounds the distillation begins when 3 are finished, not when 2 are."""
    data, finished = fakes.federation(), np.arange(5)
    params = MODEL.init(jax.random.key(1), data.x[:1])
    spec = fakes.spec(MODEL, scaled(warmup=warmup), batch_size=32, epochs=1)
    loss = jax.vmap(lambda r: trained(spec, 1, params=params, round=r)[2].loss)
    z, y = [np.asarray(z) for z in MODEL.apply(params, data.x[10:17]).exits], data.y
    own = [-np.log(softmax(q)[np.arange(7), np.asarray(y[10:17])]).mean() for q in z]
    p, q = softmax(z[1] / T), softmax(z[0] / T)
    teaching = GAMMA * T**2 * (p * np.log(p / q)).sum(1).mean()
    taught = finished > ROUNDS * warmup
    assert taught.tolist() == [False, False, False, True, True]
    expected = (own[0] + taught * teaching + 2 * own[1]) / 3
    np.testing.assert_allclose(loss(jnp.asarray(finished)), expected, rtol=1e-5)


def test_widths_round_down_and_exits_up():
    method = scaled()
    assert method.size(0) == (
        {"hidden0": 4, "hidden1": 3, "stream": 6},
        {"blocks": (0,)},
    )
    by_budget = scaled(width=()).size(0)
    assert by_budget.axes == {"hidden0": 3, "hidden1": 2, "stream": 4}
    assert scaled(width=(0.01, 1.0)).size(0).axes["stream"] == 1


def test_the_scale_is_the_width():
    spec = fakes.spec(MODEL, scaled(), batch_size=32, epochs=1)
    data = fakes.federation()
    kept = spec.local.method.submodel(
        jax.random.key(0), jnp.asarray(0), {}, member(data, 0, 0)
    )
    np.testing.assert_allclose(kept.scale, 0.7)


def test_a_tier_trains_what_it_keeps_of_both():
    delta, cover, _ = trained(fakes.spec(MODEL, scaled(), epochs=1), 0)
    assert {path.partition("/")[0] for path in moved(delta)} == {
        "stem",
        "block0",
        "exit0",
    }
    assert cover["stem"]["bias"].tolist() == [1] * 6 + [0] * 3
    assert np.any(delta["exit0"]["kernel"][5])
    assert not np.any(delta["exit0"]["kernel"][6:])


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(
        require.InputError, match=r"^width: expected 2 values, one per tier"
    ):
        scaled(width=(0.5,))
    with pytest.raises(require.InputError, match=r"^exits: "):
        scaled(exits=(1, 3))
