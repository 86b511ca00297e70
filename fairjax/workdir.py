"""The files of a run: who may write into a folder, and how nothing is half-written."""

import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import jax

from fairjax import checks, specs


def check(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Refuses a workdir that holds another config, a longer run, or no run at all."""
    if workdir.exists() and not workdir.is_dir():
        checks.fail("--workdir", "a folder", str(workdir))
    path = workdir / "config.json"
    if not path.exists():
        if workdir.exists() and any(workdir.iterdir()):
            checks.fail("--workdir", "an empty folder or that of a run", str(workdir))
        return
    theirs = checks.parsed(str(path), path.read_text(errors="replace"), dict)
    differing = [
        field
        for field in specs.differences(config, theirs)
        if not field.startswith("checkpoint.") and field != "execution.devices"
    ]
    if differing == ["rounds"] and isinstance(theirs.get("rounds"), int):
        if config["rounds"] > theirs["rounds"] and specs.extendable(config):
            return
        reason = (
            f"at least the {theirs['rounds']} that {workdir} was run for"
            if specs.extendable(config)
            else f"{theirs['rounds']}, on which the schedule of {workdir} rests"
        )
        checks.fail("rounds", reason, config["rounds"])
    if differing:
        raise checks.InputError(
            f"--workdir: expected the config of {workdir}; got other values of "
            f"{', '.join(differing)}"
        )


def create(workdir: pathlib.Path) -> None:
    """Makes the folder; one line if it cannot be made."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise checks.InputError(
            f"--workdir: expected a folder that can be written; got {error.strerror}"
        ) from error


def truncate(path: pathlib.Path, round: int) -> None:
    """Keeps the whole rows of rounds up to `round`, by a file of its own."""
    if not path.exists():
        return
    text = path.read_text(errors="replace")
    whole = zip(text.split("\n"), checks.rows(str(path), text), strict=False)
    _replace(path, "".join(f"{line}\n" for line, row in whole if row["round"] <= round))


def _replace(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a whole file or leaves the old one."""
    _replace(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_lines(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends one JSON line per row, at once."""
    file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    file.flush()


def number(value: Any) -> float | int | None:
    """A JSON number; null for what is not known or not finite."""
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """All rows of a file of JSON lines; none before it is written."""
    if not path.exists():
        return []
    return checks.rows(str(path), path.read_text(errors="replace"))


def provenance() -> dict[str, Any]:
    """Versions, code revision, device and command of this process."""
    packages = (
        "fairjax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
    )
    root = pathlib.Path(__file__).resolve().parent.parent
    git = functools.partial(
        subprocess.run, cwd=root, capture_output=True, text=True, check=False
    )
    revision = None
    with contextlib.suppress(OSError):
        if (root / ".git").exists():
            head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
            dirty = git(["git", "status", "--porcelain"]).stdout.strip()
            revision = f"{head}{' with local changes' if dirty else ''}" or None
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "git_revision": revision,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": " ".join(sys.argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
