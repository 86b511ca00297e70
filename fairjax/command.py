"""From a command line to a checked config, and from a refusal to one line and exit code 2.

ml_collections answers a misspelt field or a value of the wrong type with a traceback; here
both become one line that says where, what was expected, what came and the nearest name.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from fairjax import checks

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def run(
    main: Callable[[Any], None],
    define: Callable[[flags.FlagValues], None],
    argv: Sequence[str] | None = None,
) -> None:
    """Parses flags, runs `main`, and exits with code 2 on anything a user got wrong.

    Args:
        main: takes the parsed flags.
        define: adds the script's flags to the values it is given.
        argv: the command line; None: this process's.
    """
    logging.set_verbosity(logging.ERROR)
    try:
        main(parse(define, sys.argv if argv is None else argv))
    except (checks.InputError, flags.Error) as error:
        line = " ".join(str(error).split())
        print(f"{sys.argv[0].rpartition('/')[2]}: {line}", file=sys.stderr)
        sys.exit(2)


def parse(
    define: Callable[[flags.FlagValues], None], argv: Sequence[str]
) -> flags.FlagValues:
    """The flags of `argv`.

    Raises:
        InputError: a config file that cannot be loaded, an unknown field or preset, or a
            value that its field cannot hold.
        flags.Error: an unknown or missing flag.
    """
    values = flags.FlagValues()
    define(values)
    for name in ("help", "helpfull"):
        flags.DEFINE_bool(
            name, False, "Show the flags and exit.", flag_values=values
        )
    try:
        rest = values(list(argv))
    except (AttributeError, KeyError) as error:
        raise _unknown_field(define, argv) from error
    except flags.Error:
        raise
    except checks.InputError:
        raise
    except (OSError, ImportError, SyntaxError, TypeError, ValueError) as error:
        raise checks.InputError(f"--config: {error}") from error
    if values.help or values.helpfull:
        print(values.main_module_help() or values.get_help())
        sys.exit(0)
    if len(rest) > 1:
        checks.fail("command line", "flags only", rest[1])
    return values


def overridden(values: flags.FlagValues) -> list[str]:
    """Dotted paths of the config fields that the command line sets."""
    return list(config_flags.get_override_values(values["config"]))


def _unknown_field(
    define: Callable[[flags.FlagValues], None], argv: Sequence[str]
) -> checks.InputError:
    values = flags.FlagValues()
    define(values)
    values([arg for arg in argv if not _OVERRIDE.match(arg)])
    names = field_names(values.config)
    for arg in argv:
        match = _OVERRIDE.match(arg)
        if match and match[1] not in names:
            hint = checks.nearest(match[1], names)
            return checks.InputError(
                f"--config.{match[1]}: expected a field of the config; got none{hint}"
            )
    return checks.InputError("--config: a field has no value of its type")


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted paths of all fields of a config."""
    names = []
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            names += field_names(value, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
