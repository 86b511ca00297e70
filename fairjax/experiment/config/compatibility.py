"""Which fairness rules go with which protection and aggregator: one table.

Every condition reads the properties of a `Rule` and no name, so a new rule is treated
as the existing ones are. The table drives the refusals of configs, and `table()` gives
it for the documentation.
"""

from collections.abc import Callable
from typing import NamedTuple

from fairjax.core.rule import Rule
from fairjax.experiment.config import conversion, default, registry
from fairjax.robust import aggregators


class Condition(NamedTuple):
    """What a setting asks of a rule."""

    allows: Callable[[Rule], bool]
    reason: str
    """Why it refuses other rules: the end of the message."""


def _leaves_training_alone(rule: Rule) -> bool:
    """Clients train, are told and are averaged as without the rule, but for weights."""
    return not (
        rule.changes_objective
        or rule.sends_message
        or rule.personal is not None
        or rule.combine is not None
    )


def _follows_counts(rule: Rule) -> bool:
    """The rule reads nothing of the clients but how many records they have."""
    is_counted = rule.weights_from in ("public", "records")
    return is_counted and not rule.reads and _leaves_training_alone(rule)


def follows_losses(rule: Rule) -> bool:
    """Whether the rule turns losses into weights, and reads nothing else.

    Args:
        rule: a fairness rule.
    """
    is_by_loss = rule.weights_from == "losses" and rule.reads == {"losses"}
    return is_by_loss and rule.weights is not None and _leaves_training_alone(rule)


def _fits_public_weights(rule: Rule) -> bool:
    """client_dp takes weights by counts once for all rounds, or noisy losses."""
    return (_follows_counts(rule) and not rule.has_state) or follows_losses(rule)


def _reads_sums_alone(rule: Rule) -> bool:
    return not rule.reads - {"losses", "labels"} and rule.combine is None


def _weights_may_be_ignored(rule: Rule) -> bool:
    """The weights follow from counts, and every client may count once instead."""
    is_counted = rule.weights_from in ("public", "records")
    return is_counted and rule.reads <= {"labels"} and rule.combine is None


def _averages(rule: Rule) -> bool:
    return rule.combine is None


_UNPROTECTED = "other rules change what clients train, keep a state, or read losses, "
_UNPROTECTED += "labels or single updates that it does not protect"
_COMBINES = "which combines changes itself"

CONDITIONS: dict[str, Condition] = {
    "client_dp": Condition(_fits_public_weights, _UNPROTECTED),
    "record_dp": Condition(_follows_counts, _UNPROTECTED),
    "local_dp": Condition(_follows_counts, _UNPROTECTED),
    "secure_sum": Condition(
        _reads_sums_alone, "a rule of sums alone with privacy.secure_sum"
    ),
    **{
        name: Condition(_weights_may_be_ignored, "in which weights have no say")
        for name in aggregators.UNWEIGHTED
    },
    "multi_krum": Condition(_averages, _COMBINES),
    "norm_bound": Condition(_averages, _COMBINES),
    "fixed_denominator": Condition(_averages, "which has denominators of its own"),
}
"""Setting -> what it asks of a rule."""

UNCONDITIONAL = ("none", "mean")
"""The mechanism and the aggregator that take every rule."""


def allows(setting: str, rule: Rule) -> bool:
    """Whether a setting may be combined with a rule.

    Args:
        setting: a mechanism, "secure_sum", an aggregator, "norm_bound" or
            "fixed_denominator".
        rule: a fairness rule.

    Raises:
        KeyError: a setting that says nothing of rules; it must not take all of them.
    """
    return setting in UNCONDITIONAL or CONDITIONS[setting].allows(rule)


def default_rules() -> dict[str, Rule]:
    """{name: rule} of every rule of the registry, with its default options."""
    c = conversion.to_typed(default.get_config())
    return {
        name: entry.rule(c.fairness.options.get(name), c)
        for name, entry in registry.RULES.items()
    }


def names_of(allows: Callable[[Rule], bool]) -> list[str]:
    """Names of the rules that, with their default options, meet a condition.

    Args:
        allows: rule -> whether it meets the condition.
    """
    return [name for name, rule in default_rules().items() if allows(rule)]


def table() -> str:
    """A table in markdown: which rules, with their default options, each setting takes.

    A row is a rule of the registry, a column a setting of `CONDITIONS`.
    """
    lines = [
        f"| rule | {' | '.join(CONDITIONS)} |",
        f"|---|{'---|' * len(CONDITIONS)}",
    ]
    for name, rule in default_rules().items():
        cells = ["yes" if allows(setting, rule) else "no" for setting in CONDITIONS]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
