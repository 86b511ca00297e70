"""Warnings before the first round: untrained parameters, and scalers without a norm.

Both follow from the config, the data and the first model. A run prints them before its
first round and repeats them beside its figures.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from fairjax.core import inference, problem, rng, trees
from fairjax.core.rng import Role
from fairjax.core.types import ClientView, Params, RunState, Submodel
from fairjax.experiment import evaluate
from fairjax.experiment.config import build

SMALL_SCALE = 0.25
"""Only scalers below this are examined."""
MAX_MASKS = 10_000
"""Most masks that are examined for a method that draws new ones in every round."""
_REPEATS = 32
"""After so many rounds in a row without a new mask, no more are expected."""

_Leaves = dict[str, np.ndarray]
"""{path: leaf}; a leaf broadcasts to its parameter."""


class Untrained(NamedTuple):
    """The parameters of the full model that no round can change."""

    share: float
    """Their share of all parameters."""
    parameters: int
    """Their number."""
    reason: str | None
    """None if there are none."""


def notes(run: build.Run, start: RunState) -> tuple[Untrained, list[str]]:
    """What is untrained, and a sentence for each warning about a run's figures.

    Args:
        run: the run.
        start: its first state.
    """
    frozen = untrained(run, start)
    sentences = []
    if frozen.parameters:
        sentences.append(
            f"{frozen.share:.1%} of the full model ({frozen.parameters:,} parameters) "
            f"stays as it was before the first round: {frozen.reason}. Its figures "
            "(eval/*) are of a model that was not wholly trained."
        )
    return frozen, [*sentences, *scaler_warnings(run, start)]


# -------------------------------------------------------------- untrained parameters


def untrained(run: build.Run, start: RunState) -> Untrained:
    """The coordinates of the full model that no round of a run can change.

    A round can change a coordinate if enough clients of a possible cohort train it: one
    client, or the minimum of a secure sum (under `client_dp` in an average cohort).
    The drawn cohorts and faults are not considered, so a run may leave more untrained;
    cohort/coverage is what every round has changed. Masks that follow from parameters
    are those of the first model. Other masks are those of all rounds, but at most
    `MAX_MASKS` of them. For a leaf that every tier has its own copy of, the full model
    has the richest tier's.

    Args:
        run: the run.
        start: its first state.
    """
    paths, owners = trees.leaves_by_path(start.params), _owners(start, len(run.budget))
    min_holders, max_per_tier = _holder_limits(run)
    trainable: _Leaves = {
        p: np.zeros((1,) * leaf.ndim, bool) for p, leaf in paths.items()
    }
    has_holder, num_masks = dict(trainable), 0
    for tiers in _distinct_rounds(run, start):
        total = {path: leaf.astype(int) * 0 for path, leaf in trainable.items()}
        # The richest tier first: it mostly trains every coordinate.
        for tier in reversed(range(len(tiers))):
            num_masks += len(tiers[tier])
            for path, number in _holder_counts(run, start, tiers[tier]).items():
                if owners[path][tier]:
                    has_holder[path] = has_holder[path] | (number > 0)
                    total[path] = total[path] + np.minimum(number, max_per_tier[tier])
            reachable = {
                path: trainable[path] | (total[path] >= min_holders) for path in paths
            }
            if all(map(np.all, reachable.values())):
                return Untrained(0.0, 0, None)
        trainable = reachable
        if num_masks >= MAX_MASKS:
            break

    def count(where: _Leaves) -> int:
        return sum(
            int(np.sum(leaf)) * (paths[path].size // leaf.size)
            for path, leaf in where.items()
        )

    def untrained_where(condition: Callable[[str], Any]) -> _Leaves:
        return {path: ~trainable[path] & condition(path) for path in paths}

    too_few_reason = "fewer hospitals train it than the secure sum asks for"
    reasons = {
        "every hospital keeps its own": untrained_where(
            lambda p: not np.any(owners[p])
        ),
        "no hospital trains it": untrained_where(
            lambda p: ~has_holder[p] & bool(np.any(owners[p]))
        ),
        too_few_reason: untrained_where(lambda p: has_holder[p]),
    }
    parameters = count(untrained_where(lambda p: True))
    num_parameters = sum(leaf.size for leaf in paths.values())
    reason = ", or ".join(words for words, where in reasons.items() if count(where))
    return Untrained(parameters / num_parameters, parameters, reason or None)


def _owners(start: RunState, tiers: int) -> dict[str, Bool[np.ndarray, "T"]]:
    """Whether a tier's updates change a full model's leaf (`scopes.top_tier_model`)."""
    bank = start.leaf_copies
    owners = {path: np.ones(tiers, bool) for path in trees.leaves_by_path(start.params)}
    for path in bank["tier"]:
        row = np.asarray(bank["row"][path])
        owners[path] = row == row[-1]
    return owners | {path: np.zeros(tiers, bool) for path in bank["client"]}


def _holder_limits(run: build.Run) -> tuple[float, Int[np.ndarray, "T"]]:
    """(clients that must train a coordinate, most clients of each tier in a cohort)."""
    min_holders, population = 1.0, run.spec.protection.population
    if run.guarantee.secure_sum != "off":
        min_holders = float(run.config.privacy.secure.minimum)
        if population is not None:
            min_holders /= population.sampling_rate
    max_per_tier = np.full(len(run.budget), len(run.splits.clients))
    if run.config.execution.slots == "stratified" and run.slots is not None:
        max_per_tier = np.asarray(run.slots)
    return min_holders, max_per_tier


def _holder_counts(
    run: build.Run, start: RunState, submodels: list[tuple[Submodel, int]]
) -> dict[str, Any]:
    """{path: number of clients that train a coordinate}, from (sub-model, clients)."""
    number: dict[str, Any] = {}
    for submodel, count in submodels:
        _, cover = problem.masks(run.spec.local, start.params, submodel)
        for path, leaf in trees.leaves_by_path(cover).items():
            number[path] = number.get(path, 0) + count * (np.asarray(leaf) > 0)
    return number


def _distinct_rounds(
    run: build.Run, start: RunState
) -> Iterator[list[list[tuple[Submodel, int]]]]:
    """Yields the rounds that differ from all rounds before.

    A round is, tier by tier, a list of (sub-model, number of clients that have it).
    Clients that the method does not accept are left out.
    """
    method, key = run.spec.local.method, start.key

    @jax.jit
    def cohort_submodels(
        params: Params, number: Array, tiers: Array
    ) -> tuple[Submodel, Array]:
        client_views = evaluate.all_clients(run, tiers)
        round_key = rng.fold_in(key, Role.UNITS, number)

        def per_client(client_view: ClientView) -> Submodel:
            submodel = method.submodel(round_key, number, params, client_view)
            # The other fields do not decide which coordinates are trained.
            extra = None if method.mask is None else submodel.extra
            return Submodel(submodel.forward, submodel.update, None, extra)

        return jax.vmap(per_client)(client_views), jax.vmap(method.accepts)(
            client_views
        )

    signatures, repeats = set(), 0
    last_change = max((number for number, _, _ in run.changes), default=0)
    for number in range(run.guarantee.affordable_rounds(run.config.rounds)):
        tiers = run.tiers_at(number)
        arguments = start.params, jnp.asarray(number, jnp.int32), tiers
        submodels, eligible = jax.device_get(cohort_submodels(*arguments))
        tiers = np.where(eligible, np.asarray(tiers), -1)
        rows = _rows(submodels, len(tiers))
        signature = rows.tobytes() + tiers.tobytes()
        repeats = repeats + 1 if signature in signatures else 0
        if repeats >= _REPEATS and number >= last_change:
            return
        if repeats:
            continue
        signatures.add(signature)
        yield [
            _unique_submodels(submodels, rows, np.flatnonzero(tiers == tier))
            for tier in range(len(run.budget))
        ]


def _unique_submodels(
    submodels: Submodel, rows: np.ndarray, client_index: Int[np.ndarray, "n"]
) -> list[tuple[Submodel, int]]:
    """The distinct sub-models of some clients, and how many clients have each."""
    if not len(client_index):
        return []
    _, first, counts = np.unique(
        rows[client_index], axis=0, return_index=True, return_counts=True
    )
    return [
        (trees.pick(submodels, client_index[index]), int(count))
        for index, count in zip(first, counts, strict=True)
    ]


def _rows(tree: Any, number: int) -> np.ndarray:
    """The bytes of every row of a stack of trees, [number, bytes]."""
    byte_rows = [
        np.ascontiguousarray(leaf).reshape(number, -1).view(np.uint8)
        for leaf in jax.tree.leaves(tree)
    ]
    return np.concatenate([np.zeros((number, 0), np.uint8), *byte_rows], axis=1)


# ------------------------------------------------------------------------------ scalers


def scaler_warnings(run: build.Run, start: RunState) -> list[str]:
    """A warning for every tier whose scaler more than doubles its first logits.

    Only scalers below `SMALL_SCALE` are examined. Activations divided by a share s grow
    by 1 / s with every layer, unless a norm after the layer cancels the factor. The
    first model's logits on eight records, with and without the scaler, decide.

    Args:
        run: the run.
        start: its first state.
    """
    local, warnings = run.spec.local, []
    x = jnp.asarray(run.splits.train.x[:8])
    key = rng.fold_in(start.key, Role.UNITS, start.round)
    tier_clients = evaluate.representatives(run)

    def logit_norm(submodel: Submodel) -> float:
        return float(
            jnp.linalg.norm(inference.predict(local, start.params, x, submodel))
        )

    for tier in np.unique(run.tiers):
        client_view = trees.pick(tier_clients, tier)
        submodel = local.method.submodel(key, start.round, start.params, client_view)
        if submodel.scale is None or submodel.scale >= SMALL_SCALE:
            continue
        ratio = logit_norm(submodel) / max(
            logit_norm(submodel._replace(scale=None)), 1e-30
        )
        if ratio > 2:
            warnings.append(
                f"tier {tier} divides activations by {float(submodel.scale):.3g} and "
                f"no norm takes that back: its first answers are {ratio:.3g} times as "
                "large, and training may diverge (try a norm, local.max_grad_norm, no "
                "scaler)."
            )
    return warnings
