"""The models of a run on its splits, compiled once for many states.

Training uses the training split, selection the validation split, and reported figures
the test split. No decision, here or later, depends on the test split.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fairjax import metrics
from fairjax.core import problem, require, rng, scopes, trees
from fairjax.core.rng import Role
from fairjax.core.types import ClientView, FederatedData, Masks, RunState
from fairjax.evaluation import deployed, personalised
from fairjax.experiment.config import build, robustness
from fairjax.robust import aggregators


class RunEvaluation(NamedTuple):
    """The figures of one state of a run."""

    full: metrics.Evaluation
    """The full model on the test split."""
    per_tier: metrics.Evaluation
    """Every tier's own sub-model on the test split, [T, ...] a leaf."""
    val: metrics.Figures | None
    """The full model on the validation split, pooled; None where that is empty."""
    personal: metrics.Figures | None
    """Every client's personal model on its own test records, [N] a leaf; None for rules
    without personal models."""


class Logits(NamedTuple):
    """Logits by split: "test", and "val" if it has records."""

    full: dict[str, Float[Array, "E C"]]
    per_tier: dict[str, Float[Array, "T E C"]]


EvaluateFn = Callable[[RunState], tuple[RunEvaluation, Logits]]
"""A compiled evaluation of the states of a run."""


def representatives(run: build.Run) -> ClientView:
    """For every tier its first client (client 0 for an empty tier), [T] a leaf."""
    tiers = np.arange(len(run.budget))
    first = [int(np.argmax(run.tiers == tier)) for tier in tiers]
    return _client_views(
        run, jnp.asarray(first, jnp.int32), jnp.asarray(tiers, jnp.int32)
    )


def all_clients(run: build.Run, tiers: Int[Array, "N"]) -> ClientView:
    """All clients at these tiers, [N] a leaf."""
    client_index = jnp.arange(len(run.splits.clients), dtype=jnp.int32)
    return _client_views(run, client_index, tiers.astype(jnp.int32))


def _client_views(
    run: build.Run, clients: Int[Array, "M"], tiers: Int[Array, "M"]
) -> ClientView:
    train = run.splits.train
    return ClientView(
        clients,
        tiers,
        jnp.ones(clients.shape, bool),
        jnp.asarray(train.count)[clients],
        jnp.asarray(train.labels)[clients],
    )


def has_personal_state(run: build.Run) -> bool:
    """Whether the rule gives clients personal models."""
    rule = run.spec.rule
    return rule.local_leaves is not None or rule.personal is not None


def compile_evaluation(run: build.Run, state: RunState) -> EvaluateFn:
    """Compiles the evaluation on test and validation split for states like this one."""

    def evaluate_state(
        state, splits, train, tiers, tier_clients
    ) -> tuple[RunEvaluation, Logits]:
        x = {name: split.x for name, split in splits.items()}
        full, per_tier = deployed.predict(
            state, x, train, tiers, tier_clients, spec=run.spec
        )
        evaluate_logits = functools.partial(metrics.evaluation_of, data=splits["test"])
        # The full model is one more model: one program computes the figures of all.
        models = jnp.concatenate([full["test"][None], per_tier["test"]])
        evaluations = jax.lax.map(evaluate_logits, models)
        val = None
        if "val" in splits:
            val = metrics.evaluation_of(full["val"], splits["val"]).pooled
        personal = None
        if has_personal_state(run):
            personal_logits = personalised.predict(
                personalised.personal_models(state, spec=run.spec),
                splits["test"],
                train,
                all_clients(run, tiers),
                spec=run.spec,
                max_records=int(np.max(run.splits.test.count)),
            )
            personal = metrics.evaluation_of(personal_logits, splits["test"]).clients
        evaluation = RunEvaluation(
            jax.tree.map(lambda leaf: leaf[0], evaluations),
            jax.tree.map(lambda leaf: leaf[1:], evaluations),
            val,
            personal,
        )
        return evaluation, Logits(full, per_tier)

    splits = {"test": run.splits.test, "val": run.splits.val}
    nonempty_splits = {name: split for name, split in splits.items() if len(split.y)}
    train = run.splits.train
    if run.records == "host":
        # `build` allows this only without batch norms and personal models, so that
        # evaluation reads no training records.
        x, y, group = train.x[:1], train.y[:1], train.group[:1]
        train = dataclasses.replace(train, x=x, y=y, group=group, patient=None)
    data = jax.tree.map(jnp.asarray, (nonempty_splits, train))
    tier_clients = representatives(run)

    def arguments(state: RunState) -> tuple[Any, ...]:
        return state, *data, run.tiers_at(state.round - 1), tier_clients

    program = jax.jit(evaluate_state).lower(*arguments(state)).compile()
    return lambda state: program(*arguments(state))


