"""Stacks of changes for rules that see all of them, and how a round combines them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.core import layout, round
from fairjax.core.rule import CohortStats, FederationFacts
from fairjax.core.types import Cohort

K = 5


def stack(seed=0, clients=K):
    """Changes in two leaves; clients 1 and 3 hold half of the first leaf."""
    rng = np.random.default_rng(seed)
    cover = np.ones((clients, 4, 3), np.float32)
    cover[1::2, 2:] = 0
    changes = {
        "a": rng.normal(size=(clients, 4, 3)).astype(np.float32) * cover,
        "b": rng.normal(size=(clients, 2)).astype(np.float32),
    }
    return changes, {"a": cover, "b": np.ones((clients, 2), np.float32)}


def flat(tree):
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in tree.values()],
        axis=1,
    )


def flat_tree(tree):
    return np.concatenate(
        [np.asarray(leaf, np.float64).ravel() for leaf in tree.values()]
    )


def known(changes, covers, loss=None, rate=1.0, count=None):
    clients = len(changes["b"])
    count = np.arange(1, clients + 1) if count is None else count
    return CohortStats(
        jnp.asarray(count),
        None if loss is None else jnp.asarray(loss, jnp.float32),
        lr_scale=rate,
        delta=jax.tree.map(jnp.asarray, changes),
        cover=jax.tree.map(jnp.asarray, covers),
        incoming=jax.tree.map(lambda leaf: jnp.ones_like(leaf[0]), changes),
    )


def full_cohort(clients=K, valid=None, who=None):
    who = jnp.arange(clients) if who is None else jnp.asarray(who)
    valid = jnp.ones(clients, bool) if valid is None else jnp.asarray(valid)
    return Cohort(who, jnp.zeros(clients, jnp.int32), valid)


def direction(rule, cohort, scores, state=None, clients=K):
    """(num, den, weights, state) as the round computes them."""
    if state is None:
        like = jax.tree.map(lambda leaf: leaf[0], scores.delta)
        state = rule.init(like, FederationFacts(jnp.full(clients, 10), 1))
    given, state = rule.weights(state, cohort, scores)
    num, den, state = rule.combine(state, cohort, scores, given)
    return num, den, np.asarray(given), state


def step(spec, laid=None):
    """A jitted round: (state, data, cohort) -> (state, info)."""
    laid = laid or layout.vmapped()
    return jax.jit(functools.partial(round.step, spec=spec, layout=laid))


def moved(num, den):
    num, den = flat_tree(num), flat_tree(den)
    return np.where(den > 0, num / np.where(den > 0, den, 1), 0)
