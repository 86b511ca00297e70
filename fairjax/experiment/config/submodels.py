"""Checks of the submodel fields beside others: tiers, branches, the optimiser."""

from fairjax.core import require
from fairjax.experiment.config import lookup, paths, registry
from fairjax.experiment.config.options.methods import DynamicFL
from fairjax.experiment.config.schema import Config
from fairjax.submodels import dynamicfl


def option_owners(c: Config) -> list[str]:
    """The method of a config, and the one whose options it takes beside its own.

    Args:
        c: a config.
    """
    name = c.submodel.name
    has_branches = registry.METHODS[name].branches
    return [name, registry.BRANCHES] if has_branches else [name]


def check_tiers(c: Config) -> None:
    """Refuses options that name a tier which is not there.

    Args:
        c: a config.
    """
    for name, entry in registry.METHODS.items():
        for option in entry.tier_options:
            tier = getattr(c.submodel.options[name], option)
            if tier is not None:
                where = f"submodel.{name}.{option}"
                require.in_range(where, tier, 0, len(c.tiers.budget) - 1)


def check_branches(c: Config) -> None:
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
    require.non_decreasing("tiers.branches", numbers)
    if any(numbers) and not registry.METHODS[c.submodel.name].branches:
        branching_methods = [
            name for name, entry in registry.METHODS.items() if entry.branches
        ]
        expected = (
            f"no branches unless submodel.name is {' or '.join(branching_methods)}"
        )
        require.fail("tiers.branches", expected, numbers)


def check_form(c: Config) -> None:
    """Refuses what the form of branches does not allow.

    In the form "preconditioned" a plain model trains by gradients that equal those of
    branches; an adaptive optimiser or a clipped gradient norm would break the equality.

    Args:
        c: a config.
    """
    if not registry.METHODS[c.submodel.name].branches:
        return
    options = lookup.branch_options(c)
    form, structure = options.branch_form, registry.structure_of(c)
    with paths.field_names(paths.fields_of(DynamicFL, f"submodel.{registry.BRANCHES}")):
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
