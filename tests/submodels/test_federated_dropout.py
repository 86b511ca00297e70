"""Random subsets of the right size, aligned, nested when the order is shared."""

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.submodels.federated_dropout import federated_dropout
from tests import fakes

BUDGET = (0.3, 0.5, 1.0)
SIZES = {"hidden0": (5, 8, 16), "hidden1": (3, 4, 8)}
AXES = fakes.small_mlp().axes


def drawn(shared, rounds=200, client=0):
    """{axis: 0/1 units [rounds, tier, units]}, and one `Submodel`."""
    method = federated_dropout(
        AXES, BUDGET, shared=shared, scaler=False, masked_loss=False
    )

    someone = fakes.member(client)

    def one(key, tier):
        member = someone._replace(tier=tier)
        return method.submodel(key, jnp.asarray(0), None, member).forward.axes

    every = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    kept = jax.jit(every)(jax.random.split(jax.random.key(0), rounds), jnp.arange(3))
    return {name: np.asarray(mask) for name, mask in kept.items()}


def test_every_draw_has_the_size_of_its_tier_and_every_unit_its_turn():
    for name, kept in drawn(shared=False).items():
        assert np.all(kept.sum(axis=2) == SIZES[name])
        share = np.array(SIZES[name])[:, None] / kept.shape[2]
        # 200 draws: four standard errors are 0.14.
        assert np.all(np.abs(kept.mean(axis=0) - share) < 0.15)


def test_axes_are_drawn_apart():
    """The draw of hidden1 does not follow from that of hidden0."""
    kept = drawn(shared=False)
    first, second = kept["hidden0"][:, 1, :8], kept["hidden1"][:, 1]
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.15


def test_clients_share_the_order_or_not():
    for shared in (False, True):
        one, other = (drawn(shared, rounds=3, client=k)["hidden0"] for k in (0, 1))
        assert np.array_equal(one[:, :2], other[:, :2]) == shared


def test_tiers_of_a_shared_order_nest():
    kept = drawn(shared=True)["hidden0"]
    assert np.all(kept[:, 0] <= kept[:, 1])
    assert np.all(kept[:, 1] <= kept[:, 2])
