"""Checks of the submodel fields, and of the tiers' branches."""

from typing import Any

from fairjax.core import require
from fairjax.experiment.config import registry
from fairjax.submodels import dynamicfl, families, fedavg, partial, structures
from fairjax.submodels.mixed import KINDS


def check(c: Any) -> None:
    """Refuses options of methods that no model could make hold.

    Args:
        c: the group `submodel` of a config.
    """
    require.one_of("submodel.fedavg.mode", c.fedavg.mode, fedavg.MODES)
    if c.fedrolex.overlap is not None:
        require.in_range("submodel.fedrolex.overlap", c.fedrolex.overlap, 0, 1)
    require.one_of("submodel.partial.mode", c.partial.mode, partial.MODES)
    require.positive("submodel.depthfl.ramp", c.depthfl.ramp)
    require.in_range("submodel.depthfl.feddyn", c.depthfl.feddyn, 0)
    require.in_range("submodel.inclusivefl.beta", c.inclusivefl.beta, 0, 1)
    require.in_range("submodel.scalefl.gamma", c.scalefl.gamma, 0)
    require.positive("submodel.scalefl.temperature", c.scalefl.temperature)
    require.in_range("submodel.scalefl.warmup", c.scalefl.warmup, 0, 1)
    for name in ("scalefl", "nefl"):
        for share in c[name].width:
            where = f"submodel.{name}.width"
            require.in_range(where, share, 0, 1, open_low=True)
    require.count("submodel.lora.rank", c.lora.rank)
    require.positive("submodel.lora.alpha", c.lora.alpha)
    for family in c.dynamicfl.families:
        require.one_of("submodel.dynamicfl.families", family, families.FAMILIES)
    require.count("submodel.dynamicfl.rank", c.dynamicfl.rank)
    inner = c.dynamicfl.inner
    require.in_range("submodel.dynamicfl.inner", inner, 0, 1, open_low=True)
    for field, choices in {
        "branch_form": dynamicfl.FORMS,
        "structure": ("auto", *structures.STRUCTURES),
        "sensitivity": tuple(structures.SENSITIVITIES),
    }.items():
        require.one_of(f"submodel.dynamicfl.{field}", c.dynamicfl[field], choices)
    require.in_range("submodel.dynamicfl.moved", c.dynamicfl.moved, 0, 1)
    for kind in c.mixed.kinds:
        require.one_of("submodel.mixed.kinds", kind, KINDS)


def check_branches(c: Any) -> None:
    """Refuses branches that the tiers or the method cannot have.

    Args:
        c: a config.
    """
    numbers = c.tiers.branches
    if not numbers:
        return
    if len(numbers) != len(c.tiers.budget):
        expected = f"{len(c.tiers.budget)} values, as tiers.budget"
        require.fail("tiers.branches", expected, numbers)
    for number in numbers:
        require.in_range("tiers.branches", number, 0)
    require.non_decreasing("tiers.branches", numbers)
    if any(numbers) and not registry.METHODS[c.submodel.name].branches:
        branching_methods = [
            name for name, entry in registry.METHODS.items() if entry.branches
        ]
        expected = (
            f"no branches unless submodel.name is {' or '.join(branching_methods)}"
        )
        require.fail("tiers.branches", expected, numbers)


def check_form(c: Any) -> None:
    """Refuses what the form of branches does not allow.

    In the form "preconditioned" a plain model trains by gradients that equal those of
    branches; an adaptive optimiser or a clipped gradient norm would break the equality.

    Args:
        c: a config.
    """
    if not registry.METHODS[c.submodel.name].branches:
        return
    options = c.submodel.dynamicfl
    form, structure = options.branch_form, registry.structure_of(c)
    dynamicfl.check_form(form, options.families, structure, options.sensitivity)
    if form != "preconditioned":
        return
    condition = "with submodel.dynamicfl.branch_form preconditioned"
    if c.local.optimizer != "sgd":
        expected = f"sgd {condition}, which no adaptive rate keeps equal to branches"
        require.fail("local.optimizer", expected, c.local.optimizer)
    if c.local.max_grad_norm:
        expected = f"0 {condition}: branches have another gradient norm"
        require.fail("local.max_grad_norm", expected, c.local.max_grad_norm)
    if c.privacy.mechanism == "record_dp":
        expected = f"another than record_dp {condition}: it clips a gradient norm"
        require.fail("privacy.mechanism", expected, c.privacy.mechanism)
