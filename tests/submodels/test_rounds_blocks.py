"""Federated rounds of methods that drop or freeze blocks, in NumPy."""

import math

import numpy as np
import optax
import pytest

from fairjax.core import scopes
from fairjax.models import resmlp
from fairjax.submodels.depthfl import depthfl
from fairjax.submodels.inclusivefl import inclusivefl
from fairjax.submodels.nefl import nefl
from fairjax.submodels.partial import partial
from fairjax.submodels.scalefl import scalefl
from tests.submodels import by_hand
from tests.submodels.by_hand import cross_entropy, each, gap, named, nested
from tests.submodels.rounds import (
    CLASSES,
    TIERS,
    TIGHT,
    drawn,
    federated,
    member,
    records,
    wide,
)

WIDTH, INSIDE, RATE = 5, 4, 0.1


def network(depth, **options):
    """fairjax's residual perceptron, and the axes of its leaves."""
    options = {"norm": "none"} | options
    model = resmlp(classes=CLASSES, width=WIDTH, hidden=INSIDE, depth=depth, **options)
    dims = {("stem", "kernel"): (None, "stream"), ("stem", "bias"): ("stream",)}
    for i in range(depth):
        inside, block = f"hidden{i}", f"block{i}"
        dims |= {
            (block, "inner", "kernel"): ("stream", inside),
            (block, "inner", "bias"): (inside,),
            (block, "norm", "scale"): (inside,),
            (block, "norm", "bias"): (inside,),
            (block, "outer", "kernel"): (inside, "stream"),
            (block, "outer", "bias"): ("stream",),
            (f"exit{i}", "kernel"): ("stream", "classes"),
            (f"exit{i}", "bias"): ("classes",),
        }
    dims |= {("head", "kernel"): ("stream", "classes"), ("head", "bias"): ("classes",)}
    return model, dims


def prefix(params, length):
    """The layers of the first `length` blocks, each with its exit."""
    ends = [f"{part}{i}" for part in ("block", "exit") for i in range(length)]
    return {name: params[name] for name in ("stem", *ends)}


@wide
def test_depthfl_with_feddyn():
    """Two rounds with FedDyn.

    The loss is sum_i CE_i + lambda(t) sum_i sum_j KL(z_j -> z_i) / (M - 1). Its
    gradient gives a client's state, which enters the next round; the server adds the
    sum of the mean changes so far.
    """
    model, dims = network(3, norm="batch", exits=True)
    params, stages, ramp, alpha = drawn(model), (1, 2, 3), 5, 0.1
    method = depthfl(
        model.axes,
        (0.3, 0.6, 1.0),
        stages=stages,
        distill=True,
        ramp=ramp,
        ensemble=True,
        feddyn=alpha,
    )
    _, states = federated(
        model, method, params, steps=2, optimizer=optax.sgd(RATE), rounds=(0, 1)
    )
    memory = [each(np.zeros_like, prefix(params, stages[t])) for t in TIERS]
    server, now = each(np.zeros_like, params), params
    for t, (_, got) in enumerate(states):
        sent = []
        strength = math.exp(-5 * (1 - min(t, ramp) / ramp) ** 2)
        for who, (x, y) in enumerate(records()):
            start = prefix(now, stages[TIERS[who]])

            def loss(p, x=x, y=y, start=start, past=memory[who], strength=strength):
                z = by_hand.residual(p, x)
                value = sum(cross_entropy(exit, y) for exit in z)
                for i, pupil in enumerate(z):
                    for j, teacher in enumerate(z):
                        if i != j:
                            kl = by_hand.divergence(teacher, pupil)
                            value = value + strength * kl / (len(z) - 1)
                for w, was, g in zip(
                    *map(by_hand.leaves, (p, start, past)), strict=True
                ):
                    value = value - (g * w).sum() + alpha / 2 * ((w - was) ** 2).sum()
                return value

            end = by_hand.descend(loss, start, steps=2, rate=RATE)
            memory[who] = each(
                lambda g, new, old: g - alpha * (new - old), memory[who], end, start
            )
            sent.append((end, {}, 1))
        mean = each(np.subtract, by_hand.averaged(now, sent, dims), now)
        server = each(lambda h, m: h - alpha * m, server, mean)
        now = each(lambda w, m, h: w + m - h / alpha, now, mean, server)
        assert gap(got.params, now) < TIGHT


