"""What goes wrong at clients, by accident or by intent, for research and for tests.

Every fault has its clients, a share of all, and a probability with which it strikes one
of them in a round. The clients of a smaller share are among those of a larger share, so
that several faults may strike the same clients. All draws follow from the run's key
alone.

Faults lie in four places: who takes part (`drop_absent`), what is sent
(`upload_faults`), what is claimed (`with_false_claims`), and the records themselves
(`corrupt_records`).
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
from fairjax.core.problem import ClientInfo
from fairjax.core.rule import CohortStats, Rule
from fairjax.core.spec import Transmission
from fairjax.core.types import ClientView, Cohort, FederatedData, Masks, Params

UPLOADS = ("nan", "inf", "sign_flip", "scaling", "gaussian", "free_rider")
"""What a client sends instead of a change d, with a strength s: NaN or infinity
everywhere; -s d; s d; noise of norm s |d|; zeros."""
ABSENCES = ("drop_before", "drop_during", "drop_after", "straggler")
"""Why a client's change does not arrive: the client does not take part; it stops half
way; it finishes and keeps its new state; it is later than the deadline."""
CLAIMS = ("inflated_count", "inflated_loss")
"""What a client claims to the rule: s times its records, s times its loss."""
RECORDS = ("label_flip", "corrupted")
"""What a client trains on: class c as C - 1 - c (Fang et al., "Local model poisoning
attacks to Byzantine-robust federated learning", USENIX Security 2020,
arXiv:1911.11815); every input value permuted among its records, so that none belongs to
its label."""
TIERS = ("impostor",)
"""The client claims the richest tier, whose coordinates few others hold."""
FAULTS = (*ABSENCES, *UPLOADS, *CLAIMS, *RECORDS, *TIERS)
PERMANENT = (*CLAIMS, *RECORDS, *TIERS)
"""Faults that strike in every round or in none."""


class Fault(NamedTuple):
    """One fault of a federation."""

    name: str
    """One of `FAULTS`."""
    clients: Bool[np.ndarray, "N"]
    """The clients that it may strike."""
    probability: float
    """Probability that it strikes one of them in a round."""
    strength: float = 1.0
    """s, see `UPLOADS` and `CLAIMS`."""


class Deadline(NamedTuple):
    """A straggler is too late if exp(log_std z) > max_time, z standard normal."""

    max_time: float
    """In multiples of the usual time of a round."""
    log_std: float
    """Standard deviation of the logarithm of a client's time."""


def faulty_clients(share: float, clients: int, seed: int) -> Bool[np.ndarray, "N"]:
    """The first round(share N) clients of an order that the seed decides."""
    order = np.random.default_rng([seed, 3]).permutation(clients)
    is_faulty = np.zeros(clients, bool)
    is_faulty[order[: round(share * clients)]] = True
    return is_faulty


def _is_active(
    key: Key[Array, ""], fault: Fault, client: Int[Array, ""]
) -> Bool[Array, ""]:
    """Whether a fault strikes a client, by the key of the round."""
    key = rng.fold_in(key, FAULTS.index(fault.name), client)
    # A probability of 1 always strikes: the draw is below 1.
    is_sampled = jax.random.uniform(key, dtype=jnp.float32) < fault.probability
    return jnp.asarray(fault.clients)[client] & is_sampled


def _select_faults(faults: Sequence[Fault], names: Sequence[str]) -> list[Fault]:
    return [fault for fault in faults if fault.name in names]


def drop_absent(key: Key[Array, ""], faults: Sequence[Fault], cohort: Cohort) -> Cohort:
    """The cohort without clients that do not take part.

    Args:
        key: key of the round's faults.
        faults: faults of the federation.
        cohort: the cohort as it was drawn.
    """
    for fault in _select_faults(faults, ["drop_before"]):
        is_absent = jax.vmap(functools.partial(_is_active, key, fault))(cohort.client)
        cohort = cohort._replace(valid=cohort.valid & ~is_absent)
    return cohort


# ----------------------------------------------------------------------------- uploads


def _constant(value: float) -> Callable[..., Params]:
    def send(key: Array, delta: Params, cover: Masks, strength: float) -> Params:
        return jax.tree.map(
            lambda d, m: jnp.where(m > 0, jnp.asarray(value, d.dtype), d), delta, cover
        )

    return send


def _scale(sign: int) -> Callable[..., Params]:
    def send(key: Array, delta: Params, cover: Masks, strength: float) -> Params:
        return jax.tree.map(lambda d: d * jnp.asarray(sign * strength, d.dtype), delta)

    return send


def _gaussian_noise(key: Array, delta: Params, cover: Masks, strength: float) -> Params:
    samples = trees.multiply(optax.tree.random_like(key, delta), cover)
    norm = optax.tree.norm(samples)
    scale = strength * optax.tree.norm(delta) / jnp.where(norm > 0, norm, 1)
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), samples)


_UPLOAD_FAULTS: Mapping[str, Callable[[Array, Params, Masks, float], Params]] = {
    "nan": _constant(jnp.nan),
    "inf": _constant(jnp.inf),
    "sign_flip": _scale(-1),
    "scaling": _scale(1),
    "gaussian": _gaussian_noise,
    "free_rider": lambda key, delta, cover, strength: jax.tree.map(
        jnp.zeros_like, delta
    ),
}
"""(key, delta, cover, strength) -> what is sent; one per name of `UPLOADS`."""


