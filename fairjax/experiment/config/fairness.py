"""Checks of the fairness fields: the rule, its groups, and what it asks of training."""

from typing import Any

from fairjax.core import require
from fairjax.experiment.config import compatibility, privacy, registry


def check(c: Any) -> None:
    """Refuses a rule that the config does not fit.

    The rule checks its own options when it is built.

    Args:
        c: a config.
    """
    rule_names = c.fairness.rule.split("+")
    for rule_name in rule_names:
        require.one_of("fairness.rule", rule_name, registry.RULES)
    privacy.check_rule(c)
    require.one_of(
        "fairness.denominator", c.fairness.denominator, registry.DENOMINATORS
    )
    group_rules = [
        rule_name for rule_name in rule_names if registry.by_patient_group(c, rule_name)
    ]
    if c.fairness.group is not None and not group_rules:
        expected = f"none with rule {c.fairness.rule}, which asks for no attribute"
        require.fail("fairness.group", expected, c.fairness.group)
    _check_client_group(c, rule_names)
    for name, rule in registry.rules(c):
        if rule.reads_gradients:
            _check_plain_steps(c, name)
    fairness_rule = registry.rule(c)
    privacy.check_sums(c, fairness_rule)
    condition = compatibility.CONDITIONS["fixed_denominator"]
    if c.fairness.denominator == "fixed" and not condition.allows(fairness_rule):
        expected = f"cover with rule {c.fairness.rule}, {condition.reason}"
        require.fail("fairness.denominator", expected, "fixed")


def _check_plain_steps(c: Any, name: str) -> None:
    """Refuses local steps whose update over the learning rate is no gradient."""
    reason = f"for {name}, which reads gradients off the changes of plain SGD"
    if c.local.optimizer != "sgd":
        require.fail("local.optimizer", f"sgd {reason}", c.local.optimizer)
    for field in ("momentum", "max_grad_norm"):
        if c.local[field]:
            require.fail(f"local.{field}", f"0 {reason}", c.local[field])
    method = c.submodel.name
    option = registry.METHODS[method].gradient_option
    if option is not None and c.submodel[method][option]:
        value = c.submodel[method][option]
        require.fail(f"submodel.{method}.{option}", f"0 {reason}", value)


def _check_client_group(c: Any, rule_names: list[str]) -> None:
    where, group_by_client = "fairness.client_group", c.fairness.client_group
    for name in group_by_client:
        if not isinstance(name, str) or not name:
            require.fail(where, "a group's name for every hospital", name)
    if group_by_client and len(set(group_by_client)) < 2:
        require.fail(where, "at least two groups", group_by_client)
    client_group_rules = [
        rule_name for rule_name in rule_names if registry.by_client_group(c, rule_name)
    ]
    if client_group_rules and not group_by_client:
        name = client_group_rules[0]
        expected = f"a group's name for every hospital with rule {name} by them"
        require.fail(where, expected, group_by_client)
