"""What the readers of a user's files share (`npz_file`, `csv_file`).

The readers execute nothing in a file and trust no size that a file claims: they check
it before they read.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from fairjax.core import require
from fairjax.data.table import Table

MISSING = frozenset({"", "?", "na", "nan", "null", "none"})
"""Cells without a value, in lower case."""
LONGEST_NAME = 200
"""Characters of the name of a client, patient, group or class."""


def existing_file(path: str | None) -> pathlib.Path:
    """The path of a file that exists.

    Raises:
        InputError: no path, or no file there.
    """
    if not path:
        require.fail("data.path", "the file to read", path)
    if not os.path.isfile(path):
        require.fail("data.path", "a file that exists", path)
    return pathlib.Path(path)


@contextlib.contextmanager
def convert_errors(path: str | None, requirement: str) -> Iterator[None]:
    """Turns every error that a library raises over broken bytes into an InputError.

    Args:
        path: the file, for the message.
        requirement: what was expected, for the message.
    """
    try:
        yield
    except require.InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise require.InputError(
            f"data.path {path}: expected {requirement}; got {reason}"
        ) from error


def names(field: str, cells: Sequence[str]) -> np.ndarray:
    """The cells as an array of names, "" where missing.

    Raises:
        InputError: see `check_lengths`.
    """
    cells = check_lengths(field, cells)
    return np.array(["" if cell.lower() in MISSING else cell for cell in cells])


def check_lengths(field: str, names: Sequence[str]) -> Sequence[str]:
    """Returns `names` if none is long; an array gives every name the longest's room.

    Raises:
        InputError: a name is longer than `LONGEST_NAME`.
    """
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        requirement = f"names of at most {LONGEST_NAME} characters"
        require.fail(field, requirement, longest)
    return names


def drop_unknown_clients(table: Table) -> Table:
    """The table without the records that name no client; a note counts them.

    Raises:
        InputError: no record names a client.
    """
    if table.client is None or np.all(table.client != ""):
        return table
    has_client = table.client != ""
    if not has_client.any():
        require.fail("data.client", "a column that names hospitals", "none named")
    num_dropped = int(np.sum(~has_client))
    subset = table.rows(has_client)
    note = f"{num_dropped} records name no client and are left out"
    return Table(**{**vars(subset), "notes": (*subset.notes, note)})
