"""FedFV against loops, and what it remembers of absent clients."""

import math

import jax
import numpy as np
import pytest

from fairjax.fairness.fedfv import fedfv
from tests.fairness.stacks import K, direction, flat, full_cohort, known, moved, stack


def fedfv_by_hand(changes, loss, alpha):
    """Algorithms 1 and 2 of the paper in loops, before the scaling."""
    order = np.argsort(loss, kind="stable")
    exempt = order[math.ceil((len(order) - 1) * (1 - alpha)) :] if alpha else []
    freed = changes.copy()
    for i in range(len(changes)):
        if i in exempt:
            continue
        for j in order:
            dot = changes[j] @ freed[i]
            if j != i and dot < 0:
                freed[i] -= dot / (changes[j] @ changes[j]) * changes[j]
    return freed.mean(0)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_fedfv_frees_the_cohort_from_conflicts(alpha):
    changes, covers = stack(5)
    covers = jax.tree.map(np.ones_like, covers)
    loss = np.array([0.5, 2.0, 0.1, 1.0, 0.7])
    rule = fedfv(alpha=alpha, tau=0)
    num, den, _, _ = direction(rule, full_cohort(), known(changes, covers, loss))
    expected = fedfv_by_hand(flat(changes), loss, alpha)
    plain = np.linalg.norm(flat(changes).mean(0))
    expected *= plain / np.linalg.norm(expected)
    np.testing.assert_allclose(moved(num, den), expected, rtol=1e-4, atol=1e-6)
    if alpha == 1:
        np.testing.assert_allclose(moved(num, den), flat(changes).mean(0), atol=1e-6)


def test_fedfv_remembers_what_absent_clients_sent():
    """Clients 3 and 4 are absent from the last of three rounds, and pull against it."""
    changes, covers = stack(1)
    covers = jax.tree.map(np.ones_like, covers)
    pull = {name: -leaf[:1].repeat(K, 0) for name, leaf in changes.items()}
    rule, loss = fedfv(alpha=1.0, tau=1), np.ones(K)
    all_clients, present = full_cohort(), full_cohort(valid=np.arange(K) < 3)
    _, _, _, state = direction(rule, all_clients, known(changes, covers, loss))
    _, _, _, state = direction(rule, all_clients, known(pull, covers, loss), state)
    last, _ = stack(1)
    got = direction(rule, present, known(last, covers, loss), state)
    mean = flat(last)[:3].mean(0)
    against = 2 * flat(pull)[3]
    assert mean @ against < 0
    freed = mean - mean @ against / (against @ against) * against
    freed *= np.linalg.norm(mean) / np.linalg.norm(freed)
    np.testing.assert_allclose(moved(*got[:2]), freed, rtol=1e-3, atol=1e-5)
    # Two rounds later FedFV has forgotten them.
    _, _, _, state = direction(rule, present, known(last, covers, loss), state)
    got = direction(rule, present, known(last, covers, loss), state)
    np.testing.assert_allclose(moved(*got[:2]), mean, rtol=1e-4, atol=1e-6)
