"""From a config to a run: `run` checks the config, loads the data, builds functions.

The stages are `build_data`, `build_model`, `build_round` and `build_placement`, in this
order; each refuses what it alone can tell.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key
from ml_collections import ConfigDict

from fairjax.core import rng, trees
from fairjax.core.protocols import Layout
from fairjax.core.rng import Role
from fairjax.core.spec import Spec
from fairjax.core.types import Cohort, LeafAxes
from fairjax.data import cohorts, federation, pixels
from fairjax.experiment import model_selection
from fairjax.experiment.config import (
    conversion,
    entries,
    registry,
    renames,
    validate,
)
from fairjax.experiment.config.build_data import data_facts
from fairjax.experiment.config.build_model import model_choice
from fairjax.experiment.config.build_placement import placement
from fairjax.experiment.config.build_round import round_spec, spec_with_values
from fairjax.experiment.config.schema import Config
from fairjax.experiment.config.validate import CheckedConfig
from fairjax.models import convolutions
from fairjax.privacy.guarantee import Guarantee
from fairjax.privacy.records import DPSGD
from fairjax.robust import faults as injected
from fairjax.robust.faults import Fault

VALUES = (
    "local.learning_rate",
    "server.learning_rate",
    "fairness.q_ffl.q",
    "fairness.term.t",
    "privacy.noise_multiplier",
)
"""Fields that a compiled program takes as numbers: they change none of its shapes."""
UNSELECTED = "no round: there are no validation records"


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run needs, resolved."""

    config: Config
    splits: federation.Splits
    tiers: Int[np.ndarray, "N"]
    """Tier of every client before the first round."""
    client_groups: tuple[str, ...]
    """Names of the groups of clients, in order; () without groups."""
    group_of: tuple[int, ...]
    """Group of every client."""
    changes: tuple[tuple[int, int, int], ...]
    """(round, client, tier): the client's tier from that round on, in order."""
    budget: tuple[float, ...]
    branches: tuple[int, ...]
    """Branches per layer, of every tier."""
    cohort: int
    """K."""
    criterion: str
    """The metric that selects the round to hand out, see `model_selection.best`."""
    spec: Spec
    with_values: Callable[[Mapping[str, Any]], Spec]
    """{field in `VALUES`: value, traced or not} -> the spec with these values."""
    layout: Layout
    """The layout of a program on the devices of `mesh`."""
    chunked_layout: Callable[[int], Layout] | None
    """Number of clients side by side -> layout; None where the number is settled."""
    memory: float
    """MiB of a device that the run may take; infinity without a limit."""
    mesh: Mesh | None
    """See `layout.on_devices`."""
    form: str
    """"masked" or "sliced"."""
    slots: tuple[int, ...] | None
    """Slots of every tier in a cohort; None where clients of all tiers mix."""
    records: str
    """Where training records lie: "device" or "host"."""
    pixels: pixels.Pixels | None
    """How the model reads images kept as bytes; None: inputs lie as they are."""
    guarantee: Guarantee
    """The run's privacy guarantee."""
    faults: tuple[Fault, ...]
    """The faults that are injected at clients."""
    choices: dict[str, str]
    """What every "auto" stands for in this run, and why."""

    @property
    def dpsgd(self) -> DPSGD | None:
        """The DP-SGD settings of the local steps; None unless they run under it."""
        dp = self.spec.local.dp
        assert dp is None or isinstance(dp, DPSGD)
        return dp

    def tiers_at(self, finished: Int[Array, ""] | int) -> Int[Array, "N"]:
        """The tier of every client in the round after `finished` ones."""
        tiers = jnp.asarray(self.tiers)
        for number, client_index, tier in self.changes:
            updated_tiers = tiers.at[client_index].set(tier)
            tiers = jnp.where(jnp.asarray(finished) + 1 >= number, updated_tiers, tiers)
        return tiers

    def draw(self, key: Key[Array, ""], finished: Int[Array, ""]) -> Cohort:
        """The cohort of the round after `finished` ones.

        It follows from the run's key and the round alone.
        """
        fault_key = rng.fold_in(key, Role.FAULT, finished)
        key = rng.fold_in(key, Role.COHORT)
        poisson_cohort = self.guarantee.draw
        if poisson_cohort is not None:
            slots = poisson_cohort.cohort_slots(self.form == "sliced")
            cohort = cohorts.poisson(
                key, finished, self.tiers, poisson_cohort.sampling_rate, slots
            )
        else:
            cohort = cohorts.sample(
                key,
                finished,
                self.tiers_at(finished) if self.changes else self.tiers,
                self.cohort,
                slots=self.slots,
                scheme=self.config.execution.slots,
            )
        return injected.drop_absent(fault_key, self.faults, cohort)


