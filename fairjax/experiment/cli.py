"""From a command line to a checked config; from an error to one line and an exit code.

absl and ml_collections answer a misspelt field, a value of the wrong type or a config
file that fails with a traceback or a paragraph. Here each becomes one line that says
where, what was expected, what came and the nearest valid name. Scripts exit with

    0     done
    1     the machine failed (a full disk, too little memory, a lost process): one line.
          Or the program has an error: a traceback
    2     an input of the user cannot be used, and nothing was done: one line
    75    SIGINT (as by Ctrl-C), SIGTERM or SIGHUP stopped it at any moment: one line,
          and the same command goes on. See `preemption`
    128 + n  signal n came as a second one, while a round was being finished: one line
"""

import hashlib
import os
import pathlib
import platform
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from fairjax.core import require
from fairjax.experiment.config import renames
from fairjax.experiment.io import preemption
from fairjax.experiment.io.preemption import EXIT, Stopped

Define = Callable[[flags.FlagValues, Sequence[str]], None]
"""(values, argv) -> None: adds a script's flags to `values`. A config flag gets
`sys_argv=argv`, in which it looks for overrides of its fields."""

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
_ILLEGAL = re.compile(r"flag --(?P<flag>[\w.]+)=(?P<value>.*?): ", re.DOTALL)

_LINE = 2000
"""Most characters of an error line."""


def run(
    main: Callable[[Any], None], define: Define, argv: Sequence[str] | None = None
) -> None:
    """Parses flags and runs `main`; reports errors as the module docstring says.

    Args:
        main: takes the parsed flags.
        define: adds the script's flags, see `Define`.
        argv: the command line; None: that of this process.
    """
    # Orbax also raises what it logs as errors.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _unraisable
    keep_programs()
    # With a command line from the caller this call is only a part of a command.
    on_exit = preemption.finish if argv is None else lambda code: None
    argv = list(sys.argv if argv is None else argv)
    script = pathlib.Path(argv[0]).name
    try:
        main(parse(define, argv))
    except (Exception, KeyboardInterrupt) as error:
        exit_status = outcome(error)
        line, code = exit_status or ("", 1)
        on_exit(code)
        if exit_status is None:
            raise
        print(
            f"{script}: {require.printable_line(line, _LINE)}",
            file=sys.stderr,
            flush=True,
        )
        if jax.distributed.is_initialized() and not isinstance(error, Stopped):
            # At its exit JAX would wait for the other processes, which may wait for it.
            sys.stdout.flush()
            os._exit(code)
        sys.exit(code)
    on_exit(0)


