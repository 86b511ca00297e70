"""One federated round: the one place where the pieces meet.

    score    losses of the cohort at the incoming model    (only if the rule needs them)
    weigh    rule -> weights
    update   the layout runs `client.update` over the cohort
    protect  finite guard, weight, clip: sensitivity is fixed here
    fold     (num, den), or the stack for rules that need every delta at once
    release  secure sum, noise, public denominator
    finish   method and server optimiser -> new plain model

`open` is the server's part before training (score, weigh), and `close` is its part
after training (release, finish). The stages between are in `fairjax.core.fold`. `step`
runs all of them. Nothing here knows which method, rule or layout runs.

Example:
    Two clients with two records each train a model of one hidden layer for one round.

    >>> import jax, jax.numpy as jnp, numpy as np, optax
    >>> from fairjax.core import batching, layout, objectives, round
    >>> from fairjax.core.problem import LocalProblem
    >>> from fairjax.core.spec import Spec
    >>> from fairjax.core.rule import Rule
    >>> from fairjax.core.types import Cohort, FederatedData
    >>> from fairjax.models.mlp import mlp
    >>> from fairjax.submodels.fedavg import fedavg
    >>> data = FederatedData(
    ...     x=jnp.eye(4), y=jnp.array([0, 1, 0, 1]), group=jnp.zeros((4, 0), int),
    ...     offset=jnp.array([0, 2]), count=jnp.array([2, 2]),
    ...     labels=jnp.ones((2, 2), int),
    ... )
    >>> model = mlp(classes=2, hidden=(3,))
    >>> schedule = batching.local_schedule(np.array([2, 2]), batch_size=2, epochs=1)
    >>> loss, sgd = objectives.mean_cross_entropy(), optax.sgd(0.1)
    >>> local = LocalProblem(model, fedavg(model.axes), loss, sgd, schedule)
    >>> spec = Spec(local, Rule(), optax.sgd(1.0))
    >>> state = round.init(
    ...     jax.random.key(0), data.x, counts=data.count, tiers=1, spec=spec
    ... )
    >>> cohort = Cohort(jnp.arange(2), jnp.zeros(2, int), jnp.ones(2, bool))
    >>> state, info = round.step(
    ...     state, data, cohort, spec=spec, layout=layout.vmapped()
    ... )
    >>> int(state.round), info.weights.tolist()
    (1, [0.5, 0.5])
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from fairjax.core import (
    aggregate,
    fold,
    inference,
    participants,
    population,
    rng,
    scopes,
    simplex,
)
from fairjax.core.participants import CohortResult, OpenRound, Slot
from fairjax.core.protocols import Layout
from fairjax.core.rng import Role
from fairjax.core.rule import CohortStats, FederationFacts
from fairjax.core.spec import RoundInfo, Spec
from fairjax.core.types import (
    Block,
    Cohort,
    FederatedData,
    GroupStats,
    Params,
    Participation,
    RunState,
    Upload,
)


def init(
    key: Key[Array, ""],
    x: Num[Block, "B ..."],
    *,
    counts: Int[Block, "N"],
    tiers: int,
    spec: Spec,
    params: Params | None = None,
) -> RunState:
    """The state before the first round.

    Args:
        key: the run key; everything random hangs below it.
        x: a batch of inputs whose shape and dtype count.
        counts: training records of every client.
        tiers: T.
        spec: what a round does.
        params: the plain model to start from; None draws one.
    """
    model, method = spec.local.model, spec.local.method
    if params is None:
        params = model.init(rng.fold_in(key, Role.INIT), jnp.asarray(x))
    # Copies: a caller that donates the state must not lose the arrays it gave.
    start = jax.tree.map(jnp.array, params)
    clients = len(counts)
    facts = FederationFacts(jnp.asarray(counts), tiers, spec.groups)

    def per_client(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (clients, *leaf.shape)), tree
        )

    return RunState(
        round=jnp.zeros((), jnp.int32),
        params=start,
        server=spec.server.init(start),
        rule=spec.rule.init(start, facts),
        memory=None if method.memory is None else per_client(method.memory.init(start)),
        leaf_copies=scopes.init(method, start, clients, tiers),
        personal=None if spec.rule.personal is None else per_client(start),
        protection=spec.protection.init(),
        participation=Participation(jnp.zeros(clients, jnp.int32), jnp.zeros(clients)),
        key=key,
    )


def step(
    state: RunState,
    data: FederatedData,
    cohort: Cohort,
    *,
    spec: Spec,
    layout: Layout,
    validation: FederatedData | None = None,
) -> tuple[RunState, RoundInfo]:
    """Runs one round, as a pure function of its arguments.

    Args:
        state: the run so far.
        data: training records of all N clients.
        cohort: the K slots of this round; a valid client appears once.
        spec: what a round does.
        layout: how the cohort is laid on the hardware.
        validation: validation records of all clients, for a rule that needs them.

    Returns:
        (new state, info).

    Guarantees: a padded slot and a client without records leave no trace. With the
        finite guard, a client whose delta is not finite keeps its own state and does
        not move the model: it sends nothing, or, where a protection hides failures,
        what a client with a delta of 0 sends (`Protection.hides_failure`). If weights
        are made before training (no stack of deltas), such a client has already
        influenced loss-based weights and the rule's state; weights by records are
        unaffected. The order of the slots changes nothing beyond float order. A
        coordinate that nobody covers keeps its value exactly.

    Edge cases:
        | no client counts (padded slots alone, no records, all refused) | round + 1,
          the model and the server's state exactly as they were; loss NaN, coverage 0 |
        | a tier without a client | as coordinates that nobody covers; rules weigh the
          tiers that are present and keep their state of the others |
        | a client with one record, or of one class | as any other |
        | a feature that is constant | normalised to 0 (`data.standardise`) |
        | huge losses, strong rules | weights and state stay finite (`fairness`) |
    """
    open_round = open(state, data, cohort, spec=spec, layout=layout)
    if spec.needs_stack:
        cohort_result = fold.fold_stack(
            state, open_round, spec=spec, layout=layout, validation=validation
        )
    else:
        cohort_result = fold.fold_sums(state, open_round, spec=spec, layout=layout)
    return close(state, open_round, cohort_result, spec=spec)


def run(
    state: RunState,
    data: FederatedData,
    draw: Callable[[RunState], Cohort],
    *,
    spec: Spec,
    layout: Layout,
    rounds: int,
    validation: FederatedData | None = None,
) -> RunState:
    """Several rounds in one program, which may be vmapped; their infos are dropped.

    Args:
        state: the run so far.
        data: training records of all N clients.
        draw: state -> the cohort of the next round.
        spec: what a round does.
        layout: how every cohort is laid on the hardware.
        rounds: the number of rounds.
        validation: as for `step`.
    """

    def body(_: Array, state: RunState) -> RunState:
        settings = {"spec": spec, "layout": layout, "validation": validation}
        return step(state, data, draw(state), **settings)[0]

    return jax.lax.fori_loop(0, rounds, body, state)


# --------------------------------------------------------------------------------- open


def open(
    state: RunState, data: FederatedData, cohort: Cohort, *, spec: Spec, layout: Layout
) -> OpenRound:
    """The round before training: losses, weights and what each client is sent.

    Args:
        state: the run so far.
        data: training records of all N clients.
        cohort: the K slots of this round.
        spec: what a round does.
        layout: how the cohort is laid on the hardware.
    """
    records = jax.tree.map(jnp.asarray, data)
    cohort = participants.accepted_cohort(spec.local.method, records, cohort)
    slots = participants.slots_of(state, records, cohort)
    # Once for the cohort: a scan over clients would cut the column for each of them.
    group = None if spec.attribute is None else records.group[:, spec.attribute]
    open_round = OpenRound(
        records, group, cohort, slots, CohortStats(slots.client_view.count), state.rule
    )
    stats = _score(state, open_round, spec=spec, layout=layout)
    # Where the server sees losses with noise only, no message may carry plain ones.
    visible_stats = stats
    if spec.protection.weights is not None:
        visible_stats = stats._replace(loss=None, group_stats=None)
    message = spec.rule.broadcast(state.rule, cohort, visible_stats)
    slots = slots._replace(message=message)
    open_round = open_round._replace(slots=slots, stats=stats)
    if spec.needs_stack:
        return open_round
    weights, denominator_weights, rule_state = fold.weigh(
        state, cohort, stats, spec=spec
    )
    slots = slots._replace(weight=weights, denominator_weight=denominator_weights)
    return open_round._replace(slots=slots, rule_state=rule_state)


def _score(
    state: RunState, open_round: OpenRound, *, spec: Spec, layout: Layout
) -> CohortStats:
    """Losses of the cohort's sub-models at the incoming model, if the rule asks."""

    def per_client(slot: Slot, tier: int | None) -> GroupStats:
        params, submodel = participants.download(state, slot.client_view, spec=spec)
        records, group = open_round.records, open_round.group
        examples = participants.examples_of(records, group, slot)
        return inference.score(
            params, submodel, examples, local=spec.local, groups=spec.groups
        )

    group_stats = losses = None
    if "losses" in spec.rule.reads:
        group_stats = layout.stack(per_client, open_round.slots)
        losses = inference.mean_loss(group_stats)
        if "labels" not in spec.rule.reads:
            # A rule that understates what it reads must not work by chance.
            unknown = jnp.full_like(group_stats.correct, jnp.nan)
            group_stats = group_stats._replace(correct=unknown)
    lr_scale = spec.schedule(state.round)
    return open_round.stats._replace(
        loss=losses, group_stats=group_stats, lr_scale=lr_scale
    )