@wide
def test_scalefl():
    """Floors of the width, exits weighted by their number, and distillation from the
    last.

    It begins between rounds 11 and 12 of 40, counted from 1.
    """
    model, dims = network(3, exits=True)
    params, widths, exits = drawn(model), (0.45, 0.7, 1.0), (1, 2, 3)
    gamma, hot = 0.5, 3.0
    method = scalefl(
        model.axes,
        (0.2, 0.5, 1.0),
        40,
        width=widths,
        exits=exits,
        gamma=gamma,
        temperature=hot,
        warmup=0.25,
    )
    _, states = federated(
        model, method, params, steps=2, optimizer=optax.sgd(RATE), rounds=(10, 12, 11)
    )
    for number, (_, got) in zip((10, 12, 11), states, strict=True):
        sent = []
        for who, (x, y) in enumerate(records()):
            share, length = widths[TIERS[who]], exits[TIERS[who]]
            units = {"stream": np.arange(math.floor(share * WIDTH))}
            units |= {
                f"hidden{i}": np.arange(math.floor(share * INSIDE)) for i in range(3)
            }

            def loss(p, x=x, y=y, share=share, active=number > 40 * 0.25):
                z = by_hand.residual(p, x, divide=share)
                value = 0
                for j, exit in enumerate(z):
                    one = cross_entropy(exit, y)
                    if active and j < len(z) - 1:
                        kl = by_hand.divergence(z[-1], exit, hot)
                        one = one + gamma * hot**2 * kl
                    value = value + (j + 1) * one
                return value / (len(z) * (len(z) + 1) / 2)

            small = by_hand.cut(prefix(params, length), dims, units)
            end = by_hand.descend(loss, small, steps=2, rate=RATE)
            sent.append((end, units, 1))
        assert gap(got.params, by_hand.averaged(params, sent, dims)) < TIGHT


@wide
def test_nefl():
    """Prefixes of ceil(sqrt(share) units), without blocks inside the network.

    As in `NeFedAvg`, shared coordinates are counted means, norms and steps the mean of
    their tier, and the whole model has those of the richest tier."""
    model, dims = network(3, norm="batch", steps=True)
    params, width, gone = drawn(model), (0.3, 0.6, 1.0), ((1,), (2,), ())
    method = nefl(model.axes, (0.2, 0.5, 1.0), width=width, dropped=gone)
    _, [(_, got)] = federated(model, method, params, steps=2, optimizer=optax.sgd(RATE))
    sent = []
    for who, (x, y) in enumerate(records()):
        tier = TIERS[who]
        axes = {"stream": WIDTH} | {f"hidden{i}": INSIDE for i in range(3)}
        root = math.sqrt(width[tier])
        units = {name: np.arange(math.ceil(root * n)) for name, n in axes.items()}
        small = by_hand.cut(
            params, dims, units, without=[f"block{i}" for i in gone[tier]]
        )

        def loss(p, x=x, y=y):
            return cross_entropy(by_hand.residual(p, x)[0], y)

        sent.append((by_hand.descend(loss, small, steps=2, rate=RATE), units, 1))

    def only(tree, inconsistent):
        return nested(
            {
                path: leaf
                for path, leaf in named(tree).items()
                if ({"norm", "step"} & set(path) != set()) == inconsistent
            }
        )

    common = [(only(tree, False), *rest) for tree, *rest in sent]
    common = by_hand.averaged(params, common, dims)
    for tier in range(3):
        own = [
            (only(tree, True), *rest)
            for (tree, *rest), t in zip(sent, TIERS, strict=True)
            if t == tier
        ]
        expected = by_hand.averaged(common, own, dims)
        who = member(TIERS.index(tier))
        assert gap(scopes.gather(got.leaf_copies, got.params, who), expected) < TIGHT
    assert gap(scopes.top_tier_model(got.leaf_copies, got.params), expected) < TIGHT


