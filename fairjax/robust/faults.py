"""What goes wrong at hospitals, by accident or by intent, for research and for tests.

Every fault has its hospitals, a share of all, and a probability with which it strikes
one of them in a round. The hospitals of a smaller share are among those of a larger
one, so that faults may be combined at the same ones. What is drawn follows from the
run's key alone.

Faults lie in four places: who comes (`present`), what is sent (`sending`), what is
claimed (`claiming`), and the records themselves (`corrupted`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core import rng, simplex, trees
from fairjax.core.client import ClientInfo
from fairjax.core.round import Sending
from fairjax.core.types import (
    Cohort,
    Federation,
    Masks,
    Member,
    Params,
    Rule,
    Scores,
)

UPLOADS = ("nan", "inf", "sign_flip", "scaling", "gaussian", "free_rider")
"""What is sent in place of a change d, with a strength s: NaN or infinity everywhere;
-s d; s d; noise of norm s |d|; nothing."""
ABSENCES = ("drop_before", "drop_during", "drop_after", "straggler")
"""Whose change does not arrive: of a client that does not come, that stops half way,
that is done and whose state has moved on, and that is later than the deadline."""
CLAIMS = ("inflated_count", "inflated_loss")
"""What a rule is told: s times the records, s times the loss."""
RECORDS = ("label_flip", "corrupted")
"""What a hospital trains on: class c as C - 1 - c (Fang et al. 2020); every input value
dealt anew among its records, so that none belongs to its label."""
TIERS = ("impostor",)
"""Says that it is of the richest tier, whose coordinates few others hold."""
FAULTS = (*ABSENCES, *UPLOADS, *CLAIMS, *RECORDS, *TIERS)
PERMANENT = (*CLAIMS, *RECORDS, *TIERS)
"""Those that strike in every round or in none."""


class Fault(NamedTuple):
    """One fault of a federation."""

    name: str
    """Of `FAULTS`."""
    hospitals: Bool[np.ndarray, "N"]
    """Whom it may strike."""
    rate: float
    """Probability with which it strikes one of them in a round."""
    strength: float = 1.0
    """s."""


class Deadline(NamedTuple):
    """When a straggler is too late: if exp(spread z) > most, z standard normal."""

    most: float
    """In usual times of a round."""
    spread: float
    """Standard deviation of the logarithm of a hospital's time."""


def hospitals(share: float, clients: int, seed: int) -> Bool[np.ndarray, "N"]:
    """The first round(share N) hospitals of an order that the seed decides."""
    order = np.random.default_rng([seed, 3]).permutation(clients)
    struck = np.zeros(clients, bool)
    struck[order[: round(share * clients)]] = True
    return struck


def _struck(
    key: Key[Array, ""], fault: Fault, client: Int[Array, ""]
) -> Bool[Array, ""]:
    """Whether a fault strikes a client, by the key of the round."""
    key = rng.at(key, FAULTS.index(fault.name), client)
    # A rate of 1 strikes always: the draw is below 1.
    drawn = jax.random.uniform(key, dtype=jnp.float32) < fault.rate
    return jnp.asarray(fault.hospitals)[client] & drawn


def _named(faults: Sequence[Fault], names: Sequence[str]) -> list[Fault]:
    return [fault for fault in faults if fault.name in names]


def present(key: Key[Array, ""], faults: Sequence[Fault], cohort: Cohort) -> Cohort:
    """The cohort without those that do not come.

    Args:
        key: of the faults of the round.
        faults: of the federation.
        cohort: as it was drawn.
    """
    for fault in _named(faults, ["drop_before"]):
        away = jax.vmap(functools.partial(_struck, key, fault))(cohort.client)
        cohort = cohort._replace(valid=cohort.valid & ~away)
    return cohort


# ------------------------------------------------------------------------ what is sent


def _everywhere(value: float) -> Callable[..., Params]:
    def send(key: Array, delta: Params, cover: Masks, strength: float) -> Params:
        return jax.tree.map(
            lambda d, m: jnp.where(m > 0, jnp.asarray(value, d.dtype), d), delta, cover
        )

    return send


def _times(sign: int) -> Callable[..., Params]:
    def send(key: Array, delta: Params, cover: Masks, strength: float) -> Params:
        return jax.tree.map(lambda d: d * jnp.asarray(sign * strength, d.dtype), delta)

    return send


def _noise(key: Array, delta: Params, cover: Masks, strength: float) -> Params:
    drawn = trees.multiply(optax.tree.random_like(key, delta), cover)
    length = optax.tree.norm(drawn)
    scale = strength * optax.tree.norm(delta) / jnp.where(length > 0, length, 1)
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), drawn)


_SENT: Mapping[str, Callable[[Array, Params, Masks, float], Params]] = {
    "nan": _everywhere(jnp.nan),
    "inf": _everywhere(jnp.inf),
    "sign_flip": _times(-1),
    "scaling": _times(1),
    "gaussian": _noise,
    "free_rider": lambda key, delta, cover, strength: jax.tree.map(
        jnp.zeros_like, delta
    ),
}
"""(key, delta, cover, strength) -> what is sent; one per name of `UPLOADS`."""


