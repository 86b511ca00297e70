"""What branches cost a client, collapsed and side by side.

    python scripts/bench.py --name=branches

A quarter of an hour on 2 CPU cores, most of it XLA compiling. All forms of a model are
timed in turn in one process, and a ratio is taken inside every turn, so that a machine
whose speed drifts slows both its sides. Times are CPU seconds over all threads: what
else runs on a machine enters them least.
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

from fairjax.core import client
from fairjax.core.types import Examples, Member, Model
from fairjax.models import cnn, resnet
from fairjax.submodels import branches, expanded
from fairjax.submodels.dynamicfl import dynamicfl
from fairjax.submodels.fedavg import fedavg

STEPS, TURNS = 8, 3
ALL = branches.Form().families


class Options(NamedTuple):
    """The branches of a client's step."""

    families: tuple[str, ...]
    number: int
    """Alive per layer on average: as in a first round, bottom layers have them all."""
    more: tuple[tuple[str, Any], ...] = ()
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
        tuple(name for name in ALL if name in branches.ONE_MAP),
        5,
        (("branch_form", "preconditioned"), ("sensitivity", "gradient")),
    ),
}
"""Branches alive of slots that there are. A client's program holds all slots."""


class Case(NamedTuple):
    """A model, and the convolutions that branches stand beside."""

    model: Callable[[], Model]
    shape: tuple[int, ...]
    batch: int
    convolutions: dict[tuple[int, int, int, int], int]
    """{(side of the input, inputs, outputs, stride): how many}."""
    forms: tuple[str, ...] = tuple(FORMS)
    """Those of `FORMS` that are timed."""


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


