"""Models per client: personal models, fine-tuned plain models and local models.

Each client's model is evaluated on that client's records alone, and its batch norms use
moments of that client's training records.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from fairjax import metrics
from fairjax.core import client, inference, rng, scopes
from fairjax.core.problem import ClientInfo
from fairjax.core.protocols import Layout
from fairjax.core.rng import Role
from fairjax.core.spec import Spec
from fairjax.core.types import (
    ClientData,
    ClientView,
    FederatedData,
    Masks,
    Params,
    RunState,
    Submodel,
)
from fairjax.evaluation import deployed

ClientModelFn = Callable[[ClientView], tuple[Params, Submodel]]
"""Client -> (parameters of its model, its sub-model)."""


def predict(
    client_model: ClientModelFn,
    data: FederatedData,
    train: FederatedData,
    members: ClientView,
    *,
    spec: Spec,
    max_records: int,
) -> Float[Array, "E C"]:
    """Logits of all records of a split, each by the model of its own client.

    Args:
        client_model: every client's model.
        data: the split.
        train: the training split, for the moments of batch norms.
        members: all clients, [N] a leaf.
        spec: what a round does.
        max_records: records of the split's largest client.
    """
    local = spec.local
    records = jax.tree.map(jnp.asarray, data)
    row = jnp.arange(max_records, dtype=jnp.int32)

    def per_client(client_view: ClientView) -> tuple[Array, Array]:
        params, submodel = client_model(client_view)
        stats = None
        if local.moments != "batch":
            stats = deployed.calibrate(
                params,
                submodel,
                train,
                jnp.ones(1, bool),
                local=local,
                clients=client_view.client[None],
            )
        count = records.count[client_view.client]
        index = records.offset[client_view.client] + jnp.where(row < count, row, 0)
        logits = metrics.logits_of(
            params,
            records.x[index],
            apply=lambda params, x: inference.predict(
                local, params, x, submodel, stats=stats
            ),
        )
        return jnp.where(row < count, index, records.y.shape[0]), logits

    index, logits = jax.lax.map(per_client, members)
    classes = logits.shape[-1]
    zeros = jnp.zeros((records.y.shape[0], classes), logits.dtype)
    return zeros.at[index.ravel()].set(logits.reshape(-1, classes), mode="drop")


def personal_models(state: RunState, *, spec: Spec) -> ClientModelFn:
    """Each client's personal model, or the plain model with the client's local leaves.

    The sub-model is that of its tier in the coming round.
    """

    def client_model(client_view: ClientView) -> tuple[Params, Submodel]:
        params = scopes.gather(state.leaf_copies, state.params, client_view)
        if state.personal is not None:
            params = jax.tree.map(lambda leaf: leaf[client_view.client], state.personal)
        return params, _submodel(state, state.round, params, client_view, spec)

    return client_model


def fine_tuned_models(
    state: RunState, train: FederatedData, *, spec: Spec
) -> ClientModelFn:
    """The plain model after one more round of training at each client, not sent back.

    A client trains and keeps the sub-model of its tier in the coming round.
    """

    def client_model(client_view: ClientView) -> tuple[Params, Submodel]:
        params, memory, submodel = round_inputs(state, client_view, spec=spec)
        delta, _, _, _ = update(
            state, state.round, params, memory, submodel, client_view, train, spec
        )
        return optax.apply_updates(params, delta), submodel

    return client_model


def train_local_models(
    state: RunState,
    train: FederatedData,
    members: ClientView,
    *,
    spec: Spec,
    layout: Layout,
    rounds: int,
) -> Params:
    """Trains every client without the others, for as many rounds, [N, ...] a leaf.

    A client starts from the run's first model and trains on the batches that it would
    have in the federation if it were in every cohort. It uses its tier's sub-model of
    the first round in all rounds.

    Args:
        state: the state of the run before its first round.
        train: the training split.
        members: all clients, [N] a leaf.
        spec: what a round does.
        layout: how clients are laid on the hardware, masked.
        rounds: number of rounds.
    """
    memory = spec.local.method.memory

    def per_client(client_view: ClientView, tier: int | None) -> Params:
        initial_params = scopes.gather(state.leaf_copies, state.params, client_view)
        submodel = _submodel(state, state.round, initial_params, client_view, spec)

        def train_round(round_index: Array, carry: tuple) -> tuple:
            params, client_memory = carry
            delta, _, client_memory, _ = update(
                state,
                round_index,
                params,
                client_memory,
                submodel,
                client_view,
                train,
                spec,
            )
            return optax.apply_updates(params, delta), client_memory

        initial_carry = (
            initial_params,
            None if memory is None else memory.init(initial_params),
        )
        return jax.lax.fori_loop(0, rounds, train_round, initial_carry)[0]

    return layout.stack(per_client, members)


def local_models(models: Params, state: RunState, *, spec: Spec) -> ClientModelFn:
    """The models of `train_local_models`; `state` is that before the first round."""

    def client_model(client_view: ClientView) -> tuple[Params, Submodel]:
        params = jax.tree.map(lambda leaf: leaf[client_view.client], models)
        return params, _submodel(state, state.round, params, client_view, spec)

    return client_model


def _submodel(
    state: RunState,
    round_index: Array,
    params: Params,
    client_view: ClientView,
    spec: Spec,
) -> Submodel:
    key = rng.fold_in(state.key, Role.UNITS, round_index)
    return spec.local.method.submodel(key, round_index, params, client_view)


def round_inputs(state: RunState, client_view: ClientView, *, spec: Spec) -> tuple:
    """(params, memory, submodel) with which a client starts the coming round."""
    params = scopes.gather(state.leaf_copies, state.params, client_view)
    memory = None
    if state.memory is not None:
        memory = jax.tree.map(lambda leaf: leaf[client_view.client], state.memory)
    return params, memory, _submodel(state, state.round, params, client_view, spec)


def update(
    state: RunState,
    round_index: Array,
    params: Params,
    memory: PyTree[Array],
    submodel: Submodel,
    client_view: ClientView,
    train: FederatedData,
    spec: Spec,
) -> tuple[Params, Masks, PyTree[Array], ClientInfo]:
    """One client's masked local training as in round `round_index`, see `client`."""
    client_id = client_view.client
    offset = jnp.asarray(train.offset)[client_id]
    client_data = ClientData(
        jnp.asarray(train.x),
        jnp.asarray(train.y),
        offset,
        client_view.count,
        patient=None if train.patient is None else jnp.asarray(train.patient),
    )
    return client.update(
        rng.fold_in(state.key, Role.LOCAL, round_index, client_id),
        params,
        memory,
        submodel,
        client_data,
        client=client_view,
        round=round_index,
        local=spec.local,
        lr_scale=spec.schedule(round_index),
    )
