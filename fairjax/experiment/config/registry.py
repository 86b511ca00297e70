"""The tables of names: what a config's words stand for.

An option group of the config has the name of what it belongs to. A new method, rule,
model or optimiser is a line here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fairjax import models
from fairjax.core.types import Axes, Method, Model, Rule
from fairjax.fairness import (
    compose,
    directions,
    domains,
    objectives,
    personal,
    weights,
)
from fairjax.fairness.contribution import fedce
from fairjax.fairness.groups import fairfed
from fairjax.models import layers
from fairjax.submodels import fedavg, partial
from fairjax.submodels.depthfl import depthfl
from fairjax.submodels.dynamicfl import dynamicfl
from fairjax.submodels.federated_dropout import federated_dropout
from fairjax.submodels.fedrolex import fedrolex
from fairjax.submodels.fiarse import fiarse
from fairjax.submodels.fjord import fjord
from fairjax.submodels.heterofl import heterofl
from fairjax.submodels.inclusivefl import inclusivefl
from fairjax.submodels.ladder import ladder
from fairjax.submodels.lora import adapt, lora
from fairjax.submodels.nefl import nefl
from fairjax.submodels.scalefl import scalefl


class Family(NamedTuple):
    """A published method and what it asks of the model."""

    method: Callable[[Any, Axes], Method]
    """(config, unit axes) -> method."""
    model: Callable[[Any, Model], Model] = lambda c, model: model
    """(config, model) -> the network that travels (LoRA adds its factors)."""
    blocks: bool = False
    """Needs a list of residual blocks that are alike."""
    exits: bool = False
    """Needs a head after every stage."""
    steps: bool = False
    """Needs a learnable step size in every block."""
    branches: bool = False
    """Its tiers may have branches; it then takes the options of dynamicfl too."""
    of_rounds: Callable[[Any], bool] = lambda c: False
    """Whether, by its options, it rests on the number of rounds (see `Schedule`)."""


def _model(
    name: str, build: Callable[..., Model]
) -> Callable[[Any, int, Family], Model]:
    """The model built with its config group, and with what the method asks for."""

    def make(c: Any, classes: int, family: Family) -> Model:
        options = dict(c.model[name])
        options.pop("moments", None)
        if name in CONVOLUTIONAL:
            options["lowering"] = lowering(c)
        if name in EXITED:
            options["exits"] = family.exits
        if name in RESIDUAL:
            options["steps"] = family.steps
        return build(classes=classes, **options)

    return make


def lowering(c: Any) -> str:
    """The lowering of convolutions that the config asks for, on this machine."""
    vmapped = c.execution.batching in ("vmap", "chunk")
    of_records = c.privacy.mechanism == "record_dp"
    backend = jax.default_backend()
    return layers.lowering(c.execution.conv, backend, vmapped=vmapped or of_records)


CONVOLUTIONAL = ("cnn", "lenet", "two_conv", "resnet")
RESIDUAL = ("resmlp", "resnet", "vit")
"""Models of residual blocks, any of which may be dropped and have a step size."""
EXITED = (*RESIDUAL, "cnn")
"""Models that may have exits, of which a prefix can be kept."""
FOR_TABLES = ("mlp", "resmlp")
"""Models that take rows of numbers; the others take images alone."""

MODELS: dict[str, Callable[[Any, int, Family], Model]] = {
    name: _model(name, getattr(models, name))
    for name in ("mlp", "cnn", "lenet", "two_conv", "resmlp", "resnet", "vit")
}


def _by_budget(name: str, method: Callable[..., Method]) -> Family:
    """A method that is given the unit axes, the tiers' budgets and its own options."""
    return Family(
        lambda c, axes: method(axes, tuple(c.tiers.budget), **c.submodel[name])
    )


def _heterofl(c: Any, axes: Axes) -> Method:
    options = c.submodel.heterofl
    return heterofl(
        axes,
        tuple(c.tiers.budget),
        scaler=options.scaler,
        masked_loss=options.masked_loss,
        redraw=tuple(c.tiers.share) if options.dynamic else None,
    )


TRANSFORMERS = ("vit",)
"""Models whose branches stay where they are unless a budget changes."""


def branches_of(c: Any) -> tuple[int, ...]:
    """Branches per layer of every tier."""
    tiers = len(c.tiers.budget)
    if c.tiers.branches or c.submodel.name != "dynamicfl":
        return tuple(c.tiers.branches) or (0,) * tiers
    return tuple(range(tiers))


