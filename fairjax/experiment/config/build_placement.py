"""Fourth stage of a run: where its records lie and how its clients run on devices."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from fairjax.core import layout, require
from fairjax.core.protocols import Layout
from fairjax.core.rule import Rule
from fairjax.core.spec import Spec
from fairjax.core.types import FederatedData, Model
from fairjax.data import cohorts, pixels
from fairjax.experiment.config import lookup, paths, registry
from fairjax.experiment.config.build_data import DataFacts, sample_shape
from fairjax.experiment.config.build_model import ModelChoice
from fairjax.experiment.config.schema import Config, Execution
from fairjax.privacy.guarantee import PoissonCohort


class Placement(NamedTuple):
    """How the cohort is laid out and where records lie; see `build.Run`."""

    changes: tuple[tuple[int, int, int], ...]
    layout: Layout
    chunked_layout: Callable[[int], Layout] | None
    memory: float
    mesh: Mesh | None
    form: str
    slots: tuple[int, ...] | None
    records: str
    choices: dict[str, str]
    """What every "auto" stands for, and why."""


def placement(
    c: Config,
    facts: DataFacts,
    model_choice: ModelChoice,
    spec: Spec,
    draw: PoissonCohort | None,
) -> Placement:
    """The layout of a checked config for what it trains.

    Raises:
        InputError: the run cannot have the form, slots, devices or place of records
            that the config asks for.
    """
    splits, model = facts.splits, model_choice.model
    shapes = jax.eval_shape(model.init, jax.random.key(0), sample_shape(splits))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    with paths.field_names(paths.fields_of(Execution, "execution")):
        client_layout = layout.choose_batching(
            c.execution.batching,
            chunk=c.execution.chunk,
            backend=jax.default_backend(),
            parameters=parameters,
            convolutional=registry.MODELS[c.model.name].convolutional,
            clients=facts.cohort if draw is None else draw.slots,
        )
        form, form_reason = layout.choose_form(
            c.execution.form,
            obstacle=_slicing_obstacle(spec),
            parameters=parameters,
        )
        mesh = layout.make_mesh(c.execution.devices)
    if form == "sliced":
        _check_slices(c, spec)
    changes = tuple(sorted(c.tiers.changes))
    for _, client_index, _ in changes:
        last_client = len(facts.tiers) - 1
        require.in_range("tiers.changes hospital", client_index, 0, last_client)
    slots = None
    if form == "sliced" or c.execution.slots == "stratified":
        slots = _slots(c, facts, changes) if draw is None else draw.by_tier
    memory = _memory(c)
    train = pixels.to_uint8(model_choice.pixels, splits.train)
    records, records_reason = _records(
        c, memory, train, model, spec.rule, sample_shape(splits)
    )
    on_devices = functools.partial(
        _on_devices, mesh=mesh, slots=slots if form == "sliced" else None
    )
    uses_vmap = client_layout.reason.startswith("vmap: ")
    num_devices = 1 if mesh is None else mesh.size
    devices_reason = "asked for" if c.execution.devices else "all that there are"
    return Placement(
        changes=changes,
        layout=on_devices(client_layout),
        chunked_layout=(lambda size: on_devices(layout.chunked(size)))
        if c.execution.batching == "auto" and uses_vmap
        else None,
        memory=memory,
        mesh=mesh,
        form=form,
        slots=slots,
        records=records,
        choices={
            "execution.form": form_reason,
            "execution.batching": client_layout.reason,
            "execution.devices": f"{num_devices}: {devices_reason}",
            "execution.records": records_reason,
        },
    )


def _on_devices(
    client_layout: Layout, *, mesh: Mesh | None, slots: tuple[int, ...] | None
) -> Layout:
    """The layout on the devices of `mesh`, sliced to the slots of every tier."""
    if mesh is not None:
        client_layout = layout.sharded(client_layout)
    return layout.sliced(client_layout, slots) if slots else client_layout


def _check_slices(c: Config, spec: Spec) -> None:
    """Refuses options with which the model has no sub-model of some tier's size."""
    model, method = spec.local.model, spec.local.method
    assert model.resize is not None
    assert method.size is not None
    with lookup.model_options(c):
        for tier in range(len(c.tiers.budget)):
            model.resize(method.size(tier))


def _slicing_obstacle(spec: Spec) -> str | None:
    """Why the method's sub-models of this model cannot be sliced; None if they can."""
    model, method = spec.local.model, spec.local.method
    if method.size is None:
        return "the method's sub-models have no static size"
    if method.memory is not None and method.memory.has_plain_shapes:
        return "the method keeps a memory of the plain model's shape"
    if model.resize is None:
        return "the model cannot be resized"
    if spec.local.dp is not None:
        return "the noise of record_dp is drawn at full width"
    return None


def _slots(
    c: Config, facts: DataFacts, changes: tuple[tuple[int, int, int], ...]
) -> tuple[int, ...]:
    """Slots of every tier, enough for it after any of the changes."""
    tiers = facts.tiers
    num_tiers = len(np.unique(tiers))
    if c.execution.slots == "stratified" and facts.cohort < num_tiers:
        expected = (
            f"at least {num_tiers}, a hospital of every tier, with execution.slots "
        )
        require.fail("clients_per_round", f"{expected}stratified", facts.cohort)
    phases = [tiers]
    for _, client_index, tier in changes:
        phases.append(np.where(np.arange(len(tiers)) == client_index, tier, phases[-1]))
    phase_slots = [
        cohorts.slots(phase, len(c.tiers.budget), facts.cohort, c.execution.slots)
        for phase in phases
    ]
    return tuple(max(column) for column in zip(*phase_slots, strict=True))


def _memory(c: Config) -> float:
    """MiB of a device that the run may take; infinity without a limit."""
    if c.execution.memory:
        return c.execution.memory
    bytes_limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return math.inf if bytes_limit is None else bytes_limit / 2**20


def _records(
    c: Config,
    memory: float,
    train: FederatedData,
    model: Model,
    rule: Rule,
    sample: jax.ShapeDtypeStruct,
) -> tuple[str, str]:
    """(where training records lie, reason)."""
    size = sum(leaf.nbytes for leaf in (train.x, train.y, train.group)) / 2**20
    setting = c.execution.records
    if setting == "device" or (setting == "auto" and size <= memory / 2):
        reason = "asked for" if setting == "device" else f"{size:.3g} MiB"
        return "device", f"device: {reason}"
    obstacle = None
    if jax.eval_shape(_moments_of(model), jax.random.key(0), sample) is not None:
        obstacle = "batch norms take moments of all records"
    elif rule.local_leaves is not None or rule.personal is not None:
        obstacle = f"rule {c.fairness.rule} keeps models at hospitals"
    elif c.baselines:
        obstacle = "baselines train every hospital alone"
    if obstacle is not None and setting == "host":
        require.fail("execution.records", f"device: {obstacle}", "host")
    if obstacle is not None:
        return "device", f"device: {obstacle}"
    reason = f"{size:.3g} MiB are above half of {memory:.3g}"
    return "host", f"host: {'asked for' if setting == 'host' else reason}"


def _moments_of(model: Model) -> Callable[[Array, Array], Any]:
    def stats(key: Array, x: Array) -> Any:
        return model.apply(model.init(key, x), x, train=True).stats

    return stats
