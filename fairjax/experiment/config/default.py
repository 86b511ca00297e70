"""The config that users change: the fields of `schema` with their default values.

Every config file imports it and changes it. A group that has the name of a model,
method or rule holds the options of that one; changing an option of one that is not in
use is refused. These groups are added when a config is made, so an entry that is added
to the registry has its group in the next config.

docs/reference/config.md and docs/reference/options.md list all fields.
"""

from ml_collections import ConfigDict

from fairjax.core import require
from fairjax.experiment.config import registry, renames
from fairjax.experiment.config.options import fields
from fairjax.experiment.config.schema import Config


def get_config() -> ConfigDict:
    """Eight hospitals, four width tiers, the embedded breast-cancer table.

    Example:
        >>> config = get_config()
        >>> config.clients_per_round = 4  # a cohort of 4 of the 8
        >>> config.tiers.budget
        (0.25, 0.5, 0.75, 1.0)
    """
    config = fields.config_group(Config)
    for group, entries in registry.TABLES.items():
        fields.add_groups(config[group], entries)
    return config


def preset(config: ConfigDict, name: str, **presets: dict) -> ConfigDict:
    """The config with named sets of changes, {field: value}; "" changes nothing.

    "a+b" applies a and then b. Every config has "smoke": two rounds, both evaluated.

    Raises:
        InputError: there is no such preset, or the preset uses a field's old name.
    """
    presets = {"smoke": {"rounds": 2, "eval_every": 1}, **presets}
    for part in name.split("+") if name else ():
        if part not in presets:
            renames.refuse_preset(part, presets)
        require.one_of("preset of --config", part, presets)
        renames.refuse(presets[part], f"preset {part}: ")
        config.update_from_flattened_dict(presets[part])
    return config
