"""What a config may say: names, ranges, and which of its fields fit together.

`check` refuses a config that no data could make run, without touching anything. Every
refusal names the field as the user writes it.
"""

import math
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fairjax.core import client, layout, require
from fairjax.data import augment, datasets, federation
from fairjax.experiment import model_selection
from fairjax.experiment.config import privacy, registry, robustness
from fairjax.models import adapt
from fairjax.submodels import branches, dynamicfl, fedavg, partial
from fairjax.submodels.ladder import KINDS

RECORDS = ("auto", "device", "host")
PIXELS = ("auto", "uint8", "float32")
RATES = ("local", "server")
"""Groups with a learning rate and its schedule."""


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
    # What devices count and compute in.
    most = {int: 2**31 - 1, float: float(np.finfo(np.float32).max)}
    for path, value in flat(plain(config)).items():
        for number in jax.tree.leaves(value):
            top = most.get(type(number))
            if top is not None and abs(number) > top:
                require.in_range(path, number, -top, top)
    require.in_range("seed", c.seed, 0, 2**31 - 1)
    if c.data.partition.seed is not None:
        require.in_range("data.partition.seed", c.data.partition.seed, 0, 2**31 - 1)
    require.positive("rounds", c.rounds)
    require.in_range("cohort", c.cohort, 0)
    require.positive("eval_every", c.eval_every)
    require.count("min_test_records", c.min_test_records)
    require.one_of(
        "select", c.select, (model_selection.AUTO, *model_selection.CRITERIA)
    )

    require.one_of("data.name", c.data.name, datasets.DATASETS)
    for entry in c.data.group:
        if not isinstance(entry, str):
            require.fail("data.group", "names of csv columns", entry)
    require.one_of("data.normalise", c.data.normalise, registry.NORMALISATIONS)
    for name in c.data.augment:
        require.one_of("data.augment", name, augment.AUGMENTS)
    part = c.data.partition
    require.one_of("data.partition.name", part.name, federation.LAWS)
    require.positive("data.partition.num_clients", part.num_clients)
    require.positive("data.partition.alpha", part.alpha)
    require.positive("data.partition.min_size", part.min_size)
    require.count("data.partition.shards", part.shards)
    require.count("data.partition.classes", part.classes)
    require.in_range(
        "data.partition.test_fraction",
        part.test_fraction,
        0,
        1,
        open_low=True,
        open_high=True,
    )
    require.in_range(
        "data.partition.val_fraction",
        part.val_fraction,
        0,
        1 - part.test_fraction,
        open_high=True,
    )

    require.one_of("model.name", c.model.name, registry.MODELS)
    for name in registry.MODELS:
        for field, value in c.model[name].items():
            for width in value if isinstance(value, tuple) else ():
                require.count(f"model.{name}.{field}", width)
    require.in_range("model.cnn.group_size", c.model.cnn.group_size, 0)
    for name in ("resmlp", "resnet"):
        require.one_of(f"model.{name}.moments", c.model[name].moments, client.MOMENTS)

    require.one_of("submodel.name", c.submodel.name, registry.METHODS)
    _check_submodel(c.submodel)
    if not c.tiers.budget:
        require.fail("tiers.budget", "at least one tier", c.tiers.budget)
    for share in c.tiers.budget:
        require.in_range("tiers.budget", share, 0, 1, open_low=True)
    require.non_decreasing("tiers.budget", c.tiers.budget)
    _check_branches(c)
    if len(c.tiers.share) != len(c.tiers.budget):
        require.fail(
            "tiers.share",
            f"{len(c.tiers.budget)} values, as tiers.budget",
            c.tiers.share,
        )
    for share in c.tiers.share:
        require.in_range("tiers.share", share, 0)
    require.positive("sum of tiers.share", math.fsum(c.tiers.share))
    require.one_of("tiers.assign", c.tiers.assign, registry.ASSIGNMENTS)
    require.in_range("tiers.correlation", c.tiers.correlation, 0, 1)
    _check_schedule(c)
    last = len(c.tiers.budget) - 1
    require.in_range("submodel.fedavg.tier", c.submodel.fedavg.tier, 0, last)
    if c.submodel.depthfl.exclusive is not None:
        where = "submodel.depthfl.exclusive"
        require.in_range(where, c.submodel.depthfl.exclusive, 0, last)

    if c.local.steps is None:
        require.positive("local.epochs", c.local.epochs)
    else:
        require.positive("local.steps", c.local.steps)
    require.positive("local.batch_size", c.local.batch_size)
    require.one_of("local.optimizer", c.local.optimizer, registry.OPTIMIZERS)
    require.in_range("local.learning_rate", c.local.learning_rate, 0)
    _check_rate(c, "local")
    require.in_range("local.momentum", c.local.momentum, 0, 1, open_high=True)
    if c.local.momentum and c.local.optimizer != "sgd":
        require.fail("local.momentum", "0 with optimizer adam", c.local.momentum)
    require.in_range("local.weight_decay", c.local.weight_decay, 0)
    require.in_range("local.prox", c.local.prox, 0)
    require.in_range("local.clip", c.local.clip, 0)
    require.one_of("local.class_weights", c.local.class_weights, registry.CLASS_WEIGHTS)

    require.one_of("server.optimizer", c.server.optimizer, registry.SERVERS)
    require.in_range("server.learning_rate", c.server.learning_rate, 0)
    _check_rate(c, "server")
    _check_rule(c)
    privacy.check(c)
    robustness.check(c, registry.rule(c))
    _check_form(c)

    require.one_of("execution.form", c.execution.form, layout.FORMS)
    require.one_of("execution.slots", c.execution.slots, registry.SLOTS)
    require.one_of("execution.batching", c.execution.batching, layout.BATCHINGS)
    require.positive("execution.chunk", c.execution.chunk)
    require.one_of("execution.conv", c.execution.conv, registry.CONVOLUTIONS)
    require.positive("execution.unroll", c.execution.unroll)
    require.one_of("execution.records", c.execution.records, RECORDS)
    require.one_of("execution.pixels", c.execution.pixels, PIXELS)
    require.in_range("execution.memory", c.execution.memory, 0)
    require.one_of("execution.dtype", c.execution.dtype, adapt.DTYPES)
    require.in_range("execution.devices", c.execution.devices, 0)
    require.positive("checkpoint.every", c.checkpoint.every)
    require.in_range("checkpoint.keep", c.checkpoint.keep, 2)
    _check_overridden(c, overridden)


