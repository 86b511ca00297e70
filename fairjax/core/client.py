"""One client: S local steps as a pure function.

The client receives the plain model, keeps the units of its budget, trains what it kept
on its own records and hands back a change in plain coordinates together with the
coordinates it speaks for.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

from fairjax.core import axes, losses, require, rng, trees
from fairjax.core.types import (
    Batch,
    Cells,
    Context,
    Examples,
    Kept,
    Masks,
    Member,
    Method,
    Model,
    Moments,
    Objective,
    Outputs,
    OutputsAt,
    Params,
    Size,
)


class Plan(NamedTuple):
    """The static lengths of local training, alike for all clients of a federation."""

    batch_size: int
    steps: int
    """S, the steps of the client that takes the most; others idle, changing nothing."""
    epochs: int | None
    """Passes over a client's records; None: every client takes `steps` steps."""
    stream: int
    """Length of the stream of shuffled record numbers that batches are cut from."""
    longest: int
    """Records of the largest client."""


def plan(
    counts: Int[np.ndarray, "N"],
    *,
    batch_size: int,
    epochs: int | None = None,
    steps: int | None = None,
    units: Int[np.ndarray, "N"] | None = None,
) -> Plan:
    """Static lengths for clients of these sizes, by epochs or by steps.

    Args:
        counts: training records of every client, all at least 1.
        batch_size: B; the last batch of an epoch may be smaller.
        epochs: a client with n records takes epochs * ceil(n / B) steps.
        steps: every client takes this many, over as many epochs as that needs.
        units: n of every client where a batch is not made of records but of patients
            (`PrivateGradient.units`); None: `counts`.

    Raises:
        InputError: both or neither of `epochs` and `steps` given, or not positive, or
            more records in a round than int32 counts.
    """
    require.positive("local.batch_size", batch_size)
    if (epochs is None) == (steps is None):
        require.fail(
            "local", "either epochs or steps", {"epochs": epochs, "steps": steps}
        )
    counts = np.asarray(counts, np.int64)
    units = counts if units is None else np.asarray(units, np.int64)
    per_epoch = -(-units // batch_size)
    if steps is None:
        assert epochs is not None
        require.positive("local.epochs", epochs)
        most, passes = int(epochs * per_epoch.max()), np.full_like(per_epoch, epochs)
    else:
        require.positive("local.steps", steps)
        most, passes = steps, -(-steps // per_epoch)
    stream = int((passes * counts).max())
    by = "epochs" if steps is None else "steps"
    require.in_range(f"records of a round by local.{by}", stream, 1, 2**31 - 1)
    return Plan(
        batch_size=batch_size,
        steps=most,
        epochs=epochs,
        stream=stream,
        longest=int(np.max(counts)),
    )


MOMENTS = ("static", "per_tier", "batch")


class PrivateGradient(Protocol):
    """A client's gradients under differential privacy, in place of plain ones.

    It protects units, records or patients. `fairjax.privacy.records.Records` is DP-SGD.
    """

    @property
    def slots(self) -> int | None:
        """Units of a batch that `batch` draws; None: batches are cut from epochs."""
        ...

    def units(self, examples: Examples, longest: int) -> Int[Array, ""]:
        """n, the client's units; `longest` has the records of the largest client."""
        ...

    def batch(self, key: Key[Array, ""], examples: Examples, longest: int) -> Batch:
        """The records of `slots` units drawn for one step; called where `slots` is set.

        Rows that no unit fills have `where` False.
        """
        ...

    def gradient(
        self,
        key: Key[Array, ""],
        loss_of: Callable[[PyTree, Batch], tuple[Float[Array, ""], Any]],
        tree: PyTree[Array],
        records: Batch,
        trained: PyTree[Array],
        count: Int[Array, ""],
    ) -> tuple[tuple[Float[Array, ""], Any], PyTree[Array]]:
        """What `jax.value_and_grad(loss_of, has_aux=True)` gives, privately.

        Args:
            key: of the noise.
            loss_of: (tree, batch) -> (loss, what else to report).
            tree: what is trained.
            records: the batch; rows with `where` False do not count.
            trained: 0/1 tree, the coordinates that are trained.
            count: n.

        Returns:
            ((loss, report), gradient); the first two are for the simulator alone.
        """
        ...


class Local(NamedTuple):
    """The local problem: what all clients share."""

    model: Model
    method: Method
    objective: Objective
    optimizer: optax.GradientTransformation
    """Holds the learning rate; its state starts afresh every round."""
    plan: Plan
    moments: str = "static"
    """What batch norms are evaluated with: "static", moments pooled over all clients;
    "per_tier", over the tier's own; "batch", those of the evaluated batch (for parity
    with released codes: an answer then depends on what else is asked)."""
    dp: PrivateGradient | None = None
    """Record-level differential privacy of the local steps; None: plain gradients."""
    augment: Callable[[Array, Array], Array] | None = None
    """(key, inputs of a batch) -> those that a step trains on; None: as they are."""
    unroll: int = 1
    """Steps that one turn of the loop over steps computes."""


class ClientInfo(NamedTuple):
    """What one client reports."""

    loss: Float[Array, ""]
    """Mean of its objective over the steps it took."""
    steps: Int[Array, ""]
    finite: Bool[Array, ""]
    """False if its change or its loss holds NaN or infinity, or its change is longer
    than any that training makes (`trees.bounded`). With `Local.dp` by its change alone:
    that follows from noised gradients, as the loss does not."""
    extra: dict[str, Array]
    """What its objective reported, averaged over steps."""


# ------------------------------------------------------------------------------ batches


def stream(
    key: Key[Array, ""], count: Int[Array, ""], length: int
) -> Int[Array, "length"]:
    """Epoch after epoch of 0 .. count-1, each in an order of its own, cut at `length`.

    Position j belongs to epoch j // count; one sort by (epoch, random) shuffles inside
    every epoch at once. The random number of a position depends on the position alone,
    so neither `length` nor other clients' sizes change a client's order.
    """
    position = jnp.arange(length, dtype=jnp.int32)
    record = position % jnp.maximum(count, 1)
    epoch = position // jnp.maximum(count, 1)
    order = jax.random.bits(key, (length,), jnp.uint32)
    return jax.lax.sort((epoch, order, record), num_keys=2)[2]


def batch(
    examples: Examples,
    order: Int[Array, "length"],
    step: Int[Array, ""],
    batch_size: int,
) -> Batch:
    """The records of one step, gathered from the flat block.

    Every epoch starts a new batch, so its last batch may be short: rows beyond it
    repeat the client's first record and have `where` False.
    """
    per_epoch = _ceil_div(examples.count, batch_size)
    epoch, within = step // jnp.maximum(per_epoch, 1), step % jnp.maximum(per_epoch, 1)
    rows = within * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    where = rows < examples.count
    at = jnp.minimum(epoch * examples.count + rows, order.shape[0] - 1)
    index = examples.offset + jnp.where(where, order[at], 0)
    group = None if examples.group is None else examples.group[index]
    return Batch(examples.x[index], examples.y[index], where, group)


def _ceil_div(count: Int[Array, ""], size: int) -> Int[Array, ""]:
    return (count + size - 1) // size


# --------------------------------------------------------------------------- objectives


def mean_cross_entropy(*, balanced: bool = False) -> Objective:
    """The default objective: the sub-model's mean cross-entropy over valid records.

    Args:
        balanced: weigh a record of class c by n / (C' n_c), n_c being the client's own
            training records of class c and C' the classes it holds; nothing about other
            hospitals enters.
    """

    def objective(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        weights = None
        logits = outputs_at(None).logits
        if balanced:
            weights = _balanced(context.member.labels, logits.dtype)[batch.y]
        per_example = losses.cross_entropy(logits, batch.y)
        return losses.over(batch, per_example, weights), {}

    return objective


def _balanced(labels: Int[Array, "C"], dtype: jnp.dtype) -> Float[Array, "C"]:
    count = labels.astype(dtype)
    held = jnp.sum(labels > 0).astype(dtype)
    return jnp.where(
        labels > 0,
        jnp.sum(count) / (held * jnp.maximum(count, 1)),
        jnp.zeros_like(count),
    )


def proximal(objective: Objective, strength: float | Float[Array, ""]) -> Objective:
    """Adds strength/2 * ||w - w_incoming||^2 over the client's own coordinates.

    Source: FedProx, Li et al. 2020, eq. (2), whose mu is `strength`; 0 changes nothing.
    """

    def with_term(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        loss, info = objective(outputs_at, batch, key, context)
        away = trees.subtract(context.params, context.incoming)
        distance = optax.tree.norm(away, squared=True).astype(loss.dtype)
        return loss + 0.5 * jnp.asarray(strength, loss.dtype) * distance, info

    return with_term


# ------------------------------------------------------------------------------- update


def masks(local: Local, params: Params, kept: Kept) -> tuple[Masks, Masks]:
    """What of the plain model a client holds in its forward pass, and what it trains.

    The second is the cover of its change, unless the method's `leave` narrows it.
    """
    forward = axes.masks(params, local.model.axes, kept.forward)
    update = forward
    if kept.update is not None:
        update = axes.masks(params, local.model.axes, kept.update)
    if local.method.mask is None:
        return forward, update
    held = local.method.mask(params, kept)
    return trees.multiply(held, forward), trees.multiply(held, update)


def _enter(
    local: Local,
    key: Key[Array, ""],
    params: Params,
    kept: Kept,
    memory: PyTree[Array],
    forward: Masks,
    update: Masks,
) -> tuple[PyTree, PyTree]:
    if local.method.enter is None:
        return trees.multiply(params, forward), update
    return local.method.enter(key, params, kept, memory, forward, update)


def _leave(
    local: Local, before: PyTree, after: PyTree, update: Masks
) -> tuple[Params, Masks]:
    if local.method.leave is not None:
        return local.method.leave(before, after, update)
    if local.method.enter is None:
        return trees.multiply(trees.subtract(after, before), update), update
    # One compiled loop for both trees: two copies of the same sums may round in two
    # ways, and an untrained tree must give a change of exactly 0.
    both = jax.tree.map(lambda *pair: jnp.stack(pair), before, after)
    effective = jax.lax.map(local.method.effective, both)
    change = jax.tree.map(lambda pair: pair[1] - pair[0], effective)
    return trees.multiply(change, update), update


def apply_kept(
    model: Model,
    params: Params,
    x: Num[Array, "B ..."],
    kept: Kept,
    *,
    train: bool = False,
    key: Key[Array, ""] | None = None,
    where: Bool[Array, "B"] | None = None,
    stats: PyTree[Moments] = None,
) -> Outputs:
    """The sub-model's outputs: the full-width model at params * mask."""
    mask = axes.masks(params, model.axes, kept.forward)
    return model.apply(
        trees.multiply(params, mask),
        x,
        train=train,
        key=key,
        where=where,
        stats=stats,
        kept=kept,
    )


def held(method: Method, params: Params, kept: Kept) -> Params:
    """The incoming parameters without single coordinates that a sub-model drops."""
    if method.mask is None:
        return params
    return trees.multiply(params, method.mask(params, kept))


def update(
    key: Key[Array, ""],
    params: Params,
    memory: PyTree[Array],
    kept: Kept,
    examples: Examples,
    *,
    member: Member,
    round: Int[Array, ""],
    local: Local,
    rate: Float[Array, ""] | float = 1.0,
    told: PyTree[Array] = None,
    anchor: Params | None = None,
    inside: axes.Part | None = None,
) -> tuple[Params, Masks, PyTree[Array], ClientInfo]:
    """Trains one client for S padded steps.

        l_0 = enter(params),   l_{s+1} = l_s + rate * t * optimizer(t * grad F(l_s)),
        delta = update mask * (effective(l_S) - effective(l_0))

    with F the objective of the sub-model on the batch of step s and t the 0/1 tree of
    what is trained; with `local.dp` it computes the gradient.
    Gradients are masked before the optimiser and updates after it, so weight decay,
    momentum and norm clipping see and touch only what the client keeps.

    Args:
        key: the client's key of this round.
        params: the plain model as it arrives.
        memory: the client's state, None for methods without.
        kept: what it keeps, from `Method.units`.
        examples: its records.
        member: who it is.
        round: rounds finished before this one.
        local: the local problem.
        rate: factor on every update (a schedule over rounds).
        told: what the rule tells it.
        anchor: the plain model that `Context.incoming` stands for; None: `params`.
        inside: where `local.model` and `params` lie in the plain model, of which `kept`
            speaks; None: they are the plain model.

    Returns:
        (delta, cover, memory, info). `delta` is exactly 0 wherever `cover` is 0.

    Edge cases: a client takes only its own number of steps; a padded step changes
    nothing, optimiser state and memory included. A client without records takes none
    and its delta is 0.
    """
    method, plan, dp = local.method, local.plan, local.dp
    base = axes.inside(kept, inside)
    if inside is not None:
        # A sliced network is its own forward pass: nothing of it is masked.
        base = base._replace(forward=None)
    forward_mask, update_mask = masks(local, params, base)
    start, trained = _enter(
        local, rng.at(key, _ENTER), params, base, memory, forward_mask, update_mask
    )
    optimizer = method.optimizer(local.optimizer, start)
    incoming = method.effective(start)
    if anchor is not None:
        incoming = trees.multiply(anchor, forward_mask)
    order = stream(rng.at(key, _ORDER), examples.count, plan.stream)
    number = examples.count
    if dp is not None:
        number = dp.units(examples, plan.longest)
    per_epoch = _ceil_div(number, plan.batch_size)
    wanted = plan.steps
    if plan.epochs is not None:
        wanted = plan.epochs * per_epoch
    taken = jnp.where(examples.count > 0, jnp.asarray(wanted, jnp.int32), 0)

    def context(step, kept, memory, params):
        of_epoch = step % jnp.maximum(per_epoch, 1)
        return Context(
            round, step, of_epoch, member, kept, memory, incoming, params, told
        )

    def one_step(carry, step):
        tree, opt_state, memory = carry
        step_key = rng.at(key, _STEP, step)
        if dp is None or dp.slots is None:
            rows = batch(examples, order, step, plan.batch_size)
        else:
            rows = dp.batch(rng.at(step_key, _DRAW), examples, plan.longest)
        if local.augment is not None:
            rows = rows._replace(x=local.augment(rng.at(step_key, _AUGMENT), rows.x))
        narrowed, here = kept, base
        if method.inner is not None:
            narrowed = method.inner(rng.at(step_key, _NARROW), step, kept)
            here = axes.inside(narrowed, inside)

        def loss_of(tree, rows):
            plain = method.effective(tree)

            def outputs_at(other: Kept | None = None) -> Outputs:
                return apply_kept(
                    local.model,
                    plain,
                    rows.x,
                    here if other is None else axes.inside(other, inside),
                    train=True,
                    key=rng.at(step_key, _MODEL),
                    where=rows.where,
                )

            return local.objective(
                outputs_at,
                rows,
                rng.at(step_key, _OBJECTIVE),
                context(step, narrowed, memory, plain),
            )

        if dp is None:
            gradient = jax.value_and_grad(loss_of, has_aux=True)
            (loss, extra), grads = gradient(tree, rows)
        else:
            (loss, extra), grads = dp.gradient(
                rng.at(step_key, _NOISE),
                loss_of,
                tree,
                rows,
                trained,
                number,
            )
        updates, new_opt_state = optimizer.update(
            trees.multiply(grads, trained), opt_state, tree
        )
        updates = jax.tree.map(
            lambda u, t: u * (t * jnp.asarray(rate, u.dtype)).astype(u.dtype),
            updates,
            trained,
        )
        new_tree = optax.apply_updates(tree, updates)
        new_memory = memory
        if method.memory is not None:
            new_memory = method.memory.observe(
                memory, tree, grads, context(step, narrowed, memory, incoming)
            )
        active = step < taken
        carry = trees.select(
            active, (new_tree, new_opt_state, new_memory), (tree, opt_state, memory)
        )
        report = jax.tree.map(
            lambda value: jnp.where(active, value, jnp.zeros_like(value)), (loss, extra)
        )
        return carry, report

    steps = jnp.arange(plan.steps, dtype=jnp.int32)
    (end, _, memory), (step_losses, extras) = jax.lax.scan(
        one_step,
        (start, optimizer.init(start), memory),
        steps,
        unroll=min(local.unroll, plan.steps),
    )
    delta, cover = _leave(local, start, end, update_mask)
    if method.memory is not None:
        memory = method.memory.close(
            memory, delta, context(taken, kept, memory, method.effective(end))
        )

    def over_steps(values: Array) -> Array:
        return jnp.sum(values) / jnp.maximum(taken, 1).astype(values.dtype)

    loss = over_steps(step_losses)
    finite = trees.bounded(delta)
    if dp is None:
        finite &= jnp.isfinite(loss)
    info = ClientInfo(loss, taken, finite, jax.tree.map(over_steps, extras))
    return delta, cover, memory, info


_ENTER, _ORDER, _STEP = range(3)
_NARROW, _MODEL, _OBJECTIVE, _DRAW, _NOISE, _AUGMENT = range(6)


def update_sliced(
    key: Key[Array, ""],
    params: Params,
    memory: PyTree[Array],
    kept: Kept,
    examples: Examples,
    *,
    member: Member,
    round: Int[Array, ""],
    local: Local,
    size: Size,
    rate: Float[Array, ""] | float = 1.0,
    told: PyTree[Array] = None,
    anchor: Params | None = None,
) -> tuple[Params, Masks, PyTree[Array], ClientInfo]:
    """As `update`, by a dense network of the sub-model's own size.

    The kept units are gathered, trained and scattered back. It computes what `update`
    does (up to float order) and saves what the mask only zeroes.

    Args:
        key: as for `update`, as are the others.
        params: the plain model as it arrives, at full size.
        memory: the client's state, which has no plain shapes (`Memory.plain`).
        kept: what the client keeps; `forward` must keep as many as `size` says.
        examples: its records.
        member: who it is.
        round: rounds finished before this one.
        local: the local problem, with the plain model.
        size: the sub-model's static size, from `Method.size`.
        rate: factor on every update.
        told: what the rule tells it.
        anchor: as for `update`, at full size.
    """
    model = local.model
    assert model.resize is not None
    inside = axes.part(kept.forward, size)
    small = axes.take(params, model.axes, inside)
    delta, cover, memory, info = update(
        key,
        small,
        memory,
        kept,
        examples,
        member=member,
        round=round,
        local=local._replace(model=model.resize(size)),
        rate=rate,
        told=told,
        anchor=None if anchor is None else axes.take(anchor, model.axes, inside),
        inside=inside,
    )
    delta = axes.put(delta, model.axes, inside, params)
    if local.method.leave is None:
        _, cover = masks(local, params, kept)
    else:
        cover = jax.tree.map(lambda c, p: jnp.broadcast_to(c, p.shape), cover, small)
        cover = axes.put(cover, model.axes, inside, params)
    return delta, cover, memory, info


def answer(
    local: Local,
    params: Params,
    x: Num[Array, "B ..."],
    kept: Kept,
    *,
    where: Bool[Array, "B"] | None = None,
    stats: PyTree[Moments] = None,
) -> Float[Array, "B C"]:
    """The logits that a sub-model answers with once it is deployed."""
    params = held(local.method, params, kept)
    outputs = apply_kept(local.model, params, x, kept, where=where, stats=stats)
    return local.method.predict(outputs, kept)


def score(
    params: Params,
    kept: Kept,
    examples: Examples,
    *,
    local: Local,
    longest: int | None = None,
    groups: int = 0,
) -> Cells:
    """How the client's own sub-model does on all its records, in evaluation mode.

    Taken at the incoming model, before any local step; batch norms use the moments of
    each batch, as they do in training. A client without records has cells of 0.

    Args:
        params: the plain model.
        kept: the sub-model.
        examples: its records.
        local: the local problem.
        longest: records of the largest client; None: the plan's.
        groups: G of the attribute in `examples.group`; 0 without one.
    """
    size = local.plan.batch_size
    longest = local.plan.longest if longest is None else longest
    shape = jax.eval_shape(lambda: answer(local, params, examples.x[:1], kept))
    classes = shape.shape[1]

    def one_batch(total: Array, start: Array):
        rows = start + jnp.arange(size, dtype=jnp.int32)
        where = rows < examples.count
        index = examples.offset + jnp.where(where, rows, 0)
        label = examples.y[index]
        group = jnp.full(size, groups, jnp.int32)
        if examples.group is not None:
            known = examples.group[index]
            group = jnp.where(known < 0, group, known)
        logits = answer(local, params, examples.x[index], kept, where=where)
        loss = losses.cross_entropy(logits, label)
        right = (jnp.argmax(logits, axis=-1) == label).astype(loss.dtype)
        values = jnp.where(where, jnp.stack([jnp.ones_like(loss), loss, right]), 0)
        cell = group * classes + label
        return total.at[:, cell].add(values.astype(total.dtype), mode="drop"), None

    starts = jnp.arange(math.ceil(longest / size), dtype=jnp.int32) * size
    # A sum of ones in bfloat16 ends at 256.
    wide = shape.dtype if jnp.finfo(shape.dtype).bits >= 32 else jnp.float32
    empty = jnp.zeros((3, (groups + 1) * classes), wide)
    total, _ = jax.lax.scan(one_batch, empty, starts)
    return Cells(*total.reshape(3, groups + 1, classes))


def mean_loss(cells: Cells) -> Float[Array, "..."]:
    """Mean cross-entropy over all cells of a client; 0 without records."""
    total = jnp.sum(cells.loss, axis=(-2, -1))
    return total / jnp.maximum(jnp.sum(cells.count, axis=(-2, -1)), 1)
