"""Rules that see all changes in a round: compositions, masks and denominators."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.core import require
from fairjax.fairness import compose, weights
from fairjax.fairness.fedfv import fedfv
from fairjax.fairness.fedmgda import fedmgda
from fairjax.fairness.q_fedavg import q_fedavg
from fairjax.submodels.heterofl import heterofl
from tests import fakes
from tests.fairness.stacks import step


def test_two_directions_are_refused():
    rules = [
        ("fedmgda", fedmgda(epsilon=0.1)),
        ("fedfv", fedfv(alpha=0.1, tau=0)),
    ]
    with pytest.raises(
        require.InputError, match=r"^rules: .*one rule that gives .*fedmgda\+fedfv"
    ):
        compose.compose(rules)


@pytest.mark.parametrize(
    "rule",
    [
        q_fedavg(q=1.0, learning_rate=0.1),
        fedmgda(epsilon=1.0),
        fedfv(alpha=0.1, tau=1),
    ],
    ids=["q_fedavg", "fedmgda", "fedfv"],
)
def test_a_coordinate_that_no_client_covers_stays(rule):
    """A cohort of small tiers leaves the rest of the model unchanged, to the bit."""
    model = fakes.small_mlp(hidden=(8,))
    method = heterofl(model.axes, (0.5, 1.0), scaler=False, masked_loss=False)
    spec, data = fakes.spec(model, method, rule=rule), fakes.federation()
    cohort = fakes.cohort(tiers=(0, 0, 0, 0))
    state = fakes.start(spec, data, tiers=2)
    after, _ = step(spec)(state, data, cohort)
    kernel = state.params["hidden0"]["kernel"], after.params["hidden0"]["kernel"]
    np.testing.assert_array_equal(kernel[0][:, 4:], kernel[1][:, 4:])
    assert float(jnp.abs(kernel[0][:, :4] - kernel[1][:, :4]).max()) > 1e-4


def test_a_fixed_denominator_lets_a_lone_holders_weight_count():
    """Client 3 alone holds the outer half; uniform weights are 2.25 times its share."""
    model = fakes.small_mlp(hidden=(8,))
    method = heterofl(model.axes, (0.5, 1.0), scaler=False, masked_loss=False)
    data, cohort = fakes.federation(), fakes.cohort(tiers=(0, 0, 0, 1))
    outer = []
    for rule, denominator in (
        (weights.uniform(), "cover"),
        (weights.uniform(), "fixed"),
        (weights.size(), "fixed"),
    ):
        spec = fakes.spec(model, method, rule=rule, denominator=denominator)
        state = fakes.start(spec, data, tiers=2)
        after, _ = step(spec)(state, data, cohort)
        change = jax.tree.map(jnp.subtract, after.params, state.params)
        outer.append(np.asarray(change["hidden0"]["kernel"][:, 4:]))
    share = fakes.COUNTS[3] / sum(fakes.COUNTS)
    np.testing.assert_allclose(outer[1], outer[0] * 0.25 / share, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(outer[2], outer[0], rtol=1e-5, atol=1e-8)
    assert np.abs(outer[0]).max() > 1e-3


def test_server_state_is_the_optimisers_alone():
    """A direction goes through the server optimiser like any other change."""
    spec = fakes.spec(rule=fedmgda(epsilon=0.1), server=optax.sgd(0.5, momentum=0.9))
    data = fakes.federation()
    state = fakes.start(spec, data)
    after, _ = step(spec)(state, data, fakes.cohort())
    length = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))
    assert 0 < float(length) <= 0.5 + 1e-5
