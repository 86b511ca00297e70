"""Refusals name the cause: no refusal asks for what another one forbids."""

import itertools
import re

import pytest

from configs import default
from fairjax.core import require
from fairjax.experiment.config import registry, schema, validate
from fairjax.experiment.config.options import privacy
from fairjax.privacy import securesum

FIELDS = (
    "fairness.rule",
    "fairness.denominator",
    "fairness.cap",
    "privacy.secure_sum",
    "robust.aggregator",
    "clients_per_round",
)
NEEDED = {
    "submodel.heterofl.masked_loss": False,
    "clients_per_round": 3,
    "fairness.client_group": tuple("aabbccdd"),
}
GIVEN = NEEDED | {"privacy.noise_multiplier": 1.0}
CONFIG = default.get_config()


def config_of(rule, mechanism, denominator, secure_sum, fold="mean", cap=0.0):
    config = CONFIG.copy_and_resolve_references()
    fields = NEEDED if mechanism == "none" else GIVEN
    config.update_from_flattened_dict(
        fields
        | {
            "fairness.rule": rule,
            "privacy.mechanism": mechanism,
            "fairness.denominator": denominator,
            "privacy.secure_sum": secure_sum,
            "robust.aggregator": fold,
            "fairness.cap": cap,
        }
    )
    return config


def advice(line):
    """(field in `FIELDS`, the value that a refusal asks for)."""
    field, text = re.fullmatch(r"(\S+): expected (.*); got .*", line).groups()
    assert field in FIELDS, line
    if text.startswith("a rule of sums alone"):
        return field, "size"
    word = re.match(r"(?:one of |at least )?([\w.]+)", text)[1]
    return field, float(word) if field == "fairness.cap" else word


def follow(config):
    """The fields that refusals name, one after the other, until the config passes."""
    named = []
    while len(named) <= len(FIELDS):
        try:
            validate.check(config)
        except require.InputError as error:
            field, value = advice(str(error))
            config.update_from_flattened_dict({field: value})
            named.append(field)
        else:
            break
    return named


@pytest.mark.parametrize("mechanism", privacy.MECHANISMS)
def test_who_follows_refusals_arrives_and_is_asked_for_nothing_twice(mechanism):
    """All rules, denominators and sums; aggregators and caps with some of them."""
    cases = itertools.product(registry.RULES, schema.DENOMINATORS, ("off", "masked"))
    cases = [(*case, "mean", 0.0) for case in cases]
    cases += itertools.product(
        ("size", "term", "fedmgda", "ditto"),
        schema.DENOMINATORS,
        ("off", securesum.MODES[-1]),
        ("median", "krum"),
        (0.0, 2.0),
    )
    for rule, denominator, *rest in cases:
        named = follow(config_of(rule, mechanism, denominator, *rest))
        assert len(set(named)) == len(named), (rule, denominator, *rest, named)


@pytest.mark.parametrize("rule", ["fedmgda", "fedfv", "q_fedavg", "size+fedmgda"])
@pytest.mark.parametrize("denominator", schema.DENOMINATORS)
def test_a_rule_that_client_dp_cannot_have_is_refused_before_its_denominator(
    rule, denominator
):
    config = config_of(rule, "client_dp", denominator, "off")
    with pytest.raises(require.InputError, match=r"^fairness\.rule: expected one of"):
        validate.check(config)