def timed(runs: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """CPU seconds of every run, taken in turn after a first round that is not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + TURNS):
        for name, run in runs.items():
            began = time.process_time()
            jax.block_until_ready(run())
            seconds[name].append(time.process_time() - began)
    return {name: taken[1:] for name, taken in seconds.items()}


def against(seconds: dict[str, list[float]], unit: float = 1) -> dict[str, Any]:
    """Median seconds of every form, and its ratio to the first one, turn by turn."""
    first = next(iter(seconds.values()))
    report = {}
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, first, strict=True)]
        report[name] = {
            "seconds": statistics.median(taken) / unit,
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
    return report


# --------------------------------------------------------------------- a client's steps


def steps(case: Case, form: Options) -> Callable[[], Any]:
    """`client.update` for STEPS steps, compiled; collapsed unless it says otherwise."""
    model, rows = case.model(), case.batch * STEPS
    rng = np.random.default_rng(0)
    examples = Examples(
        jnp.asarray(rng.normal(size=(rows, *case.shape)), jnp.float32),
        jnp.asarray(rng.integers(0, 10, rows), jnp.int32),
        jnp.int32(0),
        jnp.int32(rows),
    )
    params = jax.jit(model.init)(jax.random.key(0), examples.x[:1])
    method = fedavg(model.axes)
    if form.families:
        # Of two tiers, so that slots stay when none of this one's is alive.
        number = (form.number, len(form.families))
        options = {"families": form.families, **dict(form.more)}
        method = dynamicfl(model.axes, number, **options)
    local = client.Local(
        model,
        method,
        client.mean_cross_entropy(),
        optax.sgd(0.1),
        client.plan(np.asarray([rows]), batch_size=case.batch, epochs=1),
    )
    memory = method.memory and method.memory.init(params)
    member = Member(
        jnp.int32(0),
        jnp.int32(0),
        jnp.bool_(True),
        jnp.int32(rows),
        jnp.bincount(examples.y, length=10).astype(jnp.int32),
    )

    @jax.jit
    def run(params, memory, examples, member):
        key, number = jax.random.key(1), jnp.int32(0)
        kept = method.units(key, number, params, member)
        return client.update(
            key,
            params,
            memory,
            kept,
            examples,
            member=member,
            round=number,
            local=local,
        )

    return functools.partial(run, params, memory, examples, member)


# ------------------------------------------------------- its convolutions by themselves


def layers(size: tuple[int, int, int, int], batch: int) -> dict[str, Callable[[], Any]]:
    """One convolution and its gradients: plain, collapsed, side by side, with norms."""
    side, inputs, outputs, stride = size
    shape = (3, 3, inputs, outputs)
    pads = jax.lax.padtype_to_pads((side,) * 2, (3, 3), (stride,) * 2, "SAME")
    conv = expanded.Conv(stride, tuple(pads))
    families = [name for name in ALL if branches.fits(name, shape)]
    key = jax.random.key(0)
    x = jax.random.normal(key, (batch, side, side, inputs))
    layer = branches.Layer(0, "", shape, False, x.dtype)
    form = branches.Form(("KxK", *families))
    drawn = branches.draw(key, [layer], form)[""]
    base, *others = drawn.values()
    psi = dict(zip(families, others, strict=True))
    block = {
        name: expanded.fresh(name, {} if name == "scale" else own, shape, x.dtype)
        for name, own in {"KxK": base, **psi}.items()
    }

    def plain(own, x):
        return expanded.convolve(x, own["kernel"], conv)

    def collapsed(own, x):
        base, psi = own
        parts = [branches.tau(name, psi[name], shape)[0] for name in psi]
        return expanded.convolve(
            x, functools.reduce(jnp.add, parts, base["kernel"]), conv
        )

    def side_by_side(own, x):
        base, psi = own
        parts = [expanded.parallel(name, psi[name], x, shape, conv) for name in psi]
        return functools.reduce(jnp.add, parts, plain(base, x))

    def normed(own, x):
        return expanded.apply(own, x, shape, conv)[0]

    def run(form, own):
        def both(own, x, g):
            y, back = jax.vjp(form, own, x)
            return y, back(g)

        g = jnp.ones(jax.eval_shape(form, own, x).shape)
        return functools.partial(jax.jit(both), own, x, g)

    return {
        "plain": run(plain, base),
        "collapsed": run(collapsed, (base, psi)),
        "side by side": run(side_by_side, (base, psi)),
        "side by side, with norms": run(normed, block),
    }


def convolutions(case: Case) -> dict[str, list[float]]:
    """CPU seconds of all convolutions of a model with their gradients, turn by turn."""
    total: dict[str, list[float]] = {}
    for size, count in case.convolutions.items():
        for name, taken in timed(layers(size, case.batch)).items():
            before = total.get(name, [0.0] * TURNS)
            total[name] = [a + count * b for a, b in zip(before, taken, strict=True)]
    return total


# ------------------------------------------------------------------------------- report


def measure() -> dict[str, Any]:
    """All figures."""
    made: dict[str, Any] = {"steps": STEPS, "turns": TURNS}
    made |= {"client_step": {}, "convolutions": {}}
    for name, case in CASES.items():
        runs = {label: steps(case, FORMS[label]) for label in case.forms}
        made["client_step"][name] = against(timed(runs), STEPS)
        if case.convolutions:
            made["convolutions"][name] = against(convolutions(case))
    return made


def table(results: dict[str, Any]) -> str:
    """The ratios to the plain form as two Markdown tables."""
    parts = []
    titles = {
        "client_step": "a client's local step, branches alive, collapsed",
        "convolutions": "its convolutions alone, with gradients, 6 branches",
    }
    for part, title in titles.items():
        cases = results[part]
        lines = [f"| {title} | " + " | ".join(cases) + " |"]
        lines.append("|---|" + "--:|" * len(cases))
        for form in next(iter(cases.values())):
            cells = [
                _cell(forms[form]) if form in forms else "" for forms in cases.values()
            ]
            lines.append(f"| {form} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(figure: dict[str, float]) -> str:
    if figure["lowest"] == figure["highest"] == 1:
        milliseconds = 1000 * figure["seconds"]
        return f"{milliseconds:{',.0f' if milliseconds >= 100 else '.3g'}} ms"
    return f"{figure['ratio']:.2f} ({figure['lowest']:.2f}–{figure['highest']:.2f})"  # noqa: RUF001
