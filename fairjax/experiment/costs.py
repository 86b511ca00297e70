"""What a run costs: every tier's client, the simulating machine, and privacy.

Costs of clients follow from the config, the data and the first state, so they are known
before the first round; see `submodels.cost` for their units.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.core import require, rng
from fairjax.core.objectives import mean_cross_entropy
from fairjax.core.problem import LocalProblem
from fairjax.core.rng import Role
from fairjax.core.types import RunState
from fairjax.data import cohorts
from fairjax.experiment import coverage, evaluate
from fairjax.experiment.config import build
from fairjax.privacy import statement
from fairjax.submodels import cost
from fairjax.submodels.fedavg import fedavg


class Forecast(NamedTuple):
    """What is known about a run before its first round."""

    start: RunState
    """The state before the first round."""
    tiers: list[dict[str, Any]]
    """See `tier_costs`."""
    full_cost: dict[str, int]
    """See `full_model_cost`."""
    untrained: coverage.Untrained
    notes: list[str]
    """Sentences about the coverage, see `coverage.notes`."""


def forecast(run: build.Run, start: RunState) -> Forecast:
    """What a run costs and leaves untrained, from its state before the first round.

    A continued run forecasts from that state too, so it reports the same costs as an
    uninterrupted one.
    """
    tiers, full_cost = tier_costs(run, start), full_model_cost(run, start)
    frozen, notes = coverage.notes(run, start)
    return Forecast(start, tiers, full_cost, frozen, notes)


def tier_costs(run: build.Run, state: RunState) -> list[dict[str, Any]]:
    """What one client of each tier pays (`cost.client_cost`), smallest tier first."""
    tiers = []
    tier_indices = range(len(run.budget))
    for tier, tier_cost in enumerate(_costs(run, run.spec.local, state, tier_indices)):
        clients = int(np.sum(run.tiers == tier))
        size = {"budget": run.budget[tier], "branches": run.branches[tier]}
        tiers.append({"tier": tier, **size, "clients": clients, **tier_cost})
    return tiers


def full_model_cost(run: build.Run, state: RunState) -> dict[str, int]:
    """What a client would pay that trains the plain model, as in FedAvg."""
    local = run.spec.local
    local = local._replace(
        method=fedavg(local.model.axes), objective=mean_cross_entropy()
    )
    (full_cost,) = _costs(run, local, state, range(1))
    return full_cost


def _costs(
    run: build.Run, local: LocalProblem, state: RunState, tiers: range
) -> Iterator[dict[str, int]]:
    tier_clients = evaluate.representatives(run)
    units_key = rng.fold_in(state.key, Role.UNITS, state.round)
    for tier in tiers:
        client = jax.tree.map(lambda leaf, tier=tier: leaf[tier], tier_clients)
        yield cost.client_cost(
            local.model,
            local.method,
            local.objective,
            local.optimizer,
            state.params,
            local.method.submodel(units_key, state.round, state.params, client),
            client,
            x=jnp.asarray(run.splits.train.x[:1]),
        )


def simulation_cost(
    run: build.Run,
    state: RunState,
    tiers: list[dict[str, Any]],
    program: jax.stages.Compiled,
) -> dict[str, Any]:
    """What a round costs this machine, beside what it would cost the clients.

    In the masked form every slot computes what the richest tier computes, at full
    width. In the sliced form it computes at its tier's size, whatever a method narrows
    a step to. Padded steps and padded slots compute too, including the slots that fill
    up devices.

    Args:
        run: the run.
        state: any state of it.
        tiers: see `tier_costs`.
        program: the compiled round.

    Returns:
        {"form", "flops_per_round" of all devices, "temporary_bytes" of one device or
        null where the backend does not say}.
    """
    local = run.spec.local
    method = local.method
    method = method._replace(local=method.local._replace(per_step_sizes=None))
    slots = run.slots or cohorts.slots(
        run.tiers, len(run.budget), run.cohort, "stratified"
    )
    if run.form == "masked":
        full_method, last = method._replace(size=None), len(tiers) - 1
        tiers = tiers[last:]
        if full_method != local.method:
            full_problem = local._replace(method=full_method)
            tiers = [*_costs(run, full_problem, state, range(last, last + 1))]
        slots = (sum(slots),)
    elif local.method.local.per_step_sizes is not None:
        widest_problem = local._replace(method=method)
        tiers = [*_costs(run, widest_problem, state, range(len(tiers)))]
    devices = 1 if run.mesh is None else run.mesh.size
    slots = [-(-count // devices) * devices for count in slots]
    steps, size = local.schedule.steps, local.schedule.batch_size
    record_dp = run.dpsgd
    if record_dp is not None and record_dp.slots is not None:
        size = record_dp.slots * (record_dp.per_patient or 1)
    flops = [
        count * steps * (size * tier_cost["flops_train"] + tier_cost["flops_step"])
        for count, tier_cost in zip(slots, tiers, strict=True)
    ]
    memory = program.memory_analysis()
    return {
        "form": run.form,
        "flops_per_round": sum(flops),
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
    }


def privacy_of(run: build.Run, rounds: int) -> dict[str, Any]:
    """summary.json's "privacy" of a run after `rounds` rounds."""
    summary = run.guarantee.summary(rounds)
    if "notes" in summary:
        summary["notes"] = privacy_notes(run, rounds)
    return summary


def privacy_notes(run: build.Run, rounds: int) -> list[str]:
    """What the run's guarantee is easily taken for and does not cover, in sentences."""
    notes = run.guarantee.notes(rounds)
    origin = run.config.model.init_from
    if origin is None or not run.guarantee.parties:
        return notes
    folder, source_info = pathlib.Path(origin), {}
    for name in ("config.json", "summary.json"):
        path = folder / name
        if path.exists():
            source_info |= require.parse_json(
                str(path), path.read_text(errors="replace"), dict
            )
    is_same_data = (source_info.get("data") or {}).get("hash") == run.splits.hash
    return [
        *notes,
        statement.origin(
            origin, source_info.get("privacy") or {}, same_data=is_same_data
        ),
    ]
