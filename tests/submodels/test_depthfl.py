"""DepthFL: its loss by hand, its exits, its client memory and the server's state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.core import layout, losses, require, round
from fairjax.core.types import Axes, ClientView, LeafAxes, Model, Outputs, Submodel
from fairjax.fairness import weights
from fairjax.submodels.depthfl import depthfl
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.feddyn import feddyn
from tests import fakes
from tests.submodels.residual import moved, residual, trained

MODEL = residual()
BUDGET = (0.3, 0.6, 1.0)


def depths(model=MODEL, budget=BUDGET, **options):
    defaults = {"stages": (), "distill": True, "ramp": 10, "ensemble": True}
    return depthfl(model.axes, budget, **({**defaults, "feddyn": 0.0} | options))


def spec(model=MODEL, **options):
    method = depths(model, **options)
    return fakes.spec(
        model, method, epochs=1, server=method.server.optimizer(optax.sgd(1.0), 1.0)
    )


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize(("tier", "finished"), [(0, 4), (1, 25), (2, 4)])
def test_the_loss_by_hand(tier, finished):
    data = fakes.federation()
    params = jax.jit(MODEL.init)(jax.random.key(1), data.x[:1])
    one = fakes.spec(MODEL, depths(), batch_size=32, epochs=1)
    _, _, info = trained(one, tier, params=params, round=finished)
    rows = slice(10, 17)
    p = [
        softmax(np.asarray(z)) for z in jax.jit(MODEL.apply)(params, data.x[rows]).exits
    ]
    p = p[: tier + 1]
    y = np.asarray(data.y[rows])
    own = sum(-np.log(q[np.arange(7), y]).mean() for q in p)
    taught = sum(
        (p[j] * np.log(p[j] / p[i])).sum(1).mean()
        for i in range(tier + 1)
        for j in range(tier + 1)
        if i != j
    )
    strength = np.exp(-5 * (1 - min(finished, 10) / 10) ** 2)
    expected = own + strength * taught / max(tier, 1)
    np.testing.assert_allclose(info.loss, expected, rtol=1e-5)


def test_a_teacher_gets_no_gradient_from_its_pupil():
    z, w = jnp.asarray([[1.0, 2.0, 0.5]]), jnp.asarray([[0.3, -1.0, 2.0]])
    teach, learn = jax.grad(lambda *a: losses.divergence(*a)[0], argnums=(0, 1))(z, w)
    assert not np.any(teach)
    np.testing.assert_allclose(
        learn, softmax(np.asarray(w)) - softmax(np.asarray(z)), rtol=1e-5
    )


def test_a_tier_trains_its_blocks_and_all_their_exits():
    delta, _, _ = trained(spec(), 1)
    parts = {path.partition("/")[0] for path in moved(delta)}
    assert parts == {"stem", "block0", "exit0", "block1", "exit1"}


def test_stages_count_exits_not_blocks():
    model = residual(ends=(1, 2))
    method = depths(model, budget=(0.4, 1.0))
    assert method.size(0).blocks == {"blocks": (0, 1)}
    assert method.size(1).blocks == {"blocks": (0, 1, 2)}
    given = depths(stages=(1, 1, 2))
    assert [len(given.size(t).blocks["blocks"]) for t in range(3)] == [1, 1, 2]


def test_a_deployed_prefix_answers_with_the_mean_of_its_exits():
    z = jnp.arange(18.0).reshape(3, 2, 3) ** 2
    outputs = Outputs(z[1], tuple(z))
    method = depths()
    kept = method.submodel(
        jax.random.key(0),
        jnp.asarray(0),
        {},
        ClientView(*map(jnp.asarray, (0, 1, True, 3, [1, 1, 1]))),
    )
    np.testing.assert_allclose(method.predict(outputs, kept), (z[0] + z[1]) / 2)
    np.testing.assert_allclose(
        method.predict(outputs, Submodel()), z.mean(0), rtol=1e-6
    )
    np.testing.assert_array_equal(depths(ensemble=False).predict(outputs, kept), z[1])


def test_one_exit_is_fedavg_of_a_model_with_one_exit():
    model, data = residual(hidden=(6, 6), ends=(1,)), fakes.federation()
    results = []
    for method in (depths(model), fedavg(model.axes)):
        one = fakes.spec(model, method, epochs=1)
        step = jax.jit(
            lambda s, one=one: round.step(
                s, data, fakes.cohort(), spec=one, layout=layout.vmapped()
            )[0]
        )
        results.append(step(fakes.start(one, data)).params)
    assert fakes.gap(*results) < 1e-6


def test_exclusive_trains_one_depth_and_leaves_out_the_poor():
    """Equal to a federation of the clients that can carry that depth."""
    model, data, ends = residual(hidden=(6, 6)), fakes.federation(), []
    budget = (0.3, 0.5, 1.0)
    alone = depths(model, budget, exclusive=1)
    for method, tiers, valid in (
        (alone, (0, 1, 2, 1), None),
        (depths(model, budget), (1, 1, 1, 1), (False, True, True, True)),
    ):
        one = fakes.spec(model, method, epochs=1)
        cohort = fakes.cohort(tiers=tiers, valid=valid)
        step = jax.jit(
            lambda s, one=one, cohort=cohort: round.step(
                s, data, cohort, spec=one, layout=layout.vmapped()
            )
        )
        state = fakes.start(one, data)
        end, info = step(state)
        assert info.valid.tolist() == [False, True, True, True]
        ends.append(end.params)
    assert fakes.gap(*ends) < 1e-6
    parts = moved(jax.tree.map(jnp.subtract, ends[0], state.params))
    assert {path.partition("/")[0] for path in parts} == {"stem", "block0", "exit0"}
    assert [alone.size(tier).blocks["blocks"] for tier in range(3)] == [(0,)] * 3
    with pytest.raises(require.InputError, match=r"^exclusive: "):
        depths(exclusive=3)


def test_bad_stages_are_refused():
    for stages in [(1, 2), (1, 2, 4), (0, 1, 2)]:
        with pytest.raises(require.InputError, match=r"^stages: "):
            depths(stages=stages)
    with pytest.raises(require.InputError, match=r"^stages: "):
        depths(residual(ends=()))


# ------------------------------------------------------------------------------- FedDyn

ALPHA = 0.5
DECAY = 0.9
"""Server learning rate per round."""


def numpy_feddyn(rounds, cohorts, clients):
    """FedDyn of softmax regression in float64: one full-batch step a round."""
    data = fakes.federation()
    x, y = np.asarray(data.x, np.float64), np.asarray(data.y)
    w, h = np.zeros((6, 3)), np.zeros((6, 3))
    memory = np.zeros((clients, 6, 3))
    for number, cohort in enumerate(cohorts[:rounds]):
        changes = []
        for k in cohort:
            v = w.copy()
            rows = slice(int(data.offset[k]), int(data.offset[k] + data.count[k]))
            for _ in range(2):
                p = softmax(x[rows] @ v) - np.eye(3)[y[rows]]
                grad = x[rows].T @ p / len(p) - memory[k] + ALPHA * (v - w)
                v = v - 0.1 * grad
            memory[k] -= ALPHA * (v - w)
            changes.append(v - w)
        h = h - ALPHA * sum(changes) / clients
        w = w + DECAY**number * (np.mean(changes, 0) - h / ALPHA)
    return w, memory


def test_feddyn_is_its_paper_s_over_two_rounds():
    """Two of four clients a round; the second round has a client of the first."""

    def apply(params, x, **_):
        logits = x @ params["w"]
        return Outputs(logits, (logits,))

    model = Model(
        lambda key, x: {"w": jnp.zeros((6, 3))},
        apply,
        Axes({"w": LeafAxes((None, None))}, {}, {}),
    )

    def objective(outputs_at, batch, key, context):
        each = losses.cross_entropy(outputs_at(None).logits, batch.y)
        return losses.mean(each, batch.where), {}

    method = feddyn(fedavg(model.axes)._replace(objective=objective), ALPHA)
    data, cohorts = fakes.federation(), [(0, 2), (2, 3), (1, 2)]
    one = fakes.spec(
        model,
        method,
        rule=weights.uniform(),
        batch_size=32,
        epochs=2,
        server=method.server.optimizer(optax.sgd(1.0), 0.5),
        server_schedule=lambda finished: DECAY ** finished.astype(jnp.float32),
    )
    step = jax.jit(
        lambda s, c: round.step(s, data, c, spec=one, layout=layout.vmapped())[0]
    )
    state = fakes.start(one, data)
    for number, who in enumerate(cohorts):
        state = step(state, fakes.cohort(who, (0, 0)))
        w, memory = numpy_feddyn(number + 1, cohorts, 4)
        np.testing.assert_allclose(state.params["w"], w, atol=1e-5)
        np.testing.assert_allclose(state.memory["w"], memory, atol=1e-5)


def test_feddyn_stays_inside_the_sub_model():
    one = spec(residual(hidden=(6, 6)), feddyn=ALPHA)
    assert one.local.method.memory is not None
    data = fakes.federation()
    step = jax.jit(
        lambda s, c: round.step(s, data, c, spec=one, layout=layout.vmapped())[0]
    )
    state = fakes.start(one, data)
    poor = fakes.cohort(tiers=(0, 0, 0, 0))
    new = step(step(state, poor), poor)
    memory = {path.partition("/")[0] for path in moved(new.memory)}
    assert memory == {"stem", "block0", "exit0"}
    for name in ("block1", "exit1"):
        assert fakes.equal(new.params[name], state.params[name])
