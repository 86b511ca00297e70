"""What a server sees of one client, and what an attacker takes that client for.

Both are the product's own client, `client.update`: the victim with all that it is, the
attacker's simulation with what the attacker knows. So masks, branches, optimiser and
local steps are those of training, and the simulation is differentiable in the records.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from fairjax.attacks.inversion import Seen
from fairjax.core import aggregate, client, losses, scopes
from fairjax.core.client import Local
from fairjax.core.scopes import Bank
from fairjax.core.types import (
    Batch,
    Cohort,
    Context,
    Examples,
    Kept,
    Masks,
    Member,
    Objective,
    OutputsAt,
    Params,
    Protection,
    Sent,
)
from fairjax.submodels.fedavg import fedavg

LEVELS = ("plain", "tier", "structure", "search")
"""What an attacker knows, beside the plain model, the code and all settings:

- plain: nothing more; the client is simulated as one that trains the plain model.
- tier: the client's tier and units, but not its draws and not its past: a client of
  that tier in its first round, with a draw of the attacker's own.
- structure: all but the records.
- search: not the tier, the draws or the past; what they may be is searched through.
"""


class View(NamedTuple):
    """One client's round, as it is or as somebody takes it to be."""

    params: Params
    """The plain model as it arrived."""
    kept: Kept
    memory: PyTree[Array]
    member: Member
    key: Key[Array, ""]
    """The client's of this round: of its branches and of the order of its records."""
    round: Int[Array, ""]
    rate: Float[Array, ""]
    """Factor on its learning rate."""


def change(
    view: View, x: Num[Array, "n ..."], y: Num[Array, "n ..."], *, local: Local
) -> tuple[Params, Masks, PyTree[Array]]:
    """The (delta, cover, memory) of a client that holds these records alone.

    Args:
        view: the client.
        x: its records.
        y: their classes [n], or distributions over classes [n, C], with which the
            objective is the mean cross-entropy.
        local: the local problem; its plan says how many steps are taken.
    """
    count = jnp.asarray(x.shape[0], jnp.int32)
    if y.ndim == 2:
        local = local._replace(objective=soft_cross_entropy(y))
        y = jnp.arange(x.shape[0], dtype=jnp.int32)
    delta, cover, memory, _ = client.update(
        view.key,
        view.params,
        view.memory,
        view.kept,
        Examples(x, y, jnp.zeros((), jnp.int32), count),
        member=view.member,
        round=view.round,
        local=local,
        rate=view.rate,
    )
    return delta, cover, memory


def soft_cross_entropy(targets: Float[Array, "n C"]) -> Objective:
    """Mean cross-entropy with distributions, the label of a record being its number."""

    def objective(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        logits = outputs_at(None).logits
        each = optax.softmax_cross_entropy(logits, targets[batch.y])
        return losses.mean(each, batch.where), {}

    return objective


def upload(
    key: Key[Array, ""],
    view: View,
    x: Num[Array, "n ..."],
    y: Int[Array, "n"],
    *,
    local: Local,
    bank: Bank,
    protection: Protection = aggregate.OPEN,
) -> tuple[Seen, PyTree[Array]]:
    """What reaches the server of a client, behind its own protection; and its memory.

    Args:
        key: of the noise.
        view: the client as it is.
        x: its records.
        y: their classes.
        local: the local problem.
        bank: which leaves it keeps to itself.
        protection: of every upload by itself (none, or local differential privacy).
    """
    delta, cover, memory = change(view, x, y, local=local)
    member, one = view.member, jnp.ones(())
    sent = Sent(
        scopes.shared(bank, delta, member.tier),
        scopes.shared(bank, cover, member.tier),
        {},
    )
    alone = Cohort(*(jnp.stack([part]) for part in member[:3]))
    received = protection.protect(key, protection.init(), alone, member, sent, one, one)
    return Seen(received.num, received.den), memory


def quiet(local: Local) -> Local:
    """The local problem as an attacker simulates it: nobody knows the noise."""
    return local._replace(dp=None)


def as_plain(local: Local) -> Local:
    """The local problem of a client that trains the plain model, on a plain loss."""
    objective = local.objective
    if local.method.objective is not None:
        objective = client.mean_cross_entropy()
    method = fedavg(local.model.axes)
    return quiet(local)._replace(method=method, objective=objective)


def plain(key: Key[Array, ""], victim: View, params: Params) -> View:
    """The client as one that trains the plain model `params`."""
    return victim._replace(params=params, kept=Kept(), memory=None, key=key)


def newcomer(key: Key[Array, ""], victim: View, *, local: Local) -> View:
    """The client as one of its tier and units without a past, with another draw."""
    memory = local.method.memory
    fresh = None if memory is None else memory.init(victim.params)
    return victim._replace(memory=fresh, key=key)
