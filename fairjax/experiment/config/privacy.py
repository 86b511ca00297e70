"""Checks of the privacy fields: what no data could make private is refused by name.

Releases must depend on records only in ways that the accountant knows of. Other configs
are refused, and nothing is estimated for them. `mechanisms` builds the guarantee of a
config that passes.
"""

from collections.abc import Mapping

from fairjax.core import require
from fairjax.core.method import Method
from fairjax.core.rule import Rule
from fairjax.experiment.config import compatibility, lookup, registry
from fairjax.experiment.config.options.privacy import MECHANISMS
from fairjax.experiment.config.schema import Config

UNITS = {
    "client_dp": ("client",),
    "record_dp": ("record", "patient"),
    "local_dp": ("client",),
}
"""Mechanism -> units that it may protect, the default first."""
LABELS_PROTECTED = ("record_dp", "local_dp")
"""Mechanisms under which a client's labels may not shape what it sends openly."""
FIELD_MECHANISMS = {
    "mechanism": MECHANISMS,
    "secure_sum": MECHANISMS,
    "secure": MECHANISMS,
    "tier_clip": ("client_dp", "local_dp"),
    "sampling": ("client_dp",),
    "adaptive": ("client_dp",),
    "losses": ("client_dp",),
    "batches": ("record_dp",),
    "microbatch": ("record_dp",),
    "records_per_patient": ("record_dp",),
}
"""Field -> mechanisms that read it; all but "none" read a field that is absent here."""


def loss_rules(rules: Mapping[str, Rule]) -> list[str]:
    """The rules that weight tiers by losses under client_dp.

    Args:
        rules: {name: rule} of a config.
    """
    return [name for name, rule in rules.items() if compatibility.follows_losses(rule)]


def check_rules(c: Config, rules: Mapping[str, Rule]) -> None:
    """Refuses a rule that the mechanism does not allow.

    This check runs before those of the rule's denominator and cap. They would otherwise
    ask for a value that the next refusal forbids.

    Args:
        c: a config.
        rules: the rules that it names.
    """
    mechanism = c.privacy.mechanism
    for name, rule in rules.items():
        if compatibility.allows(mechanism, rule):
            continue
        condition = compatibility.CONDITIONS[mechanism]
        choices = compatibility.names_of(condition.allows)
        if name in choices:  # its options are at fault
            _refuse_domain(c, name)
            choices.remove(name)
        expected = f"one of {', '.join(choices)} with {mechanism}: {condition.reason}"
        require.fail("fairness.rule", expected, name)


def _refuse_domain(c: Config, name: str) -> None:
    """Refuses a rule by what it tells apart, where client_dp shows tiers alone."""
    domain, option = lookup.domain(c, name), registry.RULES[name].domain_option
    if domain not in (None, "client", "tier"):
        expected = "tier with client_dp, which releases losses of tiers alone"
        require.fail(f"fairness.{name}.{option}", expected, domain)
    if lookup.by_patient_group(c, name):
        expected = "a rule of no patient groups with client_dp, which releases losses "
        require.fail("fairness.rule", expected + "of tiers alone", name)


def check_sums(c: Config, rule: Rule) -> None:
    """Refuses a rule that reads single updates under a secure sum.

    Args:
        c: a config.
        rule: the fairness rule of this config.
    """
    if c.privacy.secure_sum != "off" and not compatibility.allows("secure_sum", rule):
        expected = compatibility.CONDITIONS["secure_sum"].reason
        require.fail("fairness.rule", expected, c.fairness.rule)


def check(c: Config, rules: Mapping[str, Rule]) -> None:
    """Refuses what no data could make private, by the name of the field.

    Args:
        c: a config.
        rules: the rules that it names.

    Raises:
        InputError: names the field, what was expected and what came.
    """
    p, mechanism = c.privacy, c.privacy.mechanism
    _check_denominator(c)
    _check_secure(c)
    if mechanism == "none":
        for field in ("noise_multiplier", "epsilon", "neighbours", "unit"):
            value = getattr(p, field)
            if value is not None:
                require.fail(f"privacy.{field}", "a privacy.mechanism for it", value)
        return
    if p.unit is not None and p.unit not in UNITS[mechanism]:
        expected = f"{' or '.join(UNITS[mechanism])} with {mechanism}"
        require.fail("privacy.unit", expected, p.unit)
    if p.noise_multiplier is None and p.epsilon is None:
        expected = f"this, or privacy.epsilon, with {mechanism}"
        require.fail("privacy.noise_multiplier", expected, None)
    if p.tier_clip and len(p.tier_clip) != len(c.tiers.budget):
        expected = f"{len(c.tiers.budget)} values, as tiers.budget"
        require.fail("privacy.tier_clip", expected, p.tier_clip)
    if not c.robust.finite_guard:
        expected = (
            f"True with {mechanism}: a change that is no number has no norm to clip"
        )
        require.fail("robust.finite_guard", expected, False)
    if c.fairness.warmup and not loss_rules(rules):
        expected = f"0 with {mechanism}: its weights are the same in every round"
        require.fail("fairness.warmup", expected, c.fairness.warmup)
    if not registry.METHODS[c.submodel.name].public_masks:
        expected = f"a method with masks that are public with {mechanism}"
        require.fail("submodel.name", expected, c.submodel.name)
    if mechanism == "client_dp":
        _check_client(c)
        _check_loss_rules(c, rules)
    elif mechanism == "record_dp":
        _check_record(c)
    else:
        _check_local(c)


