"""What a config may say: names, ranges, and which of its fields fit together.

`check` refuses a config that no data could make run, and touches nothing. Every refusal
names the field as the user writes it. The modules `submodels`, `fairness`, `privacy`
and `robustness` check their groups.
"""

import math
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fairjax.core import layout, require
from fairjax.core.problem import MOMENTS
from fairjax.data import assignment, augment, datasets
from fairjax.experiment import model_selection
from fairjax.experiment.config import (
    fairness,
    privacy,
    registry,
    renames,
    robustness,
    submodels,
)
from fairjax.models import adapt

RECORDS = ("auto", "device", "host")
PIXELS = ("auto", "uint8", "float32")
RATES = ("local", "server")
"""Groups with a learning rate and its schedule."""


def check(config: ConfigDict, overridden: Collection[str] = ()) -> None:
    """Refuses a config that no data set could make run.

    Args:
        config: a full config, see `fairjax.experiment.config.default`.
        overridden: paths of the fields that the user set by hand; one that belongs to a
            model, method or rule that is not in use is refused.

    Raises:
        InputError: names the field, what was expected and what came.
    """
    c: Any = config
    c.lock()
    fields = renames.flatten(to_plain(config))
    renames.refuse(fields)
    _check_magnitudes(fields)
    _check_run(c)
    _check_data(c)
    _check_model(c)
    require.one_of("submodel.name", c.submodel.name, registry.METHODS)
    submodels.check(c.submodel)
    _check_tiers(c)
    _check_local(c)
    require.one_of("server.optimizer", c.server.optimizer, registry.SERVERS)
    require.in_range("server.learning_rate", c.server.learning_rate, 0)
    _check_rate(c, "server")
    fairness.check(c)
    privacy.check(c)
    robustness.check(c, registry.rule(c))
    submodels.check_form(c)
    _check_execution(c)
    _check_overridden(c, overridden)


def _check_magnitudes(fields: dict[str, Any]) -> None:
    """Refuses numbers beyond int32 and float32, in which devices compute."""
    limits = {int: 2**31 - 1, float: float(np.finfo(np.float32).max)}
    for path, value in fields.items():
        for number in jax.tree.leaves(value):
            limit = limits.get(type(number))
            if limit is not None and abs(number) > limit:
                require.in_range(path, number, -limit, limit)


def _check_run(c: Any) -> None:
    require.in_range("seed", c.seed, 0, 2**31 - 1)
    if c.data.partition.seed is not None:
        require.in_range("data.partition.seed", c.data.partition.seed, 0, 2**31 - 1)
    require.positive("rounds", c.rounds)
    require.in_range("clients_per_round", c.clients_per_round, 0)
    require.positive("eval_every", c.eval_every)
    require.count("min_test_records", c.min_test_records)
    require.one_of(
        "selection_metric",
        c.selection_metric,
        (model_selection.AUTO, *model_selection.CRITERIA),
    )


def _check_data(c: Any) -> None:
    require.one_of("data.name", c.data.name, datasets.DATASETS)
    for entry in c.data.group:
        if not isinstance(entry, str):
            require.fail("data.group", "names of csv columns", entry)
    require.one_of("data.normalise", c.data.normalise, registry.NORMALISATIONS)
    for name in c.data.augment:
        require.one_of("data.augment", name, augment.AUGMENTS)
    partition = c.data.partition
    require.one_of("data.partition.name", partition.name, assignment.PARTITIONS)
    require.positive("data.partition.num_clients", partition.num_clients)
    require.positive("data.partition.alpha", partition.alpha)
    require.positive("data.partition.min_size", partition.min_size)
    require.count("data.partition.shards", partition.shards)
    require.count("data.partition.classes", partition.classes)
    require.in_range(
        "data.partition.test_fraction",
        partition.test_fraction,
        0,
        1,
        open_low=True,
        open_high=True,
    )
    require.in_range(
        "data.partition.val_fraction",
        partition.val_fraction,
        0,
        1 - partition.test_fraction,
        open_high=True,
    )


def _check_model(c: Any) -> None:
    require.one_of("model.name", c.model.name, registry.MODELS)
    for name, entry in registry.MODELS.items():
        options = {} if entry.options is None else c.model[name]
        for field, value in options.items():
            for width in value if isinstance(value, tuple) else ():
                require.count(f"model.{name}.{field}", width)
    require.in_range("model.cnn.group_size", c.model.cnn.group_size, 0)
    for name in ("resmlp", "resnet"):
        require.one_of(f"model.{name}.moments", c.model[name].moments, MOMENTS)


def _check_tiers(c: Any) -> None:
    if not c.tiers.budget:
        require.fail("tiers.budget", "at least one tier", c.tiers.budget)
    for share in c.tiers.budget:
        require.in_range("tiers.budget", share, 0, 1, open_low=True)
    require.non_decreasing("tiers.budget", c.tiers.budget)
    submodels.check_branches(c)
    if len(c.tiers.proportions) != len(c.tiers.budget):
        require.fail(
            "tiers.proportions",
            f"{len(c.tiers.budget)} values, as tiers.budget",
            c.tiers.proportions,
        )
    for share in c.tiers.proportions:
        require.in_range("tiers.proportions", share, 0)
    require.positive("sum of tiers.proportions", math.fsum(c.tiers.proportions))
    require.one_of("tiers.assignment", c.tiers.assignment, registry.ASSIGNMENTS)
    require.in_range("tiers.correlation", c.tiers.correlation, 0, 1)
    _check_changes(c)
    last = len(c.tiers.budget) - 1
    require.in_range("submodel.fedavg.tier", c.submodel.fedavg.tier, 0, last)
    if c.submodel.depthfl.exclusive is not None:
        where = "submodel.depthfl.exclusive"
        require.in_range(where, c.submodel.depthfl.exclusive, 0, last)


