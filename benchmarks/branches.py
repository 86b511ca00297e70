"""The cost of branches to a client, collapsed and side by side.

    python scripts/bench.py --name=branches

The benchmark takes a quarter of an hour on 2 CPU cores, most of it compilation. One
process times all forms of a model in turn and takes ratios within a turn, so that a
drift of the machine's speed affects both times of a ratio. Times are CPU seconds over
all threads, which other load on the machine affects least.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairjax.core import batching, client, objectives
from fairjax.core.problem import LocalProblem
from fairjax.core.types import ClientData, ClientView, Model
from fairjax.models import cnn, resnet
from fairjax.submodels import branches, expanded, families
from fairjax.submodels.dynamicfl import dynamicfl
from fairjax.submodels.fedavg import fedavg

STEPS, TURNS = 8, 3
ALL = branches.Form().families


class Options(NamedTuple):
    """The branches of a client's step."""

    families: tuple[str, ...]
    number: int
    """Branches alive per layer on average; bottom layers have all, as in round 1."""
    extra: tuple[tuple[str, Any], ...] = ()
    """Further options of `dynamicfl`."""


FORMS = {
    "plain": Options((), 0),
    "0 of the 6": Options(ALL, 0),
    "2 of the 6": Options(ALL, 2),
    "6 of the 6": Options(ALL, 6),
    "6 of the 6, 1x1-KxK of a quarter of the inner width": Options(
        ALL, 6, (("inner", 0.25),)
    ),
    "2 of 2: 1x1, 1x1-KxK": Options(ALL[:2], 2),
    "5 of 5: all but 1x1-KxK": Options(
        tuple(name for name in ALL if name != "1x1-KxK"), 5
    ),
    "5 of 5, preconditioned": Options(
        tuple(name for name in ALL if name in families.ONE_MAP),
        5,
        (("branch_form", "preconditioned"), ("sensitivity", "gradient")),
    ),
}
"""Name "alive of slots" -> branches. A client's program computes all slots."""


class Case(NamedTuple):
    """A model and its convolutions that have branches."""

    model: Callable[[], Model]
    shape: tuple[int, ...]
    batch: int
    convolutions: dict[tuple[int, int, int, int], int]
    """(side of the input, input channels, output channels, stride) -> number."""
    forms: tuple[str, ...] = tuple(FORMS)
    """The names of the timed `FORMS`."""


RESNET = Case(
    lambda: resnet(classes=10, lowering="forward"),
    (32, 32, 3),
    16,
    {
        (32, 3, 64, 1): 1,
        (32, 64, 64, 1): 4,
        (32, 64, 128, 2): 1,
        (16, 128, 128, 1): 3,
        (16, 128, 256, 2): 1,
        (8, 256, 256, 1): 3,
        (8, 256, 512, 2): 1,
        (4, 512, 512, 1): 3,
    },
)
CASES = {
    "ResNet-18, 32 x 32, batch 16": RESNET,
    "ResNet-18, 32 x 32, batch 64": RESNET._replace(
        batch=64, convolutions={}, forms=("plain", "2 of the 6", "6 of the 6")
    ),
    "CNN, 28 x 28, batch 16": Case(
        lambda: cnn(classes=10, channels=(16, 32), group_size=4, lowering="forward"),
        (28, 28, 3),
        16,
        {(28, 3, 16, 1): 1, (14, 16, 32, 1): 1},
    ),
}


