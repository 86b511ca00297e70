"""A masked sub-model and its dense network train alike, whatever the method.

A new method or model is one line in a table; the pairs that are not in `PAIRS` run in
`make verify` alone.
"""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax import client
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.federated_dropout import federated_dropout
from fairjax.submodels.fedrolex import fedrolex
from fairjax.submodels.fjord import fjord
from fairjax.submodels.heterofl import heterofl
from fairjax.types import Examples
from tests import fakes

BUDGET, TIER, ROUND, WHO = (0.25, 0.5, 1.0), 1, 11, 1
HETEROFL = {"scaler": True, "masked_loss": True}

METHODS = {
    "smallest": lambda axes: fedavg(axes, BUDGET, mode="smallest"),
    "exclusive": lambda axes: fedavg(axes, BUDGET, mode="exclusive", tier=1),
    "decoupled": lambda axes: fedavg(axes, BUDGET, mode="decoupled"),
    "heterofl": lambda axes: heterofl(axes, BUDGET, **HETEROFL),
    "dropout": lambda axes: federated_dropout(axes, BUDGET, shared=False, **HETEROFL),
    "fedrolex": lambda axes: fedrolex(axes, BUDGET, **HETEROFL),
    "overlap": lambda axes: fedrolex(axes, BUDGET, overlap=0.5, **HETEROFL),
    "fjord": lambda axes: fjord(axes, BUDGET, distill=False),
    "fjord distilled": lambda axes: fjord(axes, BUDGET, distill=True),
}
MODELS = {
    "mlp": (fakes.small_mlp, (6,)),
    "cnn": (fakes.small_cnn, (8, 8, 1)),
}
PAIRS = [
    ("exclusive", "mlp"),
    ("heterofl", "cnn"),
    ("dropout", "mlp"),
    ("fedrolex", "cnn"),
    ("overlap", "mlp"),
    ("fjord distilled", "mlp"),
]
REST = [pair for pair in itertools.product(METHODS, MODELS) if pair not in PAIRS]
CASES = [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)]

# Decay touches what has no gradient, momentum remembers it, the clip adds all of it up.
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(0.5),
    optax.add_decayed_weights(0.01),
    optax.sgd(0.1, momentum=0.9),
)


@contextlib.contextmanager
def in_float64():
    """flax's norms do not promote strictly in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize(("method", "model"), CASES, ids=lambda n: n)
def test_masked_is_sliced(method, model):
    """Two steps of a client of the middle tier, in a round whose windows wrap."""
    build, shape = MODELS[model]
    with in_float64():
        data = fakes.federation(shape, dtype=np.float64)
        network = build()
        rule = METHODS[method](network.axes)
        spec = fakes.spec(
            network, rule, optimizer=OPTIMIZER, counts=fakes.COUNTS[WHO:][:1], epochs=1
        )
        assert spec.local.plan.steps == 2
        params = fakes.drawn(network, data.x[:1], np.float64)
        member = fakes.member(WHO, TIER, data)
        number = jnp.asarray(ROUND)
        kept = rule.units(jax.random.key(2), number, params, member)
        examples = Examples(data.x, data.y, data.offset[WHO], data.count[WHO])

        def train(update):
            run = functools.partial(
                update, member=member, round=number, local=spec.local
            )
            return jax.jit(run)(jax.random.key(5), params, None, kept, examples)

        masked, cover, _, info = train(client.update)
        sliced, also, _, same = train(
            functools.partial(client.update_sliced, size=rule.size(TIER))
        )
        whole = jax.tree.map(lambda c, p: jnp.broadcast_to(c, p.shape), cover, params)
        assert fakes.equal(whole, also)
        assert fakes.gap(masked, sliced) < 1e-9
        assert fakes.gap(masked, jax.tree.map(jnp.zeros_like, masked)) > 1e-3
        np.testing.assert_allclose(info.loss, same.loss, rtol=1e-9)
