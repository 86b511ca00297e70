"""Which fairness rules go with which protection and aggregator: one table.

Every condition reads the properties of a `Rule` and no name, so a new rule is treated
as the existing ones are. The table drives the refusals of configs, and `table()` gives
it for the documentation.
"""

from collections.abc import Callable
from typing import NamedTuple

from fairjax.core.rule import Rule
from fairjax.experiment.config import default, registry


class Condition(NamedTuple):
    """What a setting asks of a rule."""

    allows: Callable[[Rule], bool]
    reason: str
    """Why it refuses other rules, as the end of a message."""


def _leaves_training_alone(rule: Rule) -> bool:
    """Clients train and are averaged as without the rule, apart from weights."""
    return not rule.changes_objective and rule.personal is None and rule.combine is None


def follows_counts(rule: Rule) -> bool:
    """Whether the rule reads nothing of the clients but how many records they have.

    Args:
        rule: a fairness rule.
    """
    is_counted = rule.weights_from in ("public", "records")
    return is_counted and not rule.reads and _leaves_training_alone(rule)


def follows_losses(rule: Rule) -> bool:
    """Whether the rule turns losses into weights, and reads nothing else.

    Args:
        rule: a fairness rule.
    """
    is_by_loss = rule.weights_from == "losses" and rule.reads == {"losses"}
    return is_by_loss and _leaves_training_alone(rule)


def _reads_sums_alone(rule: Rule) -> bool:
    return not rule.reads - {"losses", "labels"} and rule.combine is None


def _has_default_weights(rule: Rule) -> bool:
    is_counted = rule.weights_from in ("public", "records")
    return is_counted and rule.reads <= {"labels"} and rule.combine is None


_UNPROTECTED = "other rules read losses, labels or single updates, which it does not "
_UNPROTECTED += "protect"
_UNWEIGHTED = "in which weights have no say"

CONDITIONS: dict[str, Condition] = {
    "client_dp": Condition(
        lambda rule: follows_counts(rule) or follows_losses(rule), _UNPROTECTED
    ),
    "record_dp": Condition(follows_counts, _UNPROTECTED),
    "local_dp": Condition(follows_counts, _UNPROTECTED),
    "secure_sum": Condition(_reads_sums_alone, "under which nobody sees an upload"),
    "median": Condition(_has_default_weights, _UNWEIGHTED),
    "trimmed_mean": Condition(_has_default_weights, _UNWEIGHTED),
    "krum": Condition(_has_default_weights, _UNWEIGHTED),
    "multi_krum": Condition(
        lambda rule: rule.combine is None, "which combines updates itself"
    ),
    "norm_bound": Condition(
        lambda rule: rule.combine is None, "whose rule combines updates itself"
    ),
    "denominator fixed": Condition(
        lambda rule: rule.combine is None, "which has denominators of its own"
    ),
}
"""Setting -> what it asks of a rule; a setting that is not named asks nothing."""


UNWEIGHTED = tuple(
    name for name, condition in CONDITIONS.items() if condition.reason == _UNWEIGHTED
)
"""Aggregators that ignore weights."""


def allows(setting: str, rule: Rule) -> bool:
    """Whether a setting may be combined with a rule.

    Args:
        setting: a mechanism, "secure_sum", an aggregator, "norm_bound" or
            "denominator fixed".
        rule: a fairness rule.
    """
    return setting not in CONDITIONS or CONDITIONS[setting].allows(rule)


def default_rules() -> dict[str, Rule]:
    """{name: rule} of every rule of the registry, with its default options."""
    c = default.get_config()
    return {
        name: entry.rule(c, registry.NO_GROUPS)
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
