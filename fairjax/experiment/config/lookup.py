"""What the names of a config stand for: its model, its method and its rules.

Refusals of the functions that the registry names get the names of config fields here.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from fairjax.core import require
from fairjax.core.method import Method
from fairjax.core.rule import Rule
from fairjax.core.rule import check as check_rule
from fairjax.core.types import Axes, Model
from fairjax.experiment.config import paths, registry, schema
from fairjax.experiment.config.options.methods import DynamicFL
from fairjax.experiment.config.schema import Config
from fairjax.fairness import compose


def model(c: Config, classes: int) -> Model:
    """The network of a config that travels, with what its method asks for.

    Args:
        c: a config.
        classes: C.

    Raises:
        InputError: an option of the model or the method is out of range.
    """
    entry = registry.MODELS[c.model.name]
    method = registry.METHODS[c.submodel.name]
    with model_options(c):
        model = entry.make(options_of(c.model), c, classes, method)
    with method_options(c):
        return method.model(options_of(c.submodel), model)


def method(c: Config, axes: Axes) -> Method:
    """The method of a config for a model with these axes.

    Args:
        c: a config.
        axes: the model's.

    Raises:
        InputError: an option is out of range, or the model cannot carry the method.
    """
    with method_options(c):
        entry = registry.METHODS[c.submodel.name]
        return entry.method(options_of(c.submodel), c, axes)


def model_options(c: Config) -> AbstractContextManager[None]:
    """Gives refusals of the model the names of its options.

    Args:
        c: a config.
    """
    options = registry.MODELS[c.model.name].options
    return paths.field_names(paths.entry_fields("model", c.model.name, options))


def method_options(c: Config) -> AbstractContextManager[None]:
    """Gives refusals of the method the names of its options.

    Args:
        c: a config.
    """
    entry, names = registry.METHODS[c.submodel.name], {}
    if entry.branches:
        names = paths.entry_fields("submodel", registry.BRANCHES, DynamicFL)
    names |= paths.entry_fields("submodel", c.submodel.name, entry.options)
    return paths.field_names(names)


@contextlib.contextmanager
def initial_state_names(c: Config) -> Iterator[None]:
    """Gives refusals of a first state, by the method or a rule, the fields' names.

    Args:
        c: a config.
    """
    with paths.field_names({"rule": "fairness.rule"}), method_options(c):
        yield


def options_of(group: schema.Model | schema.Submodel) -> Any:
    """The options of the model or method that a config names; None if it has none."""
    return group.options.get(group.name)


def branch_options(c: Config) -> DynamicFL:
    """What branches are like under a config, whichever method has them.

    Args:
        c: a config.
    """
    return c.submodel.options[registry.BRANCHES]


def uses_branch_memory(c: Config) -> bool:
    """Whether clients remember their branches between rounds.

    Args:
        c: a config.
    """
    return (
        registry.METHODS[c.submodel.name].branches
        and registry.structure_of(c) != "fixed"
    )


def by_patient_group(c: Config, name: str) -> bool:
    """Whether a rule, as configured, reads a patient attribute.

    Args:
        c: a config.
        name: the rule's.
    """
    return registry.RULES[name].patient_group or domain(c, name) == "group"


def by_client_group(c: Config, name: str) -> bool:
    """Whether a rule, as configured, reads groups of clients.

    Args:
        c: a config.
        name: the rule's.
    """
    return domain(c, name) == "client_group"


def domain(c: Config, name: str) -> str | None:
    """What a rule, as configured, tells apart; None for rules without such an option.

    Args:
        c: a config.
        name: the rule's.
    """
    option = registry.RULES[name].domain_option
    return None if option is None else getattr(c.fairness.options[name], option)


def rules(c: Config) -> dict[str, Rule]:
    """{name: rule} of every rule that a config composes, in its order.

    Args:
        c: a config.

    Raises:
        InputError: a name is unknown or there twice, an option is out of range, or the
            properties of a rule contradict each other.
    """
    built: dict[str, Rule] = {}
    for name in c.fairness.rule.split("+"):
        require.one_of("fairness.rule", name, registry.RULES)
        if name in built:
            require.fail("fairness.rule", "every rule once", c.fairness.rule)
        built[name] = _rule(c, name)
        check_rule(name, built[name])
    return built


def _rule(c: Config, name: str) -> Rule:
    entry = registry.RULES[name]
    with paths.field_names(paths.entry_fields("fairness", name, entry.options)):
        return entry.rule(c.fairness.options.get(name), c)


def composed_rule(c: Config, rules: Mapping[str, Rule]) -> Rule:
    """The rule of a config: its rules as one, with its cap and warm-up.

    Args:
        c: a config.
        rules: its rules, see `rules`.

    Raises:
        InputError: two of the rules set the same thing, or there is nothing that the
            cap or the warm-up would act on.
    """
    names = {
        "rules": "fairness.rule",
        "cap": "fairness.cap",
        "rounds": "fairness.warmup",
    }
    with paths.field_names(names):
        fairness_rule = compose.compose(list(rules.items()))
        if c.fairness.cap:
            fairness_rule = compose.with_cap(fairness_rule, c.fairness.cap)
        if c.fairness.warmup:
            fairness_rule = compose.with_warmup(fairness_rule, c.fairness.warmup)
    return fairness_rule