def _check_changes(c: Any) -> None:
    where = "tiers.changes"
    for change in c.tiers.changes:
        if not isinstance(change, tuple) or len(change) != 3:
            require.fail(where, "(round, hospital, tier) for every change", change)
        number, client_index, tier = change
        require.count(f"{where} round", number)
        require.in_range(f"{where} hospital", client_index, 0)
        require.in_range(f"{where} tier", tier, 0, len(c.tiers.budget) - 1)
    if c.tiers.changes and c.execution.slots == "stratified":
        expected = "padded with tiers.changes, which change how many a tier has"
        require.fail("execution.slots", expected, "stratified")


def _check_local(c: Any) -> None:
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
    require.in_range("local.fedprox_mu", c.local.fedprox_mu, 0)
    require.in_range("local.max_grad_norm", c.local.max_grad_norm, 0)
    require.one_of("local.class_weights", c.local.class_weights, registry.CLASS_WEIGHTS)


def _check_rate(c: Any, group: str) -> None:
    """Checks the schedule of a learning rate: its fields, and that it has them all."""
    options = c[group]
    require.one_of(f"{group}.schedule", options.schedule, registry.SCHEDULES)
    require.in_range(f"{group}.warmup", options.warmup, 0)
    for number in options.milestones:
        require.count(f"{group}.milestones", number)
    schedule_fields = registry.SCHEDULES[options.schedule].options
    if "decay_rate" in schedule_fields:
        where, rate = f"{group}.decay_rate", options.decay_rate
        if rate is None:
            require.fail(where, f"a factor for schedule {options.schedule}", rate)
        require.in_range(where, rate, 0, 1, open_low=True)
    if "milestones" in schedule_fields:
        where, rounds = f"{group}.milestones", options.milestones
        if not rounds:
            require.fail(where, f"rounds for schedule {options.schedule}", rounds)
        if list(rounds) != sorted(set(rounds)) or rounds[0] < options.warmup:
            expected = f"rounds that increase, none of the {options.warmup} of warmup"
            require.fail(where, expected, rounds)


def _check_execution(c: Any) -> None:
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


def _check_overridden(c: Any, overridden: Collection[str]) -> None:
    option_tables = {
        "model": ("model.name", c.model.name, registry.MODELS),
        "submodel": ("submodel.name", c.submodel.name, registry.METHODS),
        "fairness": ("fairness.rule", c.fairness.rule, registry.RULES),
    }
    for path in overridden:
        group, _, subpath = path.partition(".")
        owner = subpath.partition(".")[0]
        if group == "privacy":
            privacy.check_used(path, owner, c)
        if group == "robust":
            robustness.check_used(path, c)
        if group in RATES:
            _check_schedule_option(path, c)
        if group not in option_tables:
            continue
        field, choice, table = option_tables[group]
        is_branch_option = (
            owner == "dynamicfl" and registry.METHODS[c.submodel.name].branches
        )
        if owner in table and owner not in choice.split("+") and not is_branch_option:
            raise require.InputError(
                f"{path}: expected {field}={owner!r} for this option; got {choice!r}"
            )


def _check_schedule_option(path: str, c: Any) -> None:
    """Refuses an option of a learning rate that its schedule does not read."""
    group, _, field = path.partition(".")
    schedule_name = c[group].schedule
    readers = [
        name
        for name, schedule in registry.SCHEDULES.items()
        if field in schedule.options
    ]
    if readers and schedule_name not in readers:
        choices = " or ".join(map(repr, readers))
        expected = f"{group}.schedule={choices} for this option"
        require.fail(path, expected, schedule_name)


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dicts that JSON can hold; tuples become lists."""
    return _convert_sequences(config.to_dict(), tuple, list)


def from_plain(config: dict[str, Any], where: str = "") -> ConfigDict:
    """The inverse of `to_plain`.

    Args:
        config: a plain config.
        where: what a refusal puts before the field, such as "run/config.json: ".

    Raises:
        InputError: a field or value has the name of an older version.
    """
    renames.refuse(renames.flatten(config), where)
    return ConfigDict(_convert_sequences(config, list, tuple))


def _convert_sequences(value: Any, old: type, new: type) -> Any:
    """The value with every sequence of type `old` as one of type `new`."""
    if isinstance(value, dict):
        return {
            name: _convert_sequences(inner, old, new) for name, inner in value.items()
        }
    if isinstance(value, old):
        return new(_convert_sequences(inner, old, new) for inner in value)
    return value


def is_extendable(config: dict[str, Any]) -> bool:
    """Whether a run may get more rounds later.

    It may not if its schedules, its method or its noise depend on their number.
    """
    has_noise_multiplier = config["privacy"]["noise_multiplier"] is not None
    is_calibrated = (
        config["privacy"]["epsilon"] is not None and not has_noise_multiplier
    )
    name = config["submodel"]["name"]
    depends_on_rounds = registry.METHODS[name].depends_on_rounds(
        config["submodel"].get(name, {})
    )
    for group in RATES:
        depends_on_rounds |= registry.SCHEDULES[
            config[group]["schedule"]
        ].depends_on_rounds
    return not (depends_on_rounds or is_calibrated)


def differences(config_a: dict[str, Any], config_b: dict[str, Any]) -> list[str]:
    """Dotted paths of the fields in which two plain configs differ."""
    a, b = renames.flatten(config_a), renames.flatten(config_b)
    missing = object()
    return sorted(p for p in a.keys() | b if a.get(p, missing) != b.get(p, missing))
