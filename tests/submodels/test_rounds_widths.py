"""One federated round of methods that cut widths, ranks or weights, in NumPy.

Every reference trains dense networks of the sub-model's size, cut out of the model as
the source says, and averages every coordinate over the clients that send it.
"""

import itertools
import math

import numpy as np
import optax
import pytest

from fairjax.evaluation import personalised
from fairjax.fairness import weights
from fairjax.models import mlp
from fairjax.submodels.federated_dropout import federated_dropout
from fairjax.submodels.fedrolex import fedrolex
from fairjax.submodels.fjord import fjord
from fairjax.submodels.heterofl import heterofl
from fairjax.submodels.lora import adapt, lora
from tests.submodels import by_hand
from tests.submodels.by_hand import gap
from tests.submodels.rounds import (
    CLASSES,
    COUNTS,
    TIERS,
    TIGHT,
    drawn,
    federated,
    member,
    records,
    wide,
)

HIDDEN, BUDGET = {"hidden0": 7, "hidden1": 5}, (0.3, 0.55, 1.0)
MODEL = mlp(classes=CLASSES, hidden=tuple(HIDDEN.values()))
DIMS = {
    ("hidden0", "kernel"): (None, "hidden0"),
    ("hidden0", "bias"): ("hidden0",),
    ("hidden1", "kernel"): ("hidden0", "hidden1"),
    ("hidden1", "bias"): ("hidden1",),
    ("head", "kernel"): ("hidden1", "classes"),
    ("head", "bias"): ("classes",),
}
SLOW = pytest.mark.slow
SGD = {"steps": 2, "rate": 0.1, "momentum": 0.9, "decay": 0.05, "clip": 1.0}


def torch_sgd(*, steps, rate, momentum, decay, clip):
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.add_decayed_weights(decay),
        optax.sgd(rate, momentum),
    )


def size(share, units):
    return math.ceil(round(share * units, 9))


def heterogeneous(params, units_of, by=(1, 1, 1, 1)):
    """A round of dense networks of these units, as in HeteroFL.

    Activations are divided by the rate, logits of absent classes are 0, and rows of the
    head are means over the clients with the class."""
    sent = []
    for who, (x, y) in enumerate(records()):
        units, rate = units_of(who), BUDGET[TIERS[who]]
        held = np.isin(np.arange(CLASSES), y)

        def loss(p, x=x, y=y, held=held, rate=rate):
            logits = by_hand.perceptron(p, x, divide=rate)
            return by_hand.cross_entropy(np.where(held, logits, 0), y)

        end = by_hand.descend(loss, by_hand.cut(params, DIMS, units), **SGD)
        # The update leaves out the head's rows of absent classes.
        rows = {"classes": np.flatnonzero(held)}
        head = {"head": by_hand.cut(end, DIMS, rows)["head"]}
        sent.append(({**end, **head}, {**units, **rows}, by[who]))
    return by_hand.averaged(params, sent, DIMS)


@pytest.mark.parametrize("by", ["uniform", pytest.param("size", marks=SLOW)])
@wide
def test_heterofl(by):
    """Prefixes of ceil(rate * units), as in `split_model` and `combine` of the released
    code; weighted by records, whose shares are float32 by design."""
    params = drawn(MODEL)
    method = heterofl(MODEL.axes, BUDGET, scaler=True, masked_loss=True)
    rule = {"uniform": weights.uniform(), "size": weights.size()}[by]
    _, [(_, got)] = federated(
        MODEL, method, params, steps=2, optimizer=torch_sgd(**SGD), rule=rule
    )

    def units(who):
        rate = BUDGET[TIERS[who]]
        return {name: np.arange(size(rate, total)) for name, total in HIDDEN.items()}

    count, tight = {"uniform": ((1, 1, 1, 1), TIGHT), "size": (COUNTS, 1e-6)}[by]
    assert gap(got.params, heterogeneous(params, units, count)) < tight


@wide
def test_fedrolex():
    """The window starts at j mod U in round j; in round 11 it wraps."""
    params = drawn(MODEL)
    method = fedrolex(MODEL.axes, BUDGET, scaler=True, masked_loss=True)
    _, states = federated(
        MODEL, method, params, steps=2, optimizer=torch_sgd(**SGD), rounds=(3, 11)
    )
    for number, (_, got) in zip((3, 11), states, strict=True):

        def units(who, j=number):
            rate = BUDGET[TIERS[who]]
            return {
                name: np.sort((j + np.arange(size(rate, total))) % total)
                for name, total in HIDDEN.items()
            }

        assert gap(got.params, heterogeneous(params, units)) < TIGHT


