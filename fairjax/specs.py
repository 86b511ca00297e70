"""From a config to checked, frozen specs: the one room of ConfigDicts.

`check` refuses a config that cannot run without touching anything; `build` loads the
data and turns names into functions. Every refusal names the field as the user writes
it.
"""

import dataclasses
import functools
import hashlib
import json
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key
from ml_collections import ConfigDict

from fairjax import (
    checks,
    client,
    defences,
    guarantees,
    keys,
    layout,
    names,
    round,
    selection,
    trees,
)
from fairjax.data import augment, datasets, federation, pixels
from fairjax.fairness import compose, personal
from fairjax.keys import Role
from fairjax.models import adapt, layers
from fairjax.robust import faults as injected
from fairjax.robust.faults import Fault
from fairjax.submodels import axes, branches, dynamicfl, fedavg, partial
from fairjax.submodels.ladder import KINDS
from fairjax.types import Cohort, Federation, Layout, LeafAxes, Method, Model, Rule

RECORDS = ("auto", "device", "host")
PIXELS = ("auto", "uint8", "float32")
VALUES = (
    "local.learning_rate",
    "server.learning_rate",
    "fairness.q_ffl.q",
    "fairness.term.t",
    "privacy.noise_multiplier",
)
"""Fields that are numbers of a program and not its shape."""
MOST_PARAMETERS = 2**34
"""Of a model: 64 GiB of float32."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run needs, resolved."""

    config: dict[str, Any]
    splits: federation.Splits
    tiers: Int[np.ndarray, "N"]
    """At the start."""
    hospital_groups: tuple[str, ...]
    """Names of the groups of hospitals, in order; () without any."""
    group_of: tuple[int, ...]
    """Which one every hospital is in."""
    changes: tuple[tuple[int, int, int], ...]
    """(round, client, tier): the client's tier from that round on, in order."""
    budget: tuple[float, ...]
    branches: tuple[int, ...]
    """Per layer, of every tier."""
    cohort: int
    """K."""
    spec: round.Spec
    with_values: Callable[[Mapping[str, Any]], round.Spec]
    """{field of `VALUES`: value, traced or not} -> the spec with these."""
    layout: Layout
    """For a program on the devices of `mesh`."""
    chunked: Callable[[int], Layout] | None
    """The same with so many clients side by side; None where that is settled."""
    memory: float
    """MiB of a device that the run may take; infinity without a limit."""
    mesh: Mesh | None
    """See `layout.on_devices`."""
    form: str
    """"masked" or "sliced"."""
    slots: tuple[int, ...] | None
    """Slots of every tier in a cohort; None where tiers come mixed."""
    records: str
    """Where training records lie: "device" or "host"."""
    pixels: pixels.Pixels | None
    """Of what is on a device while a run trains; None: inputs as they are."""
    guarantee: guarantees.Guarantee
    """Of the run's privacy."""
    faults: tuple[Fault, ...]
    """What goes wrong at hospitals."""
    choices: dict[str, str]
    """What every "auto" stands for here, and why."""

    def tiers_at(self, finished: Int[Array, ""] | int) -> Int[Array, "N"]:
        """The tier of every client in the round after `finished` ones."""
        tiers = jnp.asarray(self.tiers)
        for number, who, tier in self.changes:
            changed = tiers.at[who].set(tier)
            tiers = jnp.where(jnp.asarray(finished) + 1 >= number, changed, tiers)
        return tiers

    def draw(self, key: Key[Array, ""], finished: Int[Array, ""]) -> Cohort:
        """The cohort of the round after `finished` ones.

        It follows from the run's key and the round alone.
        """
        fault_key = keys.at(key, Role.FAULT, finished)
        key = keys.at(key, Role.COHORT)
        drawn = self.guarantee.draw
        if drawn is not None:
            slots = drawn.laid(self.form == "sliced")
            cohort = federation.poisson(key, finished, self.tiers, drawn.rate, slots)
        else:
            cohort = federation.sample(
                key,
                finished,
                self.tiers_at(finished) if self.changes else self.tiers,
                self.cohort,
                slots=self.slots,
                law=self.config["execution"]["slots"],
            )
        return injected.present(fault_key, self.faults, cohort)


