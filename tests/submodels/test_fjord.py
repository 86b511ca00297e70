"""Ordered dropout: the widths drawn, a step, and the update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.core import axes as unit_axes
from fairjax.core import client, layout, objectives, round
from fairjax.core.types import ClientData
from fairjax.submodels import cost
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.fjord import fjord
from tests import fakes

BUDGET = (0.25, 0.25, 0.5, 1.0)
MODEL = fakes.small_mlp()


def test_widths_are_uniform_over_the_different_budgets_up_to_the_own():
    method = fjord(MODEL.axes, BUDGET, distill=False)
    draw = jax.jit(
        jax.vmap(
            lambda key, kept: method.local.per_step(key, jnp.asarray(0), kept),
            in_axes=(0, None),
        )
    )
    many = jax.random.split(jax.random.key(0), 300)
    for tier, widths in enumerate([(4,), (4,), (4, 8), (4, 8, 16)]):
        own = method.submodel(
            jax.random.key(1), jnp.asarray(0), None, fakes.member(0, tier)
        )
        narrow = draw(many, own)
        kept = np.asarray(narrow.forward.axes["hidden0"])
        assert not np.any(kept[:, 1:] & ~kept[:, :-1])
        values, counts = np.unique(kept.sum(axis=1), return_counts=True)
        assert tuple(values) == widths
        assert np.all(np.abs(counts / 300 - 1 / len(widths)) < 0.1)
        both = [np.asarray(narrow.forward.axes[f"hidden{i}"]) for i in (0, 1)]
        assert np.array_equal(both[0].sum(axis=1), 2 * both[1].sum(axis=1))
        assert np.all(narrow.update.axes["hidden0"].sum(axis=1) == widths[-1])


@pytest.mark.parametrize("distill", [False, True])
def test_a_step_by_hand(distill):
    """At width 0.5 a step draws one of two widths; both occur. Batches are all records
    of client 0."""
    data = fakes.federation()
    method = fjord(MODEL.axes, BUDGET, distill=distill)
    spec = fakes.spec(MODEL, method, counts=(10,), batch_size=10, epochs=1)
    params, member = fakes.drawn(MODEL, data.x[:1]), fakes.member(0, 2)
    kept = method.submodel(jax.random.key(1), jnp.asarray(0), params, member)
    examples = ClientData(data.x, data.y, data.offset[0], data.count[0])

    def at(p, width):
        units = unit_axes.prefix(MODEL.axes, {"hidden0": width, "hidden1": width // 2})
        mask = unit_axes.masks(p, MODEL.axes, units)
        logits = MODEL.apply(jax.tree.map(jnp.multiply, p, mask), data.x[:10]).logits
        return jax.nn.log_softmax(logits)

    def loss(p, drawn):
        rows = jnp.arange(10)
        if not distill:
            return -at(p, drawn)[rows, data.y[:10]].mean()
        wide = at(p, 8)
        soft = -(jax.lax.stop_gradient(jnp.exp(wide)) * at(p, drawn)).sum(axis=1)
        return (soft - wide[rows, data.y[:10]]).mean()

    grads = jax.jit(jax.grad(loss))
    by_hand = {
        width: jax.tree.map(lambda g: -0.1 * g, grads(params, jnp.asarray(width)))
        for width in (4, 8)
    }
    assert fakes.gap(by_hand[4], by_hand[8]) > 1e-4
    run = functools.partial(
        client.update, client=member, round=jnp.asarray(0), local=spec.local
    )
    run, seen = jax.jit(run), set()
    for number in range(8):
        delta, cover, _, _ = run(jax.random.key(number), params, None, kept, examples)
        gaps = {width: fakes.gap(delta, step) for width, step in by_hand.items()}
        seen.add(min(gaps, key=gaps.get))
        assert min(gaps.values()) < 1e-6
        # The cover is the client's own width for any draw.
        assert np.ravel(cover["hidden0"]["bias"]).tolist() == [1] * 8 + [0] * 8
    assert seen == {4, 8}


def test_with_one_full_budget_it_is_fedavg():
    data = fakes.federation()

    def end(method):
        spec = fakes.spec(MODEL, method, epochs=1)
        start = fakes.start(spec, data, params=fakes.drawn(MODEL, data.x[:1]))
        step = functools.partial(round.step, spec=spec, layout=layout.vmapped())
        cohort = fakes.cohort(tiers=(0, 0, 0, 0))
        return jax.jit(step)(start, data, cohort)[0].params

    full = end(fjord(MODEL.axes, (1.0,), distill=False))
    assert fakes.gap(full, end(fedavg(MODEL.axes))) < 1e-6


@pytest.mark.parametrize("distill", [False, True])
def test_training_is_billed_as_the_mean_over_the_widths(distill):
    x = jnp.ones((1, 6))
    params = MODEL.init(jax.random.key(0), x)
    method = fjord(MODEL.axes, BUDGET, distill=distill)
    objective = method.objective or objectives.mean_cross_entropy()

    def pass_of(a, b):
        """Multiply-adds for two hidden widths: forward, then gradients of kernels and
        inputs."""
        forward = 6 * a + a * b + b * fakes.CLASSES
        return forward, 3 * forward - 6 * a

    for tier, hidden in enumerate([(4,), (4,), (4, 8), (4, 8, 16)]):
        member = fakes.member(0, tier)
        kept = method.submodel(jax.random.key(1), jnp.asarray(0), params, member)
        bill = cost.client_cost(
            MODEL, method, objective, optax.sgd(0.1), params, kept, member, x=x
        )
        steps = [pass_of(a, a // 2)[1] for a in hidden]
        widest = hidden[-1]
        teacher = pass_of(widest, widest // 2)[1] if distill else 0
        assert bill["flops_forward"] == 2 * pass_of(widest, widest // 2)[0]
        assert bill["flops_train"] == int(2 * (np.mean(steps) + teacher))
