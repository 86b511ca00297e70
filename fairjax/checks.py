"""Checks of what users give, before anything is traced or written.

Every message is one line in the same order: where, what was expected, what came, the nearest valid name.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np


Number = int | float | jax.Array


class InputError(ValueError):
    """A value from outside that cannot be used; the scripts print it as one line and exit with code 2."""


def fail(where: str, expected: str, got: Any) -> NoReturn:
    """Raises `InputError` as "where: expected ...; got ..."."""
    raise InputError(f"{where}: expected {expected}; got {got!r}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """'. Did you mean "x"?' for the closest valid name, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f'. Did you mean "{close[0]}"?' if close else ""


def one_of(where: str, value: str, valid: Iterable[str]) -> str:
    """Returns `value` if it is a valid name; else names the nearest one."""
    valid = list(valid)
    if value not in valid:
        raise InputError(
            f"{where}: expected one of {', '.join(valid)}; got {value!r}{nearest(value, valid)}"
        )
    return value


def in_range(
    where: str,
    value: Number,
    low: Number = -math.inf,
    high: Number = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Number:
    """Returns `value` if it is finite and between `low` and `high`, closed unless said.

    A traced value has no number yet and passes.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    ok = math.isfinite(value) and low <= value <= high
    if not ok or (open_low and value == low) or (open_high and value == high):
        if high == math.inf:
            bound = f"> {low:g}" if open_low else f">= {low:g}"
        elif low == -math.inf:
            bound = f"< {high:g}" if open_high else f"<= {high:g}"
        else:
            bound = f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        fail(where, f"a finite number {bound}", value)
    return value


def positive(where: str, value: Number) -> Number:
    """Returns `value` if it is finite and above 0."""
    return in_range(where, value, 0, open_low=True)


def non_decreasing(where: str, values: tuple[Number, ...]) -> tuple[Number, ...]:
    """Returns `values` if they are ordered from the smallest tier up."""
    if any(a > b for a, b in zip(values, values[1:], strict=False)):
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
    """Refuses a tree of concrete arrays that holds NaN or infinity, and names the leaf."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if np.issubdtype(np.asarray(leaf).dtype, np.floating) and not np.all(np.isfinite(leaf)):
            fail(f"{where}{jax.tree_util.keystr(path)}", "finite numbers", "NaN or infinity")