def _check_branches(c: Any) -> None:
    numbers = c.tiers.branches
    if not numbers:
        return
    if len(numbers) != len(c.tiers.budget):
        what = f"{len(c.tiers.budget)} values, as tiers.budget"
        require.fail("tiers.branches", what, numbers)
    for number in numbers:
        require.in_range("tiers.branches", number, 0)
    require.non_decreasing("tiers.branches", numbers)
    if any(numbers) and not registry.METHODS[c.submodel.name].branches:
        named = [name for name, family in registry.METHODS.items() if family.branches]
        what = f"no branches unless submodel.name is {' or '.join(named)}"
        require.fail("tiers.branches", what, numbers)


def _check_rate(c: Any, group: str) -> None:
    """The schedule of a learning rate."""
    options = c[group]
    require.one_of(f"{group}.schedule", options.schedule, registry.SCHEDULES)
    require.in_range(f"{group}.warmup", options.warmup, 0)
    for number in options.milestones:
        require.count(f"{group}.milestones", number)
    read = registry.SCHEDULES[options.schedule].options
    if "decay_rate" in read:
        where, rate = f"{group}.decay_rate", options.decay_rate
        if rate is None:
            require.fail(where, f"a factor for schedule {options.schedule}", rate)
        require.in_range(where, rate, 0, 1, open_low=True)
    if "milestones" in read:
        where, rounds = f"{group}.milestones", options.milestones
        if not rounds:
            require.fail(where, f"rounds for schedule {options.schedule}", rounds)
        if list(rounds) != sorted(set(rounds)) or rounds[0] < options.warmup:
            what = f"rounds that increase, none of the {options.warmup} of warmup"
            require.fail(where, what, rounds)


