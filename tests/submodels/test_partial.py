"""The trained blocks; the others run and do not move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.core import layout, objectives, require, round
from fairjax.core.types import Axes, LeafAxes, Model, Outputs
from fairjax.models import resmlp
from fairjax.submodels import cost
from fairjax.submodels.partial import partial
from tests import fakes

BUDGET = (0.3, 0.5, 1.0)
TRAINED = (2, 2, 4)
NAMES = ("block0", "block1", "block2", "block3")


def residual():
    """A stem, four blocks and a head, in bare functions."""
    shapes = {"stem": (6, 8), **dict.fromkeys(NAMES, (8, 8)), "head": (8, 3)}

    def init(key, x):
        return {
            name: 0.5 * jax.random.normal(jax.random.fold_in(key, i), shape)
            for i, (name, shape) in enumerate(shapes.items())
        }

    def apply(
        params, x, *, train=False, key=None, where=None, stats=None, submodel=None
    ):
        h = x @ params["stem"]
        for name in NAMES:
            h = h + jnp.tanh(h @ params[name])
        logits = h @ params["head"]
        return Outputs(logits, (logits,))

    whole = (None, None)
    tree = {name: LeafAxes(whole, ("blocks", i)) for i, name in enumerate(NAMES)}
    tree |= {"stem": LeafAxes(whole, ("stem", 0)), "head": LeafAxes(whole)}
    return Model(init, apply, Axes(tree, {}, {"blocks": 4, "stem": 1}))


MODEL = residual()


def blocks(mode, number, tier, key=0, client=0):
    kept = partial(MODEL.axes, BUDGET, mode=mode).submodel(
        jax.random.key(key), jnp.asarray(number), None, fakes.member(client, tier)
    )
    assert kept.forward is None
    trained = np.flatnonzero(kept.update.blocks["blocks"]).tolist()
    assert kept.update.blocks["stem"].tolist() == [len(trained) == 4]
    return trained


def test_the_blocks_of_every_mode():
    for tier, size in enumerate(TRAINED):
        assert blocks("top", 3, tier) == list(range(4 - size, 4))
        for number in range(6):
            rolling = sorted({(number + i) % 4 for i in range(size)})
            assert blocks("rolling", number, tier) == rolling
        drawn = [blocks("random", 0, tier, key=key) for key in range(12)]
        assert {len(draw) for draw in drawn} == {size}
        assert {block for draw in drawn for block in draw} == set(range(4))
    assert blocks("random", 0, 0, client=0) == blocks("random", 0, 0, client=3)


def test_only_trained_blocks_and_the_head_move_and_all_of_them_run():
    """One step on all records: trained leaves move by the whole model's gradient."""
    data = fakes.federation()
    params = fakes.drawn(MODEL, data.x[:1])
    method = partial(MODEL.axes, BUDGET, mode="top")
    spec = fakes.spec(MODEL, method, batch_size=32, epochs=1)
    start = fakes.start(spec, data, params=params)
    step = functools.partial(round.step, spec=spec, layout=layout.vmapped())
    step = jax.jit(step)

    def loss(p):
        logits = jax.nn.log_softmax(MODEL.apply(p, data.x[:10]).logits)
        return -logits[jnp.arange(10), data.y[:10]].mean()

    grads = jax.jit(jax.grad(loss))(params)
    for tier, trained in [(0, ("block2", "block3", "head")), (2, tuple(params))]:
        end, _ = step(start, data, fakes.cohort((0,), (tier,)))
        for name, leaf in params.items():
            rate = 0.1 if name in trained else 0.0
            moved = end.params[name] - leaf
            np.testing.assert_allclose(moved, -rate * grads[name], atol=1e-6)
            assert fakes.equal(end.params[name], leaf) == (name not in trained)


def test_a_client_receives_all_and_sends_what_it_trained():
    method = partial(MODEL.axes, BUDGET, mode="rolling")
    member = fakes.member(0, 0)
    kept = method.submodel(jax.random.key(0), jnp.asarray(0), None, member)
    params = fakes.drawn(MODEL, jnp.zeros((1, 6)))
    bill = cost.client_cost(
        MODEL,
        method,
        objectives.mean_cross_entropy(),
        optax.sgd(0.1),
        params,
        kept,
        member,
        x=jnp.zeros((1, 6)),
    )
    assert bill["bytes_down"] == 4 * (6 * 8 + 4 * 64 + 8 * 3)
    assert bill["bytes_up"] == 4 * (2 * 64 + 8 * 3)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(
        require.InputError, match=r'^axes: expected a block list "blocks"'
    ):
        partial(fakes.small_mlp().axes, BUDGET, mode="top")
    with pytest.raises(require.InputError, match='mean "rolling"'):
        partial(MODEL.axes, BUDGET, mode="roling")


def test_the_backward_pass_stops_at_the_last_trained_block():
    """A residual network with one hidden layer per block: its cost by hand, and the
    FLOPs of the compiled step of the frozen network."""
    model = resmlp(classes=3, width=8, hidden=8, depth=4, norm="none")
    method = partial(model.axes, BUDGET, mode="top")
    params, x = fakes.drawn(model, jnp.zeros((1, 6))), jnp.zeros((1, 6))
    block, stem, head = 2 * 8 * 8, 6 * 8, 8 * 3
    for tier, trained in enumerate(TRAINED):
        member = fakes.member(0, tier)
        kept = method.submodel(jax.random.key(0), jnp.asarray(0), None, member)
        bill = cost.client_cost(
            model,
            method,
            objectives.mean_cross_entropy(),
            optax.sgd(0.1),
            params,
            kept,
            member,
            x=x,
        )
        forward = stem + 4 * block + head
        # Two products per trained layer, but no gradient at the input of the lowest.
        backward = 2 * head + 2 * trained * block
        backward += stem if trained == 4 else -8 * 8
        assert bill["flops_forward"] == 2 * forward
        assert bill["flops_train"] == 2 * (forward + backward)