def check(config: ConfigDict, overridden: Collection[str] = ()) -> None:
    """Refuses a config that no data set could make run.

    Args:
        config: a full config, see configs/default.py.
        overridden: paths of the fields that the user set by hand; one that belongs to a
            model, method or rule that is not in use is refused.

    Raises:
        InputError: names the field, what was expected and what came.
    """
    c: Any = config
    c.lock()
    # Devices count in int32.
    for path, value in flat(plain(config)).items():
        for number in jax.tree.leaves(value):
            if isinstance(number, int) and not isinstance(number, bool):
                checks.in_range(path, number, -(2**31), 2**31 - 1)
    checks.in_range("seed", c.seed, 0, 2**31 - 1)
    if c.data.partition.seed is not None:
        checks.in_range("data.partition.seed", c.data.partition.seed, 0, 2**31 - 1)
    checks.positive("rounds", c.rounds)
    checks.in_range("cohort", c.cohort, 0)
    checks.positive("eval_every", c.eval_every)
    checks.one_of("select", c.select, selection.CRITERIA)

    checks.one_of("data.name", c.data.name, datasets.DATASETS)
    for entry in c.data.group:
        if not isinstance(entry, str):
            checks.fail("data.group", "names of csv columns", entry)
    checks.one_of("data.normalise", c.data.normalise, names.NORMALISATIONS)
    for name in c.data.augment:
        checks.one_of("data.augment", name, augment.AUGMENTS)
    part = c.data.partition
    checks.one_of("data.partition.name", part.name, federation.LAWS)
    checks.positive("data.partition.num_clients", part.num_clients)
    checks.positive("data.partition.alpha", part.alpha)
    checks.positive("data.partition.min_size", part.min_size)
    checks.count("data.partition.shards", part.shards)
    checks.count("data.partition.classes", part.classes)
    checks.in_range(
        "data.partition.test_fraction",
        part.test_fraction,
        0,
        1,
        open_low=True,
        open_high=True,
    )
    checks.in_range(
        "data.partition.val_fraction",
        part.val_fraction,
        0,
        1 - part.test_fraction,
        open_high=True,
    )

    checks.one_of("model.name", c.model.name, names.MODELS)
    for name in names.MODELS:
        for field, value in c.model[name].items():
            for width in value if isinstance(value, tuple) else ():
                checks.count(f"model.{name}.{field}", width)
    checks.in_range("model.cnn.group_size", c.model.cnn.group_size, 0)
    for name in ("resmlp", "resnet"):
        checks.one_of(f"model.{name}.moments", c.model[name].moments, client.MOMENTS)

    checks.one_of("submodel.name", c.submodel.name, names.METHODS)
    _check_submodel(c.submodel)
    if not c.tiers.budget:
        checks.fail("tiers.budget", "at least one tier", c.tiers.budget)
    for share in c.tiers.budget:
        checks.in_range("tiers.budget", share, 0, 1, open_low=True)
    checks.non_decreasing("tiers.budget", c.tiers.budget)
    _check_branches(c)
    if len(c.tiers.share) != len(c.tiers.budget):
        checks.fail(
            "tiers.share",
            f"{len(c.tiers.budget)} values, as tiers.budget",
            c.tiers.share,
        )
    for share in c.tiers.share:
        checks.in_range("tiers.share", share, 0)
    checks.positive("sum of tiers.share", math.fsum(c.tiers.share))
    checks.one_of("tiers.assign", c.tiers.assign, names.ASSIGNMENTS)
    checks.in_range("tiers.correlation", c.tiers.correlation, 0, 1)
    _check_schedule(c)
    last = len(c.tiers.budget) - 1
    checks.in_range("submodel.fedavg.tier", c.submodel.fedavg.tier, 0, last)

    if c.local.steps is None:
        checks.positive("local.epochs", c.local.epochs)
    else:
        checks.positive("local.steps", c.local.steps)
    checks.positive("local.batch_size", c.local.batch_size)
    checks.one_of("local.optimizer", c.local.optimizer, names.OPTIMIZERS)
    checks.in_range("local.learning_rate", c.local.learning_rate, 0)
    checks.one_of("local.schedule", c.local.schedule, names.SCHEDULES)
    checks.in_range("local.momentum", c.local.momentum, 0, 1, open_high=True)
    if c.local.momentum and c.local.optimizer != "sgd":
        checks.fail("local.momentum", "0 with optimizer adam", c.local.momentum)
    checks.in_range("local.weight_decay", c.local.weight_decay, 0)
    checks.in_range("local.prox", c.local.prox, 0)
    checks.in_range("local.clip", c.local.clip, 0)
    checks.one_of("local.class_weights", c.local.class_weights, names.CLASS_WEIGHTS)

    checks.one_of("server.optimizer", c.server.optimizer, names.SERVERS)
    checks.in_range("server.learning_rate", c.server.learning_rate, 0)
    _check_rule(c)
    guarantees.check(c)
    defences.check(c, names.rule(c))
    _check_form(c)

    checks.one_of("execution.form", c.execution.form, layout.FORMS)
    checks.one_of("execution.slots", c.execution.slots, names.SLOTS)
    checks.one_of("execution.batching", c.execution.batching, layout.BATCHINGS)
    checks.positive("execution.chunk", c.execution.chunk)
    checks.one_of("execution.conv", c.execution.conv, names.CONVOLUTIONS)
    checks.positive("execution.unroll", c.execution.unroll)
    checks.one_of("execution.records", c.execution.records, RECORDS)
    checks.one_of("execution.pixels", c.execution.pixels, PIXELS)
    checks.in_range("execution.memory", c.execution.memory, 0)
    checks.one_of("execution.dtype", c.execution.dtype, adapt.DTYPES)
    checks.in_range("execution.devices", c.execution.devices, 0)
    checks.positive("checkpoint.every", c.checkpoint.every)
    checks.in_range("checkpoint.keep", c.checkpoint.keep, 2)
    _check_overridden(c, overridden)