# -------------------------------------------------------------------------------- close


def close(
    state: RunState, open_round: OpenRound, cohort_result: CohortResult, *, spec: Spec
) -> tuple[RunState, RoundInfo]:
    """The round after training: release, the new plain model, and what is reported.

    Args:
        state: the run before the round.
        open_round: the round before training.
        cohort_result: the round after training.
        spec: what a round does.

    Returns:
        (new state, info).
    """
    method, protection = spec.local.method, spec.protection
    cohort, results = open_round.cohort, cohort_result.results
    (num, den, tiers), protection_state = _release(
        state, open_round, cohort_result, spec=spec
    )
    if cohort_result.combined is not None:
        # The sums then serve the copies that tiers keep.
        num, den = cohort_result.combined
    finish = method.server.finish or aggregate.finish
    optimizer = aggregate.scale_updates(spec.server, spec.server_schedule(state.round))
    params, server = finish(optimizer, state.server, state.params, num, den)
    accepted = results.is_counted.astype(jnp.float32)
    if protection.accepted is not None:
        accepted = protection.accepted(
            state.protection, cohort, results.is_counted, cohort_result.sums
        )
    new_state = dataclasses.replace(
        state,
        round=state.round + 1,
        params=params,
        server=server,
        rule=cohort_result.rule_state,
        memory=_scatter(state.memory, results.memory, cohort),
        leaf_copies=scopes.update(
            state.leaf_copies,
            tiers,
            results.leaves,
            cohort,
            results.has_new_state,
            method.share_between_tiers,
        ),
        personal=_scatter(state.personal, results.personal, cohort),
        protection=protection_state,
        participation=_update_participation(state.participation, cohort, accepted),
    )
    coverage = aggregate.coverage(den, params)
    return new_state, _info(open_round, cohort_result, accepted, coverage, spec=spec)


