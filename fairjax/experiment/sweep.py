"""Sweeps: many runs of one config, their folders, and the runs that are not finished.

A run of a sweep is a command of scripts/train.py with fields of the config overridden,
so a sweep parses, refuses and continues exactly what that command does.
"""

import contextlib
import hashlib
import itertools
import json
import pathlib
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fairjax import report
from fairjax.core import require
from fairjax.experiment import cli, vmapped
from fairjax.experiment.config import conversion, validate
from fairjax.experiment.io import preemption
from fairjax.experiment.io import workdir as files

Fields = Mapping[str, str]
"""{dotted path of a field: its value as on the command line}."""

_LENGTH = 120
"""Most characters of a folder's name; file systems allow 255 bytes."""


class Point(NamedTuple):
    """One run of a sweep."""

    name: str
    """The name of its folder."""
    flags: tuple[str, ...]
    """Flags of scripts/train.py, all but --workdir."""
    config: ConfigDict


def text(value: Any) -> str:
    """A field's value as the command line has it; lists become tuples."""
    return str(tuple(value)) if isinstance(value, list) else str(value)


def grid(axes: Iterable[str]) -> list[Fields]:
    """All combinations of the values of some fields; the last field varies fastest.

    Args:
        axes: "field=value,value,.." each. Commas inside brackets belong to a value:
            "tiers.budget=(0.5,1.0),(0.25,1.0)" has two.

    Raises:
        InputError: a field or a value is missing, or a field comes twice.
    """
    values: dict[str, list[str]] = {}
    for axis in axes:
        field, _, choices = axis.partition("=")
        if not field or not choices:
            require.fail("--grid", "field=value,value,..", axis)
        if field in values:
            require.fail(f"--grid {field}", "every field once", axis)
        values[field] = _split_values(choices)
    points = itertools.product(*values.values())
    return [dict(zip(values, point, strict=True)) for point in points]


