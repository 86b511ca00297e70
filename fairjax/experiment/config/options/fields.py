"""How a dataclass declares options: its config group and its table in the docs.

    @dataclasses.dataclass(frozen=True)
    class Tilted:
        t: float = option(1.0, "tilt, per nat; 0 is FedAvg")
        floor: float | None = option(None, "smallest weight; not given: none")

An entry of the registry names its dataclass. The schema in `default`, the default
values and docs/options.md all come from it.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from fairjax.experiment.config.entries import Entry


def option(default: Any, text: str) -> Any:
    """A field of a dataclass of options.

    Args:
        default: the default value; None, for a field of type `T | None`: not given.
        text: what the option means, with its unit, as the docs page prints it.
    """
    return dataclasses.field(default=default, metadata={"help": text})


def config_group(options: type) -> ConfigDict:
    """The config group of a dataclass, with its default values.

    An optional field becomes a reference of its type, so that None and a value of that
    type are accepted; ml_collections calls such a field without a value a placeholder.

    Args:
        options: a dataclass whose fields are made by `option`.
    """
    group: Any = ConfigDict()
    for field in dataclasses.fields(options):
        kind, is_optional = _kind(options, field.name)
        group[field.name] = (
            FieldReference(field.default, field_type=typing.get_origin(kind) or kind)
            if is_optional
            else field.default
        )
    return group


def add_groups(group: Any, entries: Mapping[str, Entry]) -> None:
    """Adds the options of every entry that has some, under the entry's name.

    Args:
        group: `model`, `submodel` or `fairness` of a config.
        entries: a table of the registry.
    """
    for name, entry in entries.items():
        if entry.options is not None:
            group[name] = config_group(entry.options)


def describe(entries: Mapping[str, Entry]) -> str:
    """The options of a table of the registry as a table in markdown.

    Args:
        entries: a table of the registry; entries without options have no row.
    """
    lines = ["| name | option | type | default | meaning |", "|---|---|---|---|---|"]
    for name, entry in entries.items():
        if entry.options is not None:
            lines += [
                f"| `{name}` | {' | '.join(cells)} |" for cells in _rows(entry.options)
            ]
    return "\n".join(lines)


def _rows(options: type) -> Iterator[list[str]]:
    """Name, type, default and meaning of every option, as cells in markdown."""
    for field in dataclasses.fields(options):
        kind, _ = _kind(options, field.name)
        kind_name = kind.__name__ if isinstance(kind, type) else str(kind)
        default = "not given" if field.default is None else f"`{field.default!r}`"
        cells = f"`{field.name}`", f"`{kind_name}`", default, field.metadata["help"]
        yield [cell.replace("|", r"\|") for cell in cells]


def _kind(options: type, name: str) -> tuple[Any, bool]:
    """The type of a field without None, and whether the field may be None."""
    annotation = typing.get_type_hints(options)[name]
    if not isinstance(annotation, types.UnionType):
        return annotation, False
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if len(kinds) != 1:
        raise TypeError(f"{options.__name__}.{name}: expected one type, or None")
    return kinds[0], True
