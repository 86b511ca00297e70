"""Trains a federation: the config says what, the workdir receives everything.

    python scripts/train.py --config=configs/heart_disease.py --workdir=runs/heart
    python scripts/train.py --config=configs/digits.py:smoke --workdir=runs/digits \
        --config.rounds=20 --config.tiers.budget='(0.5, 1.0)'

The same command again continues the run. Ctrl-C and SIGTERM stop it with exit code 75:
after the round in hand while rounds run, else at once. `fairjax.experiment.cli` lists
the other exit codes.

With `--distributed` every process of a SLURM job or TPU pod runs the same command.
Elsewhere `--coordinator`, `--processes` and `--process` identify the processes.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.io import distributed
from fairjax.experiment.train import train


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds --config, --workdir, --profile and those of several processes."""
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_bool("profile", False, "Profile rounds 2 to 4.", flag_values=values)
    flags.DEFINE_bool("distributed", False, "One of many.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "host:port of 0.", flag_values=values)
    flags.DEFINE_integer("processes", None, "How many.", flag_values=values)
    flags.DEFINE_integer("process", None, "Which one, from 0.", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], values)


def main(options: flags.FlagValues) -> None:
    """Trains the config, or continues the run in the workdir.

    Args:
        options: the parsed flags.

    Raises:
        InputError: a flag of several processes is set without --distributed.
    """
    process_flags = [
        options[name].value for name in ("coordinator", "processes", "process")
    ]
    if options.distributed:
        distributed.join(*process_flags)
    elif any(value is not None for value in process_flags):
        require.fail("--distributed", "True for one of many processes", False)
    train(
        options.config,
        options.workdir,
        profile=options.profile,
        override_paths=cli.override_paths(options),
    )


if __name__ == "__main__":
    cli.run(main, define)