def _check_schedule(c: Any) -> None:
    where = "tiers.schedule"
    for change in c.tiers.schedule:
        if not isinstance(change, tuple) or len(change) != 3:
            require.fail(where, "(round, hospital, tier) for every change", change)
        number, who, tier = change
        require.count(f"{where} round", number)
        require.in_range(f"{where} hospital", who, 0)
        require.in_range(f"{where} tier", tier, 0, len(c.tiers.budget) - 1)
    if c.tiers.schedule and c.execution.slots == "stratified":
        what = "padded with a tiers.schedule, which changes how many a tier has"
        require.fail("execution.slots", what, "stratified")


def _check_submodel(c: Any) -> None:
    """Options that no model is needed to judge."""
    require.one_of("submodel.fedavg.mode", c.fedavg.mode, fedavg.MODES)
    if c.fedrolex.overlap is not None:
        require.in_range("submodel.fedrolex.overlap", c.fedrolex.overlap, 0, 1)
    require.one_of("submodel.partial.mode", c.partial.mode, partial.MODES)
    require.positive("submodel.depthfl.ramp", c.depthfl.ramp)
    require.in_range("submodel.depthfl.feddyn", c.depthfl.feddyn, 0)
    require.in_range("submodel.inclusivefl.beta", c.inclusivefl.beta, 0, 1)
    require.in_range("submodel.scalefl.gamma", c.scalefl.gamma, 0)
    require.positive("submodel.scalefl.temperature", c.scalefl.temperature)
    require.in_range("submodel.scalefl.warmup", c.scalefl.warmup, 0, 1)
    for name in ("scalefl", "nefl"):
        for share in c[name].width:
            where = f"submodel.{name}.width"
            require.in_range(where, share, 0, 1, open_low=True)
    require.count("submodel.lora.rank", c.lora.rank)
    require.positive("submodel.lora.alpha", c.lora.alpha)
    for family in c.dynamicfl.families:
        require.one_of("submodel.dynamicfl.families", family, branches.FAMILIES)
    require.count("submodel.dynamicfl.rank", c.dynamicfl.rank)
    inner = c.dynamicfl.inner
    require.in_range("submodel.dynamicfl.inner", inner, 0, 1, open_low=True)
    for field, known in {
        "branch_form": dynamicfl.FORMS,
        "structure": ("auto", *dynamicfl.STRUCTURES),
        "sensitivity": tuple(dynamicfl.SENSITIVITIES),
    }.items():
        require.one_of(f"submodel.dynamicfl.{field}", c.dynamicfl[field], known)
    require.in_range("submodel.dynamicfl.moved", c.dynamicfl.moved, 0, 1)
    for kind in c.ladder.kinds:
        require.one_of("submodel.ladder.kinds", kind, KINDS)


def _check_form(c: Any) -> None:
    """Refuses what would part a plain model's gradients from those of branches."""
    if not registry.METHODS[c.submodel.name].branches:
        return
    options = c.submodel.dynamicfl
    form, structure = options.branch_form, registry.structure_of(c)
    dynamicfl.check_form(form, options.families, structure, options.sensitivity)
    if form != "preconditioned":
        return
    why = "with submodel.dynamicfl.branch_form preconditioned"
    if c.local.optimizer != "sgd":
        what = f"sgd {why}, which no adaptive rate keeps equal to branches"
        require.fail("local.optimizer", what, c.local.optimizer)
    if c.local.clip:
        what = f"0 {why}: branches have another gradient norm"
        require.fail("local.clip", what, c.local.clip)
    if c.privacy.mechanism == "record_dp":
        what = f"another than record_dp {why}: it clips a gradient norm"
        require.fail("privacy.mechanism", what, c.privacy.mechanism)


