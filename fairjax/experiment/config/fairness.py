"""Checks of the fairness fields: the rule, its groups, and what it asks of training."""

from collections.abc import Mapping

from fairjax.core import require
from fairjax.core.rule import Rule
from fairjax.experiment.config import compatibility, lookup, privacy, registry
from fairjax.experiment.config.schema import Config


def check_rules(c: Config, rules: Mapping[str, Rule]) -> None:
    """Refuses rules that the config does not fit, one by one.

    Args:
        c: a config.
        rules: the rules that it names, see `lookup.rules`.
    """
    privacy.check_rules(c, rules)
    group_rules = [name for name in rules if lookup.by_patient_group(c, name)]
    if c.fairness.group is not None and not group_rules:
        expected = f"none with rule {c.fairness.rule}, which asks for no attribute"
        require.fail("fairness.group", expected, c.fairness.group)
    _check_client_group(c, rules)
    for name, rule in rules.items():
        if rule.reads_gradients:
            _check_plain_steps(c, name)


def check(c: Config, rule: Rule) -> None:
    """Refuses a composed rule that secure sums or the denominator do not fit.

    Args:
        c: a config.
        rule: its rules as one, see `lookup.composed_rule`.
    """
    privacy.check_sums(c, rule)
    condition = compatibility.CONDITIONS["fixed_denominator"]
    if c.fairness.denominator == "fixed" and not condition.allows(rule):
        expected = f"cover with rule {c.fairness.rule}, {condition.reason}"
        require.fail("fairness.denominator", expected, "fixed")


def _check_plain_steps(c: Config, name: str) -> None:
    """Refuses local steps whose update over the learning rate is no gradient."""
    reason = f"for {name}, which reads gradients off the changes of plain SGD"
    if c.local.optimizer != "sgd":
        require.fail("local.optimizer", f"sgd {reason}", c.local.optimizer)
    for field in ("momentum", "max_grad_norm"):
        value = getattr(c.local, field)
        if value:
            require.fail(f"local.{field}", f"0 {reason}", value)
    method = c.submodel.name
    option = registry.METHODS[method].gradient_option
    value = option and getattr(c.submodel.options[method], option)
    if value:
        require.fail(f"submodel.{method}.{option}", f"0 {reason}", value)


def _check_client_group(c: Config, rules: Mapping[str, Rule]) -> None:
    where, group_by_client = "fairness.client_group", c.fairness.client_group
    if group_by_client and len(set(group_by_client)) < 2:
        require.fail(where, "at least two groups", group_by_client)
    client_group_rules = [name for name in rules if lookup.by_client_group(c, name)]
    if client_group_rules and not group_by_client:
        name = client_group_rules[0]
        expected = f"a group's name for every hospital with rule {name} by them"
        require.fail(where, expected, group_by_client)
