"""Between opening and closing a round: weigh, update, protect, fold.

`fold_sums` adds up uploads as they come, in any layout. `fold_stack` holds all deltas
of a cohort at once, for rules and protections that need them (`Spec.needs_stack`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from fairjax.core import client, participants, population, rng, scopes, simplex, trees
from fairjax.core.participants import ClientResult, CohortResult, OpenRound, Slot
from fairjax.core.protocols import Layout
from fairjax.core.rng import Role
from fairjax.core.rule import CohortStats
from fairjax.core.spec import Spec
from fairjax.core.types import (
    ClientView,
    Cohort,
    FederatedData,
    Masks,
    Params,
    RunState,
)


def weigh(
    state: RunState, cohort: Cohort, stats: CohortStats, *, spec: Spec
) -> tuple[Float[Array, "K"], Float[Array, "K"], PyTree[Array]]:
    """(weights, weights of the denominator, the rule's new state).

    Args:
        state: the run so far.
        cohort: the clients that are weighed.
        stats: what the rule may read of them.
        spec: what a round does.
    """
    rule, protection = spec.rule, spec.protection
    if protection.weights is not None:
        key = participants.release_key(state)
        return protection.weights(
            key, state.protection, rule, state.rule, cohort, stats
        )
    record_weights = simplex.record_weights(stats, cohort.valid)
    weights, rule_state = record_weights, state.rule
    if rule.weights is not None:
        weights, rule_state = rule.weights(rule_state, cohort, stats)
    denominator_weights = record_weights if spec.denominator == "fixed" else weights
    return weights, denominator_weights, rule_state


def fold_sums(
    state: RunState, open_round: OpenRound, *, spec: Spec, layout: Layout
) -> CohortResult:
    """Trains the cohort and adds up what its clients send, without a stack of deltas.

    Args:
        state: the run so far.
        open_round: the round before training.
        spec: what a round does.
        layout: how the cohort is laid on the hardware.
    """

    def per_client(slot: Slot, tier: int | None) -> tuple[PyTree, ClientResult]:
        delta, cover, result = _train(state, open_round, slot, tier, spec=spec)
        weight, denominator_weight = (
            jnp.where(result.is_counted, value, 0)
            for value in (slot.weight, slot.denominator_weight)
        )
        sender = slot.client_view._replace(valid=result.is_counted)
        protect = functools.partial(_protect, state, open_round.cohort, spec)
        return protect(delta, cover, weight, denominator_weight, sender), result

    sums, results = layout.total(per_client, open_round.slots)
    return CohortResult(sums, results, open_round.slots.weight, open_round.rule_state)


def fold_stack(
    state: RunState,
    open_round: OpenRound,
    *,
    spec: Spec,
    layout: Layout,
    validation: FederatedData | None = None,
) -> CohortResult:
    """Trains the cohort, and weighs and combines its deltas as a whole stack.

    Args:
        state: the run so far.
        open_round: the round before training.
        spec: what a round does.
        layout: how the cohort is laid on the hardware.
        validation: validation records of all clients, for a rule that reads them.
    """
    rule, cohort = spec.rule, open_round.cohort
    deltas, covers, results = layout.stack(
        functools.partial(_train, state, open_round, spec=spec), open_round.slots
    )
    shared_leaves = jax.vmap(functools.partial(scopes.shared_leaves, state.leaf_copies))
    stats = open_round.stats
    if "updates" in rule.reads:
        stats = stats._replace(
            delta=shared_leaves(deltas, cohort.tier),
            cover=shared_leaves(covers, cohort.tier),
            incoming=state.params,
        )
    if "validation" in rule.reads:
        assert validation is not None
        stats = stats._replace(
            errors=population.validation_errors(
                state, validation, cohort, spec=spec, layout=layout
            )
        )
    counted_cohort = cohort._replace(valid=results.is_counted)
    weights, denominator_weights, rule_state = weigh(
        state, counted_cohort, stats, spec=spec
    )
    senders = open_round.slots.client_view._replace(valid=results.is_counted)
    uploads = jax.vmap(functools.partial(_protect, state, cohort, spec))(
        deltas, covers, weights, denominator_weights, senders
    )
    sums = (spec.protection.fold or trees.sum_first)(uploads)
    cohort_result = CohortResult(sums, results, weights, rule_state)
    if rule.combine is None:
        return cohort_result
    num, den, rule_state = rule.combine(rule_state, counted_cohort, stats, weights)
    return cohort_result._replace(combined=(num, den), rule_state=rule_state)


def _train(
    state: RunState, open_round: OpenRound, slot: Slot, tier: int | None, *, spec: Spec
) -> tuple[Params, Masks, ClientResult]:
    """One client's delta as it reaches the server, its cover, and what it keeps."""
    local, method = spec.local, spec.local.method
    params, submodel = participants.download(state, slot.client_view, spec=spec)
    update: Callable[..., Any] = client.update
    if tier is not None and method.size is not None:
        update = functools.partial(client.update_sliced, size=method.size(tier))
    update = functools.partial(
        update,
        submodel=submodel,
        examples=participants.examples_of(open_round.records, open_round.group, slot),
        client=slot.client_view,
        round=state.round,
        lr_scale=open_round.stats.lr_scale,
        message=slot.message,
    )
    delta, cover, memory, info = update(slot.key, params, slot.memory, local=local)
    # What a client keeps is as it was trained, whatever becomes of its upload.
    leaves = scopes.client_leaves(state.leaf_copies, delta)
    is_finished = is_received = slot.client_view.valid
    has_new_state = is_finished & info.finite if spec.finite_guard else is_finished
    if spec.transmission is not None:
        outgoing_delta, outgoing_cover = (
            scopes.outgoing_leaves(state.leaf_copies, tree) for tree in (delta, cover)
        )
        fault_key = rng.fold_in(state.key, Role.FAULT, state.round)
        delta, info, is_delivered, is_done = spec.transmission(
            fault_key, slot.client_view, outgoing_delta, outgoing_cover, info
        )
        is_received, has_new_state = is_received & is_delivered, has_new_state & is_done
        is_finished = is_finished & is_done
    is_counted = is_received & info.finite if spec.finite_guard else is_received
    # where, not a product: 0 * NaN is NaN.
    delta = jax.tree.map(
        lambda leaf: jnp.where(is_counted, leaf, jnp.zeros_like(leaf)), delta
    )
    if spec.protection.hides_failure:
        is_counted = is_received
    memory = trees.select(has_new_state, memory, slot.memory)
    personal = _train_personal(update, params, slot, is_finished, spec)
    result = ClientResult(leaves, memory, personal, has_new_state, info, is_counted)
    return delta, cover, result


def _train_personal(
    update: Callable[..., Any],
    params: Params,
    slot: Slot,
    is_finished: Bool[Array, ""],
    spec: Spec,
) -> PyTree[Array]:
    """The client's personal model after the same steps; None for rules without one."""
    if spec.rule.personal is None:
        return slot.personal
    objective = spec.rule.personal.wrap(spec.local.objective)
    delta, _, _, info = update(
        slot.key,
        slot.personal,
        slot.memory,
        local=spec.local._replace(objective=objective),
        anchor=params,
    )
    personal = optax.apply_updates(slot.personal, delta)
    return trees.select(is_finished & info.finite, personal, slot.personal)


def _protect(
    state: RunState,
    cohort: Cohort,
    spec: Spec,
    delta: Params,
    cover: Masks,
    weight: Float[Array, ""],
    denominator_weight: Float[Array, ""],
    sender: ClientView,
) -> PyTree[Array]:
    """What reaches the server of one client."""
    upload = population.make_upload(
        state, trees.multiply(delta, cover), cover, sender.tier
    )
    return spec.protection.protect(
        participants.release_key(state),
        state.protection,
        cohort,
        sender,
        upload,
        weight,
        denominator_weight,
    )
