"""One federated round: the one place where the pieces meet.

    score    losses of the cohort at the incoming model    (only if the rule needs them)
    weigh    rule -> weights
    update   the layout runs `client.update` over the cohort
    protect  finite guard, weight, clip: sensitivity is fixed here
    fold     (num, den), or the stack for rules that need every change at once
    release  secure sum, noise, public denominator
    finish   method and server optimiser -> new plain model

Nothing here knows which method, rule or layout runs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num

from fairjax.core import aggregate, client, rng, scopes, simplex, trees
from fairjax.core.rng import Role
from fairjax.core.types import (
    Attendance,
    Block,
    Cohort,
    Examples,
    Federation,
    Kept,
    Layout,
    Masks,
    Member,
    Method,
    Params,
    Population,
    Protection,
    Rule,
    RunState,
    Scores,
    Sent,
)

Sending = Callable[
    [Array, Member, Params, Masks, client.ClientInfo],
    tuple[Params, client.ClientInfo, Bool[Array, ""], Bool[Array, ""]],
]
"""(key of the round, member, delta, cover, info) -> (what is sent of the change, what
is told of it, whether it arrives, whether the client's own state moves)."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a run does in every round. Hyper-parameters inside may be traced values."""

    local: client.Local
    rule: Rule
    server: optax.GradientTransformation
    protection: Protection = aggregate.OPEN
    schedule: Callable[[Int[Array, ""]], Float[Array, ""] | float] = lambda round: 1.0
    """Rounds finished -> factor on the local learning rate."""
    server_schedule: Callable[[Int[Array, ""]], Float[Array, ""] | float] = (
        lambda round: 1.0
    )
    """Rounds finished -> factor on the server's: on its updates, not on its state."""
    finite_guard: bool = True
    """Leave out a client whose change or loss is not finite (`ClientInfo.finite`)."""
    sending: Sending | None = None
    """What becomes of changes on their way; None: they arrive as they are."""
    denominator: str = "cover"
    """What a coordinate's changes are divided by, see `fairjax.core.aggregate`: "cover"
    or "fixed". A protection may have weights and denominators of its own."""
    attribute: int | None = None
    """Column of `Federation.group` whose groups the rule tells apart."""
    groups: int = 0
    """G of that attribute."""
    validated: int | None = None
    """Validation records of the hospital with the most; None: at most all of them."""


class RoundInfo(NamedTuple):
    """What one round reports; arrays over the cohort's slots are in cohort order."""

    loss: Float[Array, ""]
    """Mean training objective, each client by its weight; NaN if nobody entered."""
    weights: Float[Array, "K"]
    """Weights in force, 0 for padded and refused clients. They sum to 1, or to 0 where
    all weight was of clients that are then refused: such a round changes nothing."""
    valid: Bool[Array, "K"]
    """Clients whose change, or a part of it, entered the model; where it may not show
    whose training failed, of those too."""
    coverage: Float[Array, ""]
    """Share of the parameter coordinates that somebody covered."""
    clients: client.ClientInfo
    scores: Float[Array, "K"] | None
    """Losses at the incoming model, where the rule needed them; NaN of who took no
    part."""


class _Slot(NamedTuple):
    """One client of the cohort, with what it brings into the round."""

    member: Member
    key: Key[Array, ""]
    offset: Int[Array, ""]
    memory: Any
    personal: Any
    weight: Float[Array, ""]
    base: Float[Array, ""]
    told: Any = None


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
        counts: training records of every hospital.
        tiers: T.
        spec: what a round does.
        params: the plain model to start from; None draws one.
    """
    model, method = spec.local.model, spec.local.method
    start = (
        model.init(rng.at(key, Role.INIT), jnp.asarray(x)) if params is None else params
    )
    # Copies: a caller that donates the state must not lose the arrays it gave.
    start = jax.tree.map(jnp.array, start)
    clients = len(counts)

    def each(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (clients, *leaf.shape)), tree
        )

    return RunState(
        round=jnp.zeros((), jnp.int32),
        params=start,
        server=spec.server.init(start),
        rule=spec.rule.init(start, jnp.asarray(counts), tiers),
        memory=None if method.memory is None else each(method.memory.init(start)),
        private=scopes.init(method, start, clients, tiers),
        personal=None if spec.rule.personal is None else each(start),
        protection=spec.protection.init(),
        attendance=Attendance(jnp.zeros(clients, jnp.int32), jnp.zeros(clients)),
        key=key,
    )


def step(
    state: RunState,
    data: Federation,
    cohort: Cohort,
    *,
    spec: Spec,
    layout: Layout,
    validation: Federation | None = None,
) -> tuple[RunState, RoundInfo]:
    """Runs one round: a pure function of its arguments, for any K of one shape.

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
        finite guard a client whose change is not finite keeps its own state and does
        not move the model: it sends nothing, or, where that may not show, what one
        whose change is 0 sends (`Protection.hides_failure`). Where weights are made
        before training, that is without a stack of changes, its loss at the incoming
        model has by then been read: rules whose weights follow from records alone do
        not notice, others may have weighed the rest and moved their state by it. The
        order of the slots changes nothing beyond float order. A coordinate nobody
        covers keeps its value exactly.

    Edge cases:
        | nobody counts (padded slots alone, no records, all refused) | round + 1, the
          model and the server's state exactly as they were; loss NaN, coverage 0 |
        | a tier without a client | as coordinates that nobody covers; rules weigh the
          tiers that are there and keep what they carry of the others |
        | a hospital with one record, or of one class | as any other |
        | a feature that is constant | normalised to 0 (`data.federation`) |
        | huge losses, strong rules | weights and state stay finite (`fairness`) |
    """
    local, rule, method = spec.local, spec.rule, spec.local.method
    protection = spec.protection
    records = jax.tree.map(jnp.asarray, data)
    cohort = _admitted(method, records, cohort)
    rate = spec.schedule(state.round)
    units_key = rng.at(state.key, Role.UNITS, state.round)
    fault_key = rng.at(state.key, Role.FAULT, state.round)
    slots = _slots(state, records, cohort)
    group = None if spec.attribute is None else records.group[:, spec.attribute]

    def receive(slot: _Slot):
        params = scopes.gather(state.private, state.params, slot.member)
        kept = method.units(units_key, state.round, params, slot.member)
        count = slot.member.count
        examples = Examples(
            records.x, records.y, slot.offset, count, group, records.patient
        )
        return params, kept, examples

    def score(slot: _Slot, tier: int | None):
        params, kept, examples = receive(slot)
        return client.score(params, kept, examples, local=local, groups=spec.groups)

    def train(slot: _Slot, tier: int | None):
        params, kept, examples = receive(slot)
        update = client.update
        if tier is not None and method.size is not None:
            update = functools.partial(client.update_sliced, size=method.size(tier))
        settings = {"member": slot.member, "round": state.round, "rate": rate}
        settings["told"] = slot.told
        delta, cover, memory, info = update(
            slot.key, params, slot.memory, kept, examples, local=local, **settings
        )
        # What a client keeps is as it was trained, whatever becomes of its upload.
        own = scopes.own(state.private, delta)
        ended = arrives = slot.member.valid
        moves = ended & info.finite if spec.finite_guard else ended
        if spec.sending is not None:
            upload, held = (
                scopes.leaving(state.private, tree) for tree in (delta, cover)
            )
            delta, info, reaches, done = spec.sending(
                fault_key, slot.member, upload, held, info
            )
            arrives, moves, ended = arrives & reaches, moves & done, ended & done
        counts = arrives & info.finite if spec.finite_guard else arrives
        # where, not a product: 0 * NaN is NaN.
        delta = jax.tree.map(
            lambda leaf: jnp.where(counts, leaf, jnp.zeros_like(leaf)), delta
        )
        if protection.hides_failure:
            counts = arrives
        memory = trees.select(moves, memory, slot.memory)
        personal = slot.personal
        if rule.personal is not None:
            change, _, _, alone = update(
                slot.key,
                personal,
                slot.memory,
                kept,
                examples,
                local=local._replace(objective=rule.personal.wrap(local.objective)),
                anchor=params,
                **settings,
            )
            moved = optax.apply_updates(personal, change)
            personal = trees.select(ended & alone.finite, moved, personal)
        return delta, cover, (own, memory, personal, moves), info, counts

    release_key = rng.at(state.key, Role.RELEASE, state.round)

    def protect(delta, cover, weight, base, member):
        message = sent(state, trees.multiply(delta, cover), cover, member.tier)
        return protection.protect(
            release_key, state.protection, cohort, member, message, weight, base
        )

    def weigh(cohort: Cohort, scores: Scores):
        if protection.weigh is not None:
            return protection.weigh(
                release_key, state.protection, rule, state.rule, cohort, scores
            )
        size = simplex.by_records(scores, cohort.valid)
        weights, rule_state = size, state.rule
        if rule.weigh is not None:
            weights, rule_state = rule.weigh(rule_state, cohort, scores)
        base = size if spec.denominator == "fixed" else weights
        return weights, base, rule_state

    # score and weigh
    cells = layout.stack(score, slots) if "loss" in rule.needs else None
    losses = None if cells is None else client.mean_loss(cells)
    scores = Scores(slots.member.count, losses, cells, rate)
    # Where losses are released with noise alone, no client is told of them without.
    tellable = scores
    if protection.weigh is not None:
        tellable = scores._replace(loss=None, cells=None)
    slots = slots._replace(told=rule.tell(state.rule, cohort, tellable))
    stacked = bool(rule.needs - {"loss"}) or protection.fold is not None
    if not stacked:
        weights, base, rule_state = weigh(cohort, scores)
        slots = slots._replace(weight=weights, base=base)

    # update, protect and fold
    combined = None
    if stacked:
        deltas, covers, kept, info, counts = layout.stack(train, slots)
        shared = jax.vmap(functools.partial(scopes.shared, state.private))
        scores = scores._replace(
            delta=shared(deltas, cohort.tier),
            cover=shared(covers, cohort.tier),
            incoming=state.params,
        )
        if "validation" in rule.needs:
            assert validation is not None
            scores = scores._replace(
                errors=_errors(state, validation, cohort, spec=spec, layout=layout)
            )
        cohort_left = cohort._replace(valid=counts)
        weights, base, rule_state = weigh(cohort_left, scores)
        left = slots.member._replace(valid=counts)
        fold = protection.fold or trees.sum_first
        sums = fold(jax.vmap(protect)(deltas, covers, weights, base, left))
        if rule.combine is not None:
            *combined, rule_state = rule.combine(
                rule_state, cohort_left, scores, weights
            )
    else:

        def contribute(slot: _Slot, tier: int | None):
            delta, cover, kept, info, counts = train(slot, tier)
            weight, base = (
                jnp.where(counts, value, 0) for value in (slot.weight, slot.base)
            )
            left = slot.member._replace(valid=counts)
            addend = protect(delta, cover, weight, base, left)
            return addend, (kept, info, counts)

        sums, (kept, info, counts) = layout.total(contribute, slots)

    # release and finish
    public = None
    if protection.population is not None:
        public = _expected(state, records, protection.population, spec=spec)
    (num, den, tiers), protected = protection.release(
        release_key, state.protection, cohort, counts, sums, public
    )
    if combined is not None:
        # The sums then serve the copies that tiers keep.
        num, den = combined
    finish = method.finish or aggregate.finish
    optimizer = aggregate.scaled(spec.server, spec.server_schedule(state.round))
    params, server = finish(optimizer, state.server, state.params, num, den)

    entered = counts.astype(jnp.float32)
    if protection.entered is not None:
        entered = protection.entered(state.protection, cohort, counts, sums)
    valid = counts & (entered > 0)
    weights = simplex.over_valid(weights, valid)
    own, memory, personal, moves = kept
    new_state = dataclasses.replace(
        state,
        round=state.round + 1,
        params=params,
        server=server,
        rule=rule_state,
        memory=_scatter(state.memory, memory, cohort),
        private=scopes.update(state.private, tiers, own, cohort, moves, method.between),
        personal=_scatter(state.personal, personal, cohort),
        protection=protected,
        attendance=_attended(state.attendance, cohort, entered),
    )
    learned = weights
    if protection.hides_failure:
        # Who may not show its failure has a weight, and no loss.
        learned = simplex.over_valid(weights, valid & info.finite)
    loss = jnp.sum(jnp.where(learned > 0, info.loss * learned, 0))
    loss = jnp.where(jnp.any(learned > 0), loss, jnp.nan)
    if losses is not None:
        losses = jnp.where(slots.member.valid, losses, jnp.nan)
    coverage = aggregate.coverage(den, params)
    return new_state, RoundInfo(loss, weights, valid, coverage, info, losses)


def run(
    state: RunState,
    data: Federation,
    draw: Callable[[RunState], Cohort],
    *,
    spec: Spec,
    layout: Layout,
    rounds: int,
    validation: Federation | None = None,
) -> RunState:
    """So many rounds in one program, which may be vmapped; what they report is dropped.

    Args:
        state: the run so far.
        data: as for `step`, as are the others.
        draw: state -> the cohort of the next round.
        spec: what a round does.
        layout: how every cohort is laid.
        rounds: how many.
        validation: as for `step`.
    """

    def again(_: Array, state: RunState) -> RunState:
        cohort = draw(state)
        return step(
            state, data, cohort, spec=spec, layout=layout, validation=validation
        )[0]

    return jax.lax.fori_loop(0, rounds, again, state)


def sent(state: RunState, num: Params, den: Masks, tier: Int[Array, ""]) -> Sent:
    """A client's change as it is sent, without what it keeps for itself."""
    return Sent(
        scopes.shared(state.private, num, tier),
        scopes.shared(state.private, den, tier),
        scopes.by_tier(state.private, num, den, tier),
    )


def _expected(
    state: RunState, data: Federation, population: Population, *, spec: Spec
) -> Sent:
    """What a cohort sends on average of weights and masks, from what is public alone.

        den_j = q sum_k w_k m_kj,    num_j = sum_k 1[w_k > 0] m_kj,    over all N

    The masks are those of hospitals that hold every class: what a mask may say of a
    client's labels stays in its change.
    """
    units_key = rng.at(state.key, Role.UNITS, state.round)
    one = jnp.ones((), jnp.int32)
    classes = jnp.ones(data.labels.shape[1], jnp.int32)

    def addend(who: Array) -> Sent:
        tier = population.tier[who]
        member = Member(who, tier, one > 0, one, classes)
        kept = spec.local.method.units(units_key, state.round, state.params, member)
        _, cover = client.masks(spec.local, state.params, kept)
        weight = population.weight[who]
        counts = (weight > 0).astype(weight.dtype)
        held = sent(state, cover, cover, tier)
        return aggregate.weigh(held, counts, population.rate * weight)

    def add(sums: Sent, who: Array) -> tuple[Sent, None]:
        return jax.tree.map(jnp.add, sums, addend(who)), None

    clients = jnp.arange(population.tier.shape[0], dtype=jnp.int32)
    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(addend, clients[0]),
    )
    return jax.lax.scan(add, zero, clients)[0]


