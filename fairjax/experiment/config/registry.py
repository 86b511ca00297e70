"""The tables of names: the functions that the names in a config stand for.

A new method, rule, model or optimiser is a line here. The line of a method, rule or
model names the dataclass of its options, from which its group of the config is made.
The group has the name of the entry.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fairjax import models
from fairjax.core.method import Method
from fairjax.core.rule import Rule
from fairjax.core.types import Axes
from fairjax.experiment.config.entries import (
    Entry,
    MethodEntry,
    ModelEntry,
    RuleEntry,
    keywords,
)
from fairjax.experiment.config.options import methods as method_options
from fairjax.experiment.config.options import models as model_options
from fairjax.experiment.config.options import rules as rule_options
from fairjax.experiment.config.schema import Config
from fairjax.fairness import personal, weights
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


def _by_budget(method: Callable[..., Method], options: type) -> MethodEntry:
    """A method that takes the model's axes, the tiers' budgets and its own options."""
    return MethodEntry(
        lambda options, c, axes: method(axes, c.tiers.budget, **keywords(options)),
        options,
    )


def _heterofl(options: method_options.HeteroFL, c: Config, axes: Axes) -> Method:
    return heterofl(
        axes,
        c.tiers.budget,
        scaler=options.scaler,
        masked_loss=options.masked_loss,
        redraw=c.tiers.proportions if options.dynamic else None,
    )


BRANCHES = "dynamicfl"
"""The method whose options say what branches are like, for other methods too."""


def branches_of(c: Config) -> tuple[int, ...]:
    """Branches per layer of every tier.

    Args:
        c: a config.
    """
    tiers = len(c.tiers.budget)
    if c.tiers.branches or c.submodel.name != BRANCHES:
        return c.tiers.branches or (0,) * tiers
    return tuple(range(tiers))


def structure_of(c: Config) -> str:
    """What decides which branches are alive, with "auto" resolved.

    Args:
        c: a config.
    """
    structure = c.submodel.options[BRANCHES].structure
    if structure == "auto":
        return "sensitivity" if MODELS[c.model.name].moving_branches else "fixed"
    return structure


def _dynamicfl(c: Config) -> dict[str, Any]:
    options = keywords(c.submodel.options[BRANCHES])
    return {"number": branches_of(c), **options, "structure": structure_of(c)}


METHODS: dict[str, MethodEntry] = {
    "fedavg": _by_budget(fedavg.fedavg, method_options.FedAvg)._replace(
        tier_options=("tier",)
    ),
    "heterofl": MethodEntry(_heterofl, method_options.HeteroFL),
    "federated_dropout": _by_budget(federated_dropout, method_options.FederatedDropout),
    "fedrolex": _by_budget(fedrolex, method_options.FedRolex),
    "fjord": _by_budget(fjord, method_options.FjORD),
    "fiarse": MethodEntry(
        lambda options, c, axes: fiarse(c.tiers.budget, **keywords(options)),
        method_options.FIARSE,
        public_masks=False,
    ),
    "partial": _by_budget(partial.partial, method_options.Partial)._replace(
        blocks=True
    ),
    "depthfl": _by_budget(depthfl, method_options.DepthFL)._replace(
        exits=True, tier_options=("exclusive",), gradient_option="feddyn"
    ),
    "inclusivefl": _by_budget(inclusivefl, method_options.InclusiveFL)._replace(
        blocks=True, exits=True
    ),
    "scalefl": MethodEntry(
        lambda options, c, axes: scalefl(
            axes, c.tiers.budget, c.rounds, **keywords(options)
        ),
        method_options.ScaleFL,
        exits=True,
        depends_on_rounds=lambda options: options.gamma > 0 and options.warmup > 0,
    ),
    "nefl": _by_budget(nefl, method_options.NeFL)._replace(blocks=True, steps=True),
    "lora": MethodEntry(
        lambda options, c, axes: lora(axes, c.tiers.budget),
        method_options.LoRA,
        lambda options, model: adapt(model, **keywords(options)),
    ),
    "dynamicfl": MethodEntry(
        lambda options, c, axes: dynamicfl(axes, **_dynamicfl(c)),
        method_options.DynamicFL,
        branches=True,
    ),
    "mixed": MethodEntry(
        lambda options, c, axes: mixed(
            axes, c.tiers.budget, **keywords(options), **_dynamicfl(c)
        ),
        method_options.Mixed,
        branches=True,
    ),
}


def client_groups(c: Config) -> tuple[int, ...]:
    """The number of every client's group; groups are numbered by their sorted names.

    Args:
        c: a config.
    """
    names = sorted(set(c.fairness.client_group))
    return tuple(map(names.index, c.fairness.client_group))


def _by_options(rule: Callable[..., Rule], options: type) -> RuleEntry:
    """A rule that takes its own options alone."""
    return RuleEntry(lambda options, c: rule(**keywords(options)), options)


RULES: dict[str, RuleEntry] = {
    "size": RuleEntry(lambda options, c: weights.size()),
    "uniform": RuleEntry(lambda options, c: weights.uniform()),
    "q_ffl": _by_options(q_ffl, rule_options.QFFL),
    "term": _by_options(term, rule_options.Term),
    "cvar": _by_options(cvar, rule_options.CVaR),
    "ordered": _by_options(ordered, rule_options.Ordered),
    "gifair": RuleEntry(
        lambda options, c: gifair(**keywords(options), client_groups=client_groups(c)),
        rule_options.GIFAIR,
        domain_option="groups",
    ),
    "afl": _by_options(afl, rule_options.AFL),
    "agnostic": RuleEntry(
        lambda options, c: agnostic(
            **keywords(options), client_groups=client_groups(c)
        ),
        rule_options.Agnostic,
        domain_option="domain",
    ),
    "tier_afl": _by_options(tier_afl, rule_options.TierAFL),
    "tier_term": _by_options(tier_term, rule_options.TierTerm),
    "tier_equal": _by_options(tier_equal, rule_options.TierEqual),
    "tier_gap": _by_options(tier_gap, rule_options.TierGap),
    "fairfed": _by_options(fairfed, rule_options.FairFed)._replace(
        patient_group=True, binary=True
    ),
    "fedce": _by_options(fedce, rule_options.FedCE),
    "q_fedavg": RuleEntry(
        lambda options, c: q_fedavg(
            **keywords(options),
            learning_rate=c.local.learning_rate,
            weight_decay=c.local.weight_decay,
        ),
        rule_options.QFedAvg,
    ),
    "fedmgda": _by_options(fedmgda, rule_options.FedMGDA),
    "fedfv": _by_options(fedfv, rule_options.FedFV),
    "propfair": _by_options(propfair, rule_options.PropFair),
    "logit_adjust": _by_options(logit_adjust, rule_options.LogitAdjust),
    "ditto": _by_options(personal.ditto, rule_options.Ditto),
    "fedbn": RuleEntry(lambda options, c: personal.fedbn()),
    "private_head": RuleEntry(lambda options, c: personal.private_head()),
}


TABLES: dict[str, Mapping[str, Entry]] = {
    "model": MODELS,
    "submodel": METHODS,
    "fairness": RULES,
}
"""Group of a config -> the table whose entries' options stand in it."""