def _check_branches(c: Any) -> None:
    numbers = c.tiers.branches
    if not numbers:
        return
    if len(numbers) != len(c.tiers.budget):
        what = f"{len(c.tiers.budget)} values, as tiers.budget"
        checks.fail("tiers.branches", what, numbers)
    for number in numbers:
        checks.in_range("tiers.branches", number, 0)
    checks.non_decreasing("tiers.branches", numbers)
    if any(numbers) and not names.METHODS[c.submodel.name].branches:
        named = [name for name, family in names.METHODS.items() if family.branches]
        what = f"no branches unless submodel.name is {' or '.join(named)}"
        checks.fail("tiers.branches", what, numbers)


def _check_schedule(c: Any) -> None:
    where = "tiers.schedule"
    for change in c.tiers.schedule:
        if not isinstance(change, tuple) or len(change) != 3:
            checks.fail(where, "(round, hospital, tier) for every change", change)
        number, who, tier = change
        checks.count(f"{where} round", number)
        checks.in_range(f"{where} hospital", who, 0)
        checks.in_range(f"{where} tier", tier, 0, len(c.tiers.budget) - 1)
    if c.tiers.schedule and c.execution.slots == "stratified":
        what = "padded with a tiers.schedule, which changes how many a tier has"
        checks.fail("execution.slots", what, "stratified")


def _check_submodel(c: Any) -> None:
    """Options that no model is needed to judge."""
    checks.one_of("submodel.fedavg.mode", c.fedavg.mode, fedavg.MODES)
    if c.fedrolex.overlap is not None:
        checks.in_range("submodel.fedrolex.overlap", c.fedrolex.overlap, 0, 1)
    checks.one_of("submodel.partial.mode", c.partial.mode, partial.MODES)
    checks.positive("submodel.depthfl.ramp", c.depthfl.ramp)
    checks.in_range("submodel.depthfl.feddyn", c.depthfl.feddyn, 0)
    checks.in_range("submodel.inclusivefl.beta", c.inclusivefl.beta, 0, 1)
    checks.in_range("submodel.scalefl.gamma", c.scalefl.gamma, 0)
    checks.positive("submodel.scalefl.temperature", c.scalefl.temperature)
    checks.in_range("submodel.scalefl.warmup", c.scalefl.warmup, 0, 1)
    for name in ("scalefl", "nefl"):
        for share in c[name].width:
            where = f"submodel.{name}.width"
            checks.in_range(where, share, 0, 1, open_low=True)
    checks.count("submodel.lora.rank", c.lora.rank)
    checks.positive("submodel.lora.alpha", c.lora.alpha)
    for family in c.dynamicfl.families:
        checks.one_of("submodel.dynamicfl.families", family, branches.FAMILIES)
    checks.count("submodel.dynamicfl.rank", c.dynamicfl.rank)
    inner = c.dynamicfl.inner
    checks.in_range("submodel.dynamicfl.inner", inner, 0, 1, open_low=True)
    for field, known in {
        "branch_form": dynamicfl.FORMS,
        "structure": ("auto", *dynamicfl.STRUCTURES),
        "sensitivity": tuple(dynamicfl.SENSITIVITIES),
    }.items():
        checks.one_of(f"submodel.dynamicfl.{field}", c.dynamicfl[field], known)
    checks.in_range("submodel.dynamicfl.moved", c.dynamicfl.moved, 0, 1)
    for kind in c.ladder.kinds:
        checks.one_of("submodel.ladder.kinds", kind, KINDS)