def time_turns(runs: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """CPU seconds of every run by turn, without the first turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + TURNS):
        for name, run in runs.items():
            began = time.process_time()
            jax.block_until_ready(run())
            seconds[name].append(time.process_time() - began)
    return {name: durations[1:] for name, durations in seconds.items()}


def relative_times(seconds: dict[str, list[float]], unit: float = 1) -> dict[str, Any]:
    """Median seconds of every form, and the ratios to the first form within a turn.

    Args:
        seconds: form -> seconds by turn.
        unit: seconds are divided by it.
    """
    first = next(iter(seconds.values()))
    report = {}
    for name, durations in seconds.items():
        ratios = [a / b for a, b in zip(durations, first, strict=True)]
        report[name] = {
            "seconds": statistics.median(durations) / unit,
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
    return report


# --------------------------------------------------------------------- a client's steps


def steps(case: Case, form: Options) -> Callable[[], Any]:
    """`client.update` for `STEPS` steps, compiled, with collapsed branches."""
    model, rows = case.model(), case.batch * STEPS
    rng = np.random.default_rng(0)
    examples = ClientData(
        jnp.asarray(rng.normal(size=(rows, *case.shape)), jnp.float32),
        jnp.asarray(rng.integers(0, 10, rows), jnp.int32),
        jnp.int32(0),
        jnp.int32(rows),
    )
    params = jax.jit(model.init)(jax.random.key(0), examples.x[:1])
    method = fedavg(model.axes)
    if form.families:
        # A second tier keeps the slots where none of this tier's branches is alive.
        number = (form.number, len(form.families))
        options = {"families": form.families, **dict(form.extra)}
        method = dynamicfl(model.axes, number, **options)
    local = LocalProblem(
        model,
        method,
        objectives.mean_cross_entropy(),
        optax.sgd(0.1),
        batching.local_schedule(np.asarray([rows]), batch_size=case.batch, epochs=1),
    )
    memory = method.memory and method.memory.init(params)
    member = ClientView(
        jnp.int32(0),
        jnp.int32(0),
        jnp.bool_(True),
        jnp.int32(rows),
        jnp.bincount(examples.y, length=10).astype(jnp.int32),
    )

    @jax.jit
    def run(params, memory, examples, member):
        key, number = jax.random.key(1), jnp.int32(0)
        submodel = method.submodel(key, number, params, member)
        return client.update(
            key,
            params,
            memory,
            submodel,
            examples,
            client=member,
            round=number,
            local=local,
        )

    return functools.partial(run, params, memory, examples, member)


# -------------------------------------------------------- the convolutions in isolation


def layers(size: tuple[int, int, int, int], batch: int) -> dict[str, Callable[[], Any]]:
    """A convolution with its gradients: plain, collapsed, side by side, with norms."""
    side, inputs, outputs, stride = size
    shape = (3, 3, inputs, outputs)
    pads = jax.lax.padtype_to_pads((side,) * 2, (3, 3), (stride,) * 2, "SAME")
    conv = expanded.Conv(stride, tuple(pads))
    fitting = [name for name in ALL if families.fits(name, shape)]
    key = jax.random.key(0)
    x = jax.random.normal(key, (batch, side, side, inputs))
    layer = branches.Layer(0, "", shape, False, x.dtype)
    form = branches.Form(("KxK", *fitting))
    slots = branches.draw(key, [layer], form)[""]
    base, *branch_slots = slots.values()
    psi = dict(zip(fitting, branch_slots, strict=True))
    block = {
        name: expanded.fresh_branch(
            name, {} if name == "scale" else leaves, shape, x.dtype
        )
        for name, leaves in {"KxK": base, **psi}.items()
    }

    def plain(params, x):
        return expanded.convolve(x, params["kernel"], conv)

    def collapsed(params, x):
        base, psi = params
        kernels = [families.tau(name, psi[name], shape)[0] for name in psi]
        return expanded.convolve(
            x, functools.reduce(jnp.add, kernels, base["kernel"]), conv
        )

    def side_by_side(params, x):
        base, psi = params
        outputs = [expanded.parallel(name, psi[name], x, shape, conv) for name in psi]
        return functools.reduce(jnp.add, outputs, plain(base, x))

    def with_norms(params, x):
        return expanded.apply(params, x, shape, conv)[0]

    def run(form, params):
        def forward_and_backward(params, x, g):
            y, back = jax.vjp(form, params, x)
            return y, back(g)

        g = jnp.ones(jax.eval_shape(form, params, x).shape)
        return functools.partial(jax.jit(forward_and_backward), params, x, g)

    return {
        "plain": run(plain, base),
        "collapsed": run(collapsed, (base, psi)),
        "side by side": run(side_by_side, (base, psi)),
        "side by side, with norms": run(with_norms, block),
    }


def convolutions(case: Case) -> dict[str, list[float]]:
    """CPU seconds by turn of all convolutions of a model with their gradients."""
    total: dict[str, list[float]] = {}
    for size, count in case.convolutions.items():
        for name, durations in time_turns(layers(size, case.batch)).items():
            previous = total.get(name, [0.0] * TURNS)
            total[name] = [
                a + count * b for a, b in zip(previous, durations, strict=True)
            ]
    return total


# ------------------------------------------------------------------------------- report


def measure() -> dict[str, Any]:
    """Measures all cases."""
    results: dict[str, Any] = {"steps": STEPS, "turns": TURNS}
    results |= {"client_step": {}, "convolutions": {}}
    for name, case in CASES.items():
        runs = {label: steps(case, FORMS[label]) for label in case.forms}
        results["client_step"][name] = relative_times(time_turns(runs), STEPS)
        if case.convolutions:
            results["convolutions"][name] = relative_times(convolutions(case))
    return results


def table(results: dict[str, Any]) -> str:
    """Two Markdown tables with ratios to the plain form."""
    tables = []
    titles = {
        "client_step": "a client's local step, branches alive, collapsed",
        "convolutions": "its convolutions alone, with gradients, 6 branches",
    }
    for section, title in titles.items():
        cases = results[section]
        lines = [f"| {title} | " + " | ".join(cases) + " |"]
        lines.append("|---|" + "--:|" * len(cases))
        for form in next(iter(cases.values())):
            cells = [
                _cell(forms[form]) if form in forms else "" for forms in cases.values()
            ]
            lines.append(f"| {form} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _cell(figure: dict[str, float]) -> str:
    if figure["lowest"] == figure["highest"] == 1:
        milliseconds = 1000 * figure["seconds"]
        return f"{milliseconds:{',.0f' if milliseconds >= 100 else '.3g'}} ms"
    return f"{figure['ratio']:.2f} ({figure['lowest']:.2f}–{figure['highest']:.2f})"  # noqa: RUF001
