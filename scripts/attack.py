"""Attacks a run, or a fresh model, and says what its uploads give away.

    python scripts/attack.py --workdir=runs/blood --tier=0 --level=plain --level=tier
    python scripts/attack.py --workdir=runs/fresh --config=configs/pbc_blood28.py

With a config the victims train its first model, else the newest checkpoint in workdir.
Writes attack.json, whose rows of other attacks stay, and attack_inversion.png.
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
"""Flags that are an attack's own."""


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script; one that is not given has the attack's default."""
    there = {"flag_values": values}
    config_flags.DEFINE_config_file("config", sys_argv=list(argv), **there)
    flags.DEFINE_string("workdir", None, "Folder of the run or the results.", **there)
    what = "inversion, membership or audit."
    flags.DEFINE_string("attack", "inversion", what, **there)
    what = "A tier that is attacked; all. May be repeated, as may --level."
    flags.DEFINE_multi_integer("tier", None, what, **there)
    what = "What an attacker knows: plain, tier, structure or search; each of them."
    flags.DEFINE_multi_string("level", None, what, **there)
    flags.DEFINE_string("variant", None, "cosine or dlg.", **there)
    flags.DEFINE_string("observable", None, "gradient, steps or round.", **there)
    flags.DEFINE_integer("images", None, "Victims of every tier.", **there)
    flags.DEFINE_integer("records", None, "Records that a victim trains on.", **there)
    flags.DEFINE_integer("steps", None, "Local steps of observable steps.", **there)
    flags.DEFINE_integer("restarts", None, "Starts of every attempt.", **there)
    flags.DEFINE_integer("iterations", None, "Of every attempt.", **there)
    flags.DEFINE_integer("shadows", None, "Shadow runs of membership.", **there)
    what = "Of RMIA: the factor by which a record must surpass others."
    flags.DEFINE_float("gamma", None, what, **there)
    what = "Of offline RMIA: a, where members have a p + 1 - a for others' p."
    flags.DEFINE_float("scale", None, what, **there)
    flags.DEFINE_integer("rounds", None, "Of every audited run.", **there)
    flags.DEFINE_integer("runs", None, "Audited with, and without, canary.", **there)
    what = "Of an audit: loud, spike, overflow or class; all. May be repeated."
    flags.DEFINE_multi_string("canary", None, what, **there)
    what = "Audited tier, or hospital under record_dp; who spends most."
    flags.DEFINE_string("party", None, what, **there)
    flags.DEFINE_integer("chunk", None, "Shadow or audited runs at once.", **there)
    flags.mark_flags_as_required(["workdir"], values)


def main(options: flags.FlagValues) -> None:
    """Attacks, and prints what came out."""
    given = options.flag_values_dict()
    settings = {name: given[name] for name in _OPTIONS if given[name] is not None}
    overridden = cli.overridden(options) if options.config else ()
    run, state = attacks.opened(options.workdir, options.config, overridden)
    rows = attacks.attack(options.attack, run, state, options.workdir, settings)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    cli.run(main, define)
