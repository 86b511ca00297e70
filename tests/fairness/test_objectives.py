"""Rules that change the objective, and rules that keep leaves or a model locally."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from fairjax.core import layout, objectives, require, round
from fairjax.core.types import Batch, Context, Outputs
from fairjax.fairness import compose, personal, weights
from fairjax.fairness.logit_adjust import logit_adjust
from fairjax.fairness.ordered_weights import cvar
from fairjax.fairness.propfair import propfair
from fairjax.fairness.tilted import term
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.heterofl import heterofl
from tests import fakes


def value(rule, logits, y, labels=None):
    """The wrapped cross-entropy of a batch, and its gradient at the logits."""
    labels = jnp.ones(len(logits[0]), jnp.int32) if labels is None else labels
    member = fakes.member()._replace(labels=jnp.asarray(labels))
    context = Context(*(None,) * len(Context._fields))._replace(client=member)
    batch = Batch(None, jnp.asarray(y), jnp.ones(len(y), bool))
    objective = rule.wrap(objectives.mean_cross_entropy())

    def loss(logits):
        return objective(
            lambda kept: Outputs(logits, (logits,)), batch, jax.random.key(0), context
        )[0]

    return jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits, jnp.float32))


# ----------------------------------------------------------------------------- PropFair


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_propfair_is_the_log_of_the_utility_below_its_bound(scale):
    logits, y = scale * np.array([[1.0, -1.0], [0.5, 2.0]]), [0, 0]
    plain = -log_softmax(logits, axis=1)[:, 0].mean()
    got, slope = value(propfair(bound=3.0, epsilon=0.5), logits, y)
    below = 3 - plain >= 0.5
    expected = -math.log(1 - plain / 3) if below else plain / 3
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    _, free = value(weights.size(), logits, y)
    factor = 1 / (3 - plain) if below else 1 / 3
    np.testing.assert_allclose(slope, factor * np.asarray(free), rtol=1e-4, atol=1e-7)
    assert below == (scale < 5)


def test_propfair_has_a_finite_gradient_at_its_pole():
    logits = jnp.asarray([[0.0, math.log(math.expm1(2.0))]])
    got, slope = value(propfair(bound=2.0, epsilon=0.1), logits, [0])
    assert np.isfinite(got)
    assert np.isfinite(slope).all()


# --------------------------------------------------------------------- logit adjustment


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_logit_adjustment_adds_the_clients_log_prior(tau):
    logits, y = np.array([[1.0, -1.0, 0.3], [0.5, 2.0, 0.0]]), [0, 2]
    labels = [6, 3, 1]
    adjusted = logits + tau * np.log(np.array(labels) / 10)
    expected = -log_softmax(adjusted, axis=1)[[0, 1], y].mean()
    got, _ = value(logit_adjust(tau=tau), logits, y, labels)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_class_that_a_client_lacks_keeps_its_logit_finite():
    """The class is hardly pushed down: its softmax share is a hundredth of a record."""
    got, slope = value(logit_adjust(tau=1.0), [[0.0, 0.0]], [0], [10, 0])
    np.testing.assert_allclose(got, math.log1p(0.001), rtol=1e-4)
    np.testing.assert_allclose(slope, [[-0.001, 0.001]], rtol=1e-2)


def test_a_constant_model_learns_no_prior():
    """With only a bias the adjusted optimum is uniform, the plain one is the prior."""
    labels = jnp.asarray([8, 2])
    y = jnp.asarray([0] * 8 + [1] * 2)
    ends = []
    for rule in (weights.size(), logit_adjust(tau=1.0)):

        def step(_, bias, rule=rule):
            _, slope = value(rule, jnp.tile(bias, (10, 1)), y, labels)
            return bias - slope.sum(0)

        bias = jax.lax.fori_loop(0, 200, step, jnp.zeros(2))
        ends.append(np.asarray(jax.nn.softmax(bias)))
    np.testing.assert_allclose(ends[0], [0.8, 0.2], atol=1e-3)
    np.testing.assert_allclose(ends[1], [0.5, 0.5], atol=1e-3)


# -------------------------------------------------------------------------- composition


def test_weights_and_objectives_compose():
    rule = compose.compose(
        [
            ("term", term(t=2.0)),
            ("logit_adjust", logit_adjust(tau=1.0)),
            ("propfair", propfair(bound=9.0, epsilon=0.2)),
        ]
    )
    logits, y, labels = np.array([[1.0, -1.0]]), [1], [9, 1]
    adjusted = logits + np.log([0.9, 0.1])
    plain = -log_softmax(adjusted, axis=1)[0, 1]
    got, _ = value(rule, logits, y, labels)
    np.testing.assert_allclose(got, -math.log(1 - plain / 9), rtol=1e-5)
    assert rule.reads == {"losses", "labels"}
    assert rule.weights_from == "losses"


def test_two_weights_are_refused():
    rules = [("term", term(t=2.0)), ("cvar", cvar(alpha=0.5))]
    with pytest.raises(
        require.InputError, match=r"^rules: expected one rule that gives weights"
    ):
        compose.compose(rules)


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [
        (lambda r: compose.with_cap(r, 2.0), "cap"),
        (lambda r: compose.with_warmup(r, 2), "rounds"),
    ],
)
def test_a_wrapper_of_weights_refuses_a_rule_without(wrapper, name):
    message = f"^{name}: expected .* a rule that gives weights"
    with pytest.raises(require.InputError, match=message):
        wrapper(logit_adjust(tau=1.0))


# ----------------------------------------------------------------------------- personal


def run(spec, rounds=2, cohort=None, laid=None):
    data = fakes.federation()
    state = fakes.start(spec, data)
    step = jax.jit(
        lambda state: round.step(
            state,
            data,
            cohort or fakes.cohort(),
            spec=spec,
            layout=laid or layout.vmapped(),
        )[0]
    )
    states = [state]
    for _ in range(rounds):
        states.append(step(states[-1]))
    return states


def test_ditto_leaves_the_plain_model_to_fedavg():
    rule = personal.ditto(strength=0.5)
    with_ditto, without = (run(fakes.spec(rule=r)) for r in (rule, weights.size()))
    assert fakes.gap(with_ditto[-1].params, without[-1].params) < 1e-7


@pytest.mark.parametrize("sliced", [False, True])
def test_ditto_is_its_own_steps(sliced):
    """Client 0 by hand: SGD on F(v) + s/2 |v - w|^2 from v, w the incoming model.

    The batches are those of its other training, so that a client with prox towards the
    start, at v = w, takes the same first round.
    """
    model = fakes.small_mlp(hidden=(8,))
    method = heterofl(model.axes, (0.5, 0.5, 1.0), scaler=False, masked_loss=False)
    strength = 0.7
    spec = fakes.spec(model, method, rule=personal.ditto(strength=strength))
    laid = layout.vmapped()
    if sliced:
        laid = layout.sliced(laid, (2, 1, 1))
    order = fakes.cohort((0, 1, 2, 3), (0, 0, 1, 2))
    states = run(spec, 2, order, laid)
    prox = fakes.spec(
        model,
        method,
        objective=objectives.proximal(objectives.mean_cross_entropy(), strength),
    )
    data = fakes.federation()
    alone = fakes.cohort((0,), (0,))
    train = functools.partial(round.step, spec=prox, layout=layout.scanned())
    first, _ = jax.jit(train)(fakes.start(prox, data), data, alone)
    mine = jax.tree.map(lambda leaf: leaf[0], states[1].personal)
    assert fakes.gap(mine, first.params) < 1e-6
    assert fakes.gap(mine, states[1].params) > 1e-3
    # The second round is pulled to the new plain model, not to the initial one.
    mine = [jax.tree.map(lambda leaf: leaf[0], s.personal) for s in states]
    assert fakes.gap(mine[2], mine[1]) > 1e-4
    narrow = jax.tree.map(jnp.subtract, mine[2], mine[0])
    assert float(jnp.abs(narrow["hidden0"]["kernel"][:, 4:]).max()) == 0


def test_ditto_pulls_to_the_incoming_plain_model():
    """A huge strength at a tiny rate: v moves towards w by rate * strength (w - v)."""
    data, rate, strength = fakes.federation(), 1e-4, 1e3
    spec = fakes.spec(
        optimizer=optax.sgd(rate), rule=personal.ditto(strength=strength), epochs=1,
        batch_size=64,
    )  # fmt: skip
    state = fakes.start(spec, data)
    away = jax.tree.map(lambda leaf: leaf + 1.0, state.personal)
    state = dataclasses.replace(state, personal=away)
    train = functools.partial(round.step, spec=spec, layout=layout.scanned())
    after, _ = jax.jit(train)(state, data, fakes.cohort())
    moved = jax.tree.map(jnp.subtract, after.personal, away)
    expected = jax.tree.map(lambda leaf: jnp.full_like(leaf, -rate * strength), moved)
    assert fakes.gap(moved, expected) < 1e-2


def test_ditto_without_a_pull_trains_alone():
    rule = personal.ditto(strength=0.0)
    states = run(fakes.spec(rule=rule), 2)
    mine = jax.tree.map(lambda leaf: leaf[2], states[2].personal)
    lonely = run(fakes.spec(), 2, fakes.cohort((2,), (2,)))[-1].params
    assert fakes.gap(mine, lonely) < 1e-6


def test_a_private_head_never_travels():
    model = fakes.small_mlp()
    method = personal.with_local_leaves(fedavg(model.axes), personal.private_head())
    states = run(fakes.spec(model, method, rule=personal.private_head()), 2)
    first, last = states[0].params, states[2].params
    assert fakes.equal(first["head"], last["head"])
    copies = states[2].leaf_copies["client"]
    assert sorted(copies) == ["head/bias", "head/kernel"]
    moved = copies["head/bias"] - first["head"]["bias"]
    assert float(jnp.abs(moved).min()) > 0
    assert fakes.gap(first["hidden0"], last["hidden0"]) > 1e-3


def test_fedbn_keeps_scale_and_bias_of_every_norm():
    model = fakes.small_cnn()
    method = personal.with_local_leaves(fedavg(model.axes), personal.fedbn())
    data = fakes.federation((8, 8, 3))
    spec = fakes.spec(model, method, rule=personal.fedbn())
    copies = fakes.start(spec, data).leaf_copies["client"]
    assert len(copies) == 4
    assert all(path.split("/")[-1] in ("scale", "bias") for path in copies)
