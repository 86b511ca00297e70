"""Attacks on a run: what it gives away, as rows and pictures in the workdir.

An attack is a line of `ATTACKS`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fairjax.attacks import audit, membership, reconstruction
from fairjax.core import require
from fairjax.core.types import RunState
from fairjax.experiment.config import build, validate
from fairjax.experiment.io import workdir as files
from fairjax.experiment.train import initial, load

Row = dict[str, Any]
FILE = "attack.json"


class Attack(NamedTuple):
    """One kind of attack."""

    settings: type
    """A frozen dataclass of its options; their defaults are the attack's."""
    rows: Callable[[build.Run, RunState, Any], tuple[list[Row], dict[str, bytes]]]
    """(run, state, settings) -> (rows of attack.json, {name of a picture: bytes})."""


def attack(
    name: str,
    run: build.Run,
    state: RunState,
    workdir: str | os.PathLike[str],
    options: Mapping[str, Any],
) -> list[Row]:
    """Attacks a state of a run and puts the rows beside those of other attacks.

    Args:
        name: one of `ATTACKS`.
        run: the run.
        state: the state attacked.
        workdir: gets or keeps attack.json, whose rows of this attack are replaced.
        options: of the attack; what is not named has its default.

    Raises:
        InputError: an unknown attack, an option that it does not have, or a run that it
            cannot attack; nothing has been written then.
    """
    kind = ATTACKS[require.one_of("--attack", name, ATTACKS)]
    known = [field.name for field in dataclasses.fields(kind.settings)]
    for option in options:
        require.one_of(f"option of --attack={name}", option, known)
    settings = kind.settings(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()
        }
    )
    workdir = pathlib.Path(workdir)
    others = [row for row in _rows(workdir / FILE) if row["attack"] != name]
    made, pictures = kind.rows(run, state, settings)
    made = [{"attack": name, **row} for row in made]
    files.create(workdir)
    for picture, content in pictures.items():
        (workdir / picture).write_bytes(content)
    files.write_json(workdir / FILE, others + made)
    return made


def opened(
    workdir: str | os.PathLike[str],
    config: ConfigDict | None = None,
    overridden: Collection[str] = (),
) -> tuple[build.Run, RunState]:
    """What is attacked: the newest checkpoint in `workdir`, or a config's first model.

    Raises:
        InputError: the config cannot run, or it comes with the folder of a run.
    """
    if config is None:
        return load(workdir, vmapped=True)
    if (pathlib.Path(workdir) / "config.json").exists():
        what = "none with the folder of a run, which has its own"
        require.fail("--config", what, str(workdir))
    validate.check(config, overridden)
    run = build.build(config, vmapped=True)
    return run, initial(run)


def _rows(path: pathlib.Path) -> list[Row]:
    """The rows that are there."""
    if not path.exists():
        return []
    found = require.parsed(str(path), path.read_text(errors="replace"), list)
    for row in found:
        if not isinstance(row, dict) or "attack" not in row:
            require.fail(str(path), "rows of attacks", row)
    return found


def _membership(
    run: build.Run, state: RunState, settings: membership.Membership
) -> tuple[list[Row], dict[str, bytes]]:
    return membership.attack(run, state, settings), {}


def _audit(
    run: build.Run, state: RunState, settings: audit.Audit
) -> tuple[list[Row], dict[str, bytes]]:
    return audit.audit(run, settings), {}


ATTACKS = {
    "inversion": Attack(reconstruction.Inversion, reconstruction.rows),
    "membership": Attack(membership.Membership, _membership),
    "audit": Attack(audit.Audit, _audit),
}
"""Name -> attack."""