def run(config: ConfigDict, *, vmapped: bool = False) -> Run:
    """Checks a config, loads its data and turns names into functions.

    Args:
        config: see `fairjax.experiment.config.default`.
        vmapped: the caller will vmap the run over models; convolutions are then lowered
            for that.

    Raises:
        InputError: as `validate.check` and `checked_run`.
    """
    return checked_run(validate.check(config), vmapped=vmapped)


def checked_run(checked: CheckedConfig, *, vmapped: bool = False) -> Run:
    """Loads the data of a config and turns names into functions.

    Args:
        checked: the config, from `validate.check`.
        vmapped: as for `run`.

    Raises:
        InputError: what only the data can tell: an unreadable file, more clients than
            records, a cohort above the number of clients.
    """
    given, c = checked.config, checked.config
    if vmapped:
        backend = jax.default_backend()
        conv = convolutions.lowering(c.execution.conv, backend, vmapped=True)
        c = conversion.with_values(c, {"execution.conv": conv})
        checked = checked._replace(config=c)
    facts = data_facts(c)
    chosen_model = model_choice(c, facts.splits)
    spec, guarantee = round_spec(checked, facts, chosen_model.model)
    place = placement(c, facts, chosen_model, spec, guarantee.draw)
    criterion, criterion_reason = model_selection.resolve(
        c.selection_metric, len(facts.splits.classes)
    )
    is_selected = bool(facts.splits.rows["val"])
    selection = f"{criterion}: {criterion_reason}" if is_selected else UNSELECTED
    choices = {
        "selection_metric": selection,
        **place.choices,
        "execution.pixels": chosen_model.reason,
    }
    return Run(
        config=given,
        splits=facts.splits,
        tiers=facts.tiers,
        client_groups=facts.client_groups,
        group_of=facts.group_of,
        changes=place.changes,
        budget=c.tiers.budget,
        branches=registry.branches_of(c),
        cohort=facts.cohort,
        criterion=criterion,
        spec=spec,
        with_values=functools.partial(
            spec_with_values, c, facts=facts, model=chosen_model.model
        ),
        layout=place.layout,
        chunked_layout=place.chunked_layout,
        memory=place.memory,
        mesh=place.mesh,
        form=place.form,
        slots=place.slots,
        records=place.records,
        pixels=chosen_model.pixels,
        guarantee=guarantee,
        faults=facts.faults,
        choices=choices | _conditional_choices(c, facts.splits.classes),
    )


def _conditional_choices(c: Config, classes: tuple[str, ...]) -> dict[str, str]:
    """Choices that only runs with two classes, or with convolutions, have."""
    choices = {}
    if len(classes) == 2:
        has_positive = c.data.positive is not None
        reason = "asked for" if has_positive else f"of {' and '.join(sorted(classes))}"
        choices["data.positive"] = f"{classes[1]}: {reason}"
    if registry.MODELS[c.model.name].convolutional:
        conv, backend = entries.lowering(c), jax.default_backend()
        reason = f"on {backend}" if c.execution.conv == "auto" else "asked for"
        choices["execution.conv"] = f"{conv}: {reason}"
    return choices


def identity(run: Run) -> dict[str, Any]:
    """What decides the meaning of a run's states, by name, as JSON can hold it.

    That is the fields of the config, a hash of the data, and a digest of every tier's
    sub-model: the model's axes and the tier's size along them. Fields that say how the
    run is executed and saved, or where its data lie, decide nothing; neither do the
    rounds of a run that may be extended.

    Args:
        run: a run.
    """
    fields = {
        path: value
        for path, value in renames.flatten(conversion.to_plain(run.config)).items()
        if path.partition(".")[0] not in ("execution", "checkpoint")
        and path not in ("data.data_dir", "data.path")
        and not (path == "rounds" and validate.is_extendable(run.config))
    }
    model, method = run.spec.local.model, run.spec.local.method
    leaves = trees.leaves_by_path(
        model.axes.tree, is_leaf=lambda x: isinstance(x, LeafAxes)
    )

    def submodel_digest(tier: int) -> str:
        size = None if method.size is None else method.size(tier)
        fingerprint = [leaves, model.axes._replace(tree=None), size]
        fingerprint += [run.budget[tier], run.branches[tier]]
        return hashlib.sha256(
            json.dumps(fingerprint, sort_keys=True).encode()
        ).hexdigest()

    tiers = {f"tier {t}": submodel_digest(t) for t in range(len(run.budget))}
    return fields | {"data": run.splits.hash} | tiers
