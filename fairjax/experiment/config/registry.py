"""The tables of names: the functions that the names in a config stand for.

A new method, rule, model or optimiser is a line here. The line of a method, rule or
model names the dataclass of its options, from which its group of the config is made.
The group has the name of the entry.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array

from fairjax import models
from fairjax.core.method import Method
from fairjax.core.rule import Rule
from fairjax.core.rule import check as check_rule
from fairjax.core.types import Axes, Model
from fairjax.experiment.config.entries import (
    NO_GROUPS,
    Groups,
    MethodEntry,
    ModelEntry,
    RuleEntry,
)
from fairjax.experiment.config.options import methods as method_options
from fairjax.experiment.config.options import models as model_options
from fairjax.experiment.config.options import rules as rule_options
from fairjax.fairness import compose, personal, weights
from fairjax.fairness.afl import afl
from fairjax.fairness.agnostic import agnostic
from fairjax.fairness.fairfed import fairfed
from fairjax.fairness.fedce import fedce
from fairjax.fairness.fedfv import fedfv
from fairjax.fairness.fedmgda import fedmgda
from fairjax.fairness.gifair import gifair
from fairjax.fairness.logit_adjust import logit_adjust
from fairjax.fairness.ordered_weights import cvar, ordered
from fairjax.fairness.propfair import propfair
from fairjax.fairness.q_fedavg import q_fedavg
from fairjax.fairness.q_ffl import q_ffl
from fairjax.fairness.tier_rules import tier_afl, tier_equal, tier_gap, tier_term
from fairjax.fairness.tilted import term
from fairjax.models import convolutions
from fairjax.submodels import fedavg, partial
from fairjax.submodels.depthfl import depthfl
from fairjax.submodels.dynamicfl import dynamicfl
from fairjax.submodels.federated_dropout import federated_dropout
from fairjax.submodels.fedrolex import fedrolex
from fairjax.submodels.fiarse import fiarse
from fairjax.submodels.fjord import fjord
from fairjax.submodels.heterofl import heterofl
from fairjax.submodels.inclusivefl import inclusivefl
from fairjax.submodels.lora import adapt, lora
from fairjax.submodels.mixed import mixed
from fairjax.submodels.nefl import nefl
from fairjax.submodels.scalefl import scalefl

MODELS: dict[str, ModelEntry] = {
    "mlp": ModelEntry(models.mlp, model_options.MLP, tabular=True),
    "cnn": ModelEntry(models.cnn, model_options.CNN, convolutional=True, exits=True),
    "lenet": ModelEntry(models.lenet, model_options.LeNet, convolutional=True),
    "two_conv": ModelEntry(models.two_conv, model_options.TwoConv, convolutional=True),
    "resmlp": ModelEntry(
        models.resmlp, model_options.ResMLP, residual=True, exits=True, tabular=True
    ),
    "resnet": ModelEntry(
        models.resnet,
        model_options.ResNet,
        convolutional=True,
        residual=True,
        exits=True,
    ),
    "vit": ModelEntry(
        models.vit,
        model_options.ViT,
        residual=True,
        exits=True,
        moving_branches=False,
    ),
}


def model(c: Any, classes: int) -> Model:
    """The model of a config, with what its method asks for.

    Args:
        c: a config.
        classes: C.
    """
    method = METHODS[c.submodel.name]
    return MODELS[c.model.name].make(c, c.model.name, classes, method)


def _by_budget(name: str, method: Callable[..., Method], options: type) -> MethodEntry:
    """A method that takes the model's axes, the tiers' budgets and its own options."""
    return MethodEntry(
        lambda c, axes: method(axes, tuple(c.tiers.budget), **c.submodel[name]), options
    )


def _heterofl(c: Any, axes: Axes) -> Method:
    options = c.submodel.heterofl
    return heterofl(
        axes,
        tuple(c.tiers.budget),
        scaler=options.scaler,
        masked_loss=options.masked_loss,
        redraw=tuple(c.tiers.proportions) if options.dynamic else None,
    )


def branches_of(c: Any) -> tuple[int, ...]:
    """Branches per layer of every tier.

    Args:
        c: a config.
    """
    tiers = len(c.tiers.budget)
    if c.tiers.branches or c.submodel.name != "dynamicfl":
        return tuple(c.tiers.branches) or (0,) * tiers
    return tuple(range(tiers))


def structure_of(c: Any) -> str:
    """What decides which branches are alive, with "auto" resolved.

    Args:
        c: a config.
    """
    structure = c.submodel.dynamicfl.structure
    if structure == "auto":
        return "sensitivity" if MODELS[c.model.name].moving_branches else "fixed"
    return structure


def _dynamicfl(c: Any) -> dict[str, Any]:
    options = {**c.submodel.dynamicfl, "structure": structure_of(c)}
    return {"number": branches_of(c), **options}


def uses_branch_memory(c: Any) -> bool:
    """Whether clients remember their branches between rounds.

    Args:
        c: a config.
    """
    return METHODS[c.submodel.name].branches and structure_of(c) != "fixed"


METHODS: dict[str, MethodEntry] = {
    "fedavg": _by_budget("fedavg", fedavg.fedavg, method_options.FedAvg),
    "heterofl": MethodEntry(_heterofl, method_options.HeteroFL),
    "federated_dropout": _by_budget(
        "federated_dropout", federated_dropout, method_options.FederatedDropout
    ),
    "fedrolex": _by_budget("fedrolex", fedrolex, method_options.FedRolex),
    "fjord": _by_budget("fjord", fjord, method_options.FjORD),
    "fiarse": MethodEntry(
        lambda c, axes: fiarse(tuple(c.tiers.budget), **c.submodel.fiarse),
        method_options.FIARSE,
        public_masks=False,
    ),
    "partial": _by_budget("partial", partial.partial, method_options.Partial)._replace(
        blocks=True
    ),
    "depthfl": _by_budget("depthfl", depthfl, method_options.DepthFL)._replace(
        exits=True, gradient_option="feddyn"
    ),
    "inclusivefl": _by_budget(
        "inclusivefl", inclusivefl, method_options.InclusiveFL
    )._replace(blocks=True, exits=True),
    "scalefl": MethodEntry(
        lambda c, axes: scalefl(
            axes, tuple(c.tiers.budget), c.rounds, **c.submodel.scalefl
        ),
        method_options.ScaleFL,
        exits=True,
        depends_on_rounds=lambda options: (
            options["gamma"] > 0 and options["warmup"] > 0
        ),
    ),
    "nefl": _by_budget("nefl", nefl, method_options.NeFL)._replace(
        blocks=True, steps=True
    ),
    "lora": MethodEntry(
        lambda c, axes: lora(axes, tuple(c.tiers.budget)),
        method_options.LoRA,
        lambda c, model: adapt(model, **c.submodel.lora),
    ),
    "dynamicfl": MethodEntry(
        lambda c, axes: dynamicfl(axes, **_dynamicfl(c)),
        method_options.DynamicFL,
        branches=True,
    ),
    "mixed": MethodEntry(
        lambda c, axes: mixed(
            axes, tuple(c.tiers.budget), **c.submodel.mixed, **_dynamicfl(c)
        ),
        method_options.Mixed,
        branches=True,
    ),
}


def _by_options(name: str, rule: Callable[..., Rule], options: type) -> RuleEntry:
    """A rule that takes its own options alone."""
    return RuleEntry(lambda c, groups: rule(**c.fairness[name]), options)


RULES: dict[str, RuleEntry] = {
    "size": RuleEntry(lambda c, groups: weights.size()),
    "uniform": RuleEntry(lambda c, groups: weights.uniform()),
    "q_ffl": _by_options("q_ffl", q_ffl, rule_options.QFFL),
    "term": _by_options("term", term, rule_options.Term),
    "cvar": _by_options("cvar", cvar, rule_options.CVaR),
    "ordered": _by_options("ordered", ordered, rule_options.Ordered),
    "gifair": RuleEntry(
        lambda c, groups: gifair(
            **c.fairness.gifair, client_groups=groups.client_groups
        ),
        rule_options.GIFAIR,
        domain_option="groups",
    ),
    "afl": _by_options("afl", afl, rule_options.AFL),
    "agnostic": RuleEntry(
        lambda c, groups: agnostic(
            **c.fairness.agnostic,
            groups=groups.num_patient_groups,
            client_groups=groups.client_groups,
        ),
        rule_options.Agnostic,
        domain_option="domain",
    ),
    "tier_afl": _by_options("tier_afl", tier_afl, rule_options.TierAFL),
    "tier_term": _by_options("tier_term", tier_term, rule_options.TierTerm),
    "tier_equal": _by_options("tier_equal", tier_equal, rule_options.TierEqual),
    "tier_gap": _by_options("tier_gap", tier_gap, rule_options.TierGap),
    "fairfed": _by_options("fairfed", fairfed, rule_options.FairFed)._replace(
        patient_group=True, binary=True
    ),
    "fedce": _by_options("fedce", fedce, rule_options.FedCE),
    "q_fedavg": RuleEntry(
        lambda c, groups: q_fedavg(
            **c.fairness.q_fedavg,
            learning_rate=c.local.learning_rate,
            weight_decay=c.local.weight_decay,
        ),
        rule_options.QFedAvg,
    ),
    "fedmgda": _by_options("fedmgda", fedmgda, rule_options.FedMGDA),
    "fedfv": _by_options("fedfv", fedfv, rule_options.FedFV),
    "propfair": _by_options("propfair", propfair, rule_options.PropFair),
    "logit_adjust": _by_options("logit_adjust", logit_adjust, rule_options.LogitAdjust),
    "ditto": _by_options("ditto", personal.ditto, rule_options.Ditto),
    "fedbn": RuleEntry(lambda c, groups: personal.fedbn()),
    "private_head": RuleEntry(lambda c, groups: personal.private_head()),
}


def by_patient_group(c: Any, name: str) -> bool:
    """Whether a rule, as configured, reads a patient attribute.

    Args:
        c: a config.
        name: the rule's.
    """
    return RULES[name].patient_group or domain(c, name) == "group"


def by_client_group(c: Any, name: str) -> bool:
    """Whether a rule, as configured, reads groups of clients.

    Args:
        c: a config.
        name: the rule's.
    """
    return domain(c, name) == "client_group"


def domain(c: Any, name: str) -> str | None:
    """What a rule, as configured, tells apart; None for rules without such an option.

    Args:
        c: a config.
        name: the rule's.
    """
    option = RULES[name].domain_option
    return None if option is None else c.fairness[name][option]


def rules(c: Any, groups: Groups = NO_GROUPS) -> list[tuple[str, Rule]]:
    """(name, rule) of every rule that a config composes, in its order.

    Args:
        c: a config.
        groups: the groups of its data.

    Raises:
        InputError: the properties of a rule contradict each other.
    """
    rules = [(name, RULES[name].rule(c, groups)) for name in c.fairness.rule.split("+")]
    for name, rule in rules:
        check_rule(name, rule)
    return rules


def rule(c: Any, groups: Groups = NO_GROUPS) -> Rule:
    """The rule of a config, `a+b` composed, with its cap and warm-up.

    Args:
        c: a config.
        groups: the groups of its data.
    """
    fairness_rule = compose.compose(rules(c, groups))
    if c.fairness.cap:
        fairness_rule = compose.with_cap(fairness_rule, c.fairness.cap)
    if c.fairness.warmup:
        fairness_rule = compose.with_warmup(fairness_rule, c.fairness.warmup)
    return fairness_rule


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
    "momentum": lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
    # beta2 and epsilon (tau) as in Reddi et al., "Adaptive federated optimization",
    # ICLR 2021, arXiv:2003.00295, section 5.
    "adam": lambda learning_rate: optax.adam(learning_rate, b2=0.99, eps=1e-3),
    "yogi": lambda learning_rate: optax.yogi(learning_rate, b2=0.99, eps=1e-3),
}


class Schedule(NamedTuple):
    """How a learning rate changes over rounds."""

    make_schedule: Callable[[Any, int], optax.Schedule]
    """(config group, rounds from the schedule's first to the run's last) -> factor over
    the rounds since the schedule's first one."""
    options: tuple[str, ...] = ()
    """Fields of the group that the schedule reads."""
    depends_on_rounds: bool = False
    """Whether it depends on the number of rounds: a run with it cannot be extended."""


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(lambda c, rounds: optax.constant_schedule(1.0)),
    "linear": Schedule(
        lambda c, rounds: optax.linear_schedule(1.0, 0.0, rounds),
        depends_on_rounds=True,
    ),
    "cosine": Schedule(
        lambda c, rounds: optax.cosine_decay_schedule(1.0, rounds),
        depends_on_rounds=True,
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

    Over the first `warmup` = W rounds the factor is (r + 1) / (W + 1) > 0, so that
    every round trains. The schedule begins with the round after them.

    Args:
        c: the group.
        rounds: number of rounds of the whole run.
    """
    if c.schedule == "constant" and not c.warmup:
        return lambda round: 1.0
    lr_schedule = SCHEDULES[c.schedule].make_schedule(c, max(rounds - c.warmup, 1))
    if c.warmup:
        warmup_schedule = optax.linear_schedule(1 / (c.warmup + 1), 1.0, c.warmup)
        lr_schedule = optax.join_schedules([warmup_schedule, lr_schedule], [c.warmup])
    return lambda round: lr_schedule(round.astype(jnp.float32))


NORMALISATIONS = ("pooled", "client", "none")
ASSIGNMENTS = ("random", "by_size", "by_label")
CLASS_WEIGHTS = ("none", "balanced")
DENOMINATORS = ("cover", "fixed")
SLOTS = ("padded", "stratified")
CONVOLUTIONS = ("auto", *convolutions.CONVOLUTIONS)
