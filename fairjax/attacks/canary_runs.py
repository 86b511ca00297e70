"""Runs with and without a canary, and how far each goes where the canary pulls."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from fairjax.attacks import observables
from fairjax.attacks.canaries import Target
from fairjax.core import inference, losses, problem, round, trees
from fairjax.core.protocols import Layout
from fairjax.core.spec import Spec
from fairjax.core.types import (
    ClientView,
    Cohort,
    FederatedData,
    Params,
    RunState,
)
from fairjax.evaluation import personalised

Direction = Callable[[RunState, FederatedData], Params]
"""(state, data with the canary) -> the direction in which the canary pulls the plain
model in the coming round, a vector of length 1; 0 where the pull is not finite."""


def record_direction(
    target: Target, client_view: ClientView, *, spec: Spec
) -> Direction:
    """Against the gradient of the target's records at its client's sub-model.

    Args:
        target: the place of the canary.
        client_view: its client.
        spec: what a round does.
    """
    local = spec.local

    def direction(state: RunState, data: FederatedData) -> Params:
        params, _, submodel = personalised.round_inputs(state, client_view, spec=spec)
        x, y = jnp.asarray(data.x)[target.rows], jnp.asarray(data.y)[target.rows]

        def loss(params: Params) -> Array:
            outputs = inference.apply_submodel(
                local.model, params, x, submodel, train=True
            )
            return jnp.sum(losses.cross_entropy(outputs.logits, y))

        _, trainable = problem.masks(local, params, submodel)
        gradient = jax.grad(loss)(
            inference.masked_params(local.method, params, submodel)
        )
        return _normalize(
            jax.tree.map(jnp.negative, trees.multiply(gradient, trainable))
        )

    return direction


def client_direction(client_view: ClientView, *, spec: Spec) -> Direction:
    """Along the change that a client's training makes.

    Args:
        client_view: the client.
        spec: what a round does.
    """

    def direction(state: RunState, data: FederatedData) -> Params:
        params, memory, submodel = personalised.round_inputs(
            state, client_view, spec=spec
        )
        delta, _, _, _ = personalised.update(
            state, state.round, params, memory, submodel, client_view, data, spec
        )
        return _normalize(delta)

    return direction


def _normalize(tree: Params) -> Params:
    norm = optax.tree.norm(tree)
    has_direction = jnp.isfinite(norm) & (norm > 0)
    scale = jnp.where(has_direction, 1 / jnp.where(has_direction, norm, 1), 0)
    return jax.tree.map(
        lambda leaf: jnp.where(has_direction, leaf, 0) * scale.astype(leaf.dtype), tree
    )


def run_features(
    run_keys: Key[Array, "M"],
    start: RunState,
    data: FederatedData,
    canary_data: FederatedData,
    direction: Direction | None,
    draw: Callable[[RunState], Cohort],
    *,
    spec: Spec,
    layout: Layout,
    rounds: int,
    chunk: int,
    server: bool,
) -> Float[Array, "M F"]:
    """The features of M runs: those of every round, and the projection summed over all.

    Args:
        run_keys: the key of every run, for its cohorts, batches and noise.
        start: the state before the first round; every run replaces its key.
        data: the federation of these runs, with the canary or without.
        canary_data: the federation with the canary.
        direction: the direction in which the canary pulls. One more feature is how far
            the plain model went there in all rounds. None: there is no such feature.
        draw: state -> the cohort of the next round.
        spec: what a round does.
        layout: how a cohort is laid out.
        rounds: rounds of a run.
        chunk: runs at the same time, which bounds the memory.
        server: whether the server observes the runs, or the public.
    """
    protection = observables.tap_uploads(spec.protection)
    spec = dataclasses.replace(spec, protection=protection)
    template = dataclasses.replace(start, protection=protection.init())
    observe = observables.public_observables
    if server:
        observe = observables.server_observables

    def per_run(key: Array) -> Array:
        def per_round(state: RunState, _: None) -> tuple[RunState, tuple[Array, Array]]:
            new_state, info = round.step(
                state, data, draw(state), spec=spec, layout=layout
            )
            round_observables = observe(state, new_state, info)
            projections = jnp.zeros(0, jnp.float32)
            if direction is not None:
                projection = optax.tree.vdot(
                    round_observables["model"], direction(state, canary_data)
                )
                projections = jnp.asarray(projection, jnp.float32)[None]
            features = observables.features(round_observables)
            return observables.drop_uploads(new_state), (features, projections)

        state = dataclasses.replace(template, key=key)
        _, (round_features, projections) = jax.lax.scan(per_round, state, length=rounds)
        return jnp.concatenate(
            [round_features.ravel(), jnp.nan_to_num(jnp.sum(projections, axis=0))]
        )

    return jax.lax.map(per_run, run_keys, batch_size=chunk)