def _check_form(c: Any) -> None:
    """Refuses what would part a plain model's gradients from those of branches."""
    if not names.METHODS[c.submodel.name].branches:
        return
    options = c.submodel.dynamicfl
    form, structure = options.branch_form, names.structure_of(c)
    dynamicfl.check_form(form, options.families, structure, options.sensitivity)
    if form != "preconditioned":
        return
    why = "with submodel.dynamicfl.branch_form preconditioned"
    if c.local.optimizer != "sgd":
        what = f"sgd {why}, which no adaptive rate keeps equal to branches"
        checks.fail("local.optimizer", what, c.local.optimizer)
    if c.local.clip:
        what = f"0 {why}: branches have another gradient norm"
        checks.fail("local.clip", what, c.local.clip)
    if c.privacy.mechanism == "record_dp":
        what = f"another than record_dp {why}: it clips a gradient norm"
        checks.fail("privacy.mechanism", what, c.privacy.mechanism)


def _check_rule(c: Any) -> None:
    """The rule itself checks its options when it is made."""
    parts = c.fairness.rule.split("+")
    for part in parts:
        checks.one_of("fairness.rule", part, names.RULES)
    checks.one_of("fairness.denominator", c.fairness.denominator, names.DENOMINATORS)
    wanted = [part for part in parts if names.by_group(c, part)]
    if c.fairness.group is not None and not wanted:
        what = f"none with rule {c.fairness.rule}, which asks for no attribute"
        checks.fail("fairness.group", what, c.fairness.group)
    _check_hospital_group(c, parts)
    if "q_fedavg" in parts and c.local.optimizer != "sgd":
        what = "sgd for q_fedavg, whose Lipschitz estimate is 1 / learning_rate"
        checks.fail("local.optimizer", what, c.local.optimizer)
    made = names.rule(c)
    if made.combine is not None and c.fairness.denominator == "fixed":
        what = f"cover with rule {c.fairness.rule}, which has denominators of its own"
        checks.fail("fairness.denominator", what, "fixed")


def _check_hospital_group(c: Any, parts: list[str]) -> None:
    where, given = "fairness.hospital_group", c.fairness.hospital_group
    for name in given:
        if not isinstance(name, str) or not name:
            checks.fail(where, "a group's name for every hospital", name)
    if given and len(set(given)) < 2:
        checks.fail(where, "at least two groups", given)
    wanting = [part for part in parts if names.by_hospitals(c, part)]
    if wanting and not given:
        what = f"a group's name for every hospital with rule {wanting[0]} by them"
        checks.fail(where, what, given)


