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

from fairjax import checks, client, defences, guarantees, layout, names, selection
from fairjax.data import augment, datasets, federation
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
                checks.in_range(path, number, -top, top)
    checks.in_range("seed", c.seed, 0, 2**31 - 1)
    if c.data.partition.seed is not None:
        checks.in_range("data.partition.seed", c.data.partition.seed, 0, 2**31 - 1)
    checks.positive("rounds", c.rounds)
    checks.in_range("cohort", c.cohort, 0)
    checks.positive("eval_every", c.eval_every)
    checks.count("min_test_records", c.min_test_records)
    checks.one_of("select", c.select, (selection.AUTO, *selection.CRITERIA))

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
    if c.submodel.depthfl.exclusive is not None:
        where = "submodel.depthfl.exclusive"
        checks.in_range(where, c.submodel.depthfl.exclusive, 0, last)

    if c.local.steps is None:
        checks.positive("local.epochs", c.local.epochs)
    else:
        checks.positive("local.steps", c.local.steps)
    checks.positive("local.batch_size", c.local.batch_size)
    checks.one_of("local.optimizer", c.local.optimizer, names.OPTIMIZERS)
    checks.in_range("local.learning_rate", c.local.learning_rate, 0)
    _check_rate(c, "local")
    checks.in_range("local.momentum", c.local.momentum, 0, 1, open_high=True)
    if c.local.momentum and c.local.optimizer != "sgd":
        checks.fail("local.momentum", "0 with optimizer adam", c.local.momentum)
    checks.in_range("local.weight_decay", c.local.weight_decay, 0)
    checks.in_range("local.prox", c.local.prox, 0)
    checks.in_range("local.clip", c.local.clip, 0)
    checks.one_of("local.class_weights", c.local.class_weights, names.CLASS_WEIGHTS)

    checks.one_of("server.optimizer", c.server.optimizer, names.SERVERS)
    checks.in_range("server.learning_rate", c.server.learning_rate, 0)
    _check_rate(c, "server")
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


def _check_rate(c: Any, group: str) -> None:
    """The schedule of a learning rate."""
    options = c[group]
    checks.one_of(f"{group}.schedule", options.schedule, names.SCHEDULES)
    checks.in_range(f"{group}.warmup", options.warmup, 0)
    for number in options.milestones:
        checks.count(f"{group}.milestones", number)
    read = names.SCHEDULES[options.schedule].options
    if "decay_rate" in read:
        where, rate = f"{group}.decay_rate", options.decay_rate
        if rate is None:
            checks.fail(where, f"a factor for schedule {options.schedule}", rate)
        checks.in_range(where, rate, 0, 1, open_low=True)
    if "milestones" in read:
        where, rounds = f"{group}.milestones", options.milestones
        if not rounds:
            checks.fail(where, f"rounds for schedule {options.schedule}", rounds)
        if list(rounds) != sorted(set(rounds)) or rounds[0] < options.warmup:
            what = f"rounds that increase, none of the {options.warmup} of warmup"
            checks.fail(where, what, rounds)


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
    guarantees.check_rule(c)
    checks.one_of("fairness.denominator", c.fairness.denominator, names.DENOMINATORS)
    wanted = [part for part in parts if names.by_group(c, part)]
    if c.fairness.group is not None and not wanted:
        what = f"none with rule {c.fairness.rule}, which asks for no attribute"
        checks.fail("fairness.group", what, c.fairness.group)
    _check_hospital_group(c, parts)
    if "q_fedavg" in parts:
        _check_plain_steps(c)
    made = names.rule(c)
    guarantees.check_sums(c, made)
    if made.combine is not None and c.fairness.denominator == "fixed":
        what = f"cover with rule {c.fairness.rule}, which has denominators of its own"
        checks.fail("fairness.denominator", what, "fixed")


def _check_plain_steps(c: Any) -> None:
    """Refuses local steps of which a change over the learning rate is no gradient."""
    why = "for q_fedavg, which reads gradients off the changes of plain SGD"
    if c.local.optimizer != "sgd":
        checks.fail("local.optimizer", f"sgd {why}", c.local.optimizer)
    for field in ("momentum", "clip"):
        if c.local[field]:
            checks.fail(f"local.{field}", f"0 {why}", c.local[field])
    if c.submodel.name == "depthfl" and c.submodel.depthfl.feddyn:
        checks.fail("submodel.depthfl.feddyn", f"0 {why}", c.submodel.depthfl.feddyn)


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
        if group in RATES:
            _check_read(path, c)
        if group not in in_use:
            continue
        field, chosen, table = in_use[group]
        shared = owner == "dynamicfl" and names.METHODS[c.submodel.name].branches
        if owner in table and owner not in chosen.split("+") and not shared:
            raise checks.InputError(
                f"{path}: expected {field}={owner!r} for this option; got {chosen!r}"
            )


def _check_read(path: str, c: Any) -> None:
    """Refuses an option of a learning rate that its schedule does not read."""
    group, _, field = path.partition(".")
    chosen = c[group].schedule
    readers = [
        name for name, schedule in names.SCHEDULES.items() if field in schedule.options
    ]
    if readers and chosen not in readers:
        what = " or ".join(map(repr, readers))
        raise checks.InputError(
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
    resting = names.METHODS[name].of_rounds(config["submodel"].get(name, {}))
    for group in RATES:
        resting |= names.SCHEDULES[config[group]["schedule"]].of_rounds
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
