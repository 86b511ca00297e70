"""Masked == sliced: every structured method on every model, optimiser and clip.

`make test` runs a cover in which every two of them meet; `make verify` runs the whole
and writes studies/slicing/results.json:

    python -m tests.submodels.matrix
"""

import contextlib
import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairjax.core import client
from fairjax.core.types import ClientData
from fairjax.models import cnn, mlp, resmlp, resnet, vit
from fairjax.submodels.depthfl import depthfl
from fairjax.submodels.dynamicfl import dynamicfl
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.federated_dropout import federated_dropout
from fairjax.submodels.fedrolex import fedrolex
from fairjax.submodels.fjord import fjord
from fairjax.submodels.heterofl import heterofl
from fairjax.submodels.inclusivefl import inclusivefl
from fairjax.submodels.lora import adapt, lora
from fairjax.submodels.mixed import mixed
from fairjax.submodels.nefl import nefl
from fairjax.submodels.partial import partial
from fairjax.submodels.scalefl import scalefl
from tests import fakes

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "studies/slicing/results.json"

# The middle tier in a round in which windows have moved on and wrap.
BUDGET, TIER, ROUND, WHO, STEPS = (0.25, 0.5, 1.0), 1, 11, 1, 2
HETEROFL = {"scaler": True, "masked_loss": True}
DEPTHFL = {"stages": (), "distill": True, "ramp": 5, "ensemble": True, "feddyn": 0.0}
SCALEFL = {"width": (), "exits": (), "gamma": 0.5, "temperature": 3.0, "warmup": 0.0}
# The richest tier has branches; those of the others are there, and dead.
LADDER = {
    "kinds": ("width", "width", "plain"),
    "cut": (),
    "blocks": (),
    "number": (0, 0, 2),
}
BRANCHES = {"families": ("1xK", "1x1-avg", "linear", "lowrank"), "rank": 2}

METHODS = {
    "fedavg": lambda axes: fedavg(axes),
    "smallest": lambda axes: fedavg(axes, BUDGET, mode="smallest"),
    "exclusive": lambda axes: fedavg(axes, BUDGET, mode="exclusive", tier=1),
    "decoupled": lambda axes: fedavg(axes, BUDGET, mode="decoupled"),
    "heterofl": lambda axes: heterofl(axes, BUDGET, **HETEROFL),
    "dropout": lambda axes: federated_dropout(axes, BUDGET, shared=False, **HETEROFL),
    "fedrolex": lambda axes: fedrolex(axes, BUDGET, **HETEROFL),
    "overlap": lambda axes: fedrolex(axes, BUDGET, overlap=0.5, **HETEROFL),
    "fjord": lambda axes: fjord(axes, BUDGET, distill=False),
    "fjord distilled": lambda axes: fjord(axes, BUDGET, distill=True),
    "lora": lambda axes: lora(axes, BUDGET),
    "dynamicfl": lambda axes: dynamicfl(axes, (0, 1, 2), **BRANCHES),
    "mixed": lambda axes: mixed(axes, BUDGET, **LADDER, **BRANCHES),
    "partial": lambda axes: partial(axes, BUDGET, mode="rolling"),
    "depthfl": lambda axes: depthfl(axes, BUDGET, **DEPTHFL),
    # The server shares between tiers, which training does not see.
    "inclusivefl": lambda axes: inclusivefl(axes, BUDGET, stages=(), beta=0.0),
    "scalefl": lambda axes: scalefl(axes, BUDGET, 10, **SCALEFL),
    "nefl": lambda axes: nefl(axes, BUDGET, width=(), dropped=(1, 1, 0)),
}
VARIANTS = {
    "fedavg",
    "smallest",
    "exclusive",
    "decoupled",
    "dropout",
    "overlap",
    "fjord",
    "resnet batch",
}
"""Not in the cover: methods that train as another one does, on other units, and a model
whose layers all occur in another model."""
UNFIT = {
    "mlp": ("partial", "depthfl", "inclusivefl", "scalefl", "nefl"),
    "cnn": ("partial", "inclusivefl", "nefl"),
}
"""Model -> methods that need more blocks than it has."""
EXITS, STEP_SIZES = ("depthfl", "inclusivefl", "scalefl"), ("nefl",)


def _mlp(method):
    return mlp(classes=fakes.CLASSES, hidden=(16, 8))


def _cnn(method):
    return cnn(
        classes=fakes.CLASSES,
        channels=(8, 16),
        group_size=4,
        exits=method in EXITS,
        lowering="xla",
    )


