"""How well the gradients of single records fit what a server sees of a run."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairjax.attacks import scores
from fairjax.core import inference, losses, population, rng, round, trees
from fairjax.core.protocols import Layout, Protection
from fairjax.core.rng import Role
from fairjax.core.spec import Spec
from fairjax.core.types import (
    ClientView,
    Cohort,
    FederatedData,
    Masks,
    Params,
    RunState,
    Submodel,
)
from fairjax.evaluation import personalised


def alignments(
    state: RunState,
    train: FederatedData,
    candidates: FederatedData,
    owner: Int[Array, "E"],
    all_clients: Callable[[Int[Array, ""]], ClientView],
    draw: Callable[[RunState], Cohort],
    *,
    spec: Spec,
    layout: Layout,
    rounds: int,
    protection: Protection | None,
    chunk: int = 64,
    validation: FederatedData | None = None,
) -> Float[Array, "2 E"]:
    """`scores.alignment` of every candidate, as a mean over the rounds.

    The first row aligns a candidate with the upload of its client, over the rounds in
    which that client was selected. The second row aligns it with the change of the
    plain model, which everybody sees, over all rounds.

    The run is simulated round by round: a client's update follows from the key, the
    round and the client's index alone. A record's gradient is that of its cross-entropy
    at the sub-model that its client received (batch norms see that record alone), on
    the coordinates that the upload covers.

    Args:
        state: the state of the run before its first round.
        train: the training records.
        candidates: members and non-members.
        owner: the client of every candidate.
        all_clients: rounds finished -> all clients, [N] a leaf.
        draw: state -> the cohort of the next round.
        spec: what a round does.
        layout: how a cohort is laid out.
        rounds: rounds of the run.
        protection: what every client applies before the server sees its upload; its
            `protect` returns an `Upload`. None: the server sees the change itself.
        chunk: candidates at the same time.
        validation: for rules that read it.

    Returns:
        (by upload, by change of the plain model). The first is NaN for candidates of a
        client that was never selected.
    """
    train, candidates = jax.tree.map(jnp.asarray, (train, candidates))
    upload = functools.partial(
        _client_upload, train=train, spec=spec, protection=protection
    )

    def per_round(carry: tuple, _: None) -> tuple[tuple, None]:
        state, sums, round_counts = carry
        cohort = draw(state)
        clients = all_clients(state.round)
        is_selected = _selected_mask(cohort, clients.client.shape[0])
        new_state, _info = round.step(
            state,
            train,
            cohort,
            spec=spec,
            layout=layout,
            validation=validation,
        )
        model_update = trees.subtract(new_state.params, state.params)
        client_updates, covers = jax.lax.map(
            lambda client_view: upload(state, cohort, client_view), clients
        )
        observations = _Observations(clients, client_updates, covers, model_update)
        cosines = jax.lax.map(
            functools.partial(_record_cosines, state, observations, spec),
            (candidates.x, candidates.y, owner),
            batch_size=chunk,
        ).T
        counts = jnp.stack([is_selected[owner], jnp.ones_like(is_selected[owner])])
        counts = counts.astype(cosines.dtype)
        return (new_state, sums + counts * cosines, round_counts + counts), None

    start = state, *[jnp.zeros((2, *owner.shape))] * 2
    (_, sums, round_counts), _ = jax.lax.scan(per_round, start, length=rounds)
    return jnp.where(round_counts > 0, sums / jnp.maximum(round_counts, 1), jnp.nan)


def _client_upload(
    state: RunState,
    cohort: Cohort,
    client_view: ClientView,
    *,
    train: FederatedData,
    spec: Spec,
    protection: Protection | None,
) -> tuple[Params, Masks]:
    """(update, cover) of the plain model as the server receives it from a client."""
    params, memory, submodel = personalised.round_inputs(state, client_view, spec=spec)
    delta, cover, _, _ = personalised.update(
        state, state.round, params, memory, submodel, client_view, train, spec
    )
    upload = population.make_upload(
        state, trees.multiply(delta, cover), cover, client_view.tier
    )
    if protection is not None:
        key = rng.fold_in(state.key, Role.RELEASE, state.round)
        unit_weight = jnp.ones(())
        upload = protection.protect(
            key,
            state.protection,
            cohort,
            client_view,
            upload,
            unit_weight,
            unit_weight,
        )
    return upload.num, upload.den


class _Observations(NamedTuple):
    """What the server sees of a round, [N, ...] a leaf but for the model."""

    clients: ClientView
    client_updates: Params
    covers: Masks
    model_update: Params


def _record_cosines(
    state: RunState,
    observations: _Observations,
    spec: Spec,
    record: tuple[Array, Array, Array],
) -> Float[Array, "2"]:
    """A record's alignment with its client's upload and with the model's change.

    The record is (inputs, class, client).
    """
    x, y, client_index = record
    client_view = trees.pick(observations.clients, client_index)
    gradient = _record_gradient(state, client_view, x, y, spec=spec)
    cover = trees.pick(observations.covers, client_index)
    gradient = trees.multiply(gradient, cover)
    updates = (
        trees.pick(observations.client_updates, client_index),
        trees.multiply(observations.model_update, cover),
    )
    return jnp.stack([scores.alignment(update, gradient) for update in updates])


def _record_gradient(
    state: RunState, client_view: ClientView, x: Array, y: Array, *, spec: Spec
) -> Params:
    """The gradient of a record's cross-entropy at the sub-model of its client."""
    local = spec.local
    params, _, submodel = personalised.round_inputs(state, client_view, spec=spec)
    local_params = inference.masked_params(local.method, params, submodel)

    def loss(params: Params, x: Array, y: Array, submodel: Submodel) -> Array:
        outputs = inference.apply_submodel(local.model, params, x[None], submodel)
        return losses.cross_entropy(outputs.logits, y[None])[0]

    return jax.grad(loss)(local_params, x, y, submodel)


def _selected_mask(cohort: Cohort, num_clients: int) -> Bool[Array, "N"]:
    slot = jnp.where(cohort.valid, cohort.client, num_clients)
    return jnp.zeros(num_clients, bool).at[slot].set(True, mode="drop")
