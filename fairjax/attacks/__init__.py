"""Attacks on a run: they write what it gives away, as rows and pictures in the workdir.

`ATTACKS` lists the attacks. Each has pure parts, and a driver that knows a run:

    inversion    reconstruction_figures, over reconstruction, victims, hypotheses,
                 exposure, inversion, images
    membership   membership, over shadows, alignment, scores, roc
    audit        audit, over canaries, canary_runs, observables, epsilon_bound
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fairjax.attacks import (
    audit,
    membership,
    reconstruction,
    reconstruction_figures,
)
from fairjax.core import require
from fairjax.core.types import RunState
from fairjax.experiment.config import build, validate
from fairjax.experiment.io import workdir as files
from fairjax.experiment.resume import initial_state, load

Row = dict[str, Any]
FILE = "attack.json"


class Attack(NamedTuple):
    """One kind of attack."""

    settings: type
    """A frozen dataclass of the attack's options, with their defaults."""
    rows: Callable[[build.Run, RunState, Any], tuple[list[Row], dict[str, bytes]]]
    """(run, state, settings) -> (rows of attack.json, {name of a picture: bytes})."""


def attack(
    name: str,
    run: build.Run,
    state: RunState,
    workdir: str | os.PathLike[str],
    options: Mapping[str, Any],
) -> list[Row]:
    """Attacks a state of a run and writes its rows beside those of other attacks.

    Args:
        name: one of `ATTACKS`.
        run: the run.
        state: the state that is attacked.
        workdir: the folder of attack.json, whose rows of this attack are replaced.
        options: of the attack; an option that is not named has its default.

    Raises:
        InputError: an unknown attack, an option that it does not have, or a run that it
            cannot attack. Nothing has been written then.
    """
    kind = ATTACKS[require.one_of("--attack", name, ATTACKS)]
    choices = [field.name for field in dataclasses.fields(kind.settings)]
    for option in options:
        require.one_of(f"option of --attack={name}", option, choices)
    settings = kind.settings(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()
        }
    )
    workdir = pathlib.Path(workdir)
    other_rows = [row for row in _read_rows(workdir / FILE) if row["attack"] != name]
    rows, pictures = kind.rows(run, state, settings)
    rows = [{"attack": name, **row} for row in rows]
    files.create(workdir)
    for picture, content in pictures.items():
        (workdir / picture).write_bytes(content)
    files.write_json(workdir / FILE, other_rows + rows)
    return rows


def load_target(
    workdir: str | os.PathLike[str],
    config: ConfigDict | None = None,
    overridden: Collection[str] = (),
) -> tuple[build.Run, RunState]:
    """What is attacked: the newest checkpoint in `workdir`, or a config's first model.

    Args:
        workdir: the folder of a run, or where attack.json goes.
        config: a config whose first model is attacked; None: a checkpoint is.
        overridden: paths of the config's fields that the user set by hand.

    Raises:
        InputError: the config cannot run, or it comes with the folder of a run.
    """
    if config is None:
        return load(workdir, vmapped=True)
    if (pathlib.Path(workdir) / "config.json").exists():
        expected = "none with the folder of a run, which has its own"
        require.fail("--config", expected, str(workdir))
    run = build.checked_run(validate.check(config, overridden), vmapped=True)
    return run, initial_state(run)


def _read_rows(path: pathlib.Path) -> list[Row]:
    """The rows of an earlier attack.json; none if there is no such file."""
    if not path.exists():
        return []
    rows = require.parse_json(str(path), path.read_text(errors="replace"), list)
    for row in rows:
        if not isinstance(row, dict) or "attack" not in row:
            require.fail(str(path), "rows of attacks", row)
    return rows


def _membership_rows(
    run: build.Run, state: RunState, settings: membership.Membership
) -> tuple[list[Row], dict[str, bytes]]:
    return membership.attack(run, state, settings), {}


def _audit_rows(
    run: build.Run, state: RunState, settings: audit.Audit
) -> tuple[list[Row], dict[str, bytes]]:
    return audit.audit(run, settings), {}


ATTACKS = {
    "inversion": Attack(reconstruction.Inversion, reconstruction_figures.rows),
    "membership": Attack(membership.Membership, _membership_rows),
    "audit": Attack(audit.Audit, _audit_rows),
}
"""Name -> attack."""
