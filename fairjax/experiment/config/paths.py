"""Config fields by the arguments that their values become.

A pure function refuses a value by the name of its own argument. Here such a refusal
gets the name of the config field, as the user wrote it:

    with field_names({"q": "fairness.q_ffl.q"}):
        q_ffl(q=-1.0)  # fairness.q_ffl.q: expected a finite number >= 0; got -1.0
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping

from fairjax.core import require

_NAME = re.compile(r"\w+")

_SHARED = {
    "budget": "tiers.budget",
    "number": "tiers.branches",
    "axes": "model",
    "redraw": "tiers.proportions",
    "client_groups": "fairness.client_group",
}
"""Arguments of methods and rules that are no options of theirs -> config fields."""


@contextlib.contextmanager
def field_names(names: Mapping[str, str]) -> Iterator[None]:
    """Gives refusals raised inside the names of config fields.

    A refusal of something else, or one that has a field's name already, stays as it is.

    Args:
        names: {argument: config field}.
    """
    try:
        yield
    except require.InputError as error:
        argument = _NAME.match(error.where or "")
        if argument is None or argument[0] not in names:
            raise
        suffix = str(error.where)[argument.end() :]
        if suffix.startswith("."):  # a config field, whose group has that name
            raise
        raise error.at(names[argument[0]] + suffix) from error


def fields_of(group: type, path: str) -> dict[str, str]:
    """{field: its dotted path} of a dataclass of config fields.

    Args:
        group: the dataclass.
        path: of the group, such as "privacy".
    """
    return {field.name: f"{path}.{field.name}" for field in dataclasses.fields(group)}


def entry_fields(group: str, name: str, options: type | None) -> dict[str, str]:
    """{argument: config field} for the factory of a model, method or rule.

    Args:
        group: "model", "submodel" or "fairness".
        name: the entry's.
        options: the dataclass of its options; None: it has none.
    """
    own = {} if options is None else fields_of(options, f"{group}.{name}")
    local = {
        argument: f"local.{argument} with rule {name}"
        for argument in ("learning_rate", "weight_decay")
    }
    return _SHARED | (local if group == "fairness" else {}) | own