def read_settings(path: pathlib.Path) -> list[Fields]:
    """The runs of a file with one JSON object of fields and values per line.

    Raises:
        InputError: the file cannot be read or has no line, or a line is not an object.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        require.fail("--list", "a file that can be read", f"{path}: {error.strerror}")
    runs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = require.parse_json(f"{path}:{number}", line, dict)
        runs.append({field: text(value) for field, value in fields.items()})
    if not runs:
        require.fail("--list", "at least one line", f"{path}, which is empty")
    return runs


def points(
    define: cli.Define,
    base: Sequence[str],
    settings: Sequence[Fields],
    workdir: pathlib.Path,
) -> list[Point]:
    """The runs of a sweep; a config that `train` would refuse is refused here.

    Errors that depend on the data (see `build.run`) appear when a run starts: loading
    the data here would take the accelerator from the runs.

    Args:
        define: the flags of scripts/train.py.
        base: --config and the overrides that all runs share.
        settings: the fields that every run sets beside them.
        workdir: the folder of the runs' folders.

    Raises:
        InputError: a field or value is not valid, two runs have one config, or a run's
            folder contains something else.
    """
    if (workdir / "config.json").exists():
        require.fail("--workdir", "a folder of runs", f"{workdir}, which is a run")
    points_by_config: dict[str, Point] = {}
    for fields in settings:
        flags = [*base, *(f"--config.{name}={value}" for name, value in fields.items())]
        options = cli.parse(define, ["train.py", *flags, f"--workdir={workdir}"])
        checked = validate.check(options.config, cli.override_paths(options))
        name = folder(options.config, list(fields))
        files.check(workdir / name, checked.config)
        key = json.dumps(conversion.to_plain(checked.config))
        if key in points_by_config:
            require.fail(
                "sweep", "every config once", f"{points_by_config[key].name} and {name}"
            )
        points_by_config[key] = Point(name, tuple(flags), options.config)
    return list(points_by_config.values())


def folder(config: ConfigDict, fields: Sequence[str]) -> str:
    """The name of a run's folder: "rule=size,seed=0,budget=0.5+1.0".

    A field is named by the shortest end of its path that no other field shares. A name
    that is too long, or has characters that a file system or a shell might refuse, is
    made safe and ends with a hash of the settings.

    Args:
        config: of the run.
        fields: the fields in its name, in this order.
    """

    def word(value: Any) -> str:
        if isinstance(value, tuple):
            inner = (f"({word(v)})" if isinstance(v, tuple) else word(v) for v in value)
            return "+".join(inner)
        return str(value)

    paths = cli.fields_of(config)
    values = {field: _value(config, field) for field in fields}
    name = ",".join(f"{_short_path(f, paths)}={word(v)}" for f, v in values.items())
    safe = re.sub(r"[^\w.,=+-]", "-", name, flags=re.ASCII)
    if safe == name and len(name) <= _LENGTH:
        return name
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
    return f"{safe[: _LENGTH - 9]}-{digest}"


def is_finished(point: Point, workdir: pathlib.Path) -> bool:
    """Whether the run has ended with as many rounds as its config asks for."""
    path = workdir / point.name
    if not (path / "config.json").exists():
        return False
    run = report.read_run(path)
    return run.finished and run.config["rounds"] == _value(point.config, "rounds")


def run(
    points: Sequence[Point],
    workdir: pathlib.Path,
    *,
    program: Sequence[str],
    processes: int = 1,
) -> dict[str, str]:
    """Trains the runs that are not finished, each in its own process.

    The output of a run is appended to <name>.log beside its folder. A run that fails
    stops no other; a signal or an exception here stops all runs after the rounds in
    hand.

    Args:
        points: see `points`.
        workdir: the folder of the runs' folders.
        program: the command of scripts/train.py, to which flags are added.
        processes: number of runs side by side.

    Returns:
        {name: last line of its output} for the runs that failed.

    Raises:
        Stopped: a signal came, and all runs have saved the round in hand; a second
            signal kills them.
    """
    pending_points = [point for point in points if not is_finished(point, workdir)]
    print(f"{len(points) - len(pending_points)} of {len(points)} runs are finished")
    files.create(workdir)
    failures: dict[str, str] = {}
    with _processes() as (running_processes, stop_requested):
        while (pending_points or running_processes) and not stop_requested():
            while pending_points and len(running_processes) < processes:
                point = pending_points.pop(0)
                flags = [*point.flags, f"--workdir={workdir / point.name}"]
                with _log(workdir, point.name).open("ab") as log:
                    running_processes[point.name] = subprocess.Popen(
                        [*program, *flags],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        # Ctrl-C reaches a whole process group; `_processes` alone
                        # stops the runs, since a second signal would kill them.
                        process_group=0,
                    )
            time.sleep(0.05)
            for name, process in list(running_processes.items()):
                if process.poll() is None:
                    continue
                del running_processes[name]
                if process.returncode:
                    failures[name] = _last_line(_log(workdir, name), process.returncode)
                end = "failed" if name in failures else _end(workdir / name)
                print(f"{name}: {end}", flush=True)
    return failures


@contextlib.contextmanager
def _processes() -> Iterator[
    tuple[dict[str, subprocess.Popen[bytes]], Callable[[], bool]]
]:
    """Gives ({name: process} to fill, whether this process has been told to stop).

    At the end the processes that are left are told to stop and waited for.
    """
    running_processes: dict[str, subprocess.Popen[bytes]] = {}

    def kill() -> None:
        for process in running_processes.values():
            process.kill()

    with preemption.deferred() as stop_requested, preemption.leaving(kill):
        try:
            yield running_processes, stop_requested
        finally:
            for process in running_processes.values():
                process.terminate()
            for process in running_processes.values():
                process.wait()


def run_together(points: Sequence[Point], workdir: pathlib.Path) -> dict[str, str]:
    """Trains the runs that are not finished in this process, see `vmapped`.

    Runs that differ only in `vmapped.VARIED` share a program; programs run one after
    the other.

    Args:
        points: see `points`.
        workdir: the folder of the runs' folders.

    Returns:
        {name: its error} for the runs that failed.
    """
    pending_points = [point for point in points if not is_finished(point, workdir)]
    print(f"{len(points) - len(pending_points)} of {len(points)} runs are finished")
    groups: dict[str, list[Point]] = {}
    for point in pending_points:
        groups.setdefault(vmapped.program_key(point.config), []).append(point)
    failures: dict[str, str] = {}
    for group in groups.values():
        print(f"{len(group)} runs in one program")
        results = vmapped.train_all(
            [point.config for point in group], [workdir / point.name for point in group]
        )
        for point, result in zip(group, results, strict=True):
            if isinstance(result, BaseException):
                failures[point.name] = str(result) or repr(result)
            name = point.name
            print(f"{name}: {'failed' if name in failures else _end(workdir / name)}")
    return failures


def _end(workdir: pathlib.Path) -> str:
    """How a run that did not fail has ended: "done", or "done, diverged"."""
    if (workdir / "config.json").exists() and report.read_run(workdir).diverged:
        return "done, diverged"
    return "done"


def _split_values(values: str) -> list[str]:
    """Splits at the commas outside brackets."""
    pieces, depth = [""], 0
    for sign in values:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += sign
    return [piece.strip() for piece in pieces]


def _value(config: ConfigDict, field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        value = value[name]
    return value


def _short_path(field: str, paths: Iterable[str]) -> str:
    """The shortest end of a path that no other path ends with."""
    components = field.split(".")
    for n in range(1, len(components)):
        end = components[-n:]
        if sum(path.split(".")[-n:] == end for path in paths) == 1:
            return ".".join(end)
    return field


def _log(workdir: pathlib.Path, name: str) -> pathlib.Path:
    return workdir / f"{name}.log"


def _last_line(log: pathlib.Path, code: int) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