def _release(
    state: RunState, open_round: OpenRound, cohort_result: CohortResult, *, spec: Spec
) -> tuple[Upload, PyTree[Array]]:
    """(what the server may see of the sums, the protection's new state)."""
    protection, public_sums = spec.protection, None
    if protection.population is not None:
        classes = open_round.records.labels.shape[1]
        public_sums = population.expected_upload(
            state, protection.population, classes, spec=spec
        )
    return protection.release(
        participants.release_key(state),
        state.protection,
        open_round.cohort,
        cohort_result.results.is_counted,
        cohort_result.sums,
        public_sums,
    )


def _info(
    open_round: OpenRound,
    cohort_result: CohortResult,
    accepted: Float[Array, "K"],
    coverage: Float[Array, ""],
    *,
    spec: Spec,
) -> RoundInfo:
    results = cohort_result.results
    valid = results.is_counted & (accepted > 0)
    weights = loss_weights = simplex.renormalise(cohort_result.weights, valid)
    if spec.protection.hides_failure:
        # A client whose failure is hidden has a weight, and no loss.
        loss_weights = simplex.renormalise(weights, valid & results.info.finite)
    loss = jnp.sum(jnp.where(loss_weights > 0, results.info.loss * loss_weights, 0))
    loss = jnp.where(jnp.any(loss_weights > 0), loss, jnp.nan)
    incoming_losses = open_round.stats.loss
    if incoming_losses is not None:
        is_part = open_round.slots.client_view.valid
        incoming_losses = jnp.where(is_part, incoming_losses, jnp.nan)
    return RoundInfo(loss, weights, valid, coverage, results.info, incoming_losses)


def _scatter(bank: Any, rows: Any, cohort: Cohort) -> Any:
    """Writes the cohort's rows back; padded slots are dropped."""

    def per_leaf(copies: Array, values: Array) -> Array:
        slot = jnp.where(cohort.valid, cohort.client, copies.shape[0])
        return copies.at[slot].set(values, mode="drop")

    return jax.tree.map(per_leaf, bank, rows)


def _update_participation(
    participation: Participation, cohort: Cohort, accepted: Float[Array, "K"]
) -> Participation:
    slot = jnp.where(cohort.valid, cohort.client, len(participation.selected))
    return Participation(
        participation.selected.at[slot].add(1, mode="drop"),
        participation.accepted.at[slot].add(accepted, mode="drop"),
    )
