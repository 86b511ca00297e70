"""From a checked config to frozen specs: loads the data, turns names into functions."""

import dataclasses
import functools
import hashlib
import json
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key
from ml_collections import ConfigDict

from fairjax.core import axes, client, layout, require, rng, round, trees
from fairjax.core.rng import Role
from fairjax.core.types import (
    Cohort,
    Federation,
    Layout,
    LeafAxes,
    Method,
    Model,
    Rule,
)
from fairjax.data import augment, datasets, federation, pixels
from fairjax.experiment import model_selection
from fairjax.experiment.config import privacy, registry, robustness, validate
from fairjax.fairness import compose, personal
from fairjax.models import adapt, layers
from fairjax.robust import faults as injected
from fairjax.robust.faults import Fault

VALUES = (
    "local.learning_rate",
    "server.learning_rate",
    "fairness.q_ffl.q",
    "fairness.term.t",
    "privacy.noise_multiplier",
)
"""Fields that are numbers of a program and not its shape."""
UNSELECTED = "no round: there are no validation records"
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
    criterion: str
    """What the round that is handed out is selected by, see `model_selection.best`."""
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
    guarantee: privacy.Guarantee
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
        fault_key = rng.at(key, Role.FAULT, finished)
        key = rng.at(key, Role.COHORT)
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
    validate.check(config)
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
        convolutional=c.model.name in registry.CONVOLUTIONAL,
        clients=cohort if draw is None else draw.slots,
    )
    form, why = layout.form(
        c.execution.form,
        obstacle=_not_sliced(model, method, guarantee),
        parameters=parameters,
    )
    changes = tuple(sorted(tuple(change) for change in c.tiers.schedule))
    for _, who, _ in changes:
        require.in_range("tiers.schedule hospital", who, 0, len(tiers) - 1)
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
    criterion, because = model_selection.resolve(c.select, len(splits.classes))
    choices = {
        "select": f"{criterion}: {because}" if splits.rows["val"] else UNSELECTED,
        "execution.form": why,
        "execution.batching": laid.reason,
        "execution.devices": f"{1 if mesh is None else mesh.size}: {asked}",
        "execution.records": whence,
        "execution.pixels": stored,
    }
    if len(splits.classes) == 2:
        asked = c.data.positive is not None
        why = "asked for" if asked else f"of {' and '.join(sorted(splits.classes))}"
        choices["data.positive"] = f"{splits.classes[1]}: {why}"
    if c.model.name in registry.CONVOLUTIONAL:
        conv, backend = registry.lowering(c), jax.default_backend()
        why = f"on {backend}" if c.execution.conv == "auto" else "asked for"
        choices["execution.conv"] = f"{conv}: {why}"
    return Run(
        config=validate.plain(config),
        splits=splits,
        tiers=tiers,
        hospital_groups=facts.hospital_groups,
        group_of=facts.group_of,
        changes=changes,
        budget=tuple(c.tiers.budget),
        branches=registry.branches_of(c),
        cohort=cohort,
        criterion=criterion,
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
        require.fail("cohort", f"at most the {clients} hospitals", c.cohort)
    faults = robustness.faults(c, clients, _data_seed(c))
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


def _patients(train: Federation) -> Int[np.ndarray, "N"] | None:
    """Training patients of every hospital; None where the data name none."""
    if train.patient is None:
        return None
    return np.array([len(each) for each in federation.patients(train)])


def _sample(splits: federation.Splits) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *splits.train.x.shape[1:]), jnp.float32)


