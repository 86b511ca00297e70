"""The files of a run: who may write into a folder, and how nothing is half-written."""

import contextlib
import datetime
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

import jax

from fairjax.core import require
from fairjax.experiment.config import validate

_LOCK, _NEW = ".lock", ".new"


def check(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Refuses a workdir that holds another config, a longer run, or no run at all."""
    if workdir.exists() and not workdir.is_dir():
        require.fail("--workdir", "a folder", str(workdir))
    path = workdir / "config.json"
    if not path.exists():
        begun = {_LOCK, path.name + _NEW}  # by a run that was killed as it began
        if workdir.exists() and {each.name for each in workdir.iterdir()} - begun:
            require.fail("--workdir", "an empty folder or that of a run", str(workdir))
        return
    theirs = require.parsed(str(path), path.read_text(errors="replace"), dict)
    differing = [
        field
        for field in validate.differences(config, theirs)
        if not field.startswith("checkpoint.") and field != "execution.devices"
    ]
    if differing == ["rounds"] and isinstance(theirs.get("rounds"), int):
        if config["rounds"] > theirs["rounds"] and validate.extendable(config):
            return
        reason = (
            f"at least the {theirs['rounds']} that {workdir} was run for"
            if validate.extendable(config)
            else f"{theirs['rounds']}, on which the schedule of {workdir} rests"
        )
        require.fail("rounds", reason, config["rounds"])
    both = validate.flat(config).keys() & validate.flat(theirs)
    if alone := [field for field in differing if field not in both]:
        ours = f"fairjax {importlib.metadata.version('fairjax')}"
        names = ", ".join([*alone[:5], ".."] if len(alone) > 5 else alone)
        raise require.InputError(
            f"--workdir: expected a run of {ours}; got {workdir} of "
            f"{written_by(workdir)}, whose config has not the same fields: {names}"
        )
    if differing:
        raise require.InputError(
            f"--workdir: expected the config of {workdir}; got other values of "
            f"{', '.join(differing)}"
        )


def written_by(workdir: pathlib.Path) -> str:
    """The version of fairjax that a run began with, as far as it says."""
    try:
        told = json.loads((workdir / "provenance.json").read_text(errors="replace"))
        return f"fairjax {told['versions']['fairjax']}"
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return "an unknown version"


def create(workdir: pathlib.Path) -> None:
    """Makes the folder; one line if it cannot be made."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(error) from error


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and keeps every other process from training in it meanwhile.

    By flock on a file in it: the kernel lets go of it when the process ends, however it
    ends. On NFS the server has the lock, and frees that of a machine that is gone after
    its lease; a mount with local_lock=flock or nolock keeps out the processes of one
    machine alone. Where there are no locks the run says so and goes on without.

    Raises:
        InputError: the folder cannot be written, or another process trains in it.
    """
    create(workdir)
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context((workdir / _LOCK).open("a+"))
        except OSError as error:
            raise _unwritable(error) from error
        file.seek(0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise require.InputError(
                f"--workdir: expected a run that nobody trains; got {workdir}, which "
                f"process {file.read()} does"
            ) from error
        except OSError as error:
            line = f"{workdir}: not locked, see that no other process trains in it: "
            print(line + str(error.strerror), file=sys.stderr)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _unwritable(error: OSError) -> require.InputError:
    return require.InputError(
        f"--workdir: expected a folder that can be written; got {error.strerror}"
    )


def truncate(path: pathlib.Path, round: int) -> None:
    """Keeps the whole rows of rounds up to `round`, by a file of its own."""
    if not path.exists():
        return
    text = path.read_text(errors="replace")
    whole = zip(text.split("\n"), require.rows(str(path), text), strict=False)
    _replace(path, "".join(f"{line}\n" for line, row in whole if row["round"] <= round))


def _replace(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + _NEW)
    with temporary.open("w") as file, _named(path):
        file.write(text)
        sync(file)
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a whole file or leaves the old one."""
    _replace(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def appended(path: pathlib.Path) -> Iterator[TextIO]:
    """A file of rows, to write more; whoever continues a run cuts it to whole rows."""
    with _named(path), path.open("a") as file:
        yield file


def write_lines(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends one JSON line per row, at once."""
    with _named(file.name):
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        file.flush()


def sync(*files: TextIO) -> None:
    """Returns when what was written outlives the machine and not only the process."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _named(path: str | pathlib.Path) -> Iterator[None]:
    """Says of which file the system could not write more."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


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
    return require.rows(str(path), path.read_text(errors="replace"))


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on."""
    packages = (
        "fairjax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
    )
    known = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version()} | known


def provenance() -> dict[str, Any]:
    """Versions, code revision, device and command of this process."""
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
        "versions": versions(),
        "git_revision": revision,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": " ".join(sys.argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
