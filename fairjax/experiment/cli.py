"""From a command line to a checked config, from what goes wrong to one line and a code.

absl and ml_collections answer a misspelt field, a value of the wrong type or a config
file that fails with a traceback or a paragraph; here each becomes one line that says
where, what was expected, what came and the nearest name. Scripts exit with

    0     done
    1     the machine failed: a full disk, too little memory, a process that is gone;
          one line. Or an error of the program: a traceback
    2     something the user gave cannot be used, and nothing was done; one line
    75    told to stop by SIGINT, as Ctrl-C does, SIGTERM or SIGHUP, at any moment; one
          line, and the same command goes on. See `preemption`
    128 + n  told so by signal n once more, while a round was finished; one line
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
from fairjax.experiment.io import preemption
from fairjax.experiment.io.preemption import EXIT, Stopped

Define = Callable[[flags.FlagValues, Sequence[str]], None]
"""(values, argv) -> None: adds a script's flags to `values`. A config flag is given
`sys_argv=argv`, where it looks for overrides of its fields."""

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
_ILLEGAL = re.compile(r"flag --(?P<flag>[\w.]+)=(?P<value>.*?): ", re.DOTALL)

_LINE = 2000
"""Characters of a refusal."""


def run(
    main: Callable[[Any], None], define: Define, argv: Sequence[str] | None = None
) -> None:
    """Parses flags and runs `main`; what goes wrong is told as the module says.

    Args:
        main: takes the parsed flags.
        define: adds the script's flags, see `Define`.
        argv: the command line; None: this process's.
    """
    # Orbax raises what it logs as errors.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _unraisable
    keep_programs()
    # With another's command line it is a part of a command.
    over = preemption.over if argv is None else lambda code: None
    argv = list(sys.argv if argv is None else argv)
    script = pathlib.Path(argv[0]).name
    try:
        main(parse(define, argv))
    except (Exception, KeyboardInterrupt) as error:
        told = outcome(error)
        line, code = told or ("", 1)
        over(code)
        if told is None:
            raise
        print(f"{script}: {require.shown(line, _LINE)}", file=sys.stderr, flush=True)
        if jax.distributed.is_initialized() and not isinstance(error, Stopped):
            # At its exit JAX would wait for the others, who may wait for this one.
            sys.stdout.flush()
            os._exit(code)
        sys.exit(code)
    over(0)


def outcome(error: BaseException) -> tuple[str, int] | None:
    """What a script says and exits with; None for an error of the program."""
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
        less = (
            "execution.batching=chunk with a smaller execution.chunk, "
            "execution.dtype=bfloat16 and execution.form=sliced take less"
        )
        return f"the device has not enough memory: {less} ({first})", 1
    if jax.distributed.is_initialized():
        return f"another process is gone, see what it said ({first})", 1
    return None


def _unraisable(error: Any) -> None:
    """Keeps quiet about what ends after orbax gave up on the rest of a step."""
    if str(error.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(error)


def keep_programs() -> None:
    """Keeps what is compiled for the next process, in the user's cache folder.

    That is $XDG_CACHE_HOME/fairjax, or ~/.cache/fairjax, with a folder for every kind
    of processor: a program has its instructions. JAX_COMPILATION_CACHE_DIR names
    another folder; JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(home).expanduser() / "fairjax" / _processor()
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor() -> str:
    """A name for the instructions that this machine has."""
    known = platform.machine()
    about = pathlib.Path("/proc/cpuinfo")
    if about.exists():
        lines = about.read_text().splitlines()
        known += next((line for line in lines if line.startswith("flags")), "")
    return hashlib.sha256(known.encode()).hexdigest()[:12]


def parse(define: Define, argv: Sequence[str]) -> flags.FlagValues:
    """The flags of `argv`.

    Raises:
        InputError: an unknown or missing flag, a config file that cannot be loaded, an
            unknown field or preset, or a value that its field cannot hold.
    """
    if "--help" in argv:
        values = flags.FlagValues()
        define(values, argv[:1])
        print(values.get_help())
        sys.exit(0)
    # Without the overrides first: only a config that loads tells which fields it has.
    values = _parsed(define, [arg for arg in argv if not _OVERRIDE.match(arg)], {})
    if "config" not in values or values.config is None:
        return values
    config: Any = values.config
    fields = fields_of(config)
    for arg in argv:
        match = _OVERRIDE.match(arg)
        if match and match[1] not in fields:
            hint = require.nearest(match[1], fields)
            raise require.InputError(
                f"--config.{match[1]}: expected a field of the config; got none{hint}"
            )
    return _parsed(define, argv, fields)


def _parsed(
    define: Define, argv: Sequence[str], fields: Mapping[str, type]
) -> flags.FlagValues:
    values = flags.FlagValues()
    define(values, argv)
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            rest = values(list(argv))  # of values that are almost Python's
        if "config" in values and values.config is not None:
            # A file that is missing only shows when its config is used.
            values.config.to_dict()
    except flags.UnrecognizedFlagError as error:
        hint = require.nearest(error.flagname, list(values))
        raise require.InputError(
            f"--{error.flagname}: expected a flag of this script; got none{hint}"
        ) from error
    except Exception as error:
        kinds = {name: values[name].flag_type() for name in values}
        kinds |= {f"config.{path}": kind.__name__ for path, kind in fields.items()}
        raise _refusal(error, kinds) from error
    if len(rest) > 1:
        require.fail("command line", "flags only", rest[1])
    return values


def _refusal(error: Exception, kinds: Mapping[str, str]) -> require.InputError:
    """What absl, ml_collections or the config file refused, in one line."""
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
    return require.InputError(f"--config: expected a config; got {reason}")


def overridden(values: flags.FlagValues) -> list[str]:
    """Dotted paths of the config fields that the command line sets."""
    return list(config_flags.get_override_values(values["config"]))


def fields_of(config: ConfigDict, prefix: str = "") -> dict[str, type]:
    """{dotted path: type} of all fields of a config."""
    fields: dict[str, type] = {}
    for name in config:
        value: Any = config[name]
        if isinstance(value, ConfigDict):
            fields |= fields_of(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = config.get_type(name)
    return fields
