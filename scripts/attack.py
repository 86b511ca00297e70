"""Attacks a run or a fresh model, and reports what its uploads reveal.

    python scripts/attack.py --workdir=runs/blood --tier=0 --level=plain --level=tier
    python scripts/attack.py --workdir=runs/fresh --config=configs/pbc_blood28.py

With a config the victims train its first model, otherwise the newest checkpoint in
workdir. The script writes attack_inversion.png and attack.json, and keeps the rows of
other attacks in attack.json.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import json
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from fairjax import attacks
from fairjax.experiment import cli

_OPTIONS = (
    "tier",
    "level",
    "variant",
    "observable",
    "images",
    "records",
    "steps",
    "restarts",
    "iterations",
    "shadows",
    "gamma",
    "scale",
    "rounds",
    "runs",
    "chunk",
    "canary",
    "party",
)
"""The flags that are settings of an attack."""


_INTEGERS = {
    "images": "Victims of every tier, for inversion.",
    "records": "Records that a victim trains on.",
    "steps": "Local steps that --observable=steps shows.",
    "restarts": "Starts of every inversion.",
    "iterations": "Iterations of every start.",
    "shadows": "Shadow runs, for membership.",
    "rounds": "Rounds of every audited run.",
    "runs": "Audited runs with the canary, and as many without it.",
    "chunk": "Shadow or audited runs that are trained at once.",
}
"""Flag -> help."""


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script; the default of a setting is that of the attack."""
    flag_options = {"flag_values": values}
    config_flags.DEFINE_config_file("config", sys_argv=list(argv), **flag_options)
    description = "Folder of the run or the results."
    flags.DEFINE_string("workdir", None, description, **flag_options)
    description = "The attack: inversion, membership or audit."
    flags.DEFINE_string("attack", "inversion", description, **flag_options)
    description = "Tier to attack, by default all. May be repeated, as may --level."
    flags.DEFINE_multi_integer("tier", None, description, **flag_options)
    description = (
        "What the attacker knows: plain, tier, structure or search; by default each."
    )
    flags.DEFINE_multi_string("level", None, description, **flag_options)
    description = "The inversion: cosine or dlg."
    flags.DEFINE_string("variant", None, description, **flag_options)
    description = "What the attacker observes: gradient, steps or round."
    flags.DEFINE_string("observable", None, description, **flag_options)
    for name, description in _INTEGERS.items():
        flags.DEFINE_integer(name, None, description, **flag_options)
    description = "The factor by which a record must surpass others, for RMIA."
    flags.DEFINE_float("gamma", None, description, **flag_options)
    description = "a of offline RMIA, where members have a p + 1 - a for others' p."
    flags.DEFINE_float("scale", None, description, **flag_options)
    description = (
        "The audit's canary: loud, spike, overflow or class; by default all. May be "
        "repeated."
    )
    flags.DEFINE_multi_string("canary", None, description, **flag_options)
    description = (
        "The audited tier, or hospital under record_dp; by default the one with the "
        "largest epsilon."
    )
    flags.DEFINE_string("party", None, description, **flag_options)
    flags.mark_flags_as_required(["workdir"], values)


def main(options: flags.FlagValues) -> None:
    """Attacks, and prints the results."""
    flag_values = options.flag_values_dict()
    settings = {
        name: flag_values[name] for name in _OPTIONS if flag_values[name] is not None
    }
    overridden = cli.override_paths(options) if options.config else ()
    run, state = attacks.load_target(options.workdir, options.config, overridden)
    rows = attacks.attack(options.attack, run, state, options.workdir, settings)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    cli.run(main, define)
