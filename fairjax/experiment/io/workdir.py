"""The files of a run: the lock of its folder, and writes that are whole or absent."""

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
from fairjax.experiment.config import conversion, renames, validate
from fairjax.experiment.config.schema import Config

_LOCK, _NEW = ".lock", ".new"


def check(workdir: pathlib.Path, config: Config) -> None:
    """Refuses a workdir that belongs to another config or a longer run, or to no run.

    Args:
        workdir: may be missing.
        config: of the run.

    Raises:
        InputError: names the fields that differ.
    """
    if workdir.exists() and not workdir.is_dir():
        require.fail("--workdir", "a folder", str(workdir))
    path = workdir / "config.json"
    if not path.exists():
        # A run that was killed as it began leaves these.
        startup_files = {_LOCK, path.name + _NEW}
        if (
            workdir.exists()
            and {entry.name for entry in workdir.iterdir()} - startup_files
        ):
            require.fail("--workdir", "an empty folder or that of a run", str(workdir))
        return
    saved_config = require.parse_json(str(path), path.read_text(errors="replace"), dict)
    renames.refuse(renames.flatten(saved_config), f"{path}: ")
    plain = conversion.to_plain(config)
    differing_fields = [
        field
        for field in conversion.differences(plain, saved_config)
        if not field.startswith("checkpoint.") and field != "execution.devices"
    ]
    if differing_fields == ["rounds"] and isinstance(saved_config.get("rounds"), int):
        if config.rounds > saved_config["rounds"] and validate.is_extendable(config):
            return
        reason = (
            f"at least the {saved_config['rounds']} that {workdir} was run for"
            if validate.is_extendable(config)
            else f"{saved_config['rounds']}, on which the schedule of {workdir} rests"
        )
        require.fail("rounds", reason, config.rounds)
    common_fields = renames.flatten(plain).keys() & renames.flatten(saved_config)
    if unmatched_fields := [
        field for field in differing_fields if field not in common_fields
    ]:
        current_version = f"fairjax {importlib.metadata.version('fairjax')}"
        names = ", ".join(
            [*unmatched_fields[:5], ".."]
            if len(unmatched_fields) > 5
            else unmatched_fields
        )
        raise require.InputError(
            f"--workdir: expected a run of {current_version}; got {workdir} of "
            f"{writer_version(workdir)}, whose config has not the same fields: {names}"
        )
    if differing_fields:
        raise require.InputError(
            f"--workdir: expected the config of {workdir}; got other values of "
            f"{', '.join(differing_fields)}"
        )


def writer_version(workdir: pathlib.Path) -> str:
    """The version of fairjax that a run began with, as far as its files say."""
    try:
        run_provenance = json.loads(
            (workdir / "provenance.json").read_text(errors="replace")
        )
        return f"fairjax {run_provenance['versions']['fairjax']}"
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return "an unknown version"


def create(workdir: pathlib.Path) -> None:
    """Creates the folder.

    Raises:
        InputError: the folder cannot be created.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable_error(error) from error


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the folder, and excludes other processes from training in it meanwhile.

    The lock is flock on a file in the folder: the kernel releases it when the process
    ends, however it ends. On NFS the server has the lock, and releases that of a lost
    machine after its lease; a mount with local_lock=flock or nolock excludes only
    processes of the same machine. On file systems without locks the run prints a
    warning and goes on unlocked.

    Raises:
        InputError: the folder cannot be written, or another process trains in it.
    """
    create(workdir)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((workdir / _LOCK).open("a+"))
        except OSError as error:
            raise _unwritable_error(error) from error
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


def _unwritable_error(error: OSError) -> require.InputError:
    return require.InputError(
        f"--workdir: expected a folder that can be written; got {error.strerror}"
    )


def truncate(path: pathlib.Path, round: int) -> None:
    """Cuts a log to its complete rows of rounds up to `round`; writes a new file.

    Args:
        path: of JSON lines; may be missing.
        round: the last round that stays.
    """
    if not path.exists():
        return
    text = path.read_text(errors="replace")
    parsed_lines = zip(
        text.split("\n"), require.parse_log(str(path), text), strict=False
    )
    _replace(
        path,
        "".join(f"{line}\n" for line, row in parsed_lines if row["round"] <= round),
    )


def _replace(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + _NEW)
    with temporary.open("w") as file, _add_filename(path):
        file.write(text)
        sync(file)
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes the whole file or leaves the old one."""
    _replace(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def open_append(path: pathlib.Path) -> Iterator[TextIO]:
    """Opens a log for more rows; `truncate` cuts an incomplete last row."""
    with _add_filename(path), path.open("a") as file:
        yield file


def write_lines(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends one JSON line per row and flushes."""
    with _add_filename(file.name):
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        file.flush()


def sync(*files: TextIO) -> None:
    """Returns when what was written survives a crash of the machine."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _add_filename(path: str | pathlib.Path) -> Iterator[None]:
    """Adds the file's name to an error of the system."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def number(value: Any) -> float | int | None:
    """A JSON number; None for unknown and non-finite values."""
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """All complete rows of a file of JSON lines; [] if it is missing."""
    if not path.exists():
        return []
    return require.parse_log(str(path), path.read_text(errors="replace"))


def versions() -> dict[str, str]:
    """{package: version} of Python and the packages that figures depend on."""
    packages = (
        "fairjax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
    )
    package_versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version()} | package_versions


def provenance() -> dict[str, Any]:
    """The content of provenance.json: versions, git revision, device and command."""
    root = pathlib.Path(__file__).resolve().parents[3]
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