def _check_rule(c: Any) -> None:
    """The rule itself checks its options when it is made."""
    parts = c.fairness.rule.split("+")
    for part in parts:
        require.one_of("fairness.rule", part, registry.RULES)
    privacy.check_rule(c)
    require.one_of(
        "fairness.denominator", c.fairness.denominator, registry.DENOMINATORS
    )
    wanted = [part for part in parts if registry.by_group(c, part)]
    if c.fairness.group is not None and not wanted:
        what = f"none with rule {c.fairness.rule}, which asks for no attribute"
        require.fail("fairness.group", what, c.fairness.group)
    _check_hospital_group(c, parts)
    if "q_fedavg" in parts:
        _check_plain_steps(c)
    made = registry.rule(c)
    privacy.check_sums(c, made)
    if made.combine is not None and c.fairness.denominator == "fixed":
        what = f"cover with rule {c.fairness.rule}, which has denominators of its own"
        require.fail("fairness.denominator", what, "fixed")


def _check_plain_steps(c: Any) -> None:
    """Refuses local steps of which a change over the learning rate is no gradient."""
    why = "for q_fedavg, which reads gradients off the changes of plain SGD"
    if c.local.optimizer != "sgd":
        require.fail("local.optimizer", f"sgd {why}", c.local.optimizer)
    for field in ("momentum", "clip"):
        if c.local[field]:
            require.fail(f"local.{field}", f"0 {why}", c.local[field])
    if c.submodel.name == "depthfl" and c.submodel.depthfl.feddyn:
        require.fail("submodel.depthfl.feddyn", f"0 {why}", c.submodel.depthfl.feddyn)


def _check_hospital_group(c: Any, parts: list[str]) -> None:
    where, given = "fairness.hospital_group", c.fairness.hospital_group
    for name in given:
        if not isinstance(name, str) or not name:
            require.fail(where, "a group's name for every hospital", name)
    if given and len(set(given)) < 2:
        require.fail(where, "at least two groups", given)
    wanting = [part for part in parts if registry.by_hospitals(c, part)]
    if wanting and not given:
        what = f"a group's name for every hospital with rule {wanting[0]} by them"
        require.fail(where, what, given)


def _check_overridden(c: Any, overridden: Collection[str]) -> None:
    in_use = {
        "model": ("model.name", c.model.name, registry.MODELS),
        "submodel": ("submodel.name", c.submodel.name, registry.METHODS),
        "fairness": ("fairness.rule", c.fairness.rule, registry.RULES),
    }
    for path in overridden:
        group, _, rest = path.partition(".")
        owner = rest.partition(".")[0]
        if group == "privacy":
            privacy.check_used(path, owner, c)
        if group == "robust":
            robustness.check_used(path, c)
        if group in RATES:
            _check_read(path, c)
        if group not in in_use:
            continue
        field, chosen, table = in_use[group]
        shared = owner == "dynamicfl" and registry.METHODS[c.submodel.name].branches
        if owner in table and owner not in chosen.split("+") and not shared:
            raise require.InputError(
                f"{path}: expected {field}={owner!r} for this option; got {chosen!r}"
            )


def _check_read(path: str, c: Any) -> None:
    """Refuses an option of a learning rate that its schedule does not read."""
    group, _, field = path.partition(".")
    chosen = c[group].schedule
    readers = [
        name
        for name, schedule in registry.SCHEDULES.items()
        if field in schedule.options
    ]
    if readers and chosen not in readers:
        what = " or ".join(map(repr, readers))
        raise require.InputError(
            f"{path}: expected {group}.schedule={what} for this option; got {chosen!r}"
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


def extendable(config: dict[str, Any]) -> bool:
    """True if a run's rounds may grow later.

    Neither its schedules nor its method nor its noise may rest on their number.
    """
    given = config["privacy"]["noise_multiplier"] is not None
    calibrated = config["privacy"]["epsilon"] is not None and not given
    name = config["submodel"]["name"]
    resting = registry.METHODS[name].of_rounds(config["submodel"].get(name, {}))
    for group in RATES:
        resting |= registry.SCHEDULES[config[group]["schedule"]].of_rounds
    return not (resting or calibrated)


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
