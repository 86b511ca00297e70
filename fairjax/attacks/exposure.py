"""What a server sees of one client, and what an attacker takes that client for.

Both run the library's own client, `client.update`: the victim with its full view, the
attacker's simulation with what the attacker knows. So masks, branches, optimiser and
local steps are those of training, and the simulation is differentiable in the records.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from fairjax.attacks.inversion import Observation
from fairjax.core import aggregate, client, losses, objectives, scopes
from fairjax.core.problem import LocalProblem
from fairjax.core.protocols import Protection
from fairjax.core.scopes import Bank
from fairjax.core.types import (
    Batch,
    ClientData,
    ClientView,
    Cohort,
    Context,
    Masks,
    Objective,
    OutputsAt,
    Params,
    Submodel,
    Upload,
)
from fairjax.submodels.fedavg import fedavg

LEVELS = ("plain", "tier", "structure", "search")
"""What an attacker knows beside the plain model, the code and all settings:

- plain: nothing more. The simulated client trains the plain model.
- tier: the client's tier and sub-model, but neither its draws nor its past. The
  simulated client is one of that tier in its first round, with the attacker's own draw.
- structure: everything but the records.
- search: neither the tier, nor the draws, nor the past. The attacker searches through
  what they may be.
"""


class View(NamedTuple):
    """One client's round, as it is or as an attacker takes it to be."""

    params: Params
    """The plain model as the client received it."""
    submodel: Submodel
    memory: PyTree[Array]
    client: ClientView
    key: Key[Array, ""]
    """The client's key of this round: its branches and the order of its records follow
    from it."""
    round: Int[Array, ""]
    lr_scale: Float[Array, ""]
    """The factor on the local learning rate."""


def simulate_update(
    view: View, x: Num[Array, "n ..."], y: Num[Array, "n ..."], *, local: LocalProblem
) -> tuple[Params, Masks, PyTree[Array]]:
    """The (delta, cover, memory) of a client that has these records alone.

    Args:
        view: the client.
        x: its records' inputs.
        y: their classes [n]; or distributions over classes [n, C], for which the
            objective is the mean cross-entropy.
        local: the local problem; its schedule has the number of steps.
    """
    count = jnp.asarray(x.shape[0], jnp.int32)
    if y.ndim == 2:
        local = local._replace(objective=soft_cross_entropy(y))
        y = jnp.arange(x.shape[0], dtype=jnp.int32)
    delta, cover, memory, _ = client.update(
        view.key,
        view.params,
        view.memory,
        view.submodel,
        ClientData(x, y, jnp.zeros((), jnp.int32), count),
        client=view.client,
        round=view.round,
        local=local,
        lr_scale=view.lr_scale,
    )
    return delta, cover, memory


def soft_cross_entropy(targets: Float[Array, "n C"]) -> Objective:
    """The mean cross-entropy with distributions over classes.

    Args:
        targets: the distributions; the label of a record is its row here.
    """

    def objective(outputs_at: OutputsAt, batch: Batch, key: Array, context: Context):
        logits = outputs_at(None).logits
        record_loss = optax.softmax_cross_entropy(logits, targets[batch.y])
        return losses.mean(record_loss, batch.where), {}

    return objective


def observe_upload(
    key: Key[Array, ""],
    view: View,
    x: Num[Array, "n ..."],
    y: Int[Array, "n"],
    *,
    local: LocalProblem,
    bank: Bank,
    protection: Protection = aggregate.OPEN,
) -> tuple[Observation, PyTree[Array]]:
    """What a client sends to the server behind its own protection, and its memory.

    Args:
        key: of the noise.
        view: the client as it is.
        x: its records' inputs.
        y: their classes.
        local: the local problem.
        bank: the copies of leaves that tiers and clients keep; the upload has none.
        protection: what the client applies to its upload (nothing, or local
            differential privacy).
    """
    delta, cover, memory = simulate_update(view, x, y, local=local)
    client_view, unit_weight = view.client, jnp.ones(())
    upload = Upload(
        scopes.shared_leaves(bank, delta, client_view.tier),
        scopes.shared_leaves(bank, cover, client_view.tier),
        {},
    )
    cohort = Cohort(*(jnp.stack([leaf]) for leaf in client_view[:3]))
    addend = protection.protect(
        key, protection.init(), cohort, client_view, upload, unit_weight, unit_weight
    )
    return Observation(addend.num, addend.den), memory


def noiseless_problem(local: LocalProblem) -> LocalProblem:
    """The local problem as an attacker simulates it: no attacker knows the noise."""
    return local._replace(dp=None)


def plain_problem(local: LocalProblem) -> LocalProblem:
    """The local problem of a client that trains the plain model on a plain loss."""
    objective = local.objective
    if local.method.objective is not None:
        objective = objectives.mean_cross_entropy()
    method = fedavg(local.model.axes)
    return noiseless_problem(local)._replace(method=method, objective=objective)


def plain_view(key: Key[Array, ""], victim: View, params: Params) -> View:
    """The client as one that trains the plain model.

    Args:
        key: of the attacker's own draw.
        victim: the client as it is.
        params: the plain model.
    """
    return victim._replace(params=params, submodel=Submodel(), memory=None, key=key)


def newcomer_view(key: Key[Array, ""], victim: View, *, local: LocalProblem) -> View:
    """The client as one of its tier and sub-model without a past, with another draw.

    Args:
        key: of the attacker's own draw.
        victim: the client as it is.
        local: the local problem; its method starts the client's memory.
    """
    memory = local.method.memory
    initial_memory = None if memory is None else memory.init(victim.params)
    return victim._replace(memory=initial_memory, key=key)