def evaluate(
    run: build.Run, state: RunState, split: str
) -> tuple[dict[str, float], tuple[metrics.Evaluation, metrics.Evaluation]]:
    """The evaluation keys of metrics.jsonl on a split, and the figures behind them.

    Args:
        run: the run.
        state: one of its states.
        split: "train", "val" or "test".

    Returns:
        (keys, (the full model's figures, those of every tier's sub-model)).

    Raises:
        InputError: there is no such split, or it has no records.
    """
    return evaluator(run, split)(state)


def evaluator(
    run: build.Run, split: str
) -> Callable[
    [RunState], tuple[dict[str, float], tuple[metrics.Evaluation, metrics.Evaluation]]
]:
    """`evaluate` on one split, compiled once for many states of a run; same errors."""
    data: FederatedData = getattr(
        run.splits, require.one_of("split", split, ("train", "val", "test"))
    )
    if not data.y.shape[0]:
        require.fail("split", "a split with records", split)
    program = jax.jit(functools.partial(deployed.evaluate, spec=run.spec))
    data, train = jax.tree.map(jnp.asarray, (data, run.splits.train))
    tier_clients = representatives(run)

    def evaluate_state(state: RunState):
        tiers = run.tiers_at(state.round - 1)
        full, per_tier = program(state, data, train, tiers, tier_clients)
        min_records = run.config.min_test_records
        figures = metrics.summary(
            full, per_tier, np.asarray(tiers), min_records=min_records
        )
        return figures, (full, per_tier)

    return evaluate_state


def robustness_summary(
    run: build.Run, start: RunState, state: RunState
) -> dict[str, Any]:
    """summary.json's "robust": tolerated Byzantine clients, faults and refused clients.

    Args:
        run: the run.
        start: its first state, from which the rings of coordinates follow.
        state: its last state.
    """
    robust_config, rings = run.config.robust, []
    if robust_config.aggregator in aggregators.BY_COORDINATE:
        clients = len(run.splits.clients)
        rings = robustness.rings(
            run.config, start.params, holder_counts(run, start), clients, run.cohort
        )
    selected, accepted = (np.asarray(leaf) for leaf in state.participation)
    # Both are sums in float32.
    refused_clients = np.flatnonzero(accepted < selected * (1 - 1e-5))
    return {
        "aggregator": robust_config.aggregator,
        "norm_bound": robust_config.norm_bound,
        "rings": [ring._asdict() | {"tiers": list(ring.tiers)} for ring in rings],
        "faults": [
            {"name": fault.name, "hospitals": int(fault.clients.sum())}
            | {"rate": fault.probability, "strength": fault.strength}
            for fault in run.faults
        ],
        "refused": [
            {"client": run.splits.clients[k], "came": int(selected[k])}
            | {"entered": float(accepted[k])}
            for k in refused_clients
        ],
    }


def holder_counts(run: build.Run, state: RunState) -> PyTree[Int[np.ndarray, "T ..."]]:
    """How many clients of every tier train a coordinate in a round, [T, ...] a leaf.

    All clients are counted: a mask may be drawn for a client or follow from its labels.
    """
    local = run.spec.local
    key = rng.fold_in(state.key, Role.UNITS, state.round)
    client_views = all_clients(run, run.tiers_at(state.round))

    def cover(client_view: ClientView) -> Masks:
        params = scopes.gather(state.leaf_copies, state.params, client_view)
        submodel = local.method.submodel(key, state.round, params, client_view)
        return problem.masks(local, params, submodel)[1]

    def add(count: PyTree, client_view: ClientView) -> tuple[PyTree, None]:
        def per_leaf(number: Array, mask: Array) -> Array:
            return number.at[client_view.tier].add((mask > 0).astype(jnp.int32))

        return jax.tree.map(per_leaf, count, cover(client_view)), None

    shapes = jax.eval_shape(cover, trees.pick(client_views, 0))
    zeros = jax.tree.map(
        lambda mask: jnp.zeros((len(run.budget), *mask.shape), jnp.int32), shapes
    )
    count, _ = jax.jit(functools.partial(jax.lax.scan, add))(zeros, client_views)
    return jax.device_get(count)
