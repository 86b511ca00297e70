"""Agnostic federated averaging by patient group, inside clients and between them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from fairjax.core import inference, layout, round
from fairjax.core.rule import CohortStats, FederationFacts
from fairjax.core.types import GroupStats
from fairjax.fairness import compose
from fairjax.fairness.agnostic import agnostic
from fairjax.submodels.heterofl import heterofl
from tests import fakes

GROUPS, RATE, LEARNING, ROUNDS, STEPS = 2, 0.7, 0.1, 3, 2
RULE = agnostic(rate=RATE, domain="group")


def federation():
    """Clients 0 and 2 mix groups, 1 has no record of group 1, 3 has unknown groups.

    The labels of group 1 are shifted, so that it is served worse.
    """
    data, rng = fakes.federation(), np.random.default_rng(3)
    owner = np.repeat(np.arange(4), fakes.COUNTS)
    group = np.where(rng.random(len(owner)) < 0.3, 1, 0)
    group[owner == 1] = 0
    group[(owner == 3) & (np.arange(len(owner)) % 2 == 0)] = -1
    y = np.where(group == 1, (np.asarray(data.y) + 1) % fakes.CLASSES, data.y)
    column = group[:, None].astype(np.int32)
    return dataclasses.replace(data, y=jnp.asarray(y), group=jnp.asarray(column))


DATA = federation()


def trained(rule, *, batch_size, rounds=ROUNDS, hidden=(), laid=None, budget=None):
    """The plain model, and the last round's report."""
    model = fakes.small_mlp(hidden=hidden)
    method = None
    if budget is not None:
        method = heterofl(model.axes, budget, scaler=False, masked_loss=False)
    spec = fakes.spec(
        model,
        method,
        rule=rule,
        epochs=STEPS,
        batch_size=batch_size,
        attribute=0,
        groups=GROUPS,
    )
    state, info = fakes.start(spec, DATA), None
    laid = laid or layout.vmapped()
    order = fakes.cohort((0, 1, 2, 3), (0, 0, 1, 2))
    step = jax.jit(lambda state: round.step(state, DATA, order, spec=spec, layout=laid))
    first = state.params
    for _ in range(rounds):
        state, info = step(state)
    return first, state.params, info


def by_hand(kernel, bias):
    """Algorithm 1 of the paper: softmax regression, whole clients as batches.

    Returns the parameters and the clients' weights of every round.
    """
    x, y, group = (np.asarray(a, np.float64) for a in (DATA.x, DATA.y, DATA.group))
    x, y = np.concatenate([x, np.ones((len(x), 1))], axis=1), y.astype(int)
    group = group[:, 0].astype(int) % (GROUPS + 1)  # unknown ones are the last
    owner = np.repeat(np.arange(4), fakes.COUNTS)
    records = np.bincount(group, minlength=GROUPS + 1)
    w = np.concatenate([kernel, bias[None]]).astype(np.float64)
    lam, weights = records / records.sum(), []
    for _ in range(ROUNDS):
        alpha = lam / records
        each = -np.log(softmax(x @ w, axis=1)[np.arange(len(y)), y])
        loss = np.bincount(group, each, GROUPS + 1) / records
        beta = np.bincount(owner, alpha[group])
        ends = []
        for k in range(4):
            v, mine = w.copy(), owner == k
            for _ in range(STEPS):
                p = softmax(x[mine] @ v, axis=1) - np.eye(fakes.CLASSES)[y[mine]]
                v -= LEARNING * x[mine].T @ (alpha[group[mine], None] * p) / beta[k]
            ends.append(v)
        w = np.average(ends, axis=0, weights=beta)
        weights.append(beta / beta.sum())
        lam = lam * np.exp(RATE * loss)
        lam /= lam.sum()
    return w, weights


def test_it_is_the_published_algorithm():
    first, last, info = trained(RULE, batch_size=max(fakes.COUNTS))
    head = {name: np.asarray(leaf) for name, leaf in first["head"].items()}
    expected, weights = by_hand(head["kernel"], head["bias"])
    np.testing.assert_allclose(info.weights, weights[-1], rtol=1e-4)
    got = np.concatenate([last["head"]["kernel"], last["head"]["bias"][None]])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    # The effect of the groups' losses is far above that tolerance.
    plain = agnostic(rate=0.0, domain="group")
    _, flat, _ = trained(plain, batch_size=max(fakes.COUNTS))
    assert fakes.gap(last, flat) > 1e-2


def test_the_message_to_a_client_has_mean_one_over_its_records():
    """So a client's step is as long as without the rule, in any batches."""
    rng = np.random.default_rng(0)
    count = rng.integers(0, 9, (4, GROUPS + 1, 2)).astype(np.float32)
    loss = count * np.float32([[1], [2], [3]])
    cells = GroupStats(*map(jnp.asarray, (count, loss, count)))
    known = CohortStats(
        jnp.asarray(count.sum((1, 2)), int), inference.mean_loss(cells), cells
    )
    who = fakes.cohort()
    state = RULE.init({}, FederationFacts(jnp.ones(4, int), 3, 2))
    np.testing.assert_allclose(RULE.broadcast(state, who, known), 1, rtol=1e-6)
    for _ in range(3):
        _, state = RULE.weights(state, who, known)
    message = np.asarray(RULE.broadcast(state, who, known))
    records = count.sum(2)
    np.testing.assert_allclose((message * records).sum(1), records.sum(1), rtol=1e-5)
    # The ratio of two domains is that of their multipliers, at every client.
    apart = np.exp(state.scale[0] - state.scale[1])
    np.testing.assert_allclose(message[:, 0] / message[:, 1], apart, rtol=1e-4)


def test_a_message_has_no_effect_during_warm_up():
    waiting = compose.with_warmup(RULE, 2)
    rounds = [
        trained(rule, batch_size=8, rounds=2)[1]
        for rule in (waiting, agnostic(rate=0.0, domain="group"))
    ]
    assert fakes.gap(*rounds) < 1e-6


def test_sliced_clients_get_the_same_message():
    budget = (0.5, 0.5, 1.0)
    ends = [
        trained(RULE, batch_size=5, hidden=(8,), budget=budget, laid=laid)[1]
        for laid in (None, layout.sliced(layout.vmapped(), (2, 1, 1)))
    ]
    assert fakes.gap(*ends) < 1e-5