def outcome(error: BaseException) -> tuple[str, int] | None:
    """(error line, exit code) of a script; None for an error of the program."""
    if isinstance(error, require.InputError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return f"{error if str(error) else 'stopped'}; the same command goes on", EXIT
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", 1
    if isinstance(error, MemoryError):
        return f"this machine has not enough memory: {error}", 1
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    first = str(error).partition("\n")[0]
    if "RESOURCE_EXHAUSTED" in first:
        advice = (
            "execution.batching=chunk with a smaller execution.chunk, "
            "execution.dtype=bfloat16 and execution.form=sliced take less"
        )
        return f"the device has not enough memory: {advice} ({first})", 1
    if jax.distributed.is_initialized():
        return f"another process is gone, see what it said ({first})", 1
    return None


def _unraisable(error: Any) -> None:
    """Hides the errors of orbax tasks that end after orbax has abandoned a step."""
    if str(error.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(error)


def keep_programs() -> None:
    """Saves compiled programs for later processes, in the user's cache folder.

    The folder is $XDG_CACHE_HOME/fairjax, or ~/.cache/fairjax, with a folder for every
    kind of processor, whose instructions a program uses. JAX_COMPILATION_CACHE_DIR
    names another folder; JAX_ENABLE_COMPILATION_CACHE=0 saves nothing.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(home).expanduser() / "fairjax" / _processor()
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor() -> str:
    """A name for the instruction set of this machine."""
    cpu_features = platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu_features += next((line for line in lines if line.startswith("flags")), "")
    return hashlib.sha256(cpu_features.encode()).hexdigest()[:12]


def parse(define: Define, argv: Sequence[str]) -> flags.FlagValues:
    """The flags of `argv`; `--help` prints them and exits.

    Args:
        define: adds the script's flags, see `Define`.
        argv: the command line, the script's name first.

    Raises:
        InputError: a flag is unknown or missing, the config file cannot be loaded, a
            field or preset is unknown, or a value has the wrong type.
    """
    if "--help" in argv:
        values = flags.FlagValues()
        define(values, argv[:1])
        print(values.get_help())
        sys.exit(0)
    # Without the overrides first: only a loaded config says which fields it has.
    values = _parse_flags(define, [arg for arg in argv if not _OVERRIDE.match(arg)], {})
    if "config" not in values or values.config is None:
        return values
    config: Any = values.config
    fields = fields_of(config)
    for arg in argv:
        match = _OVERRIDE.match(arg)
        if match and match[1] not in fields:
            renames.refuse({match[1]: None}, "--config.")
            hint = require.suggestion(match[1], fields)
            raise require.InputError(
                f"--config.{match[1]}: expected a field of the config; got none{hint}"
            )
    return _parse_flags(define, argv, fields)


def _parse_flags(
    define: Define, argv: Sequence[str], fields: Mapping[str, type]
) -> flags.FlagValues:
    values = flags.FlagValues()
    define(values, argv)
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            positionals = values(list(argv))  # values are parsed as Python
        if "config" in values and values.config is not None:
            # A missing file raises only when its config is used.
            values.config.to_dict()
    except flags.UnrecognizedFlagError as error:
        hint = require.suggestion(error.flagname, list(values))
        raise require.InputError(
            f"--{error.flagname}: expected a flag of this script; got none{hint}"
        ) from error
    except Exception as error:
        kinds = {name: values[name].flag_type() for name in values}
        kinds |= {f"config.{path}": kind.__name__ for path, kind in fields.items()}
        raise _refusal(error, kinds) from error
    if len(positionals) > 1:
        require.fail("command line", "flags only", positionals[1])
    return values


def _refusal(error: Exception, kinds: Mapping[str, str]) -> require.InputError:
    """The refusal of absl, ml_collections or the config file, in one line."""
    illegal = _ILLEGAL.match(str(error))
    if illegal and illegal["value"] == "None":
        return require.InputError(f"--{illegal['flag']}: expected a value; got none")
    if illegal and illegal["flag"] != "config":
        flag, value = illegal["flag"], illegal["value"]
        return require.InputError(f"--{flag}: expected {kinds[flag]}; got {value!r}")
    if isinstance(error, flags.Error) and not illegal:
        return require.InputError(f"command line: {error}")
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    for cause in reversed(causes):
        if isinstance(cause, require.InputError):
            return cause
    reason = str(causes[-1]).strip().rpartition("\n")[2].strip()
    new_name = renames.new_name(reason.strip("\"'"))
    if new_name is not None:
        expected = f"{new_name}, its new name; got {reason}"
        return require.InputError(f"--config: expected {expected}")
    return require.InputError(f"--config: expected a config; got {reason}")


def override_paths(values: flags.FlagValues) -> list[str]:
    """Dotted paths of the config fields that the command line sets."""
    return list(config_flags.get_override_values(values["config"]))


def fields_of(config: ConfigDict, prefix: str = "") -> dict[str, type]:
    """{dotted path: type} of all fields of a config.

    Args:
        config: the config.
        prefix: in front of every path.
    """
    fields: dict[str, type] = {}
    for name in config:
        value: Any = config[name]
        if isinstance(value, ConfigDict):
            fields |= fields_of(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = config.get_type(name)
    return fields
