"""The three forms of a config, and the ways between them.

- A `ConfigDict` is what users change: config files, presets and the command line.
- A `schema.Config` is what the program reads: frozen and typed, made once per run.
- A plain config is what config.json holds: nested dicts, with lists for tuples.
"""

import copy
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from fairjax.core import require
from fairjax.experiment.config import registry, renames
from fairjax.experiment.config.options import fields
from fairjax.experiment.config.schema import Config

Group = TypeVar("Group")


class FieldError(require.InputError):
    """A config has not the fields of the schema, as one of another version may."""


def to_typed(config: ConfigDict) -> Config:
    """The frozen form of a config.

    Args:
        config: a full config, see `default.get_config`.

    Raises:
        FieldError: a field is missing, or one is there that no schema has.
        InputError: a value has another type than its field, or the field's check
            refuses it.

    Example:
        >>> from fairjax.experiment.config import default
        >>> to_typed(default.get_config()).data.partition.num_clients
        8
    """
    return _typed_group(Config, config, "")


def _typed_group(kind: type[Group], group: Any, path: str) -> Group:
    """A group of a config as an object of its dataclass.

    Args:
        kind: the dataclass.
        group: the group.
        path: what its fields' names begin with, such as "privacy.".
    """
    if not isinstance(group, ConfigDict):
        raise FieldError(f"expected a group of fields; got {group!r}", path.rstrip("."))
    inner_fields = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    entries = {
        name: entry.options
        for name, entry in registry.TABLES.get(path.rstrip("."), {}).items()
        if entry.options is not None
    }
    names = {field.name for field in inner_fields if not fields.is_table(field)}
    _check_fields(group, names | entries.keys(), path)
    values: dict[str, Any] = {}
    for field in inner_fields:
        name, inner = field.name, fields.field_type(kind, field.name)[0]
        if fields.is_table(field):
            values[name] = {
                entry_name: _typed_group(
                    options, getattr(group, entry_name), f"{path}{entry_name}."
                )
                for entry_name, options in entries.items()
            }
        elif fields.is_group(inner):
            values[name] = _typed_group(inner, getattr(group, name), f"{path}{name}.")
        else:
            values[name] = _python_value(getattr(group, name))
            fields.check_value(kind, field, values[name], f"{path}{name}")
    return kind(**values)


def _check_fields(group: ConfigDict, names: Collection[str], path: str) -> None:
    """Refuses a group whose fields are not the schema's."""
    for name in sorted(names):
        if name not in group:
            raise FieldError("expected a value; got none", f"{path}{name}")
    for name in group:
        if name not in names:
            hint = require.suggestion(name, names)
            raise FieldError(
                f"expected a field of the config; got none{hint}", path + name
            )


def _python_value(value: Any) -> Any:
    """The value with numbers of NumPy as Python's, and lists as tuples."""
    if isinstance(value, tuple | list):
        return tuple(map(_python_value, value))
    return value.item() if isinstance(value, np.generic) else value


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with other values of some fields.

    Args:
        config: it stays as it is.
        values: {dotted path: value}; a value may be traced.

    Example:
        >>> from fairjax.experiment.config import default
        >>> c = to_typed(default.get_config())
        >>> with_values(c, {"fairness.q_ffl.q": 2.0}).fairness.options["q_ffl"].q
        2.0
    """
    for path, value in values.items():
        config = _with_value_at(config, path.split("."), value)
    return config


def _with_value_at(group: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    if not hasattr(group, name):  # an entry of a table
        inner = _with_value_at(group.options[name], rest, value)
        return dataclasses.replace(group, options={**group.options, name: inner})
    if rest:
        value = _with_value_at(getattr(group, name), rest, value)
    changed = copy.copy(group)
    object.__setattr__(changed, name, value)  # a traced value is no float
    return changed


def to_plain(config: ConfigDict | Config) -> dict[str, Any]:
    """The config as nested dicts that JSON can hold; tuples become lists."""
    nested = config.to_dict() if isinstance(config, ConfigDict) else _nested(config)
    return _convert_sequences(nested, tuple, list)


def _nested(group: Any) -> dict[str, Any]:
    """A dataclass of `schema` as nested dicts; options stand beside other fields."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if fields.is_table(field):
            values |= {name: _nested(options) for name, options in value.items()}
        else:
            values[field.name] = (
                _nested(value) if dataclasses.is_dataclass(value) else value
            )
    return values


def from_plain(config: dict[str, Any], where: str = "") -> ConfigDict:
    """The inverse of `to_plain`.

    Args:
        config: a plain config.
        where: what a refusal puts before the field, such as "run/config.json: ".

    Raises:
        InputError: a field or value has the name of an older version.
    """
    renames.refuse(renames.flatten(config), where)
    return ConfigDict(_convert_sequences(config, list, tuple))


def _convert_sequences(value: Any, old: type, new: type) -> Any:
    """The value with every sequence of type `old` as one of type `new`."""
    if isinstance(value, dict):
        return {
            name: _convert_sequences(inner, old, new) for name, inner in value.items()
        }
    if isinstance(value, old):
        return new(_convert_sequences(inner, old, new) for inner in value)
    return value


def differences(config_a: dict[str, Any], config_b: dict[str, Any]) -> list[str]:
    """Dotted paths of the fields in which two plain configs differ."""
    a, b = renames.flatten(config_a), renames.flatten(config_b)
    missing = object()
    return sorted(p for p in a.keys() | b if a.get(p, missing) != b.get(p, missing))