def upload_faults(faults: Sequence[Fault], deadline: Deadline) -> Transmission | None:
    """What faults make of a client's change on its way; None without such faults.

    Args:
        faults: faults of the federation; several that strike at once are applied in
            this order.
        deadline: deadline of stragglers.
    """
    faults = _select_faults(faults, (*ABSENCES[1:], *UPLOADS))
    if not faults:
        return None

    def send(
        key: Key[Array, ""],
        client: ClientView,
        delta: Params,
        cover: Masks,
        info: ClientInfo,
    ) -> tuple[Params, ClientInfo, Bool[Array, ""], Bool[Array, ""]]:
        is_received = has_finished = jnp.ones((), bool)
        for fault in faults:
            is_active = _is_active(key, fault, client.client)
            fault_key = rng.fold_in(
                key, len(FAULTS), FAULTS.index(fault.name), client.client
            )
            if fault.name in _UPLOAD_FAULTS:
                faulty_delta = _UPLOAD_FAULTS[fault.name](
                    fault_key, delta, cover, fault.strength
                )
                delta = trees.select(is_active, faulty_delta, delta)
                continue
            if fault.name == "straggler":
                normal_sample = jax.random.normal(fault_key, dtype=jnp.float32)
                is_active &= (
                    jnp.exp(deadline.log_std * normal_sample) > deadline.max_time
                )
            if fault.name == "drop_during":
                has_finished &= ~is_active
                steps = jnp.where(is_active, info.steps // 2, info.steps)
                info = info._replace(steps=steps)
            is_received &= ~is_active
        info = info._replace(finite=info.finite & trees.is_bounded(delta))
        return delta, info, is_received, has_finished

    return send


# ------------------------------------------------------------------------------ claims


def with_false_claims(rule: Rule, faults: Sequence[Fault]) -> Rule:
    """The rule with false claims of clients; the rule itself without such faults.

    Claims enter weights and directions alone: how long a client trains follows from its
    records.

    Args:
        rule: the fairness rule.
        faults: faults of the federation.
    """
    factors_by_claim = {
        name: _factors(_select_faults(faults, [name])) for name in CLAIMS
    }
    if not any(factors is not None for factors in factors_by_claim.values()):
        return rule

    def claimed_stats(cohort: Cohort, stats: CohortStats) -> CohortStats:
        count_factor, loss_factor = (
            jnp.ones((), jnp.float32)
            if client_factors is None
            else client_factors[cohort.client]
            for client_factors in factors_by_claim.values()
        )
        claimed_count = stats.count.astype(jnp.float32) * count_factor
        stats = stats._replace(count=jnp.round(claimed_count).astype(stats.count.dtype))
        if stats.loss is None or stats.group_stats is None:
            return stats
        group_stats = stats.group_stats
        claimed_loss = group_stats.loss * jnp.reshape(loss_factor, (-1, 1, 1)).astype(
            group_stats.loss.dtype
        )
        return stats._replace(
            loss=stats.loss * loss_factor.astype(stats.loss.dtype),
            group_stats=group_stats._replace(loss=claimed_loss),
        )

    def weigh(
        state: PyTree, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        stats = claimed_stats(cohort, stats)
        if rule.weights is None:
            return simplex.record_weights(stats, cohort.valid), state
        return rule.weights(state, cohort, stats)

    def broadcast(state: PyTree, cohort: Cohort, stats: CohortStats) -> PyTree:
        return rule.broadcast(state, cohort, claimed_stats(cohort, stats))

    def combine(
        state: PyTree, cohort: Cohort, stats: CohortStats, weights: Float[Array, "K"]
    ) -> tuple[Params, Masks, PyTree]:
        assert rule.combine is not None
        return rule.combine(state, cohort, claimed_stats(cohort, stats), weights)

    wrapped_combine = None if rule.combine is None else combine
    return rule._replace(weights=weigh, broadcast=broadcast, combine=wrapped_combine)


def _factors(faults: Sequence[Fault]) -> Float[Array, "N"] | None:
    if not faults:
        return None
    (fault,) = faults
    return jnp.where(jnp.asarray(fault.clients), fault.strength, 1.0)


# ------------------------------------------------------------------- records and tiers


def corrupt_records(
    data: FederatedData, faults: Sequence[Fault], seed: int
) -> FederatedData:
    """The training records with those of faulty clients corrupted.

    Args:
        data: the training split, with NumPy leaves.
        faults: faults of the federation.
        seed: seed of the permutations.
    """
    faults = _select_faults(faults, RECORDS)
    if not faults:
        return data
    x, y = np.array(data.x), np.array(data.y)
    labels = np.array(data.labels)
    generator = np.random.default_rng([seed, 4])
    for fault in faults:
        for k in np.flatnonzero(fault.clients):
            start = data.offset[k]
            rows = slice(start, start + data.count[k])
            if fault.name == "label_flip":
                y[rows] = labels.shape[1] - 1 - y[rows]
                labels[k] = labels[k][::-1]
            else:
                x[rows] = generator.permuted(x[rows], axis=0)
    return dataclasses.replace(data, x=x, y=y, labels=labels)


def claimed_tiers(
    tiers: Int[np.ndarray, "N"], faults: Sequence[Fault], richest: int
) -> Int[np.ndarray, "N"]:
    """The tiers that clients claim."""
    for fault in _select_faults(faults, TIERS):
        tiers = np.where(fault.clients, richest, tiers)
    return tiers
