"""Many runs of one config: which they are, where they lie, and running what is missing.

A run of a sweep is a command of scripts/train.py with the config's fields overridden,
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
from fairjax.experiment.config import validate
from fairjax.experiment.io import preemption
from fairjax.experiment.io import workdir as files

Fields = Mapping[str, str]
"""{dotted path of a field: its value as on the command line}."""

_LENGTH = 120
"""Characters of a folder's name; file systems allow 255 bytes."""


class Point(NamedTuple):
    """One run of a sweep."""

    name: str
    """Of its folder."""
    flags: tuple[str, ...]
    """Of scripts/train.py, all but --workdir."""
    config: ConfigDict


def text(value: Any) -> str:
    """A field's value as it is written on the command line; lists become tuples."""
    return str(tuple(value)) if isinstance(value, list) else str(value)


def grid(axes: Iterable[str]) -> list[Fields]:
    """All combinations of "field=value,value,..", the last field varying fastest.

    Commas inside brackets belong to a value: "tiers.budget=(0.5,1.0),(0.25,1.0)" has
    two.

    Raises:
        InputError: there is no field or no value, or a field is there twice.
    """
    values: dict[str, list[str]] = {}
    for axis in axes:
        field, _, several = axis.partition("=")
        if not field or not several:
            require.fail("--grid", "field=value,value,..", axis)
        if field in values:
            require.fail(f"--grid {field}", "every field once", axis)
        values[field] = _apart(several)
    points = itertools.product(*values.values())
    return [dict(zip(values, point, strict=True)) for point in points]


def listed(path: pathlib.Path) -> list[Fields]:
    """The runs of a file with one JSON object of fields and values a line.

    Raises:
        InputError: there is no such file or no line, or a line is not an object.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        require.fail("--list", "a file that can be read", f"{path}: {error.strerror}")
    runs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = require.parsed(f"{path}:{number}", line, dict)
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
    """The runs of a sweep, each refused here if `train` would refuse its config.

    What only the data can tell (see `build.build`) fails when the run starts: loading
    them here would take the accelerator from the runs.

    Args:
        define: the flags of scripts/train.py.
        base: --config and the overrides that all runs share.
        settings: what every run sets beside them.
        workdir: the folder of the runs' folders.

    Raises:
        InputError: a field or value that cannot be, two runs of one config, a folder
            that holds something else.
    """
    if (workdir / "config.json").exists():
        require.fail("--workdir", "a folder of runs", f"{workdir}, which is a run")
    found: dict[str, Point] = {}
    for fields in settings:
        flags = [*base, *(f"--config.{name}={value}" for name, value in fields.items())]
        options = cli.parse(define, ["train.py", *flags, f"--workdir={workdir}"])
        validate.check(options.config, cli.overridden(options))
        plain = validate.plain(options.config)
        name = folder(options.config, list(fields))
        files.check(workdir / name, plain)
        key = json.dumps(plain)
        if key in found:
            require.fail("sweep", "every config once", f"{found[key].name} and {name}")
        found[key] = Point(name, tuple(flags), options.config)
    return list(found.values())


def folder(config: ConfigDict, fields: Sequence[str]) -> str:
    """The name of a run's folder: "rule=size,seed=0,budget=0.5+1.0".

    A field goes by the last parts of its path that no other field of the config ends
    with. A name that is too long, or whose characters a file system or a shell might
    refuse, is made safe and ends with a hash of the settings.

    Args:
        config: the run's.
        fields: those by which it is named, in this order.
    """

    def word(value: Any) -> str:
        if isinstance(value, tuple):
            inner = (f"({word(v)})" if isinstance(v, tuple) else word(v) for v in value)
            return "+".join(inner)
        return str(value)

    paths = cli.fields_of(config)
    values = {field: _value(config, field) for field in fields}
    name = ",".join(f"{_short(f, paths)}={word(v)}" for f, v in values.items())
    safe = re.sub(r"[^\w.,=+-]", "-", name, flags=re.ASCII)
    if safe == name and len(name) <= _LENGTH:
        return name
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
    return f"{safe[: _LENGTH - 9]}-{digest}"


def finished(point: Point, workdir: pathlib.Path) -> bool:
    """True if the run has nothing left to do."""
    path = workdir / point.name
    if not (path / "config.json").exists():
        return False
    run = report.read(path)
    return run.finished and run.config["rounds"] == _value(point.config, "rounds")


def run(
    points: Sequence[Point],
    workdir: pathlib.Path,
    *,
    program: Sequence[str],
    processes: int = 1,
) -> dict[str, str]:
    """Runs what is not finished, each in a process of its own.

    What a run prints is appended to <name>.log beside its folder. One that fails stops
    no other; a signal or an exception here stops all after the rounds in hand.

    Args:
        points: see `points`.
        workdir: the folder of the runs' folders.
        program: the command of scripts/train.py, to which flags are added.
        processes: how many run side by side.

    Returns:
        {name: why} of the runs that failed: the last line that they printed.

    Raises:
        Stopped: a signal came, and all have saved the round in hand; a second signal
            kills them.
    """
    waiting = [point for point in points if not finished(point, workdir)]
    print(f"{len(points) - len(waiting)} of {len(points)} runs are finished")
    files.create(workdir)
    failed: dict[str, str] = {}
    with _processes() as (running, told):
        while (waiting or running) and not told():
            while waiting and len(running) < processes:
                point = waiting.pop(0)
                flags = [*point.flags, f"--workdir={workdir / point.name}"]
                with _log(workdir, point.name).open("ab") as log:
                    running[point.name] = subprocess.Popen(
                        [*program, *flags],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        # Ctrl-C reaches a whole group, and a run is told to stop once.
                        process_group=0,
                    )
            time.sleep(0.05)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode:
                    failed[name] = _last_line(_log(workdir, name), process.returncode)
                end = "failed" if name in failed else _end(workdir / name)
                print(f"{name}: {end}", flush=True)
    return failed


@contextlib.contextmanager
def _processes() -> Iterator[
    tuple[dict[str, subprocess.Popen[bytes]], Callable[[], bool]]
]:
    """{name: process}, and whether this one has been told to stop.

    Those that are left are told so in the end, and waited for.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}

    def kill() -> None:
        for process in running.values():
            process.kill()

    with preemption.deferred() as told, preemption.leaving(kill):
        try:
            yield running, told
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()