def sending(faults: Sequence[Fault], deadline: Deadline) -> Sending | None:
    """What becomes of a client's change on its way; None without such faults.

    Args:
        faults: of the federation; several that strike at once do so in their order.
        deadline: of stragglers.
    """
    faults = _named(faults, (*ABSENCES[1:], *UPLOADS))
    if not faults:
        return None

    def send(
        key: Key[Array, ""],
        member: Member,
        delta: Params,
        cover: Masks,
        info: ClientInfo,
    ) -> tuple[Params, ClientInfo, Bool[Array, ""], Bool[Array, ""]]:
        arrives = moved = jnp.ones((), bool)
        for fault in faults:
            struck = _struck(key, fault, member.client)
            own = rng.at(key, len(FAULTS), FAULTS.index(fault.name), member.client)
            if fault.name in _SENT:
                other = _SENT[fault.name](own, delta, cover, fault.strength)
                delta = trees.select(struck, other, delta)
                continue
            if fault.name == "straggler":
                drawn = jax.random.normal(own, dtype=jnp.float32)
                struck &= jnp.exp(deadline.spread * drawn) > deadline.most
            if fault.name == "drop_during":
                moved &= ~struck
                steps = jnp.where(struck, info.steps // 2, info.steps)
                info = info._replace(steps=steps)
            arrives &= ~struck
        info = info._replace(finite=info.finite & trees.bounded(delta))
        return delta, info, arrives, moved

    return send


# --------------------------------------------------------------------- what is claimed


def claiming(rule: Rule, faults: Sequence[Fault]) -> Rule:
    """The rule as one that is told wrong numbers; itself without such faults.

    What it is told enters weights and directions alone: how long a client trains
    follows from its records.
    """
    by = {name: _factors(_named(faults, [name])) for name in CLAIMS}
    if not any(factors is not None for factors in by.values()):
        return rule

    def told(cohort: Cohort, scores: Scores) -> Scores:
        count, loss = (
            jnp.ones((), jnp.float32) if of is None else of[cohort.client]
            for of in by.values()
        )
        claimed = scores.count.astype(jnp.float32) * count
        scores = scores._replace(count=jnp.round(claimed).astype(scores.count.dtype))
        if scores.loss is None or scores.cells is None:
            return scores
        cells = scores.cells
        grown = cells.loss * jnp.reshape(loss, (-1, 1, 1)).astype(cells.loss.dtype)
        return scores._replace(
            loss=scores.loss * loss.astype(scores.loss.dtype),
            cells=cells._replace(loss=grown),
        )

    def weigh(
        state: PyTree, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        scores = told(cohort, scores)
        if rule.weigh is None:
            return simplex.by_records(scores, cohort.valid), state
        return rule.weigh(state, cohort, scores)

    def tell(state: PyTree, cohort: Cohort, scores: Scores) -> PyTree:
        return rule.tell(state, cohort, told(cohort, scores))

    def combine(
        state: PyTree, cohort: Cohort, scores: Scores, weights: Float[Array, "K"]
    ) -> tuple[Params, Masks, PyTree]:
        assert rule.combine is not None
        return rule.combine(state, cohort, told(cohort, scores), weights)

    directed = None if rule.combine is None else combine
    return rule._replace(weigh=weigh, tell=tell, combine=directed)


def _factors(faults: Sequence[Fault]) -> Float[Array, "N"] | None:
    if not faults:
        return None
    (fault,) = faults
    return jnp.where(jnp.asarray(fault.hospitals), fault.strength, 1.0)


# ------------------------------------------------------------- records and what is said


def corrupted(data: Federation, faults: Sequence[Fault], seed: int) -> Federation:
    """The training records as hospitals with faulty ones have them.

    Args:
        data: with NumPy leaves.
        faults: of the federation.
        seed: of the draws.
    """
    faults = _named(faults, RECORDS)
    if not faults:
        return data
    x, y = np.array(data.x), np.array(data.y)
    labels = np.array(data.labels)
    rng = np.random.default_rng([seed, 4])
    for fault in faults:
        for k in np.flatnonzero(fault.hospitals):
            start = data.offset[k]
            mine = slice(start, start + data.count[k])
            if fault.name == "label_flip":
                y[mine] = labels.shape[1] - 1 - y[mine]
                labels[k] = labels[k][::-1]
            else:
                x[mine] = rng.permuted(x[mine], axis=0)
    return dataclasses.replace(data, x=x, y=y, labels=labels)


def claimed_tiers(
    tiers: Int[np.ndarray, "N"], faults: Sequence[Fault], richest: int
) -> Int[np.ndarray, "N"]:
    """The tiers that hospitals say they are of."""
    for fault in _named(faults, TIERS):
        tiers = np.where(fault.hospitals, richest, tiers)
    return tiers
