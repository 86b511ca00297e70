"""A sub-model predicts as it was trained, with HeteroFL's scaler everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import axes, inference, losses
from fairjax.core.types import ClientData
from fairjax.evaluation import deployed, personalised
from fairjax.models import cnn, mlp, resmlp, resnet, vit
from fairjax.submodels.federated_dropout import federated_dropout
from fairjax.submodels.fedrolex import fedrolex
from fairjax.submodels.heterofl import heterofl
from fairjax.submodels.scalefl import scalefl
from tests import fakes

BUDGET, RECORDS = (0.25, 0.5, 1.0), 48
OPTIONS = {"scaler": True, "masked_loss": False}
DEPTH = {"gamma": 0.5, "temperature": 3.0, "warmup": 0.0, "width": (), "exits": ()}
METHODS = {
    "heterofl": lambda units: heterofl(units, BUDGET, **OPTIONS),
    "fedrolex": lambda units: fedrolex(units, BUDGET, **OPTIONS),
    "federated_dropout": lambda units: federated_dropout(
        units, BUDGET, shared=False, **OPTIONS
    ),
    "scalefl": lambda units: scalefl(units, BUDGET, 10, **DEPTH),
}
IMAGES = {"channels": (8, 8), "lowering": "xla"}
TABLE = {"width": 8, "hidden": 8, "depth": 3}
MODELS = {
    "mlp, none": functools.partial(mlp, hidden=(16, 8)),
    "resmlp, none": functools.partial(resmlp, norm="none", **TABLE),
    "resmlp, layer": functools.partial(resmlp, norm="layer", **TABLE),
    "resmlp, batch": functools.partial(resmlp, norm="batch", **TABLE),
    "cnn, none": functools.partial(cnn, group_size=0, **IMAGES),
    "cnn, group": functools.partial(cnn, group_size=2, **IMAGES),
    "resnet, batch": functools.partial(resnet, blocks=(1, 1), norm="batch", **IMAGES),
    "vit, layer": functools.partial(vit, width=8, depth=3, heads=4, patch=4, ratio=2),
}
WIDTHS = ("heterofl", "fedrolex", "federated_dropout")
CASES = [(name, WIDTHS) for name in MODELS] + [
    # ScaleFL needs exits.
    (name, ("scalefl",))
    for name in MODELS
    if not name.startswith("mlp")
]


def setting(name, method, counts=(RECORDS,)):
    """(spec, state, data) of a model of many features; no parameter is 0."""
    shape = (6,) if "mlp" in name else (8, 8, 2)
    data = fakes.federation(shape, counts=counts, dtype=np.float64)
    exits = {"exits": True} if method == "scalefl" else {}
    model = MODELS[name](classes=fakes.CLASSES, **exits)
    spec = fakes.spec(
        model, METHODS[method](model.axes), counts=counts, batch_size=RECORDS, epochs=1
    )
    params = fakes.drawn(model, data.x[:1], dtype=np.float64)
    return spec, fakes.start(spec, data, params=params), data


@pytest.mark.parametrize(
    ("name", "methods"), CASES, ids=[f"{name}, {methods[0]}" for name, methods in CASES]
)
def test_evaluation_with_moments_of_all_records_is_training_mode_on_all(name, methods):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        spec, state, data = setting(name, methods[0])
        local, tier = spec.local, 0
        size = local.method.size(tier)

        @jax.jit
        def run(params, x, kept):
            moments = deployed.calibrate(
                params, kept, data, jnp.ones(1, bool), local=local
            )
            evaluated = inference.predict(local, params, x, kept, stats=moments)
            # A client trains masked, or as a network of its own size.
            masked = inference.apply_submodel(local.model, params, x, kept, train=True)
            inside = axes.locate_slice(kept.forward, size)
            sliced = inference.apply_submodel(
                local.model.resize(size),
                axes.take(params, local.model.axes, inside),
                x,
                axes.restrict_submodel(kept, inside)._replace(forward=None),
                train=True,
            )
            plain = inference.predict(local, params, x, kept._replace(scale=None))
            return evaluated, masked.logits, sliced.logits, plain

        for method in methods:
            # One program serves all methods that cut the same axes.
            kept = METHODS[method](local.model.axes).submodel(
                jax.random.key(3),
                jnp.asarray(5, jnp.int32),
                state.params,
                fakes.member(0, tier, data),
            )
            evaluated, masked, sliced, plain = run(state.params, data.x, kept)
            np.testing.assert_allclose(evaluated, masked, rtol=1e-8, atol=1e-9)
            np.testing.assert_allclose(masked, sliced, rtol=1e-8, atol=1e-9)
            if "none" in name:  # the scaler does something
                assert np.max(np.abs(evaluated - plain)) > 1e-2, method


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_every_way_to_ask_a_sub_model_gives_the_function_that_was_trained(norm):
    """Losses for rules, figures of tiers, and models that stay at clients."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        spec, state, data = setting(f"resmlp, {norm}", "heterofl")
        local, tiers = spec.local, jnp.zeros(1, jnp.int32)
        member = fakes.member(0, 0, data)
        everybody = jax.tree.map(lambda leaf: leaf[None], member)
        kept = local.method.submodel(
            jax.random.key(0), state.round, state.params, member
        )
        trained = inference.apply_submodel(
            local.model, state.params, data.x, kept, train=True
        ).logits
        examples = ClientData(data.x, data.y, data.offset[0], data.count[0])
        cells = inference.score(state.params, kept, examples, local=local)
        expected = jnp.mean(losses.cross_entropy(trained, data.y))
        np.testing.assert_allclose(inference.mean_loss(cells), expected, rtol=1e-6)
        _, own = deployed.predict(state, data.x, data, tiers, everybody, spec=spec)
        np.testing.assert_allclose(own[0], trained, rtol=1e-8, atol=1e-9)
        personal = personalised.predict(
            personalised.personal_models(state, spec=spec),
            data,
            data,
            everybody,
            spec=spec,
            max_records=RECORDS,
        )
        np.testing.assert_allclose(personal, trained, rtol=1e-8, atol=1e-9)
