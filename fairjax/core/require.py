"""Checks of what users give, before anything is traced or written.

Every message is one line in the same order: where, what was expected, what came, the
nearest valid name.
"""

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Number = int | float | jax.Array
Kind = TypeVar("Kind", dict, list)

_LENGTH = 200
"""Characters that a value takes in a message; one from a file may have any number."""
_NAMES = 40
"""Names that a message lists; a csv may have any number of columns."""


class InputError(ValueError):
    """A value from outside that cannot be used.

    The scripts print it as one line and exit with code 2.
    """


def fail(where: str, expected: str, got: Any) -> NoReturn:
    """Raises `InputError` as "where: expected ...; got ..."."""
    line = repr(got).replace("\n", "")  # an array's repr may have several
    if len(line) > _LENGTH:
        line = f"{line[: _LENGTH - 50]} .. {line[-46:]}"
    raise InputError(f"{where}: expected {expected}; got {line}")


def shown(text: str, length: int) -> str:
    """One line, cut short, as a terminal may be shown it: files may hold anything."""
    line = " ".join(text.split())
    if len(line) > length:
        line = f"{line[:length]} .."
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


def nearest(name: Any, valid: Iterable[str]) -> str:
    """'. Did you mean "x"?' for the closest valid name, or "" when none is close."""
    close = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.5)
    return f'. Did you mean "{close[0]}"?' if close else ""


def one_of(where: str, value: Any, valid: Iterable[str]) -> str:
    """Returns `value` if it is a valid name; else names the nearest one."""
    valid = list(valid)
    if value not in valid:
        named = [*valid[:_NAMES], ".."] if len(valid) > _NAMES else valid
        raise InputError(
            f"{where}: expected one of {', '.join(named)}; got {value!r}"
            f"{nearest(value, valid)}"
        )
    return value


def in_range(
    where: str,
    value: Any,
    low: Number = -math.inf,
    high: Number = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    """Returns `value` if it is finite and between `low` and `high`, closed unless said.

    A traced value has no number yet and passes.
    """
    if isinstance(value, Tracer):
        return value
    whole = isinstance(value, int) and not isinstance(value, bool)  # of any size
    array = np.asarray(0 if whole else value)
    if array.ndim or array.dtype.kind not in "iuf":
        fail(where, "a number", value)
    ok = (whole or math.isfinite(value)) and low <= value <= high
    if not ok or (open_low and value == low) or (open_high and value == high):
        if high == math.inf:
            bound = f"> {low:g}" if open_low else f">= {low:g}"
        elif low == -math.inf:
            bound = f"< {high:g}" if open_high else f"<= {high:g}"
        else:
            left, right = "(" if open_low else "[", ")" if open_high else "]"
            bound = f"in {left}{low:g}, {high:g}{right}"
        fail(where, f"a finite number {bound}", value)
    return value


def positive(where: str, value: Any) -> Any:
    """Returns `value` if it is finite and above 0."""
    return in_range(where, value, 0, open_low=True)


def count(where: str, value: Any) -> int:
    """Returns `value` if it is a whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        fail(where, "a whole number above 0", value)
    return value


def non_decreasing(where: str, values: tuple[Number, ...]) -> tuple[Number, ...]:
    """Returns `values` if they are ordered from the smallest tier up."""
    if any(a > b for a, b in itertools.pairwise(values)):
        fail(where, "values that do not decrease (tier 0 is the smallest)", values)
    return values


def describe(tree: Any) -> dict[str, str]:
    """{path: "float32[8, 3]"} of every leaf, for arrays and `jax.ShapeDtypeStruct`."""

    def one(leaf: Any) -> str:
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            return f"{leaf.dtype}{list(leaf.shape)}"
        return type(leaf).__name__

    return {
        jax.tree_util.keystr(path): one(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def same_structure(where: str, got: Mapping[str, str], like: Mapping[str, str]) -> None:
    """Compares two `describe`d trees leaf by leaf and names the first difference."""
    for path in [*like, *(path for path in got if path not in like)]:
        ours, theirs = like.get(path, "nothing"), got.get(path, "nothing")
        if ours != theirs:
            raise InputError(f"{where}{path}: expected {ours}; got {theirs}")


def finite(where: str, tree: Any) -> None:
    """Refuses concrete arrays that hold NaN or infinity, and names the leaf."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        # JAX's word for it: NumPy does not know bfloat16 or a random key.
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        if floating and not np.all(np.isfinite(leaf)):
            fail(
                f"{where}{jax.tree_util.keystr(path)}",
                "finite numbers",
                "NaN or infinity",
            )


def parsed(where: str, text: str, kind: type[Kind]) -> Kind:
    """What a JSON text says, if it is a JSON object (`dict`) or list (`list`).

    NaN and infinities, which JSON does not have, are as unknown as null.
    """
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON; got {error}") from error
    if not isinstance(value, kind):
        what = "a JSON object" if kind is dict else "a JSON list"
        fail(where, what, type(value).__name__)
    return value


def rows(where: str, text: str) -> list[dict[str, Any]]:
    """The rows of a run's log: JSON objects, a line each, that name their round.

    What follows the last newline was being written when the run stopped.
    """
    found = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        row = parsed(f"{where}:{number}", line, dict)
        if not isinstance(row.get("round"), int):
            fail(f"{where}:{number}", 'a whole number as "round"', row.get("round"))
        found.append(row)
    return found
