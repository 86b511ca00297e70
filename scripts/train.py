"""Trains a federation: the config says what, the workdir receives everything.

    python scripts/train.py --config=configs/heart_disease.py --workdir=runs/heart
    python scripts/train.py --config=configs/digits.py:smoke --workdir=runs/digits \
        --config.rounds=20 --config.tiers.budget='(0.5, 1.0)'

The same command again goes on where the run stands.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from fairjax import command
from fairjax.train import train


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_bool("profile", False, "Profile rounds 2 to 4.", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], values)


def main(options: flags.FlagValues) -> None:
    """Trains."""
    train(
        options.config,
        options.workdir,
        profile=options.profile,
        overridden=command.overridden(options),
    )


if __name__ == "__main__":
    command.run(main, define)