def _errors(
    state: RunState,
    validation: Federation,
    cohort: Cohort,
    *,
    spec: Spec,
    layout: Layout,
) -> Callable[[Params], Float[Array, "K"]]:
    """`Scores.errors` of this round: validation errors at changed incoming models."""
    records = jax.tree.map(jnp.asarray, validation)
    longest = records.y.shape[0] if spec.validated is None else spec.validated

    def one(slot: tuple[Params, Array], tier: int | None) -> Array:
        change, who = slot
        examples = Examples(
            records.x, records.y, records.offset[who], records.count[who]
        )
        cells = client.score(
            optax.apply_updates(state.params, change),
            Kept(),
            examples,
            local=spec.local,
            longest=longest,
        )
        count = jnp.sum(cells.count)
        wrong = 1 - jnp.sum(cells.right) / jnp.maximum(count, 1)
        return jnp.where(count > 0, wrong, jnp.nan)

    return lambda changes: layout.stack(one, (changes, cohort.client))


def members(data: Federation, cohort: Cohort) -> Member:
    """The clients of a cohort as a method sees them, [K] a leaf."""
    return Member(
        cohort.client,
        cohort.tier,
        cohort.valid,
        jnp.where(cohort.valid, data.count[cohort.client], 0),
        data.labels[cohort.client],
    )


