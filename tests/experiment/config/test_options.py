"""Options of methods, rules and models: one dataclass each, and what is made of it."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from configs import default
from fairjax.core.rule import Rule
from fairjax.experiment import cli
from fairjax.experiment.config import compatibility, conversion, lookup, registry
from fairjax.experiment.config.options import fields

TABLES = {
    "model": registry.MODELS,
    "submodel": registry.METHODS,
    "fairness": registry.RULES,
}
ENTRIES = [
    pytest.param(group, name, entry, id=f"{group}.{name}")
    for group, entries in TABLES.items()
    for name, entry in entries.items()
]


def options_of(entry):
    return () if entry.options is None else dataclasses.fields(entry.options)


@pytest.mark.parametrize(("group", "name", "entry"), ENTRIES)
def test_the_group_of_an_entry_has_the_fields_of_its_dataclass(group, name, entry):
    config = default.get_config()
    if entry.options is None:
        assert name not in config[group]
        return
    types = cli.fields_of(config[group][name])
    assert types.keys() == {field.name for field in options_of(entry)}
    hints = typing.get_type_hints(entry.options)
    for field in options_of(entry):
        assert config[group][name][field.name] == field.default
        # A float whose default is an int would refuse 0.5.
        declared = hints[field.name]
        kinds = [k for k in typing.get_args(declared) if k is not type(None)]
        is_optional = type(None) in typing.get_args(declared)
        kind = kinds[0] if is_optional else declared
        assert types[field.name] is (typing.get_origin(kind) or kind)
        assert is_optional or field.default is not None


@pytest.mark.parametrize(("group", "name", "entry"), ENTRIES)
def test_every_option_is_explained(group, name, entry):
    for field in options_of(entry):
        text = field.metadata["help"]
        assert text == " ".join(text.split()) != "", field.name


def test_a_group_of_the_schema_belongs_to_an_entry():
    config = default.get_config()
    for group, entries in TABLES.items():
        groups = {n for n in config[group] if isinstance(config[group][n], ConfigDict)}
        assert groups == {n for n, entry in entries.items() if entry.options}


@pytest.mark.parametrize("name", registry.RULES)
def test_a_rule_takes_its_options(name):
    c = conversion.to_typed(default.get_config())
    rule = registry.RULES[name].rule(c.fairness.options.get(name), c)
    assert isinstance(rule, Rule)


@pytest.mark.parametrize("name", registry.MODELS)
def test_a_model_takes_its_options(name):
    entry = registry.MODELS[name]
    c = conversion.to_typed(default.get_config())
    options = c.model.options.get(name)
    model = entry.make(options, c, 2, registry.METHODS["fedavg"])
    shape = (1, 5) if entry.tabular else (1, 32, 32, 3)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), x))


@pytest.mark.parametrize("name", registry.METHODS)
def test_a_method_takes_its_options(name):
    """With a model that has all that any method needs: blocks, exits, step sizes."""
    config = default.get_config()
    config.submodel.name, config.model.name = name, "resmlp"
    c = conversion.to_typed(config)
    assert callable(lookup.method(c, lookup.model(c, 2).axes).submodel)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Options of no entry."""

    widths: tuple[int, ...] = fields.option((1, 2), "units | layer")
    share: float | None = fields.option(None, "not given: all")
    seed: int | None = fields.option(3, "not given: 0")


def test_an_optional_field_takes_a_value_of_its_type_and_none():
    group = fields.config_group(Sample)
    assert isinstance(group.get_ref("share"), FieldReference)
    assert group.share is None
    group.share, group.seed = 0.5, None
    assert (group.share, group.seed) == (0.5, None)
    with pytest.raises(TypeError, match="share"):
        group.share = "half"


def test_groups_of_two_configs_are_apart():
    first, second = fields.config_group(Sample), fields.config_group(Sample)
    first.share = 0.5
    assert second.share is None


def test_an_option_of_two_types_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Wrong:
        size: int | str = fields.option(1, "a number or a name")

    with pytest.raises(TypeError, match=r"Wrong\.size: expected one type, or None"):
        fields.config_group(Wrong)


def test_the_table_of_options_has_a_row_per_option():
    table = fields.describe(
        {"sample": registry.ModelEntry(dict, Sample), "bare": registry.ModelEntry(dict)}
    )
    assert table.splitlines()[2:] == [
        r"| `sample` | `widths` | `tuple[int, ...]` | `(1, 2)` | units \| layer |",
        "| `sample` | `share` | `float` | not given | not given: all |",
        "| `sample` | `seed` | `int` | `3` | not given: 0 |",
    ]


def test_the_table_of_compatibility_says_what_is_refused():
    head, _, *rows = compatibility.table().splitlines()
    settings = [cell.strip() for cell in head.strip("|").split("|")][1:]
    assert settings == list(compatibility.CONDITIONS)
    assert len(rows) == len(registry.RULES)
    allowed = {
        setting: compatibility.names_of(condition.allows)
        for setting, condition in compatibility.CONDITIONS.items()
    }
    for row in rows:
        name, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        for setting, cell in zip(settings, cells, strict=True):
            assert cell == ("yes" if name.strip("`") in allowed[setting] else "no")