def structure_of(c: Any) -> str:
    """Who decides which branches are alive."""
    structure = c.submodel.dynamicfl.structure
    if structure == "auto":
        return "fixed" if c.model.name in TRANSFORMERS else "sensitivity"
    return structure


def _dynamicfl(c: Any) -> dict[str, Any]:
    options = {**c.submodel.dynamicfl, "structure": structure_of(c)}
    return {"number": branches_of(c), **options}


def planned(c: Any) -> bool:
    """Whether it is by what they remember that clients have their branches."""
    return METHODS[c.submodel.name].branches and structure_of(c) != "fixed"


METHODS: dict[str, Family] = {
    "fedavg": _by_budget("fedavg", fedavg.fedavg),
    "heterofl": Family(_heterofl),
    "federated_dropout": _by_budget("federated_dropout", federated_dropout),
    "fedrolex": _by_budget("fedrolex", fedrolex),
    "fjord": _by_budget("fjord", fjord),
    "fiarse": Family(
        lambda c, axes: fiarse(tuple(c.tiers.budget), **c.submodel.fiarse)
    ),
    "partial": _by_budget("partial", partial.partial)._replace(blocks=True),
    "depthfl": _by_budget("depthfl", depthfl)._replace(exits=True),
    "inclusivefl": _by_budget("inclusivefl", inclusivefl)._replace(
        blocks=True, exits=True
    ),
    "scalefl": Family(
        lambda c, axes: scalefl(
            axes, tuple(c.tiers.budget), c.rounds, **c.submodel.scalefl
        ),
        exits=True,
        of_rounds=lambda options: options["gamma"] > 0 and options["warmup"] > 0,
    ),
    "nefl": _by_budget("nefl", nefl)._replace(blocks=True, steps=True),
    "lora": Family(
        lambda c, axes: lora(axes, tuple(c.tiers.budget)),
        lambda c, model: adapt(model, **c.submodel.lora),
    ),
    "dynamicfl": Family(
        lambda c, axes: dynamicfl(axes, **_dynamicfl(c)), branches=True
    ),
    "ladder": Family(
        lambda c, axes: ladder(
            axes, tuple(c.tiers.budget), **c.submodel.ladder, **_dynamicfl(c)
        ),
        branches=True,
    ),
}


class Groups(NamedTuple):
    """What a rule may tell apart besides tiers and hospitals."""

    patients: int = 0
    """G of fairness.group."""
    hospitals: tuple[int, ...] = ()
    """Group of every hospital, by fairness.hospital_group."""


ALIKE = Groups()

RULES: dict[str, Callable[[Any, Groups], Rule]] = {
    "size": lambda c, known: weights.size(),
    "uniform": lambda c, known: weights.uniform(),
    "q_ffl": lambda c, known: weights.q_ffl(**c.fairness.q_ffl),
    "term": lambda c, known: weights.term(**c.fairness.term),
    "cvar": lambda c, known: weights.cvar(**c.fairness.cvar),
    "ordered": lambda c, known: weights.ordered(**c.fairness.ordered),
    "gifair": lambda c, known: weights.gifair(
        **c.fairness.gifair, hospitals=known.hospitals
    ),
    "afl": lambda c, known: weights.afl(**c.fairness.afl),
    "agnostic": lambda c, known: domains.agnostic(
        **c.fairness.agnostic, groups=known.patients, hospitals=known.hospitals
    ),
    "tier_afl": lambda c, known: domains.tier_afl(**c.fairness.tier_afl),
    "tier_term": lambda c, known: domains.tier_term(**c.fairness.tier_term),
    "tier_equal": lambda c, known: domains.tier_equal(**c.fairness.tier_equal),
    "tier_gap": lambda c, known: domains.tier_gap(**c.fairness.tier_gap),
    "fairfed": lambda c, known: fairfed(**c.fairness.fairfed),
    "fedce": lambda c, known: fedce(**c.fairness.fedce),
    "q_fedavg": lambda c, known: directions.q_fedavg(
        **c.fairness.q_fedavg,
        learning_rate=c.local.learning_rate,
        weight_decay=c.local.weight_decay,
    ),
    "fedmgda": lambda c, known: directions.fedmgda(**c.fairness.fedmgda),
    "fedfv": lambda c, known: directions.fedfv(**c.fairness.fedfv),
    "propfair": lambda c, known: objectives.propfair(**c.fairness.propfair),
    "logit_adjust": lambda c, known: objectives.logit_adjust(**c.fairness.logit_adjust),
    "ditto": lambda c, known: personal.ditto(**c.fairness.ditto),
    "fedbn": lambda c, known: personal.fedbn(),
    "private_head": lambda c, known: personal.private_head(),
}
"""Name -> (config, groups) -> rule."""


