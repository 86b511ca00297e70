"""FedCE against its published rule, and inside a round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fairjax.core.rule import FederationFacts
from fairjax.core.types import (
    Cohort,
)
from fairjax.fairness.fedce import fedce
from tests import fakes
from tests.fairness.stacks import K, flat, full_cohort, known, stack, step


@pytest.mark.parametrize("mode", ["plus", "times"])
def test_fedce_is_its_published_rule(mode):
    clients, rounds = 4, 3
    rule = fedce(mode=mode)
    who = full_cohort(clients)
    state = rule.init({}, FederationFacts(jnp.full(clients, 10), 1))
    w, cosines, errors = np.full(clients, 1 / clients), [], [np.ones(clients)]
    for number in range(rounds):
        changes, covers = stack(number, clients)
        covers = jax.tree.map(np.ones_like, covers)
        d = flat(changes)
        # The error depends on the evaluated model.
        error_of = lambda tree: jax.nn.sigmoid(tree["b"].sum(1))  # noqa: E731
        scores = known(changes, covers)._replace(errors=error_of)
        got, state = rule.weights(state, who, scores)

        total = w @ d
        others = [total - w[k] * d[k] for k in range(clients)]
        cosines.append(
            [
                d[k] @ o / np.linalg.norm(d[k]) / np.linalg.norm(o)
                for k, o in enumerate(others)
            ]
        )
        a, b = 1 - np.mean(cosines, axis=0), np.mean(errors, axis=0)
        a, b = (np.maximum(part / part.sum(), 1e-3) for part in (a, b))
        w = a + b if mode == "plus" else a * b
        w = np.maximum(w / w.sum(), 1e-3)
        w /= w.sum()
        np.testing.assert_allclose(got, w, rtol=1e-4)
        b_of = changes["b"].astype(float)
        minus = [(w @ b_of - w[k] * b_of[k]) / (1 - w[k]) for k in range(clients)]
        errors.append(1 / (1 + np.exp(-np.sum(minus, axis=1))))


@functools.cache
def contributions(mode):
    """Two rounds of weights, [2, K], for the same changes and errors."""
    rule = fedce(mode=mode)

    def run(changes, covers, error, valid, client):
        state = rule.init({}, FederationFacts(jnp.full(K, 10), 1))
        scores = known(changes, covers)._replace(errors=lambda others: error)
        who, each = Cohort(client, jnp.zeros(K, jnp.int32), valid), []
        for _ in range(2):
            got, state = rule.weights(state, who, scores)
            each.append(got)
        return jnp.stack(each)

    return jax.jit(run)


@given(
    st.sampled_from(["plus", "times"]),
    st.integers(0, 2**16),
    st.sampled_from([0.0, 1e-12, 1.0, 1e12]),
    arrays(bool, K),
    st.permutations(range(K)),
    st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_fedce_obeys_the_contract_of_all_rules(mode, seed, size, valid, order, dtype):
    """For changes of any size: a simplex point that follows clients, not slots."""
    order, rng = np.array(order), np.random.default_rng(seed)
    changes, covers = stack(seed)
    changes = jax.tree.map(lambda leaf: jnp.asarray(size * leaf, dtype), changes)
    covers = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), covers)
    args = changes, covers, rng.random(K).astype(np.float32), valid, np.arange(K)
    got = np.asarray(contributions(mode)(*args), np.float32)
    assert np.all(got >= 0)
    assert np.all(got[:, ~valid] == 0)
    np.testing.assert_allclose(got.sum(1), valid.any(), rtol=1e-4)
    other = contributions(mode)(*jax.tree.map(lambda leaf: leaf[order], args))
    np.testing.assert_allclose(got[:, order], other, rtol=2e-2, atol=1e-5)


def test_fedce_in_a_round_evaluates_the_others_model_on_validation_records():
    """The error of client 1 by hand, on the model of clients 0, 2 and 3."""
    rule = fedce(mode="plus")
    spec, data = fakes.spec(rule=rule), fakes.federation()
    validation = fakes.federation(counts=(4, 6, 3, 5), seed=9)
    state, cohort = fakes.start(spec, data), fakes.cohort()
    after, info = step(spec)(state, data, cohort, validation=validation)
    each, single = [], fakes.spec()
    train = step(single)
    for who in range(4):
        end, _ = train(fakes.start(single, data), data, fakes.cohort((who,), (0,)))
        each.append(jax.tree.map(jnp.subtract, end.params, state.params))
    w = np.asarray(info.weights).copy()
    w[1] = 0
    w /= w.sum()
    params = jax.tree.map(
        lambda start, *parts: (
            start + sum(float(a) * part for a, part in zip(w, parts, strict=True))
        ),
        state.params,
        *each,
    )
    rows = slice(4, 10)
    answers = spec.local.model.apply(params, validation.x[rows]).logits.argmax(-1)
    wrong = np.mean(np.asarray(answers != validation.y[rows]))
    np.testing.assert_allclose(after.rule.error[1] - 1, wrong, atol=1e-6)
