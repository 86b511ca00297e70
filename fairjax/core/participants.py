"""The clients of a round: what they bring, what they are sent, and what they return."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core import rng, scopes, trees
from fairjax.core.method import Method
from fairjax.core.problem import ClientInfo
from fairjax.core.rng import Role
from fairjax.core.rule import CohortStats
from fairjax.core.spec import Spec
from fairjax.core.types import (
    ClientData,
    ClientView,
    Cohort,
    FederatedData,
    Masks,
    Params,
    RunState,
    Submodel,
)


class Slot(NamedTuple):
    """One client of the cohort, with what it brings; for a cohort [K, ...] a leaf."""

    client_view: ClientView
    key: Key[Array, ""]
    offset: Int[Array, ""]
    """First row of its records."""
    memory: Any
    personal: Any
    weight: Float[Array, ""]
    denominator_weight: Float[Array, ""]
    message: Any = None
    """The rule's message to this client."""


class OpenRound(NamedTuple):
    """A round before training: what each client is sent, and what `close` needs."""

    records: FederatedData
    group: Int[Array, "E"] | None
    """Patient group of every record by the rule's attribute; None without one."""
    cohort: Cohort
    """The cohort without clients that take no part."""
    slots: Slot
    stats: CohortStats
    rule_state: PyTree[Array]
    """The rule's new state; its old one where weights follow from the deltas."""


class ClientResult(NamedTuple):
    """What training gives beside an upload; for a whole cohort [K, ...] a leaf."""

    leaves: dict[str, Array]
    """Leaves that it keeps for itself."""
    memory: PyTree[Array]
    """Its state after the round: the old one where training failed."""
    personal: PyTree[Array]
    """Its personal model after the round: the old one where that training failed."""
    has_new_state: Bool[Array, ""]
    """Whether `leaves` are applied to its own copies."""
    info: ClientInfo
    is_counted: Bool[Array, ""]
    """Whether its upload counts."""


class CohortResult(NamedTuple):
    """A round after training: the cohort's uploads as one."""

    sums: PyTree[Array]
    """What `Protection.release` is given."""
    results: ClientResult
    weights: Float[Array, "K"]
    rule_state: PyTree[Array]
    combined: tuple[Params, Masks] | None = None
    """(num, den) of a rule with a `combine` of its own."""


def client_views(data: FederatedData, cohort: Cohort) -> ClientView:
    """The clients of a cohort as a method sees them, [K] a leaf."""
    return ClientView(
        cohort.client,
        cohort.tier,
        cohort.valid,
        jnp.where(cohort.valid, data.count[cohort.client], 0),
        data.labels[cohort.client],
    )


def accepted_cohort(method: Method, data: FederatedData, cohort: Cohort) -> Cohort:
    """The cohort without clients that have no records or that the method leaves out."""
    valid = cohort.valid & (data.count[cohort.client] > 0)
    cohort = cohort._replace(valid=valid)
    is_accepted = jax.vmap(method.accepts)(client_views(data, cohort))
    return cohort._replace(valid=valid & is_accepted)


def slots_of(state: RunState, data: FederatedData, cohort: Cohort) -> Slot:
    """The cohort's slots, [K, ...] a leaf, before any weight or message."""
    key = rng.fold_in(state.key, Role.LOCAL, state.round)
    return Slot(
        client_view=client_views(data, cohort),
        key=jax.vmap(lambda client_id: rng.fold_in(key, client_id))(cohort.client),
        offset=data.offset[cohort.client],
        memory=trees.pick(state.memory, cohort.client),
        personal=trees.pick(state.personal, cohort.client),
        weight=jnp.zeros(cohort.valid.shape),
        denominator_weight=jnp.zeros(cohort.valid.shape),
    )


def examples_of(records: Any, group: Int[Array, "E"] | None, slot: Slot) -> ClientData:
    """One client's records, as rows of the flat ones, which are JAX arrays."""
    return ClientData(
        records.x,
        records.y,
        slot.offset,
        slot.client_view.count,
        group,
        records.patient,
    )


def release_key(state: RunState) -> Key[Array, ""]:
    """The round's key of protections."""
    return rng.fold_in(state.key, Role.RELEASE, state.round)


def download(
    state: RunState, client_view: ClientView, *, spec: Spec
) -> tuple[Params, Submodel]:
    """What one client is sent: its plain model, with its tier's copies, and sub-model.

    `client.receive` cuts these parameters to the size that travels.
    """
    units_key = rng.fold_in(state.key, Role.UNITS, state.round)
    params = scopes.gather(state.leaf_copies, state.params, client_view)
    return params, spec.local.method.submodel(
        units_key, state.round, params, client_view
    )
