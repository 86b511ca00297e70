"""Collapsed against expanded: a small network whose branches are run both ways.

    python scripts/expanded.py

Writes results/expanded.json in about two minutes on one CPU core. Everything is
trained on the digits in one place, on the same batches and from the same plain network:
two 3 x 3 convolutions with ReLU, mean over space, dense head. In float64, so that what
differs is the form and not its rounding.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from fairjax.core import losses, rng
from fairjax.data import datasets
from fairjax.experiment import cli
from fairjax.experiment.io.workdir import provenance, write_json
from fairjax.submodels import branches, expanded

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "expanded.json"
SEEDS = (0, 1, 2)
SETTING = {
    "steps": 400,
    "batch_size": 32,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "test_records": 448,
    "channels": [16, 16],
    # Batches whose moments are averaged before a merge, as in the released code.
    "reestimated": 20,
}
OPTIMIZER = optax.sgd(SETTING["learning_rate"], SETTING["momentum"])
LAYERS = tuple(f"conv{i}" for i in range(len(SETTING["channels"])))
CONV = expanded.Conv(padding=((1, 1), (1, 1)))

Tree = Any
Layer = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]
"""(its parameters, x, moments or None: the batch's) -> (output, moments)."""


class Form(NamedTuple):
    """A way to run the layers."""

    layer: Layer
    expand: Callable[[jax.Array, Any, jax.Array], Any]
    """(key, plain layer, its input on some records) -> the layer's parameters."""
    merge: Callable[[Any, Any], Any]
    """(the layer's parameters, moments) -> plain layer."""


# ------------------------------------------------------------------------- the network


def start(key: jax.Array) -> Tree:
    """The plain network."""
    tree, before = {}, 1
    for i, width in enumerate(SETTING["channels"]):
        kernel = jax.nn.initializers.he_normal()(rng.at(key, i), (3, 3, before, width))
        tree[LAYERS[i]] = {"kernel": kernel, "bias": jnp.zeros(width)}
        before = width
    head = jax.nn.initializers.he_normal()(rng.at(key, len(LAYERS)), (before, 10))
    return tree | {"head": {"kernel": head, "bias": jnp.zeros(10)}}


def forward(
    layer: Layer, tree: Tree, x: jax.Array, moments: Any = None
) -> tuple[jax.Array, Any]:
    """Logits, and the moments of the layers' norms."""
    used = {}
    for name in LAYERS:
        x, used[name] = layer(tree[name], x, moments and moments[name])
        x = jax.nn.relu(x)
    return x.mean((1, 2)) @ tree["head"]["kernel"] + tree["head"]["bias"], used


def expand(form: Form, key: jax.Array, tree: Tree, x: jax.Array) -> Tree:
    """The plain network with its layers in another form."""
    made = dict(tree)
    for i, name in enumerate(LAYERS):
        made[name] = form.expand(rng.at(key, i), tree[name], x)
        x = jax.nn.relu(plain(tree[name], x)[0])
    return made


def merge(form: Form, tree: Tree, moments: Any) -> Tree:
    """The plain network that the tree is, or is taken for."""
    return tree | {name: form.merge(tree[name], moments[name]) for name in LAYERS}


# ------------------------------------------------------- a layer, with branches or not


def plain(own: Any, x: jax.Array, moments: Any = None) -> tuple[jax.Array, None]:
    """A convolution with a bias."""
    return expanded.convolve(x, own["kernel"], CONV) + own["bias"], None


def drawn(key: jax.Array, own: Any, x: jax.Array) -> Any:
    """Random branches without norms, and the base that is left."""
    kernel = own["kernel"]
    layer = branches.Layer(0, "", kernel.shape, True, kernel.dtype)
    named = branches.draw(key, [layer], branches.Form(expanded.BLOCK))[""]
    psi = {branches.family_of(slot): leaves for slot, leaves in named.items()}
    total = collapse({"base": jax.tree.map(jnp.zeros_like, own), "branches": psi})
    return {"base": jax.tree.map(jnp.subtract, own, total), "branches": psi}


def collapse(own: Any, moments: Any = None) -> Any:
    """Base and branches as one kernel and bias."""
    kernel, bias = own["base"]["kernel"], own["base"]["bias"]
    for family, psi in own["branches"].items():
        part, offset = branches.tau(family, psi, kernel.shape)
        kernel, bias = kernel + part, bias + offset
    return {"kernel": kernel, "bias": bias}


def collapsed(own: Any, x: jax.Array, moments: Any = None) -> tuple[jax.Array, None]:
    """One convolution with the sum."""
    return plain(collapse(own), x)


def side_by_side(own: Any, x: jax.Array, moments: Any = None) -> tuple[jax.Array, None]:
    """The sum of all operations."""
    y, _ = plain(own["base"], x)
    for family, psi in own["branches"].items():
        shape = own["base"]["kernel"].shape
        y = y + expanded.parallel(family, psi, x, shape, CONV)
    return y, None


def shape_of(block: expanded.Block) -> tuple[int, ...]:
    """The plain kernel's."""
    return block["KxK"].psi["kernel"].shape


def normed(own: Any, x: jax.Array, moments: Any = None) -> tuple[jax.Array, Any]:
    """The sum of all operations, every one with its norms."""
    return expanded.apply(own, x, shape_of(own), CONV, moments)


def fold(own: Any, moments: Any) -> Any:
    """What a block with these moments is."""
    kernel, bias = expanded.fold(own, moments, shape_of(own))
    return {"kernel": kernel, "bias": bias}


FORMS = {
    "plain": Form(plain, lambda key, own, x: own, lambda own, moments: own),
    "collapsed": Form(collapsed, drawn, collapse),
    "expanded": Form(side_by_side, drawn, collapse),
    "expanded with norms": Form(
        normed, lambda key, own, x: expanded.expand(key, own, x, CONV)[0], fold
    ),
}


# ------------------------------------------------------------------------- what is run


@functools.cache
def records() -> tuple[np.ndarray, np.ndarray]:
    """All images and labels."""
    table = datasets.load("digits")
    return table.x / table.scale, table.y


def batches(seed: int) -> tuple[list[Any], Any]:
    """Training batches in the order of their steps, and the test records."""
    x, y = records()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    train, test = np.split(order, [len(x) - SETTING["test_records"]])
    size = SETTING["batch_size"]
    rows = [rng.choice(train, size, replace=False) for _ in range(SETTING["steps"])]
    return [(x[i], y[i]) for i in rows], (x[test], y[test])


@functools.cache
def compiled(name: str) -> tuple[Any, Any, Any, Any]:
    """(expand, step, forward, merge) of a form."""
    form = FORMS[name]

    def loss(tree: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        logits, _ = forward(form.layer, tree, x)
        return losses.cross_entropy(logits, y).mean()

    @jax.jit
    def step(tree: Tree, state: Any, x: jax.Array, y: jax.Array) -> tuple[Tree, Any]:
        updates, state = OPTIMIZER.update(jax.grad(loss)(tree, x, y), state)
        return optax.apply_updates(tree, updates), state

    return (
        jax.jit(functools.partial(expand, form)),
        step,
        jax.jit(functools.partial(forward, form.layer)),
        jax.jit(functools.partial(merge, form)),
    )


def away(logits: jax.Array, truth: jax.Array) -> float:
    """Relative difference."""
    return float(jnp.linalg.norm(logits - truth) / jnp.linalg.norm(truth))


def measure(name: str, seed: int) -> tuple[dict[str, Any], jax.Array]:
    """Trains one form with one seed: its report, and the merged network's logits.

    "before" merging evaluates by moments averaged over training batches, "training
    mode" by those of every test batch; "difference" is relative, of the logits to
    "before".
    """
    grow, step, run, merged_of = compiled(name)
    train, (x, y) = batches(seed)
    key = jax.random.key(seed)
    network = start(rng.at(key, 0))
    tree = grow(rng.at(key, 1), network, train[0][0])
    state, seconds = OPTIMIZER.init(tree), []
    for batch in train:
        began = time.perf_counter()
        tree, state = jax.block_until_ready(step(tree, state, *batch))
        seconds.append(time.perf_counter() - began)
    measured = [run(tree, x)[1] for x, _ in train[-SETTING["reestimated"] :]]
    moments = expanded.reestimated(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *measured)
    )
    merged = merged_of(tree, moments)
    plainly = compiled("plain")[2]
    spread = x.reshape(-1, SETTING["batch_size"], *x.shape[1:])
    logits = {
        "training mode": jnp.concatenate([run(tree, part)[0] for part in spread]),
        "before": run(tree, x, moments)[0],
        "merged": plainly(merged, x)[0],
    }
    if jax.tree.leaves(moments):
        for layer in LAYERS:
            bias = jnp.zeros_like(merged[layer]["bias"])
            merged[layer] = merged[layer] | {"bias": bias}
        logits["merged without bias"] = plainly(merged, x)[0]
    report = {
        "accuracy": {k: float((v.argmax(-1) == y).mean()) for k, v in logits.items()},
        "difference": {k: away(v, logits["before"]) for k, v in logits.items()},
        "seconds_per_step": float(np.median(seconds[1:])),
    }
    return report, logits["merged"]


def expansion(seed: int) -> dict[str, float]:
    """How far an expansion with norms moves the logits in training mode."""
    grow, _, run, _ = compiled("expanded with norms")
    x = batches(seed)[0][0][0]
    key = jax.random.key(seed)
    network = start(rng.at(key, 0))
    truth, _ = compiled("plain")[2](network, x)
    tree = grow(rng.at(key, 1), network, x)
    released = dict(tree)
    for name in LAYERS:
        shape = shape_of(tree[name])
        released[name] = {
            family: expanded.fresh(family, branch.psi, shape, x.dtype)
            for family, branch in tree[name].items()
        }
    return {
        "norms that pass": away(run(tree, x)[0], truth),
        "norms of scale 1": away(run(released, x)[0], truth),
    }


def main(_: flags.FlagValues) -> None:
    """Trains every form with every seed."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMS}
    ends: dict[str, list[jax.Array]] = {name: [] for name in FORMS}
    with jax.enable_x64(True):
        for seed in SEEDS:
            for name in FORMS:
                report, logits = measure(name, seed)
                runs[name].append(report)
                ends[name].append(logits)
        pairs = zip(ends["expanded"], ends["collapsed"], strict=True)
        apart = [away(*pair) for pair in pairs]
        moved = [expansion(seed) for seed in SEEDS]
    made = provenance()
    results = {
        "command": "python scripts/expanded.py",
        "seeds": SEEDS,
        "setting": SETTING,
        "device": made["device"],
        "machine": made["machine"],
        "versions": made["versions"],
        "runs": runs,
        "expanded_to_collapsed": apart,
        "expansion": moved,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, results)


if __name__ == "__main__":
    cli.run(main, lambda *_: None)
