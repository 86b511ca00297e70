"""How a dataclass declares config fields: their group of the config and their docs.

    @dataclasses.dataclass(frozen=True)
    class Tilted:
        t: float = option(1.0, "tilt, per nat; 0 is FedAvg")
        floor: float | None = option(None, "smallest weight; not given: none")

The classes of `schema` are made of such fields, and so are the options that an entry of
the registry names. The config that users change, the default values and the pages
docs/reference/config.md and docs/reference/options.md all come from them.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeGuard, runtime_checkable

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from fairjax.core import require

_TABLE = {"table": True}


@runtime_checkable
class Configurable(Protocol):
    """An entry of a table of the registry."""

    @property
    def options(self) -> type | None:
        """The dataclass of its options; None: it has none."""
        ...


Check = Callable[[str, Any], Any]
"""(path of a field, value) -> anything; it refuses a value with an `InputError`."""


def option(default: Any, text: str, check: Check | None = None) -> Any:
    """A field of a config.

    Args:
        default: the default value; None, for a field of type `T | None`: not given.
        text: what the field means, with its unit, as the docs page prints it.
        check: refuses values that are never valid, see `check_value`; of a tuple it
            gets the entries one by one.
    """
    return dataclasses.field(default=default, metadata={"help": text, "check": check})


def interval(
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Check:
    """A check that a number is in [low, high]; an open end is refused itself."""
    return functools.partial(
        require.in_range, low=low, high=high, open_low=open_low, open_high=open_high
    )


def one_of(choices: Iterable[str]) -> Check:
    """A check that a name is one of the choices."""
    return functools.partial(require.one_of, choices=tuple(choices))


def check_value(group: type, field: dataclasses.Field, value: Any, where: str) -> None:
    """Refuses a value that its field cannot have, whatever the other fields are.

    Args:
        group: the dataclass of the field.
        field: one of its fields, made by `option`.
        value: the value.
        where: the path of the field.

    Raises:
        InputError: names the field, what was expected and what came.
    """
    kind, is_optional = field_type(group, field.name)
    if value is None and is_optional:
        return
    check, is_tuple = field.metadata.get("check"), typing.get_origin(kind) is tuple
    if check is not None and isinstance(value, tuple) == is_tuple:
        for entry in value if isinstance(value, tuple) else (value,):
            check(where, entry)
    if not _has_type(value, kind):
        require.fail(where, kind_name(kind), value)


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value of a config has a type; a whole number is a float too."""
    if isinstance(kind, types.UnionType):
        return any(_has_type(value, inner) for inner in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        return len(kinds) == len(value) and all(map(_has_type, value, kinds))
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


def kind_name(kind: Any) -> str:
    """The type of a field as the docs and refusals print it: "tuple[float, ...]"."""
    return kind.__name__ if type(kind) is type else str(kind)


def subgroup(group: type, text: str = "") -> Any:
    """A group of fields inside another one.

    Args:
        group: its dataclass.
        text: what the group is for, where its own docstring is not enough.
    """
    return dataclasses.field(default_factory=group, metadata={"help": text})


def table() -> Any:
    """The options of all entries of a registry table, {name of the entry: options}.

    In a config they are groups with the entries' names, beside the other fields.
    """
    return dataclasses.field(default_factory=dict, metadata=_TABLE)


def is_table(field: dataclasses.Field) -> bool:
    """Whether a field was made by `table`."""
    return field.metadata == _TABLE


def is_group(kind: Any) -> TypeGuard[type]:
    """Whether the type of a field is that of a group of fields."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def config_group(group: type) -> ConfigDict:
    """The config group of a dataclass, with its default values.

    An optional field becomes a reference of its type, so that None and a value of that
    type are accepted; ml_collections calls such a field without a value a placeholder.
    Fields made by `table` are left out, see `add_groups`.

    Args:
        group: a dataclass whose fields are made by `option`, `subgroup` and `table`.
    """
    config: Any = ConfigDict()
    for field in dataclasses.fields(group):
        if is_table(field):
            continue
        kind, is_optional = field_type(group, field.name)
        if is_group(kind):
            config[field.name] = config_group(kind)
        elif is_optional:
            scalar = typing.get_origin(kind) or kind
            config[field.name] = FieldReference(field.default, field_type=scalar)
        else:
            config[field.name] = field.default
    return config


def add_groups(group: Any, entries: Mapping[str, Configurable]) -> None:
    """Adds the options of every entry that has some, under the entry's name.

    Args:
        group: `model`, `submodel` or `fairness` of a config.
        entries: a table of the registry.
    """
    for name, entry in entries.items():
        if entry.options is not None:
            group[name] = config_group(entry.options)


def describe(entries: Mapping[str, Configurable]) -> str:
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


def describe_group(group: type, path: str = "") -> str:
    """The fields of a dataclass, and of the groups in it, as a table in markdown.

    Args:
        group: a dataclass of `schema`.
        path: in front of every field, such as "privacy.".
    """
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cells)} |" for cells in _rows(group, path)]
    return "\n".join(lines)


def _rows(group: type, path: str = "") -> Iterator[list[str]]:
    """Path, type, default and meaning of every field, as cells in markdown."""
    for field in dataclasses.fields(group):
        kind, _ = field_type(group, field.name)
        if is_group(kind):
            text = field.metadata["help"]
            if text:
                yield [f"`{path}{field.name}`", "group", "", text]
            yield from _rows(kind, f"{path}{field.name}.")
        elif not is_table(field):
            default = "not given" if field.default is None else f"`{field.default!r}`"
            text = field.metadata["help"]
            cells = f"`{path}{field.name}`", f"`{kind_name(kind)}`", default, text
            yield [cell.replace("|", r"\|") for cell in cells]


def field_type(group: type, name: str) -> tuple[Any, bool]:
    """The type of a field without None, and whether the field may be None."""
    annotation = typing.get_type_hints(group)[name]
    if not isinstance(annotation, types.UnionType):
        return annotation, False
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if len(kinds) != 1:
        raise TypeError(f"{group.__name__}.{name}: expected one type, or None")
    return kinds[0], True
