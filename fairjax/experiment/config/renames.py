"""Old names of config fields, groups and values: they are refused with the new name.

An old name never works silently. Command lines, sweeps, presets, config files and the
config.json of an older run all meet the same table: when the run is continued, loaded,
reported or compared.
"""

import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fairjax.core import require

RENAMED = {
    "cohort": "clients_per_round",
    "select": "selection_metric",
    "robust.fold": "robust.aggregator",
    "robust.hostile": "robust.num_byzantine",
    "local.prox": "local.fedprox_mu",
    "local.clip": "local.max_grad_norm",
    "tiers.share": "tiers.proportions",
    "tiers.assign": "tiers.assignment",
    "tiers.schedule": "tiers.changes",
    "fairness.hospital_group": "fairness.client_group",
    "submodel.ladder": "submodel.mixed",
    "submodel.name=ladder": "mixed",
    "preset=ladder": "mixed",
    "fairness.gifair.groups=hospital_group": "client_group",
    "fairness.agnostic.domain=hospital_group": "client_group",
}
"""Old name -> new one. Fields and groups go by their path; a value's key is path=value,
a preset's is preset=name."""


def refuse(fields: Mapping[str, Any], prefix: str = "") -> None:
    """Refuses the first field or value that has an old name.

    Args:
        fields: {dotted path: value}, such as a flattened config.
        prefix: what the message puts before the path, such as "--config.".

    Raises:
        InputError: "robust.fold: expected robust.aggregator, its new name; got
            'robust.fold'", or the same with a value.
    """
    for path, value in fields.items():
        for group in _prefixes(path):
            if group in RENAMED:
                new = RENAMED[group] + path.removeprefix(group)
                raise _error(f"{prefix}{path}", new, path)
        new_value = RENAMED.get(f"{path}={value}")
        if new_value is not None:
            raise _error(f"{prefix}{path}", new_value, value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A plain config as {dotted path: value}."""
    fields: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            fields |= flatten(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def refuse_runs(workdirs: Collection[str]) -> None:
    """Refuses the folder of an older run, or a folder in which there is one.

    Args:
        workdirs: folders of runs, or of folders of runs.

    Raises:
        InputError: names the config.json, the field and its new name.
    """
    for workdir in map(pathlib.Path, workdirs):
        for path in [workdir / "config.json", *sorted(workdir.glob("*/config.json"))]:
            if path.is_file():
                text = path.read_text(errors="replace")
                try:
                    config = require.parse_json(str(path), text, dict)
                except require.InputError:
                    continue  # its reader says what is wrong with it
                refuse(flatten(config), f"{path}: ")


def new_name(name: str) -> str | None:
    """The new name of a field or group by the last part of its old one, if it has one.

    Args:
        name: such as "ladder" or "fold", as an error of a config file gives it.
    """
    for old, new in RENAMED.items():
        if "=" not in old and old.rpartition(".")[2] == name:
            return new
    return None


def refuse_preset(name: str, presets: Collection[str]) -> None:
    """Refuses an old preset name, where a config has the preset under its new name.

    Raises:
        InputError: names the new one.
    """
    new = RENAMED.get(f"preset={name}")
    if new in presets:
        raise _error("preset of --config", str(new), name)


def _prefixes(path: str) -> Iterator[str]:
    """The groups around a field, outermost first, and the field itself."""
    parts = path.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _error(where: str, new: str, old: str) -> require.InputError:
    return require.InputError(f"{where}: expected {new}, its new name; got {old!r}")