def run_together(points: Sequence[Point], workdir: pathlib.Path) -> dict[str, str]:
    """Runs what is not finished in this process, see `vmapped`.

    Runs that differ in nothing but `vmapped.VARIED` are lanes of one program; of those
    that differ in more, one program after the other.

    Args:
        points: see `points`.
        workdir: the folder of the runs' folders.

    Returns:
        {name: why} of the runs that failed.
    """
    waiting = [point for point in points if not finished(point, workdir)]
    print(f"{len(points) - len(waiting)} of {len(points)} runs are finished")
    groups: dict[str, list[Point]] = {}
    for point in waiting:
        groups.setdefault(vmapped.key(point.config), []).append(point)
    failed: dict[str, str] = {}
    for group in groups.values():
        print(f"{len(group)} runs in one program")
        ended = vmapped.train_all(
            [point.config for point in group], [workdir / point.name for point in group]
        )
        for point, result in zip(group, ended, strict=True):
            if isinstance(result, BaseException):
                failed[point.name] = str(result) or repr(result)
            name = point.name
            print(f"{name}: {'failed' if name in failed else _end(workdir / name)}")
    return failed


def _end(workdir: pathlib.Path) -> str:
    """How a run that did not fail has ended."""
    if (workdir / "config.json").exists() and report.read(workdir).diverged:
        return "done, diverged"
    return "done"


def _apart(values: str) -> list[str]:
    """Splits at the commas outside brackets."""
    parts, depth = [""], 0
    for sign in values:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _value(config: Any, field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config


def _short(field: str, paths: Iterable[str]) -> str:
    """The shortest end of a path that no other path has."""
    parts = field.split(".")
    for n in range(1, len(parts)):
        end = parts[-n:]
        if sum(path.split(".")[-n:] == end for path in paths) == 1:
            return ".".join(end)
    return field


def _log(workdir: pathlib.Path, name: str) -> pathlib.Path:
    return workdir / f"{name}.log"


def _last_line(log: pathlib.Path, code: int) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
