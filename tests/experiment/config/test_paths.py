"""A refusal of a pure function reaches the user under the name of the config field."""

import math
import re

import pytest

from fairjax.core import require
from fairjax.experiment.config import build, default, lookup, paths, registry, validate
from fairjax.experiment.config.options import fields


def refused_as(where, names):
    with pytest.raises(require.InputError) as refusal, paths.field_names(names):
        raise require.InputError("expected 1; got 2", where)
    return str(refusal.value).removesuffix(": expected 1; got 2")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("q", "fairness.q_ffl.q"),
        ("q[3]", "fairness.q_ffl.q[3]"),
        ("q of tier 2", "fairness.q_ffl.q of tier 2"),
        ("quantile", "quantile"),
        ("q.other", "q.other"),
        ("a q", "a q"),
    ],
)
def test_the_argument_alone_is_renamed(where, expected):
    assert refused_as(where, {"q": "fairness.q_ffl.q"}) == expected


def test_the_innermost_names_count():
    with (
        pytest.raises(require.InputError, match=r"^group\.inner: expected 1; got 2$"),
        paths.field_names({"a": "outer", "group": "again"}),
        paths.field_names({"a": "group.inner"}),
    ):
        require.fail("a", "1", 2)


def test_a_refusal_without_a_name_stays_as_it_is():
    with (
        pytest.raises(require.InputError, match=r"^a line$"),
        paths.field_names({"a": "b"}),
    ):
        raise require.InputError("a line")


LATE = {
    "submodel.dynamicfl.families": {
        "submodel.name": "dynamicfl",
        "submodel.dynamicfl.families": ("1xK",),
        "privacy.mechanism": "record_dp",
        "privacy.noise_multiplier": 1.0,
        "privacy.delta": 1e-4,
    },
    "fairness.rule": {
        "fairness.rule": "fedbn",
        "submodel.heterofl.masked_loss": False,
        "privacy.mechanism": "local_dp",
        "privacy.noise_multiplier": 1.0,
    },
    "local.epochs": {"local.epochs": 2**30},
}
"""Field that only a built run refuses -> the config in which it does."""


@pytest.mark.parametrize("where", LATE)
def test_what_only_a_built_run_refuses_has_its_path_too(where):
    """An accountant calls the method and the rule; epochs depend on the records."""
    config = default.get_config()
    config.update_from_flattened_dict(LATE[where])
    with pytest.raises(require.InputError, match=rf"^{re.escape(where)}: expected "):
        build.run(config)


OPTIONS = [
    (group, name, field.name, fields.field_type(entry.options, field.name)[0])
    for group, entries in registry.TABLES.items()
    for name, entry in entries.items()
    if entry.options is not None
    for field in fields.dataclasses.fields(entry.options)
]
WRONG = {str: "no such name", float: math.nan, int: -1}


@pytest.mark.parametrize(
    ("group", "name", "option", "kind"),
    [case for case in OPTIONS if case[3] in WRONG],
    ids=lambda part: part.__name__ if isinstance(part, type) else part,
)
def test_every_option_is_refused_under_its_path(group, name, option, kind):
    """Whether its dataclass, its factory or the model refuses it."""
    config = default.get_config()
    config.model.name = "resmlp"
    config[group]["rule" if group == "fairness" else "name"] = name
    config[group][name][option] = WRONG[kind]
    where = rf"^{group}\.{name}\.{option}: expected "
    with pytest.raises(require.InputError, match=where):
        lookup.model(validate.check(config).config, 2)
