"""Checks of what users give, before anything is traced or written.

Every message is one line in the same order: where, what was expected, what was given,
the nearest valid name.
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
"""Largest number of characters of a value in a message: a file may hold any number."""
_NAMES = 40
"""Largest number of names in a message: a csv may have any number of columns."""


class InputError(ValueError):
    """A value from outside that cannot be used.

    The scripts print it as one line and exit with code 2.

    Attributes:
        where: the name of the value; None if the text says it. A pure function names
            its own argument, and whoever read the argument from a config, a file or a
            command line raises `at` the name by which the user knows it.
        text: the line without `where`.
    """

    def __init__(self, text: str, where: str | None = None) -> None:
        super().__init__(text if where is None else f"{where}: {text}")
        self.text, self.where = text, where

    def at(self, where: str) -> "InputError":
        """The same refusal of a value that the user knows by another name."""
        return InputError(self.text, where)


def fail(where: str, expected: str, got: Any) -> NoReturn:
    """Raises `InputError` as "where: expected ...; got ..."."""
    line = repr(got).replace("\n", "")  # an array's repr may have several
    if len(line) > _LENGTH:
        line = f"{line[: _LENGTH - 50]} .. {line[-46:]}"
    raise InputError(f"expected {expected}; got {line}", where)


def printable_line(text: str, length: int) -> str:
    """A text from a file as one line that is safe to print on a terminal.

    Args:
        text: any text.
        length: characters after which the line is cut.
    """
    line = " ".join(text.split())
    if len(line) > length:
        line = f"{line[:length]} .."
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in line
    )


def suggestion(name: Any, choices: Iterable[str]) -> str:
    """'. Did you mean "x"?' for the closest valid name, or "" if none is close.

    Example:
        >>> suggestion("fedagv", ["fedavg", "heterofl"])
        '. Did you mean "fedavg"?'
    """
    matches = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f'. Did you mean "{matches[0]}"?' if matches else ""


def one_of(where: str, value: Any, choices: Iterable[str]) -> str:
    """Returns `value` if it is a valid name.

    Raises:
        InputError: it is not; the message names the nearest one.
    """
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        listing = [*choices[:_NAMES], ".."] if len(choices) > _NAMES else choices
        text = f"expected one of {', '.join(listing)}; got {value!r}"
        raise InputError(text + suggestion(value, choices), where)
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
    """Returns `value` if it is finite and between `low` and `high`.

    A traced value has no number yet and passes.

    Args:
        where: what the message calls the value.
        value: the value.
        low: lower bound.
        high: upper bound.
        open_low: whether `low` itself is refused.
        open_high: whether `high` itself is refused.

    Raises:
        InputError: the value is no number, not finite or out of range.
    """
    if isinstance(value, Tracer):
        return value
    # A whole number may exceed every type of NumPy, so it is not made an array.
    is_int = type(value) is not bool and isinstance(value, int)
    if not is_int and not _is_real(value):
        fail(where, "a number", value)
    ok = (is_int or math.isfinite(value)) and low <= value <= high
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


def _is_real(value: Any) -> bool:
    """Whether a value is one number of NumPy's or JAX's, or a Python float."""
    if not isinstance(value, float | np.generic | np.ndarray | jax.Array):
        return False
    array = np.asarray(value)
    return not array.ndim and array.dtype.kind in "iuf"


def positive(where: str, value: Any) -> Any:
    """Returns `value` if it is finite and above 0."""
    return in_range(where, value, 0, open_low=True)


def count(where: str, value: Any) -> int:
    """Returns `value` if it is a whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        fail(where, "a whole number above 0", value)
    return value


def non_decreasing(where: str, values: tuple[Number, ...]) -> tuple[Number, ...]:
    """Returns `values` if none is below the one before it; tier 0 is the smallest."""
    if any(a > b for a, b in itertools.pairwise(values)):
        fail(where, "values that do not decrease (tier 0 is the smallest)", values)
    return values


def describe(tree: Any) -> dict[str, str]:
    """{path: "float32[8, 3]"} of every leaf, for arrays and `jax.ShapeDtypeStruct`."""

    def per_leaf(leaf: Any) -> str:
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            return f"{leaf.dtype}{list(leaf.shape)}"
        return type(leaf).__name__

    return {
        jax.tree_util.keystr(path): per_leaf(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def same_structure(
    where: str, got: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    """Compares two trees leaf by leaf and refuses the first difference.

    Args:
        where: what the message calls the tree.
        got: `describe` of the tree.
        expected: `describe` of the tree that it must be like.

    Raises:
        InputError: a leaf is missing, unexpected, or of another shape or dtype.
    """
    for path in [*expected, *(path for path in got if path not in expected)]:
        expected_leaf = expected.get(path, "nothing")
        got_leaf = got.get(path, "nothing")
        if expected_leaf != got_leaf:
            text = f"expected {expected_leaf}; got {got_leaf}"
            raise InputError(text, f"{where}{path}")


def finite(where: str, tree: Any) -> None:
    """Refuses concrete arrays that hold NaN or infinity, and names the leaf."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        # `jnp.issubdtype`, since NumPy knows neither bfloat16 nor a random key.
        is_floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        if is_floating and not np.all(np.isfinite(leaf)):
            fail(
                f"{where}{jax.tree_util.keystr(path)}",
                "finite numbers",
                "NaN or infinity",
            )


def parse_json(where: str, text: str, kind: type[Kind]) -> Kind:
    """The value of a JSON text that is a JSON object (`dict`) or a list (`list`).

    NaN and infinities, which JSON does not have, become None.

    Args:
        where: what the message calls the text.
        text: the text.
        kind: `dict` or `list`.

    Raises:
        InputError: the text is not JSON, or of another kind.
    """
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected JSON; got {error}", where) from error
    if not isinstance(value, kind):
        expected = "a JSON object" if kind is dict else "a JSON list"
        fail(where, expected, type(value).__name__)
    return value


def parse_log(where: str, text: str) -> list[dict[str, Any]]:
    """The rows of a run's log: one JSON object a line, each with a "round".

    Text after the last newline is dropped: the run stopped while it wrote that line.

    Args:
        where: what the message calls the log.
        text: the log.

    Raises:
        InputError: a line is not a JSON object, or its "round" is no whole number.
    """
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        row = parse_json(f"{where}:{number}", line, dict)
        if not isinstance(row.get("round"), int):
            fail(f"{where}:{number}", 'a whole number as "round"', row.get("round"))
        rows.append(row)
    return rows
