"""Trains a small network with its branches collapsed and expanded, and compares them.

    python studies/merging/run.py

The script writes results.json in about two minutes on one CPU core. All forms are
trained centrally on the digits, on the same batches and from the same plain network:
two 3 x 3 convolutions with ReLU, mean over space, dense head. It computes in float64,
so that differences are due to the form and not to rounding.
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
from fairjax.submodels import branches, expanded, families

RESULTS = pathlib.Path(__file__).resolve().parent / "results.json"
SEEDS = (0, 1, 2)
SETTING = {
    "steps": 400,
    "batch_size": 32,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "test_records": 448,
    "channels": [16, 16],
    # Moments are averaged over so many batches before a merge, as in the released code.
    "reestimated": 20,
}
OPTIMIZER = optax.sgd(SETTING["learning_rate"], SETTING["momentum"])
LAYERS = tuple(f"conv{i}" for i in range(len(SETTING["channels"])))
CONV = expanded.Conv(padding=((1, 1), (1, 1)))

Tree = Any
Layer = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]
"""(parameters, x, moments) -> (output, moments); moments None: those of the batch."""


class Form(NamedTuple):
    """A form of the layers: how to run them, expand to them and merge them."""

    layer: Layer
    expand: Callable[[jax.Array, Any, jax.Array], Any]
    """(key, plain layer, input of the layer for some records) -> parameters."""
    merge: Callable[[Any, Any], Any]
    """(parameters, moments) -> plain layer."""


# ------------------------------------------------------------------------- the network


def start(key: jax.Array) -> Tree:
    """A random plain network."""
    tree, before = {}, 1
    for i, width in enumerate(SETTING["channels"]):
        kernel = jax.nn.initializers.he_normal()(
            rng.fold_in(key, i), (3, 3, before, width)
        )
        tree[LAYERS[i]] = {"kernel": kernel, "bias": jnp.zeros(width)}
        before = width
    head = jax.nn.initializers.he_normal()(rng.fold_in(key, len(LAYERS)), (before, 10))
    return tree | {"head": {"kernel": head, "bias": jnp.zeros(10)}}


def forward(
    layer: Layer, tree: Tree, x: jax.Array, moments: Any = None
) -> tuple[jax.Array, Any]:
    """The logits of a network and the moments of its norms."""
    used = {}
    for name in LAYERS:
        x, used[name] = layer(tree[name], x, moments and moments[name])
        x = jax.nn.relu(x)
    return x.mean((1, 2)) @ tree["head"]["kernel"] + tree["head"]["bias"], used


def expand(form: Form, key: jax.Array, tree: Tree, x: jax.Array) -> Tree:
    """The network of a form that starts from a plain network."""
    result = dict(tree)
    for i, name in enumerate(LAYERS):
        result[name] = form.expand(rng.fold_in(key, i), tree[name], x)
        x = jax.nn.relu(plain(tree[name], x)[0])
    return result


def merge(form: Form, tree: Tree, moments: Any) -> Tree:
    """The plain network that equals a network, or approximates it if it has norms."""
    return tree | {name: form.merge(tree[name], moments[name]) for name in LAYERS}


# ----------------------------------------------------- a layer with or without branches


def plain(params: Any, x: jax.Array, moments: Any = None) -> tuple[jax.Array, None]:
    """A convolution with a bias."""
    return expanded.convolve(x, params["kernel"], CONV) + params["bias"], None


def random_branches(key: jax.Array, params: Any, x: jax.Array) -> Any:
    """Random branches without norms, and the base without their sum."""
    kernel = params["kernel"]
    layer = branches.Layer(0, "", kernel.shape, True, kernel.dtype)
    slots = branches.draw(key, [layer], branches.Form(expanded.BLOCK))[""]
    psi = {branches.family_of(slot): leaves for slot, leaves in slots.items()}
    total = collapse({"base": jax.tree.map(jnp.zeros_like, params), "branches": psi})
    return {"base": jax.tree.map(jnp.subtract, params, total), "branches": psi}


def collapse(params: Any, moments: Any = None) -> Any:
    """Base and branches as one kernel and bias."""
    kernel, bias = params["base"]["kernel"], params["base"]["bias"]
    for family, psi in params["branches"].items():
        kernel_term, offset = families.tau(family, psi, kernel.shape)
        kernel, bias = kernel + kernel_term, bias + offset
    return {"kernel": kernel, "bias": bias}


def collapsed_layer(
    params: Any, x: jax.Array, moments: Any = None
) -> tuple[jax.Array, None]:
    """One convolution with the sum of base and branches."""
    return plain(collapse(params), x)


def side_by_side(
    params: Any, x: jax.Array, moments: Any = None
) -> tuple[jax.Array, None]:
    """The sum of the outputs of base and branches."""
    y, _ = plain(params["base"], x)
    for family, psi in params["branches"].items():
        shape = params["base"]["kernel"].shape
        y = y + expanded.parallel(family, psi, x, shape, CONV)
    return y, None


def shape_of(block: expanded.Block) -> tuple[int, ...]:
    """The shape of the plain kernel."""
    return block["KxK"].psi["kernel"].shape


def layer_with_norms(
    params: Any, x: jax.Array, moments: Any = None
) -> tuple[jax.Array, Any]:
    """The sum of the outputs of all branches, each with its norms."""
    return expanded.apply(params, x, shape_of(params), CONV, moments)


def fold(params: Any, moments: Any) -> Any:
    """The plain layer that equals a block with these moments."""
    kernel, bias = expanded.fold(params, moments, shape_of(params))
    return {"kernel": kernel, "bias": bias}


FORMS = {
    "plain": Form(plain, lambda key, params, x: params, lambda params, moments: params),
    "collapsed": Form(collapsed_layer, random_branches, collapse),
    "expanded": Form(side_by_side, random_branches, collapse),
    "expanded with norms": Form(
        layer_with_norms,
        lambda key, params, x: expanded.expand(key, params, x, CONV)[0],
        fold,
    ),
}


# ----------------------------------------------------------------------------- the runs


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
def compiled_form(name: str) -> tuple[Any, Any, Any, Any]:
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


def relative_difference(logits: jax.Array, truth: jax.Array) -> float:
    """The norm of the difference, relative to that of `truth`."""
    return float(jnp.linalg.norm(logits - truth) / jnp.linalg.norm(truth))


def measure(name: str, seed: int) -> tuple[dict[str, Any], jax.Array]:
    """Trains one form with one seed.

    Returns:
        The report, and the logits of the merged network. In the report "before" is the
        network before merging with moments averaged over training batches, "training
        mode" the same with the moments of every test batch. "difference" is the
        relative difference of the logits to "before".
    """
    grow, step, run, merged_of = compiled_form(name)
    train, (x, y) = batches(seed)
    key = jax.random.key(seed)
    network = start(rng.fold_in(key, 0))
    tree = grow(rng.fold_in(key, 1), network, train[0][0])
    state, seconds = OPTIMIZER.init(tree), []
    for batch in train:
        start_time = time.perf_counter()
        tree, state = jax.block_until_ready(step(tree, state, *batch))
        seconds.append(time.perf_counter() - start_time)
    measured = [run(tree, x)[1] for x, _ in train[-SETTING["reestimated"] :]]
    moments = expanded.average_moments(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *measured)
    )
    merged = merged_of(tree, moments)
    plain_forward = compiled_form("plain")[2]
    test_batches = x.reshape(-1, SETTING["batch_size"], *x.shape[1:])
    logits = {
        "training mode": jnp.concatenate(
            [run(tree, chunk)[0] for chunk in test_batches]
        ),
        "before": run(tree, x, moments)[0],
        "merged": plain_forward(merged, x)[0],
    }
    if jax.tree.leaves(moments):
        for layer in LAYERS:
            bias = jnp.zeros_like(merged[layer]["bias"])
            merged[layer] = merged[layer] | {"bias": bias}
        logits["merged without bias"] = plain_forward(merged, x)[0]
    report = {
        "accuracy": {k: float((v.argmax(-1) == y).mean()) for k, v in logits.items()},
        "difference": {
            k: relative_difference(v, logits["before"]) for k, v in logits.items()
        },
        "seconds_per_step": float(np.median(seconds[1:])),
    }
    return report, logits["merged"]


def expansion(seed: int) -> dict[str, float]:
    """The change of the logits, in training mode, by an expansion with norms."""
    grow, _, run, _ = compiled_form("expanded with norms")
    x = batches(seed)[0][0][0]
    key = jax.random.key(seed)
    network = start(rng.fold_in(key, 0))
    truth, _ = compiled_form("plain")[2](network, x)
    tree = grow(rng.fold_in(key, 1), network, x)
    released = dict(tree)
    for name in LAYERS:
        shape = shape_of(tree[name])
        released[name] = {
            family: expanded.fresh_branch(family, branch.psi, shape, x.dtype)
            for family, branch in tree[name].items()
        }
    return {
        "norms that pass": relative_difference(run(tree, x)[0], truth),
        "norms of scale 1": relative_difference(run(released, x)[0], truth),
    }


def finding(results: dict[str, Any]) -> str:
    """What merging changes in the logits, and in the accuracy where it loses."""
    runs = results["runs"]
    normed = runs["expanded with norms"]

    def largest(form: str, key: str) -> float:
        return max(seed["difference"][key] for seed in runs[form])

    lost = [
        seed["accuracy"]["before"] - seed["accuracy"]["merged without bias"]
        for seed in normed
    ]
    return (
        f"Merging moves logits by at most {largest('expanded', 'merged'):.0e} without "
        f"batch norms and {largest('expanded with norms', 'merged'):.0e} with them, "
        f"biases included. Without the biases, as in the released code of DynamicFL, "
        f"accuracy falls by {min(lost):.2f} to {max(lost):.2f}."
    )


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
        form_differences = [relative_difference(*pair) for pair in pairs]
        expansions = [expansion(seed) for seed in SEEDS]
    origin = provenance()
    results = {
        "command": "python studies/merging/run.py",
        "seeds": SEEDS,
        "setting": SETTING,
        "device": origin["device"],
        "machine": origin["machine"],
        "versions": origin["versions"],
        "runs": runs,
        "expanded_to_collapsed": form_differences,
        "expansion": expansions,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, results)


if __name__ == "__main__":
    cli.run(main, lambda *_: None)