def check_used(path: str, field: str, c: Config, rules: Mapping[str, Rule]) -> None:
    """Refuses a privacy field that the user set and that nothing reads.

    Args:
        path: the field's path.
        field: the first part of the path after "privacy.".
        c: a config.
        rules: the rules that it names.
    """
    p, mechanism = c.privacy, c.privacy.mechanism
    mechanisms = FIELD_MECHANISMS.get(field, MECHANISMS[1:])
    if field == "secure" and p.secure_sum == "off":
        require.fail(path, "privacy.secure_sum for this option", p.secure_sum)
    if path == "privacy.secure.bound" and mechanism == "client_dp":
        expected = "another mechanism than client_dp, whose clip bounds every entry"
        require.fail(path, expected, mechanism)
    if field == "losses" and mechanism == "client_dp" and not loss_rules(rules):
        choices = compatibility.names_of(compatibility.follows_losses)
        expected = f"one of fairness.rule {', '.join(choices)} for this option"
        require.fail(path, expected, c.fairness.rule)
    if path == "privacy.records_per_patient" and p.unit != "patient":
        require.fail(path, "privacy.unit patient for this option", p.unit)
    if mechanism not in mechanisms:
        expected = f"privacy.mechanism {' or '.join(mechanisms)} for this option"
        require.fail(path, expected, mechanism)


def _check_denominator(c: Config) -> None:
    if c.privacy.mechanism == "client_dp" and c.fairness.denominator != "fixed":
        expected = (
            "fixed with client_dp: divided by who came, a sum moves by more than the "
            "clip"
        )
        require.fail("fairness.denominator", expected, c.fairness.denominator)


def _check_secure(c: Config) -> None:
    # Clients of client_dp send no masks.
    if c.privacy.secure_sum != "off" and c.privacy.mechanism != "client_dp":
        _refuse_masked_loss(c, "secure_sum: the mask that is sent names its classes")


def _check_client(c: Config) -> None:
    p = c.privacy
    if c.tiers.changes:
        require.fail("tiers.changes", "none with client_dp", c.tiers.changes)
    if c.execution.slots != "padded":
        expected = "padded with client_dp: no accountant bounds cohorts drawn by tier"
        require.fail("execution.slots", expected, c.execution.slots)
    if p.sampling == "full" and c.clients_per_round:
        require.fail(
            "clients_per_round",
            "0 (all hospitals) with privacy.sampling full",
            c.clients_per_round,
        )
    if p.sampling != "full" and not c.clients_per_round:
        expected = f"fewer than all with privacy.sampling {p.sampling}; for all: full"
        require.fail("clients_per_round", expected, c.clients_per_round)
    if p.sampling == "fixed" and p.neighbours == "zero_out":
        expected = "replace_one with privacy.sampling fixed"
        require.fail("privacy.neighbours", expected, p.neighbours)


def _check_loss_rules(c: Config, rules: Mapping[str, Rule]) -> None:
    """Checks rules that read losses: client_dp shows them those of tiers alone."""
    names = loss_rules(rules)
    if names and not c.fairness.cap:
        expected = f"at least 1 with client_dp and {names[0]}: noise alone can "
        require.fail(
            "fairness.cap", expected + "make a tier look worst", c.fairness.cap
        )
    for name in names:
        _refuse_domain(c, name)


def _check_record(c: Config) -> None:
    p = c.privacy
    if p.tier_clip:
        expected = "none with record_dp, which clips records"
        require.fail("privacy.tier_clip", expected, p.tier_clip)
    _refuse_adaptive_clip(c, "record_dp")
    _refuse_masked_loss(c, "record_dp: one record would unmask a class for all others")
    if c.local.class_weights != "none":
        expected = "none with record_dp: one record would change the weight of others"
        require.fail("local.class_weights", expected, c.local.class_weights)
    if c.data.partition.name == "dirichlet_overlap":
        expected = (
            "a partition with record_dp: where hospitals overlap records are at two"
        )
        require.fail("data.partition.name", expected, "dirichlet_overlap")
    if p.unit == "patient" and p.batches != "poisson":
        expected = "poisson with privacy.unit patient: shuffled batches are of records"
        require.fail("privacy.batches", expected, p.batches)


def _check_local(c: Config) -> None:
    _refuse_adaptive_clip(c, "local_dp")
    if c.privacy.neighbours == "zero_out":
        expected = "replace_one with local_dp: that a hospital sent something is seen"
        require.fail("privacy.neighbours", expected, "zero_out")
    _refuse_masked_loss(c, "local_dp: the mask that is sent names its classes")


def _refuse_adaptive_clip(c: Config, mechanism: str) -> None:
    if c.privacy.adaptive.quantile is not None:
        expected = f"none with {mechanism}; client_dp has it"
        require.fail("privacy.adaptive.quantile", expected, c.privacy.adaptive.quantile)


def check_method(c: Config, method: Method) -> None:
    """Refuses a method whose sub-models follow from labels, where those are protected.

    Args:
        c: a config.
        method: its method, as built.
    """
    p = c.privacy
    # Under client_dp no mask is sent, and noise hides whose labels shaped an update.
    shows_masks = p.secure_sum != "off" and p.mechanism != "client_dp"
    if method.reads_labels and (p.mechanism in LABELS_PROTECTED or shows_masks):
        setting = "privacy.secure_sum" if shows_masks else p.mechanism
        expected = f"a method whose sub-models do not follow from labels with {setting}"
        require.fail("submodel.name", expected, c.submodel.name)


def _refuse_masked_loss(c: Config, reason: str) -> None:
    if getattr(lookup.options_of(c.submodel), "masked_loss", False):
        where = f"submodel.{c.submodel.name}.masked_loss"
        require.fail(where, f"False with {reason}", True)
