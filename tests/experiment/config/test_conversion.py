"""The three forms of a config say the same."""

import dataclasses
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import require
from fairjax.experiment.config import conversion, default, renames

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIGS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("configs", "configs/submodels")
    for path in (ROOT / folder).glob("*.py")
    if path.stem != "__init__"
)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_frozen_form_holds_every_value(name):
    config = importlib.import_module(name).get_config()
    plain = conversion.to_plain(config)
    typed = conversion.to_typed(config)
    assert conversion.to_plain(typed) == plain
    assert conversion.to_plain(conversion.from_plain(plain)) == plain


def test_the_frozen_form_cannot_change():
    typed = conversion.to_typed(default.get_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        typed.rounds = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        typed.fairness.options["q_ffl"].q = 3.0


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("rounds", "5", "a number"),
        ("rounds", 5.5, "int"),
        ("rounds", True, "a number"),
        ("baselines", 1, "bool"),
        ("model.init_from", 3, "str"),
        ("data.partition.alpha", None, "a number"),
        ("local.steps", 2.5, "int"),
        ("tiers.budget", (0.5, "1"), "a number"),
        ("tiers.budget", (((1,), (1, 2)),), "a number"),
        ("tiers.budget", None, "tuple[float, ...]"),
        ("data.augment", np.array(["crop"]), "tuple[str, ...]"),
        ("tiers.changes", ((1, 2),), "(round, hospital, tier) for every change"),
        ("tiers.changes", ((1, 2, 0.5),), "tuple[tuple[int, int, int], ...]"),
        ("privacy.secure.bits", 20.0, "int"),
        ("submodel.lora.rank", 8.0, "a whole number above 0"),
        ("submodel.nefl.dropped", ((1, "2"),), "tuple[int | tuple[int, ...], ...]"),
        ("fairness.q_ffl.q", "1", "float"),
        ("fairness.client_group", ("north", 3), "a group's name for every hospital"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_path(path, value, expected):
    config = default.get_config()
    *groups, field = path.split(".")
    group = config
    for name in groups:
        group = group[name]
    with config.unlocked(), config.ignore_type(), group.ignore_type():
        group[field] = value
    with pytest.raises(require.InputError) as refusal:
        conversion.to_typed(config)
    assert str(refusal.value).startswith(f"{path}: expected {expected}")


def test_a_whole_number_is_a_float_too():
    config = default.get_config()
    config.local.learning_rate = 1
    config.tiers.budget = (1, 1)
    assert conversion.to_typed(config).tiers.budget == (1, 1)


def refused_fields(change):
    """The refusal of the default config, as config.json holds it, after a change."""
    plain = conversion.to_plain(default.get_config())
    change(plain)
    with pytest.raises(conversion.FieldError) as refusal:
        conversion.to_typed(conversion.from_plain(plain))
    return str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plain: plain["privacy"]["secure"].pop("bits"),
            "privacy.secure.bits: expected a value; got none",
        ),
        (
            lambda plain: plain["fairness"].pop("q_ffl"),
            "fairness.q_ffl: expected a value; got none",
        ),
        (
            lambda plain: plain.update(rouds=3),
            'rouds: expected a field of the config; got none. Did you mean "rounds"?',
        ),
        (
            lambda plain: plain["model"]["mlp"].update(hiden=3),
            "model.mlp.hiden: expected a field of the config; got none. "
            'Did you mean "hidden"?',
        ),
        (
            lambda plain: plain.update(privacy=5),
            "privacy: expected a group of fields; got 5",
        ),
        (
            lambda plain: plain["fairness"].update(q_ffl=None),
            "fairness.q_ffl: expected a group of fields; got None",
        ),
    ],
)
def test_fields_that_are_not_the_schemas_are_refused(change, message):
    assert refused_fields(change) == message


def test_numbers_of_numpy_become_pythons():
    config = default.get_config()
    config.tiers.budget = tuple(np.linspace(0.25, 1, 4, dtype=np.float32))
    config.submodel.depthfl.stages = tuple(np.arange(1, 5))
    config.submodel.nefl.dropped = ([0], np.int64(0), 0, 0)
    typed = conversion.to_typed(config)
    assert typed.tiers.budget == (0.25, 0.5, 0.75, 1.0)
    assert typed.submodel.options["nefl"].dropped == ((0,), 0, 0, 0)
    assert json.loads(json.dumps(conversion.to_plain(typed)))["tiers"]["budget"]


def test_other_values_of_some_fields():
    config = conversion.to_typed(default.get_config())
    changes = {"rounds": 7, "privacy.secure.bits": 9, "fairness.q_ffl.q": 0.5}
    changed = conversion.with_values(config, changes)
    flat, flat_before = (
        renames.flatten(conversion.to_plain(c)) for c in (changed, config)
    )
    assert {path for path in flat if flat[path] != flat_before[path]} == set(changes)
    assert {path: flat[path] for path in changes} == changes


def test_a_replaced_value_may_be_traced():
    config = conversion.to_typed(default.get_config())

    @jax.jit
    def double(rate):
        changed = conversion.with_values(config, {"local.learning_rate": rate})
        return 2 * changed.local.learning_rate

    assert double(jnp.float32(0.5)) == 1