@wide
def test_inclusivefl():
    """The last block and the exit of a tier are its own.

    The block moves by (1 - beta) of the tier's change and beta of the mean of the next
    tier's over the blocks from there to its end. Other leaves move by the mean over
    tiers that do not end with them.
    """
    model, dims = network(3, exits=True)
    params, depths, beta = drawn(model), (1, 2, 3), 0.2
    method = inclusivefl(model.axes, (0.2, 0.6, 1.0), stages=depths, beta=beta)
    _, [(_, got)] = federated(model, method, params, steps=2, optimizer=optax.sgd(RATE))
    ends = []
    for who, (x, y) in enumerate(records()):

        def loss(p, x=x, y=y):
            return cross_entropy(by_hand.residual(p, x)[-1], y)

        start = prefix(params, depths[TIERS[who]])
        ends.append(by_hand.descend(loss, start, steps=2, rate=RATE))

    def of_tier(tier, name):
        """The mean change of a layer inside a tier."""
        changes = [
            each(np.subtract, end[name], params[name])
            for end, t in zip(ends, TIERS, strict=True)
            if t == tier
        ]
        return each(lambda *d: sum(d) / len(d), *changes)

    sent = []
    for end, tier in zip(ends, TIERS, strict=True):
        last = depths[tier] - 1
        mine = {f"block{last}", *(f"exit{i}" for i in range(last + 1))}
        sent.append(({n: v for n, v in end.items() if n not in mine}, {}, 1))
    common = by_hand.averaged(params, sent, dims)
    for tier, depth in enumerate(depths):
        last, expected = depth - 1, dict(common)
        change = of_tier(tier, f"block{last}")
        if tier < 2:
            lesson = [
                of_tier(tier + 1, f"block{i}") for i in range(last, depths[tier + 1])
            ]
            teacher = each(lambda *d: sum(d) / len(d), *lesson)
            change = each(lambda d, m: (1 - beta) * d + beta * m, change, teacher)
        for name, moved in (
            (f"block{last}", change),
            (f"exit{last}", of_tier(tier, f"exit{last}")),
        ):
            expected[name] = each(np.add, params[name], moved)
        received = scopes.gather(got.leaf_copies, got.params, member(TIERS.index(tier)))
        # Exits that no tier predicts with do not move.
        assert gap(received, expected) < TIGHT


@pytest.mark.parametrize(
    "mode", ["rolling", pytest.param("top", marks=pytest.mark.slow)]
)
@wide
def test_partial(mode):
    """All blocks run; ceil(share n) of them are trained with the head, and with the
    stem if all blocks are trained."""
    model, dims = network(3)
    params, share = drawn(model), (0.3, 0.6, 1.0)
    method = partial(model.axes, share, mode=mode)
    _, states = federated(
        model, method, params, steps=2, optimizer=optax.sgd(RATE), rounds=(2, 4)
    )
    for number, (_, got) in zip((2, 4), states, strict=True):
        sent = []
        for who, (x, y) in enumerate(records()):
            count = math.ceil(round(share[TIERS[who]] * 3, 9))
            first = {"top": 3 - count, "rolling": number}[mode]
            names = {"head", *(f"block{(first + i) % 3}" for i in range(count))}
            names |= {"stem"} if count == 3 else set()

            def loss(p, x=x, y=y):
                return cross_entropy(by_hand.residual({**params, **p}, x)[0], y)

            start = {name: params[name] for name in names}
            end = by_hand.descend(loss, start, steps=2, rate=RATE)
            sent.append((end, {}, 1))
        assert gap(got.params, by_hand.averaged(params, sent, dims)) < TIGHT
