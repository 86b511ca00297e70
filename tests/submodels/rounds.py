"""fairjax's own rounds in float64, for comparison with references from `by_hand`.

Two of the four clients lack a class. Every step uses all records of a client, so
shuffling has no effect.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairjax.core import layout, round
from fairjax.core.types import ClientView, FederatedData
from fairjax.fairness import weights
from tests import fakes
from tests.submodels.by_hand import each, plain

COUNTS, TIERS, CLASSES, FEATURES = (10, 7, 23, 5), (0, 1, 2, 1), 3, 6
LACKS = {1: 2, 3: 0}
"""Client -> the class that it lacks."""
TIGHT = 1e-9


def records():
    """[(x, y), ...] of the clients, in float64."""
    rng = np.random.default_rng(7)
    found = []
    for who, count in enumerate(COUNTS):
        classes = [c for c in range(CLASSES) if c != LACKS.get(who)]
        y = np.array([classes[i % len(classes)] for i in range(count)])
        found.append((rng.normal(size=(count, FEATURES)) + y[:, None], y))
    return found


def federation():
    """The same records as fairjax takes them."""
    x, y = (np.concatenate(parts) for parts in zip(*records(), strict=True))
    labels = [np.bincount(y, minlength=CLASSES) for _, y in records()]
    return FederatedData(
        jnp.asarray(x),
        jnp.asarray(y, jnp.int32),
        jnp.zeros((len(y), 0), jnp.int32),
        jnp.asarray(np.cumsum((0, *COUNTS[:-1])), jnp.int32),
        jnp.asarray(COUNTS, jnp.int32),
        jnp.asarray(np.stack(labels), jnp.int32),
    )


def drawn(model, seed=3):
    """Parameters of the model as a NumPy tree of float64; no leaf is 0 or 1."""
    return plain(fakes.drawn(model, np.zeros((1, FEATURES)), np.float64, seed))


def member(who):
    """A client as a method sees it."""
    return jax.tree.map(lambda leaf: leaf[who], everybody())


def everybody():
    data = federation()
    who = jnp.arange(len(COUNTS), dtype=jnp.int32)
    tier = jnp.asarray(TIERS, jnp.int32)
    return ClientView(who, tier, who >= 0, data.count, data.labels)


def wide(f):
    """A test in float64, where optimisers may promote as NumPy does."""

    @functools.wraps(f)
    def run(*args, **kwargs):
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            return f(*args, **kwargs)

    return run


def federated(
    model, method, params, *, steps, optimizer, rounds=(0,), rule=None, server=None
):
    """(spec, states): the state before each of these rounds, and after it.

    Consecutive rounds continue each other; any other number starts again from `params`.
    """
    spec = fakes.spec(
        model,
        method,
        rule=rule or weights.uniform(),
        server=method.server.optimizer(server or optax.sgd(1.0), 1.0),
        optimizer=optimizer,
        counts=COUNTS,
        batch_size=max(COUNTS),
        epochs=steps,
    )
    data = federation()
    first = fakes.start(spec, data, params=each(jnp.asarray, params))
    run = functools.partial(round.step, spec=spec, layout=layout.vmapped())
    step = jax.jit(lambda state: run(state, data, fakes.cohort(tiers=TIERS))[0])
    states, after = [], None
    for number in rounds:
        before = after
        if after is None or int(after.round) != number:
            before = dataclasses.replace(first, round=jnp.asarray(number, jnp.int32))
        after = step(before)
        states.append((before, after))
    return spec, states