def _admitted(method: Method, data: Federation, cohort: Cohort) -> Cohort:
    """The cohort without clients that have no records or that the method leaves out."""
    valid = cohort.valid & (data.count[cohort.client] > 0)
    cohort = cohort._replace(valid=valid)
    admitted = jax.vmap(method.admits)(members(data, cohort))
    return cohort._replace(valid=valid & admitted)


def _slots(state: RunState, data: Federation, cohort: Cohort) -> _Slot:
    key = rng.at(state.key, Role.LOCAL, state.round)
    return _Slot(
        member=members(data, cohort),
        key=jax.vmap(lambda id: rng.at(key, id))(cohort.client),
        offset=data.offset[cohort.client],
        memory=trees.pick(state.memory, cohort.client),
        personal=trees.pick(state.personal, cohort.client),
        weight=jnp.zeros(cohort.valid.shape),
        base=jnp.zeros(cohort.valid.shape),
    )


def _scatter(bank: Any, rows: Any, cohort: Cohort) -> Any:
    """Writes the cohort's rows back; padded slots are dropped."""

    def one(copies: Array, values: Array) -> Array:
        slot = jnp.where(cohort.valid, cohort.client, copies.shape[0])
        return copies.at[slot].set(values, mode="drop")

    return jax.tree.map(one, bank, rows)


def _attended(
    so_far: Attendance, cohort: Cohort, entered: Float[Array, "K"]
) -> Attendance:
    slot = jnp.where(cohort.valid, cohort.client, len(so_far.came))
    return Attendance(
        so_far.came.at[slot].add(1, mode="drop"),
        so_far.entered.at[slot].add(entered, mode="drop"),
    )