def by_group(c: Any, name: str) -> bool:
    """Whether a rule, as configured, asks for a patient attribute."""
    return name == "fairfed" or (
        name == "agnostic" and c.fairness.agnostic.domain == "group"
    )


def by_hospitals(c: Any, name: str) -> bool:
    """Whether a rule, as configured, asks for groups of hospitals."""
    of = {"agnostic": c.fairness.agnostic.domain, "gifair": c.fairness.gifair.groups}
    return of.get(name) == "hospital_group"


def rule(c: Any, known: Groups = ALIKE) -> Rule:
    """The rule of a config, `a+b` composed, with its cap and warm-up."""
    parts = c.fairness.rule.split("+")
    made = compose.compose([(name, RULES[name](c, known)) for name in parts])
    if c.fairness.cap:
        made = compose.capped(made, c.fairness.cap)
    if c.fairness.warmup:
        made = compose.after(made, c.fairness.warmup)
    return made


def _sgd(c: Any) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(c.local.weight_decay)
    sgd = optax.sgd(c.local.learning_rate, momentum=c.local.momentum or None)
    return optax.chain(decay, sgd) if c.local.weight_decay else sgd


OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adam": lambda c: optax.adamw(
        c.local.learning_rate, weight_decay=c.local.weight_decay
    ),
}

SERVERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    # beta2 and epsilon (tau) as in Reddi et al. 2021, section 5.
    "adam": lambda rate: optax.adam(rate, b2=0.99, eps=1e-3),
    "yogi": lambda rate: optax.yogi(rate, b2=0.99, eps=1e-3),
}


class Schedule(NamedTuple):
    """A law by which a learning rate changes over rounds."""

    law: Callable[[Any, int], optax.Schedule]
    """(config group, rounds from its first one to the run's last) -> schedule over
    the rounds since its first one."""
    options: tuple[str, ...] = ()
    """Fields of the group that it reads."""
    of_rounds: bool = False
    """It rests on the number of rounds, so that no run of it can be extended."""


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(lambda c, rounds: optax.constant_schedule(1.0)),
    "linear": Schedule(
        lambda c, rounds: optax.linear_schedule(1.0, 0.0, rounds), of_rounds=True
    ),
    "cosine": Schedule(
        lambda c, rounds: optax.cosine_decay_schedule(1.0, rounds), of_rounds=True
    ),
    "steps": Schedule(
        lambda c, rounds: optax.piecewise_constant_schedule(
            1.0, {number - c.warmup: c.decay_rate for number in c.milestones}
        ),
        ("milestones", "decay_rate"),
    ),
    "exponential": Schedule(
        lambda c, rounds: optax.exponential_decay(1.0, 1, c.decay_rate), ("decay_rate",)
    ),
}


def schedule(c: Any, rounds: int) -> Callable[[Array], Any]:
    """Rounds finished -> factor on the learning rate of a group, local or server.

    Over the first `warmup` = W rounds it is (r + 1) / (W + 1), so that no round is
    lost; the law begins with the round after them.

    Args:
        c: the group.
        rounds: of the whole run.
    """
    if c.schedule == "constant" and not c.warmup:
        return lambda round: 1.0
    law = SCHEDULES[c.schedule].law(c, max(rounds - c.warmup, 1))
    if c.warmup:
        rise = optax.linear_schedule(1 / (c.warmup + 1), 1.0, c.warmup)
        law = optax.join_schedules([rise, law], [c.warmup])
    return lambda round: law(round.astype(jnp.float32))


NORMALISATIONS = ("pooled", "client", "none")
ASSIGNMENTS = ("random", "by_size", "by_label")
CLASS_WEIGHTS = ("none", "balanced")
DENOMINATORS = ("cover", "fixed")
SLOTS = ("padded", "stratified")
CONVOLUTIONS = ("auto", *layers.CONVOLUTIONS)