def _deep(method):
    return {"exits": method in EXITS, "steps": method in STEP_SIZES}


def _resmlp(method):
    return resmlp(
        classes=fakes.CLASSES, width=8, hidden=8, depth=2, norm="batch", **_deep(method)
    )


def _resnet(norm, method):
    return resnet(
        classes=fakes.CLASSES,
        channels=(8, 8),
        blocks=(1, 1),
        norm=norm,
        group_size=2,
        lowering="xla",
        **_deep(method),
    )


def _vit(method):
    return vit(
        classes=fakes.CLASSES,
        width=8,
        depth=2,
        heads=4,
        patch=4,
        ratio=2,
        **_deep(method),
    )


MODELS = {
    "mlp": (_mlp, (6,)),
    "cnn": (_cnn, (8, 8, 1)),
    "resmlp": (_resmlp, (6,)),
    "resnet group": (functools.partial(_resnet, "group"), (8, 8, 1)),
    "resnet batch": (functools.partial(_resnet, "batch"), (8, 8, 1)),
    "vit": (_vit, (8, 8, 1)),
}
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    # Decay moves coordinates without a gradient, and momentum accumulates it.
    "momentum": optax.chain(
        optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9)
    ),
    "adam": optax.adam(0.01),
}
CLIPS = {"free": None, "clipped": 0.5}

CASES = [
    case
    for case in itertools.product(METHODS, MODELS, OPTIMIZERS, CLIPS)
    if case[0] not in UNFIT.get(case[1], ())
]


def cover():
    """Cases without variants that cover every possible pair of values."""

    def pairs(case):
        return set(itertools.combinations(enumerate(case), 2))

    cases = [case for case in CASES if VARIANTS.isdisjoint(case)]
    left = set().union(*map(pairs, cases))
    chosen = []
    while left:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & left)))
        left -= pairs(chosen[-1])
    return chosen


@contextlib.contextmanager
def _in_float64():
    # flax's norms and optax's Adam do not promote strictly in float64.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def gap(method, model, optimizer, clip):
    """(largest |masked - sliced|, largest |change|) of two steps of one client."""
    build, shape = MODELS[model]
    with _in_float64():
        data = fakes.federation(shape, dtype=np.float64)
        network = build(method)
        if method == "lora":
            network = adapt(network, 4, 8.0)
        rule = METHODS[method](network.axes)
        step = OPTIMIZERS[optimizer]
        if CLIPS[clip] is not None:
            step = optax.chain(optax.clip_by_global_norm(CLIPS[clip]), step)
        spec = fakes.spec(
            network, rule, optimizer=step, counts=fakes.COUNTS[WHO:][:1], epochs=1
        )
        assert spec.local.schedule.steps == STEPS
        params = fakes.drawn(network, data.x[:1], np.float64)
        member = fakes.member(WHO, TIER, data)
        number = jnp.asarray(ROUND)
        examples = ClientData(data.x, data.y, data.offset[WHO], data.count[WHO])

        @jax.jit
        def both(params):
            kept = rule.submodel(jax.random.key(2), number, params, member)
            memory = None if rule.memory is None else rule.memory.init(params)
            masked, sliced = (
                update(
                    jax.random.key(5),
                    params,
                    memory,
                    kept,
                    examples,
                    client=member,
                    round=number,
                    local=spec.local,
                )
                for update in (
                    client.update,
                    functools.partial(client.update_sliced, size=rule.size(TIER)),
                )
            )
            largest = lambda tree: jnp.max(  # noqa: E731
                jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)])
            )
            between = jax.tree.map(jnp.subtract, masked[:2], sliced[:2])
            losses = jnp.abs(masked[3].loss - sliced[3].loss)
            return jnp.maximum(largest(between), losses), largest(masked[0])

        return tuple(float(value) for value in both(params))


def main():
    """Runs every case and writes the table."""
    rows = []
    for case in CASES:
        difference, change = gap(*case)
        names = dict(zip(("method", "model", "optimizer", "clip"), case, strict=True))
        rows.append({**names, "difference": difference, "change": change})
        print(*case, f"{difference:.1e}", flush=True)
    worst = max(row["difference"] for row in rows)
    table = {
        "command": "python -m tests.submodels.matrix",
        "what": "float64, largest |masked - sliced| of two local steps of one client",
        "cases": len(rows),
        "largest_difference": worst,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
