"""FedMGDA+: the min-norm point against a solver, and what its direction promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from fairjax.fairness.fedmgda import fedmgda, min_norm
from tests.fairness.stacks import direction, flat, full_cohort, known, moved, stack


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_min_norm_against_a_solver(epsilon, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(6, 8))
    inner, center = vectors @ vectors.T, rng.dirichlet(np.ones(6))
    found = minimize(
        lambda x: x @ inner @ x,
        center,
        jac=lambda x: 2 * inner @ x,
        bounds=[(max(c - epsilon, 0), min(c + epsilon, 1)) for c in center],
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    with jax.enable_x64(True):
        got = min_norm(
            jnp.asarray(inner), jnp.asarray(center), epsilon, jnp.ones(6, bool)
        )
        got = np.asarray(got)
    np.testing.assert_allclose(got, found.x, atol=1e-6)


def test_fedmgda_makes_no_client_worse():
    """At epsilon 1 <change, u_k> >= |change|^2 for every client, also with masks."""
    changes, covers = stack(3)
    rule = fedmgda(epsilon=1.0)
    num, den, given, _ = direction(rule, full_cohort(), known(changes, covers))
    change = moved(num, den)
    units = flat(changes) / np.linalg.norm(flat(changes), axis=1, keepdims=True)
    assert np.all(units @ change >= change @ change - 1e-5)
    np.testing.assert_allclose(change, given @ units, atol=1e-6)
    np.testing.assert_allclose(given.sum(), 1, rtol=1e-5)


def test_fedmgda_at_zero_is_the_mean_of_unit_changes():
    changes, covers = stack()
    changes["b"][2] = 0
    changes["a"][2] = 0
    rule = fedmgda(epsilon=0.0)
    num, den, _, _ = direction(rule, full_cohort(), known(changes, covers))
    length = np.linalg.norm(flat(changes), axis=1, keepdims=True)
    units = flat(changes) / np.where(length > 0, length, 1)
    expected = np.arange(1, 6) / 15 @ units
    np.testing.assert_allclose(moved(num, den), expected, atol=1e-6)