def _check_overridden(c: Any, overridden: Collection[str]) -> None:
    in_use = {
        "model": ("model.name", c.model.name, names.MODELS),
        "submodel": ("submodel.name", c.submodel.name, names.METHODS),
        "fairness": ("fairness.rule", c.fairness.rule, names.RULES),
    }
    for path in overridden:
        group, _, rest = path.partition(".")
        owner = rest.partition(".")[0]
        if group == "privacy":
            guarantees.check_used(path, owner, c)
        if group == "robust":
            defences.check_used(path, c)
        if group not in in_use:
            continue
        field, chosen, table = in_use[group]
        shared = owner == "dynamicfl" and names.METHODS[c.submodel.name].branches
        if owner in table and owner not in chosen.split("+") and not shared:
            raise checks.InputError(
                f"{path}: expected {field}={owner!r} for this option; got {chosen!r}"
            )


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dicts that JSON can hold (tuples become lists)."""
    return _remade(config.to_dict(), tuple, list)


def from_plain(config: dict[str, Any]) -> ConfigDict:
    """The inverse of `plain`."""
    return ConfigDict(_remade(config, list, tuple))


def _remade(value: Any, old: type, new: type) -> Any:
    """Sequences of one type as those of another, however deep."""
    if isinstance(value, dict):
        return {name: _remade(inner, old, new) for name, inner in value.items()}
    if isinstance(value, old):
        return new(_remade(inner, old, new) for inner in value)
    return value


def build(config: ConfigDict, *, vmapped: bool = False) -> Run:
    """Loads the data and turns names into functions.

    Args:
        config: see configs/default.py.
        vmapped: the caller will vmap what is built over models: convolutions are then
            lowered for that.

    Raises:
        InputError: as `check`, and for what only the data can tell: an unreadable file,
            more clients than records, a cohort above the number of hospitals.
    """
    check(config)
    c: Any = config
    if vmapped:
        c = config.copy_and_resolve_references()
        backend = jax.default_backend()
        c.execution.conv = layers.lowering(c.execution.conv, backend, vmapped=True)
    facts = _facts(c)
    splits, tiers, cohort = facts.splits, facts.tiers, facts.cohort
    model, bytes_, stored = _model(c, splits)
    spec, guarantee = _spec(c, facts, model)
    method, draw = spec.local.method, guarantee.draw
    sample = _sample(splits)
    shapes = jax.eval_shape(model.init, jax.random.key(0), sample)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    laid = layout.choose(
        c.execution.batching,
        chunk=c.execution.chunk,
        backend=jax.default_backend(),
        parameters=parameters,
        convolutional=c.model.name in names.CONVOLUTIONAL,
        clients=cohort if draw is None else draw.slots,
    )
    form, why = layout.form(
        c.execution.form,
        obstacle=_not_sliced(model, method, guarantee),
        parameters=parameters,
    )
    changes = tuple(sorted(tuple(change) for change in c.tiers.schedule))
    for _, who, _ in changes:
        checks.in_range("tiers.schedule hospital", who, 0, len(tiers) - 1)
    slots = None
    if form == "sliced" or c.execution.slots == "stratified":
        slots = _slots(c, tiers, changes, cohort) if draw is None else draw.by_tier
    mesh = layout.mesh_of(c.execution.devices)

    def spread(inner: Layout) -> Layout:
        if mesh is not None:
            inner = layout.sharded(inner)
        return layout.sliced(inner, slots) if form == "sliced" and slots else inner

    def chunked(size: int) -> Layout:
        return spread(layout.chunked(size))

    side_by_side = laid.reason.startswith("vmap: ")
    memory = _memory(c)
    train = pixels.packed(bytes_, splits.train)
    records, whence = _records(c, memory, train, model, spec.rule, sample)
    asked = "asked for" if c.execution.devices else "all that there are"
    choices = {
        "execution.form": why,
        "execution.batching": laid.reason,
        "execution.devices": f"{1 if mesh is None else mesh.size}: {asked}",
        "execution.records": whence,
        "execution.pixels": stored,
    }
    if c.model.name in names.CONVOLUTIONAL:
        conv, backend = names.lowering(c), jax.default_backend()
        why = f"on {backend}" if c.execution.conv == "auto" else "asked for"
        choices["execution.conv"] = f"{conv}: {why}"
    return Run(
        config=plain(config),
        splits=splits,
        tiers=tiers,
        hospital_groups=facts.hospital_groups,
        group_of=facts.group_of,
        changes=changes,
        budget=tuple(c.tiers.budget),
        branches=names.branches_of(c),
        cohort=cohort,
        spec=spec,
        with_values=lambda values: _with_values(c, values, facts, model),
        layout=spread(laid),
        chunked=chunked if c.execution.batching == "auto" and side_by_side else None,
        memory=memory,
        mesh=mesh,
        form=form,
        slots=slots,
        records=records,
        pixels=bytes_,
        guarantee=guarantee,
        faults=facts.faults,
        choices=choices,
    )


class _Facts(NamedTuple):
    """What the data and who owns them say."""

    splits: federation.Splits
    tiers: Int[np.ndarray, "N"]
    cohort: int
    faults: tuple[Fault, ...]
    attribute: int | None
    """Column of the patient attribute that the rule asks for."""
    hospital_groups: tuple[str, ...]
    group_of: tuple[int, ...]


def _facts(c: Any) -> _Facts:
    splits = _splits(c)
    clients = len(splits.clients)
    if c.cohort > clients:
        checks.fail("cohort", f"at most the {clients} hospitals", c.cohort)
    faults = defences.faults(c, clients, _data_seed(c))
    train = injected.corrupted(splits.train, faults, _data_seed(c))
    splits = dataclasses.replace(splits, train=train)
    tiers = federation.assign_tiers(
        np.asarray(train.count),
        np.asarray(train.labels),
        share=tuple(c.tiers.share),
        assign=c.tiers.assign,
        seed=_data_seed(c),
        correlation=c.tiers.correlation,
    )
    tiers = injected.claimed_tiers(tiers, faults, len(c.tiers.budget) - 1)
    attribute = _attribute(c, splits)
    named, group_of = _hospital_groups(c, splits)
    return _Facts(
        splits, tiers, c.cohort or clients, tuple(faults), attribute, named, group_of
    )


def _data_seed(c: Any) -> int:
    """Of who owns what, which tier a hospital is of, and which go wrong."""
    return c.seed if c.data.partition.seed is None else c.data.partition.seed


def _sample(splits: federation.Splits) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *splits.train.x.shape[1:]), jnp.float32)


def _model(
    c: Any, splits: federation.Splits
) -> tuple[Model, pixels.Pixels | None, str]:
    """The network that travels, how it reads bytes, and why so."""
    family = names.METHODS[c.submodel.name]
    if c.model.name not in names.FOR_TABLES and splits.train.x.ndim != 4:
        what = f"one of {', '.join(names.FOR_TABLES)} for a table"
        checks.fail("model.name", what, c.model.name)
    if c.data.augment and splits.train.x.ndim != 4:
        checks.fail("data.augment", "() for a table", c.data.augment)
    if family.blocks and c.model.name not in names.RESIDUAL:
        known = ", ".join(names.RESIDUAL)
        what = f"one of {known} for submodel.name {c.submodel.name}"
        checks.fail("model.name", what, c.model.name)
    model = names.MODELS[c.model.name](c, len(splits.classes), family)
    model = adapt.computing_in(c.execution.dtype, family.model(c, model))
    bytes_, stored = _pixels(c, splits)
    model = pixels.reading(bytes_, model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), _sample(splits))
    parameters = float(sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    where = f"parameters of model {c.model.name}"
    checks.in_range(where, parameters, 1, MOST_PARAMETERS)
    axes.check(f"model {c.model.name}", shapes, model.axes)
    return model, bytes_, stored


def _spec(
    c: Any, facts: _Facts, model: Model
) -> tuple[round.Spec, guarantees.Guarantee]:
    """What a round does; the fields of `VALUES` may be traced."""
    splits, cohort = facts.splits, facts.cohort
    clients, counts = len(splits.clients), np.asarray(splits.train.count)
    groups = 0
    if facts.attribute is not None:
        groups = len(splits.groups[facts.attribute].values)
    rule = names.rule(c, names.Groups(groups, facts.group_of))
    method = personal.keep(names.METHODS[c.submodel.name].method(c, model.axes), rule)
    if method.objective is not None and c.local.class_weights != "none":
        what = f"none while submodel {c.submodel.name} sets the objective"
        checks.fail("local.class_weights", what, c.local.class_weights)
    objective = method.objective or client.mean_cross_entropy(
        balanced=c.local.class_weights == "balanced"
    )
    if c.local.prox:
        objective = client.proximal(objective, c.local.prox)
    optimizer = names.OPTIMIZERS[c.local.optimizer](c)
    if c.local.clip:
        optimizer = optax.chain(optax.clip_by_global_norm(c.local.clip), optimizer)
    server = names.SERVERS[c.server.optimizer](c.server.learning_rate)
    stepped = c.local.steps is not None
    plan = client.plan(
        counts,
        batch_size=c.local.batch_size,
        epochs=None if stepped else c.local.epochs,
        steps=c.local.steps,
    )
    if "validation" in rule.needs and not np.all(splits.val.count):
        what = f"above 0 for rule {c.fairness.rule}: every hospital validates"
        checks.fail("data.partition.val_fraction", what, c.data.partition.val_fraction)
    guarantee = guarantees.build(
        c,
        guarantees.Facts(
            facts.tiers,
            counts,
            splits.clients,
            len(splits.classes),
            model,
            method,
            rule,
            _sample(splits),
        ),
    )
    if guarantee.shown:
        rule = compose.over_tiers(rule, guarantee.shown)
    rule = injected.claiming(defences.rule(c, rule), facts.faults)
    if rule.everyone and cohort < clients:
        what = f"0 (all hospitals) for rule {c.fairness.rule}"
        checks.fail("cohort", what, c.cohort)
    bytes_, _ = _pixels(c, splits)
    local = client.Local(
        model,
        method,
        rule.wrap(objective),
        optimizer,
        plan,
        c.model[c.model.name].get("moments", "static"),
        guarantee.records,
        augment.chain(c.data.augment, bytes_),
        c.execution.unroll,
    )
    spec = round.Spec(
        local=local,
        rule=rule,
        protection=defences.protection(c, guarantee.protection, cohort),
        server=method.server(server, cohort / clients),
        schedule=names.SCHEDULES[c.local.schedule](c.rounds),
        finite_guard=c.robust.finite_guard,
        sending=injected.sending(facts.faults, defences.deadline(c)),
        denominator=c.fairness.denominator,
        attribute=facts.attribute,
        groups=groups,
        validated=int(np.max(splits.val.count)),
    )
    return spec, guarantee


def _with_values(
    c: Any, values: Mapping[str, Any], facts: _Facts, model: Model
) -> round.Spec:
    c, values = c.copy_and_resolve_references(), dict(values)
    # Noise is accounted for by numbers that are not traced.
    sigma = values.pop("privacy.noise_multiplier", None)
    with c.unlocked(), c.ignore_type():
        for path, value in values.items():
            *groups, field = path.split(".")
            functools.reduce(operator.getitem, groups, c)[field] = value
    spec, guarantee = _spec(c, facts, model)
    if sigma is None:
        return spec
    assert guarantee.noised is not None
    inner, records = guarantee.noised(sigma)
    return dataclasses.replace(
        spec,
        local=spec.local._replace(dp=records),
        protection=defences.protection(c, inner, facts.cohort),
    )


def _memory(c: Any) -> float:
    if c.execution.memory:
        return c.execution.memory
    told = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return math.inf if told is None else told / 2**20


def _pixels(c: Any, splits: federation.Splits) -> tuple[pixels.Pixels | None, str]:
    """How bytes are read on the device, as (line, reason); None where none are."""
    asked = c.execution.pixels
    if asked != "float32" and splits.pixels is not None:
        why = "asked for" if asked == "uint8" else "the data are bytes"
        return splits.pixels, f"uint8: {why}"
    obstacle = "the data are no bytes"
    if c.data.normalise == "client" and splits.train.x.ndim == 4:
        obstacle = "every hospital normalises by itself"
    if asked == "uint8":
        checks.fail("execution.pixels", f"float32: {obstacle}", asked)
    return None, f"float32: {'asked for' if asked == 'float32' else obstacle}"


def _records(
    c: Any,
    memory: float,
    train: Federation,
    model: Model,
    rule: Rule,
    sample: jax.ShapeDtypeStruct,
) -> tuple[str, str]:
    """Where training records lie, as (place, reason)."""
    size = sum(leaf.nbytes for leaf in (train.x, train.y, train.group)) / 2**20
    asked = c.execution.records
    if asked == "device" or (asked == "auto" and size <= memory / 2):
        why = "asked for" if asked == "device" else f"{size:.3g} MiB"
        return "device", f"device: {why}"
    obstacle = None
    if jax.eval_shape(_moments_of(model), jax.random.key(0), sample) is not None:
        obstacle = "batch norms take moments of all records"
    elif rule.keeps is not None or rule.personal is not None:
        obstacle = f"rule {c.fairness.rule} keeps models at hospitals"
    elif c.baselines:
        obstacle = "baselines train every hospital alone"
    if obstacle is not None and asked == "host":
        checks.fail("execution.records", f"device: {obstacle}", "host")
    if obstacle is not None:
        return "device", f"device: {obstacle}"
    why = f"{size:.3g} MiB are above half of {memory:.3g}"
    return "host", f"host: {'asked for' if asked == 'host' else why}"


def _moments_of(model: Model) -> Callable[[Array, Array], Any]:
    def stats(key: Array, x: Array) -> Any:
        return model.apply(model.init(key, x), x, train=True).stats

    return stats


def _slots(
    c: Any,
    tiers: Int[np.ndarray, "N"],
    changes: tuple[tuple[int, int, int], ...],
    cohort: int,
) -> tuple[int, ...]:
    """Slots of every tier, enough for it whoever has moved into it."""
    phases = [tiers]
    for _, who, tier in changes:
        phases.append(np.where(np.arange(len(tiers)) == who, tier, phases[-1]))
    each = [
        federation.slots(phase, len(c.tiers.budget), cohort, c.execution.slots)
        for phase in phases
    ]
    return tuple(max(column) for column in zip(*each, strict=True))


def _attribute(c: Any, splits: federation.Splits) -> int | None:
    """Column of the patient attribute that the rule asks for; None if for none."""
    wanted = [part for part in c.fairness.rule.split("+") if names.by_group(c, part)]
    if not wanted:
        return None
    of_two = "fairfed" in wanted
    if of_two and len(splits.classes) != 2:
        what = "another rule than fairfed, which needs two classes"
        checks.fail("fairness.rule", what, f"{len(splits.classes)} classes")
    number = {attribute.name: len(attribute.values) for attribute in splits.groups}
    fitting = [name for name, values in number.items() if values == 2 or not of_two]
    if not fitting:
        kind = "a patient attribute of two values" if of_two else "a patient attribute"
        checks.fail("fairness.rule", f"data with {kind}", c.fairness.rule)
    if c.fairness.group is None:
        return list(number).index(fitting[0])
    checks.one_of("fairness.group", c.fairness.group, fitting)
    return list(number).index(c.fairness.group)


def _hospital_groups(
    c: Any, splits: federation.Splits
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The groups' names, and the group of every hospital."""
    given, clients = tuple(c.fairness.hospital_group), splits.clients
    if given and len(given) != len(clients):
        few = ", ".join(clients[:4]) + (", ..." if len(clients) > 4 else "")
        what = f"{len(clients)} groups, one per hospital ({few})"
        checks.fail("fairness.hospital_group", what, given)
    if given and "hospital_group" in (each.name for each in splits.groups):
        what = "no column of that name, which groups of hospitals have"
        checks.fail("data.group", what, "hospital_group")
    named = tuple(sorted(set(given)))
    return named, tuple(map(named.index, given))