@wide
def test_federated_dropout():
    """For any draw, the number of units is the tier's, and the client trains exactly
    these."""
    params = drawn(MODEL)
    method = federated_dropout(
        MODEL.axes, BUDGET, shared=False, scaler=True, masked_loss=True
    )
    spec, [(before, got)] = federated(
        MODEL, method, params, steps=2, optimizer=torch_sgd(**SGD)
    )

    def units(who):
        *_, kept = personalised.round_inputs(before, member(who), spec=spec)
        found = {name: np.flatnonzero(v) for name, v in kept.forward.axes.items()}
        rate = BUDGET[TIERS[who]]
        expected = {name: size(rate, total) for name, total in HIDDEN.items()}
        assert {name: len(v) for name, v in found.items()} == expected
        return found

    assert gap(got.params, heterogeneous(params, units)) < TIGHT


@pytest.mark.parametrize("distill", [True, pytest.param(False, marks=SLOW)])
@wide
def test_fjord(distill):
    """A step at a width p that every client draws among those up to its own.

    The round equals one of the twelve possible draws. With a teacher the loss is as in
    `train` of the authors' baseline: CE(f_pmax, y) + CE(f_p, softmax(f_pmax)), the
    teacher detached.
    """
    params = drawn(MODEL)
    _, [(_, got)] = federated(
        MODEL,
        fjord(MODEL.axes, BUDGET, distill=distill),
        params,
        steps=1,
        optimizer=optax.sgd(0.1),
    )

    def prefix(p, tier):
        rows = {name: np.arange(size(BUDGET[tier], n)) for name, n in HIDDEN.items()}
        return rows, by_hand.cut(p, DIMS, rows)

    def trained(who, draw):
        x, y = records()[who]
        rows, own = prefix(params, TIERS[who])

        def loss(p):
            narrow = by_hand.perceptron(prefix(p, draw)[1], x)
            if not distill:
                return by_hand.cross_entropy(narrow, y)
            wide = by_hand.perceptron(p, x)
            soft = np.exp(by_hand.log_softmax(wide.real))
            taught = -(soft * by_hand.log_softmax(narrow)).sum(axis=1).mean()
            return by_hand.cross_entropy(wide, y) + taught

        return by_hand.descend(loss, own, steps=1, rate=0.1), rows, 1

    options = [
        [trained(who, draw) for draw in range(t + 1)] for who, t in enumerate(TIERS)
    ]
    gaps = [
        gap(got.params, by_hand.averaged(params, clients, DIMS))
        for clients in itertools.product(*options)
    ]
    assert min(gaps) < TIGHT
    assert sorted(gaps)[1] > 1e-6


RANK, ALPHA = 4, 6.0


@wide
def test_lora():
    """kernel = W + alpha / r a b with the first ranks.

    A rank's mean is over the clients that train it, the base does not move, and the
    head is trained whole.
    """
    model = adapt(MODEL, RANK, ALPHA)
    params = drawn(model)
    _, [(_, got)] = federated(
        model, lora(model.axes, BUDGET), params, steps=2, optimizer=optax.sgd(0.1)
    )
    dims = {
        ("lora", name, "kernel", factor): shape
        for name in HIDDEN
        for factor, shape in {"a": (None, "rank"), "b": ("rank", None)}.items()
    }
    sent = []
    for who, (x, y) in enumerate(records()):
        ranks = {"rank": np.arange(size(BUDGET[TIERS[who]], RANK))}
        base = params["base"]
        start = {
            "lora": by_hand.cut(params, dims, ranks)["lora"],
            "base": {"head": base["head"]},
        }

        def loss(p, x=x, y=y, base=base):
            layers = {"head": p["base"]["head"]}
            for name in HIDDEN:
                factors, old = p["lora"][name]["kernel"], base[name]
                change = ALPHA / RANK * factors["a"] @ factors["b"]
                layers[name] = {**old, "kernel": old["kernel"] + change}
            return by_hand.cross_entropy(by_hand.perceptron(layers, x), y)

        sent.append((by_hand.descend(loss, start, steps=2, rate=0.1), ranks, 1))
    assert gap(got.params, by_hand.averaged(params, sent, dims)) < TIGHT