def _model(
    c: Any, splits: federation.Splits
) -> tuple[Model, pixels.Pixels | None, str]:
    """The network that travels, how it reads bytes, and why so."""
    family = registry.METHODS[c.submodel.name]
    if c.model.name not in registry.FOR_TABLES and splits.train.x.ndim != 4:
        what = f"one of {', '.join(registry.FOR_TABLES)} for a table"
        require.fail("model.name", what, c.model.name)
    if c.data.augment and splits.train.x.ndim != 4:
        require.fail("data.augment", "() for a table", c.data.augment)
    able = registry.RESIDUAL if family.blocks else registry.EXITED
    if (family.blocks or family.exits) and c.model.name not in able:
        what = f"one of {', '.join(able)} for submodel.name {c.submodel.name}"
        require.fail("model.name", what, c.model.name)
    model = registry.MODELS[c.model.name](c, len(splits.classes), family)
    model = adapt.computing_in(c.execution.dtype, family.model(c, model))
    bytes_, stored = _pixels(c, splits)
    model = pixels.reading(bytes_, model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), _sample(splits))
    parameters = float(sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    where = f"parameters of model {c.model.name}"
    require.in_range(where, parameters, 1, MOST_PARAMETERS)
    axes.check(f"model {c.model.name}", shapes, model.axes)
    return model, bytes_, stored


def _spec(c: Any, facts: _Facts, model: Model) -> tuple[round.Spec, privacy.Guarantee]:
    """What a round does; the fields of `VALUES` may be traced."""
    splits, cohort = facts.splits, facts.cohort
    clients, counts = len(splits.clients), np.asarray(splits.train.count)
    groups = 0
    if facts.attribute is not None:
        groups = len(splits.groups[facts.attribute].values)
    rule = registry.rule(c, registry.Groups(groups, facts.group_of))
    method = personal.keep(
        registry.METHODS[c.submodel.name].method(c, model.axes), rule
    )
    if method.objective is not None and c.local.class_weights != "none":
        what = f"none while submodel {c.submodel.name} sets the objective"
        require.fail("local.class_weights", what, c.local.class_weights)
    objective = method.objective or client.mean_cross_entropy(
        balanced=c.local.class_weights == "balanced"
    )
    if c.local.prox:
        objective = client.proximal(objective, c.local.prox)
    optimizer = registry.OPTIMIZERS[c.local.optimizer](c)
    if c.local.clip:
        optimizer = optax.chain(optax.clip_by_global_norm(c.local.clip), optimizer)
    server = registry.SERVERS[c.server.optimizer](c.server.learning_rate)
    known = privacy.Facts(
        facts.tiers,
        counts,
        _patients(splits.train),
        splits.shared,
        splits.clients,
        len(splits.classes),
        model,
        method,
        rule,
        _sample(splits),
    )
    stepped = c.local.steps is not None
    plan = client.plan(
        counts,
        batch_size=c.local.batch_size,
        epochs=None if stepped else c.local.epochs,
        steps=c.local.steps,
        units=privacy.units(c, known),
    )
    if "validation" in rule.needs and not np.all(splits.val.count):
        what = f"above 0 for rule {c.fairness.rule}: every hospital validates"
        require.fail("data.partition.val_fraction", what, c.data.partition.val_fraction)
    guarantee = privacy.build(c, known)
    if guarantee.shown:
        rule = compose.over_tiers(rule, guarantee.shown)
    rule = injected.claiming(robustness.rule(c, rule), facts.faults)
    if rule.everyone and cohort < clients:
        what = f"0 (all hospitals) for rule {c.fairness.rule}"
        require.fail("cohort", what, c.cohort)
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
        protection=robustness.protection(c, guarantee.protection, cohort),
        server=method.server(server, cohort / clients),
        schedule=registry.schedule(c.local, c.rounds),
        server_schedule=registry.schedule(c.server, c.rounds),
        finite_guard=c.robust.finite_guard,
        sending=injected.sending(facts.faults, robustness.deadline(c)),
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
        protection=robustness.protection(c, inner, facts.cohort),
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
        require.fail("execution.pixels", f"float32: {obstacle}", asked)
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
        require.fail("execution.records", f"device: {obstacle}", "host")
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
    least = len(np.unique(tiers))
    if c.execution.slots == "stratified" and cohort < least:
        what = f"at least {least}, a hospital of every tier, with execution.slots "
        require.fail("cohort", f"{what}stratified", cohort)
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
    wanted = [part for part in c.fairness.rule.split("+") if registry.by_group(c, part)]
    if not wanted:
        return None
    of_two = "fairfed" in wanted
    if of_two and len(splits.classes) != 2:
        what = "another rule than fairfed, which needs two classes"
        require.fail("fairness.rule", what, f"{len(splits.classes)} classes")
    number = {attribute.name: len(attribute.values) for attribute in splits.groups}
    fitting = [name for name, values in number.items() if values == 2 or not of_two]
    if not fitting:
        kind = "a patient attribute of two values" if of_two else "a patient attribute"
        require.fail("fairness.rule", f"data with {kind}", c.fairness.rule)
    if c.fairness.group is None:
        return list(number).index(fitting[0])
    require.one_of("fairness.group", c.fairness.group, fitting)
    return list(number).index(c.fairness.group)


def _hospital_groups(
    c: Any, splits: federation.Splits
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The groups' names, and the group of every hospital."""
    given, clients = tuple(c.fairness.hospital_group), splits.clients
    if given and len(given) != len(clients):
        few = ", ".join(clients[:4]) + (", ..." if len(clients) > 4 else "")
        what = f"{len(clients)} groups, one per hospital ({few})"
        require.fail("fairness.hospital_group", what, given)
    if given and "hospital_group" in (each.name for each in splits.groups):
        what = "no column of that name, which groups of hospitals have"
        require.fail("data.group", what, "hospital_group")
    named = tuple(sorted(set(given)))
    return named, tuple(map(named.index, given))


def _not_sliced(
    model: Model, method: Method, guarantee: privacy.Guarantee
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
    splits = federation.build(
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
    asked = c.data.positive is not None
    return federation.with_positive(
        splits, c.data.positive if asked else table.positive
    )


def identity(run: Run) -> dict[str, Any]:
    """What decides what a state of the run means, by name, as JSON can hold it.

    The fields of the config, but for how it is executed and saved, where its data lie
    and, if the run may be extended, its rounds; how the data are cut; and a digest of
    every tier's sub-model: the model's axes and what the tier keeps of them.
    """
    fields = {
        path: value
        for path, value in validate.flat(run.config).items()
        if path.partition(".")[0] not in ("execution", "checkpoint")
        and path not in ("data.data_dir", "data.path")
        and not (path == "rounds" and validate.extendable(run.config))
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
