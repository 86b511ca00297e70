"""What a config may say: names, ranges, and which of its fields fit together.

`check` refuses a config that no data could make run, and touches nothing. Every refusal
names the field as the user writes it. The classes of `schema` and of the options check
single values; here, and in `submodels`, `fairness`, `privacy` and `robustness`, is what
several fields say together.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fairjax.core import require
from fairjax.core.rule import Rule
from fairjax.experiment.config import (
    conversion,
    fairness,
    lookup,
    optimizers,
    privacy,
    registry,
    renames,
    robustness,
    submodels,
)
from fairjax.experiment.config.schema import Config, Rate

RATES = ("local", "server")
"""Groups with a learning rate and its schedule."""


class CheckedConfig(NamedTuple):
    """A config that passed every check that needs no data, and its rules."""

    config: Config
    rules: Mapping[str, Rule]
    """{name: rule} of the rules that `fairness.rule` composes."""
    rule: Rule
    """These rules as one, with the cap and the warm-up."""


def check(config: ConfigDict, overridden: Collection[str] = ()) -> CheckedConfig:
    """Refuses a config that no data set could make run.

    Args:
        config: a full config, see `fairjax.experiment.config.default`.
        overridden: paths of the fields that the user set by hand; one that belongs to a
            model, method or rule that is not in use is refused.

    Returns:
        The config in its frozen form, with the rules that it names.

    Raises:
        InputError: names the field, what was expected and what came.
    """
    config.lock()
    values = renames.flatten(conversion.to_plain(config))
    renames.refuse(values)
    _check_magnitudes(values)
    c = conversion.to_typed(config)
    _check_names(c)
    _check_data(c)
    _check_tiers(c)
    _check_local(c)
    for group in RATES:
        _check_rate(c, group)
    rules = lookup.rules(c)
    fairness.check_rules(c, rules)
    rule = lookup.composed_rule(c, rules)
    fairness.check(c, rule)
    privacy.check(c, rules)
    robustness.check(c, rules, rule)
    submodels.check_form(c)
    _check_overridden(c, rules, overridden)
    return CheckedConfig(c, rules, rule)


def _check_magnitudes(values: dict[str, Any]) -> None:
    """Refuses numbers beyond int32 and float32, in which devices compute."""
    limits = {int: 2**31 - 1, float: float(np.finfo(np.float32).max)}
    for path, value in values.items():
        for number in jax.tree.leaves(value):
            limit = limits.get(type(number))
            if limit is not None and abs(number) > limit:
                require.in_range(path, number, -limit, limit)


def _check_names(c: Config) -> None:
    """Refuses names that no table has; `lookup.rules` refuses those of rules."""
    require.one_of("model.name", c.model.name, registry.MODELS)
    require.one_of("submodel.name", c.submodel.name, registry.METHODS)
    require.one_of("local.optimizer", c.local.optimizer, optimizers.OPTIMIZERS)
    require.one_of("server.optimizer", c.server.optimizer, optimizers.SERVERS)


def _check_data(c: Config) -> None:
    partition = c.data.partition
    require.in_range(
        "data.partition.val_fraction",
        partition.val_fraction,
        0,
        1 - partition.test_fraction,
        open_high=True,
    )


def _check_tiers(c: Config) -> None:
    if not c.tiers.budget:
        require.fail("tiers.budget", "at least one tier", c.tiers.budget)
    require.non_decreasing("tiers.budget", c.tiers.budget)
    submodels.check_branches(c)
    if len(c.tiers.proportions) != len(c.tiers.budget):
        require.fail(
            "tiers.proportions",
            f"{len(c.tiers.budget)} values, as tiers.budget",
            c.tiers.proportions,
        )
    require.positive("sum of tiers.proportions", math.fsum(c.tiers.proportions))
    _check_changes(c)
    submodels.check_tiers(c)


def _check_changes(c: Config) -> None:
    for _, _, tier in c.tiers.changes:
        require.in_range("tiers.changes tier", tier, 0, len(c.tiers.budget) - 1)
    if c.tiers.changes and c.execution.slots == "stratified":
        expected = "padded with tiers.changes, which change how many a tier has"
        require.fail("execution.slots", expected, "stratified")


def _check_local(c: Config) -> None:
    if c.local.steps is None:
        require.positive("local.epochs", c.local.epochs)
    if c.local.momentum and c.local.optimizer != "sgd":
        expected = f"0 with optimizer {c.local.optimizer}"
        require.fail("local.momentum", expected, c.local.momentum)


def _check_rate(c: Config, group: str) -> None:
    """Checks the schedule of a learning rate: its fields, and that it has them all."""
    options: Rate = getattr(c, group)
    require.one_of(f"{group}.schedule", options.schedule, optimizers.SCHEDULES)
    schedule_fields = optimizers.SCHEDULES[options.schedule].options
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


def _check_overridden(
    c: Config, rules: Mapping[str, Rule], overridden: Collection[str]
) -> None:
    """Refuses fields that the user set by hand and that nothing reads."""
    chosen = {
        "model": ("model.name", [c.model.name]),
        "submodel": ("submodel.name", submodels.option_owners(c)),
        "fairness": ("fairness.rule", list(rules)),
    }
    for path in overridden:
        group, _, subpath = path.partition(".")
        owner = subpath.partition(".")[0]
        if group == "privacy":
            privacy.check_used(path, owner, c, rules)
        if group == "robust":
            robustness.check_used(path, c)
        if group in RATES:
            _check_schedule_option(path, c)
        if owner not in registry.TABLES.get(group, ()):
            continue
        field, owners = chosen[group]
        if owner not in owners:
            choice = "+".join(rules) if group == "fairness" else owners[0]
            require.fail(path, f"{field}={owner!r} for this option", choice)


def _check_schedule_option(path: str, c: Config) -> None:
    """Refuses an option of a learning rate that its schedule does not read."""
    group, _, field = path.partition(".")
    schedule_name = getattr(c, group).schedule
    readers = [
        name
        for name, schedule in optimizers.SCHEDULES.items()
        if field in schedule.options
    ]
    if readers and schedule_name not in readers:
        choices = " or ".join(map(repr, readers))
        expected = f"{group}.schedule={choices} for this option"
        require.fail(path, expected, schedule_name)


def is_extendable(c: Config) -> bool:
    """Whether a run may get more rounds later.

    It may not if its schedules, its method or its noise depend on their number.
    """
    is_calibrated = c.privacy.epsilon is not None and c.privacy.noise_multiplier is None
    method = registry.METHODS[c.submodel.name]
    depends_on_rounds = method.depends_on_rounds(lookup.options_of(c.submodel))
    for rate in (c.local, c.server):
        schedule = optimizers.SCHEDULES[rate.schedule]
        depends_on_rounds |= schedule.depends_on_rounds
    return not (depends_on_rounds or is_calibrated)
