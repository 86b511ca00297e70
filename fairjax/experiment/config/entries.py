"""What an entry of the registry's tables says about a method, a model or a rule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fairjax.core.method import Method
from fairjax.core.rule import Rule
from fairjax.core.types import Axes, Model
from fairjax.experiment.config.schema import Config
from fairjax.models import convolutions


def keywords(options: Any) -> dict[str, Any]:
    """An entry's options as keyword arguments; {} for an entry that has none.

    Args:
        options: an object of the entry's dataclass, or None.
    """
    return {} if options is None else dict(vars(options))


class MethodEntry(NamedTuple):
    """A published method and what it needs of the model."""

    method: Callable[[Any, Config, Axes], Method]
    """(its options, config, axes of the model) -> method."""
    options: type | None = None
    """The dataclass of its options; None: it has none."""
    model: Callable[[Any, Model], Model] = lambda options, model: model
    """(its options, model) -> the network that travels; LoRA adds its factors."""
    blocks: bool = False
    """Needs a list of residual blocks of one shape."""
    exits: bool = False
    """Needs a head after every stage."""
    steps: bool = False
    """Needs a learnable step size in every block."""
    branches: bool = False
    """Its tiers may have branches; it then takes the options of dynamicfl too."""
    public_masks: bool = True
    """Its masks follow from public facts, and not from what clients trained."""
    tier_options: tuple[str, ...] = ()
    """The options that name a tier, or None."""
    gradient_option: str | None = None
    """The option with which its gradients are not those of the loss alone."""
    depends_on_rounds: Callable[[Any], bool] = lambda options: False
    """Its options -> whether the method depends on the number of rounds, as a
    `optimizers.Schedule` may."""


class ModelEntry(NamedTuple):
    """An architecture and what it offers to methods and data."""

    build: Callable[..., Model]
    """(classes, its options) -> model."""
    options: type | None = None
    """The dataclass of its options; None: it has none."""
    convolutional: bool = False
    """It has convolutions, whose lowering the config chooses."""
    residual: bool = False
    """It has residual blocks: each may be dropped or have a step size."""
    exits: bool = False
    """It may have exits: a sub-model may end at any of them."""
    tabular: bool = False
    """It takes rows of numbers; other models take only images."""
    moving_branches: bool = True
    """Branches may move between its layers, not only when a budget changes."""

    def make(self, options: Any, c: Config, classes: int, method: MethodEntry) -> Model:
        """The model as its options and the method ask.

        Args:
            options: the model's.
            c: a config.
            classes: C.
            method: the method that gives its sub-models.
        """
        arguments = keywords(options)
        arguments.pop("moments", None)
        if self.convolutional:
            arguments["lowering"] = lowering(c)
        if self.exits:
            arguments["exits"] = method.exits
        if self.residual:
            arguments["steps"] = method.steps
        return self.build(classes=classes, **arguments)


def lowering(c: Config) -> str:
    """The lowering of convolutions that the config asks for, on this machine.

    Args:
        c: a config.
    """
    vmapped = c.execution.batching in ("vmap", "chunk")
    is_per_record = c.privacy.mechanism == "record_dp"
    backend = jax.default_backend()
    return convolutions.lowering(
        c.execution.conv, backend, vmapped=vmapped or is_per_record
    )


class RuleEntry(NamedTuple):
    """A fairness rule and what its options say that it reads."""

    rule: Callable[[Any, Config], Rule]
    """(its options, config) -> rule."""
    options: type | None = None
    """The dataclass of its options; None: it has none."""
    domain_option: str | None = None
    """The option that names what the rule tells apart."""
    patient_group: bool = False
    """Reads a patient attribute, whatever its options are."""
    binary: bool = False
    """Its patient attribute has two values, and its task two classes."""


Entry = MethodEntry | ModelEntry | RuleEntry
"""An entry of any table, which may have options."""