def _not_sliced(
    model: Model, method: Method, guarantee: guarantees.Guarantee
) -> str | None:
    """Why a method's sub-models of this model cannot be sliced; None if they can."""
    if method.size is None:
        return "the method's sub-models have no static size"
    if method.memory is not None and method.memory.plain:
        return "the method keeps a memory of the plain model's shape"
    if model.resize is None:
        return "the model cannot be resized"
    if guarantee.records is not None:
        return "the noise of record_dp is drawn at full width"
    return None


def _splits(c: Any) -> federation.Splits:
    table = datasets.load(
        c.data.name,
        data_dir=c.data.data_dir,
        path=c.data.path,
        label=c.data.label,
        client=c.data.client,
        patient=c.data.patient,
        group=c.data.group,
    )
    part = c.data.partition
    return federation.build(
        table,
        partition=part.name,
        num_clients=part.num_clients,
        alpha=part.alpha,
        min_size=part.min_size,
        test_fraction=part.test_fraction,
        val_fraction=part.val_fraction,
        normalise=c.data.normalise,
        seed=_data_seed(c),
        shards=part.shards,
        classes=part.classes,
    )


def extendable(config: dict[str, Any]) -> bool:
    """True if a run's rounds may grow later: schedule and noise do not rest on them."""
    given = config["privacy"]["noise_multiplier"] is not None
    calibrated = config["privacy"]["epsilon"] is not None and not given
    return config["local"]["schedule"] == "constant" and not calibrated


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Dotted paths of the fields in which two plain configs differ."""
    a, b = flat(ours), flat(theirs)
    missing = object()
    return sorted(p for p in a.keys() | b if a.get(p, missing) != b.get(p, missing))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A plain config as {dotted path: value}."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out


def identity(run: Run) -> dict[str, Any]:
    """What decides what a state of the run means, by name, as JSON can hold it.

    The fields of the config, but for how it is executed and saved, where its data lie
    and, if the run may be extended, its rounds; how the data are cut; and a digest of
    every tier's sub-model: the model's axes and what the tier keeps of them.
    """
    fields = {
        path: value
        for path, value in flat(run.config).items()
        if path.partition(".")[0] not in ("execution", "checkpoint")
        and path not in ("data.data_dir", "data.path")
        and not (path == "rounds" and extendable(run.config))
    }
    model, method = run.spec.local.model, run.spec.local.method
    leaves = trees.named(model.axes.tree, is_leaf=lambda x: isinstance(x, LeafAxes))

    def submodel(tier: int) -> str:
        size = None if method.size is None else method.size(tier)
        cut = [leaves, model.axes._replace(tree=None), size]
        cut += [run.budget[tier], run.branches[tier]]
        return hashlib.sha256(json.dumps(cut, sort_keys=True).encode()).hexdigest()

    tiers = {f"tier {t}": submodel(t) for t in range(len(run.budget))}
    return fields | {"data": run.splits.hash} | tiers
