"""beartype, prepared when something is first checked.

It writes code for every function that it is to check, for an inner one anew whenever
its outer one runs, and most tests check no annotations (`ANNOTATED` in conftest.py).
"""

from beartype import beartype


def lazily(function):
    """A function that checks what it is called with as `beartype(function)` does."""
    checked = None

    def check(*args, **kwargs):
        nonlocal checked
        checked = checked or beartype(function)
        return checked(*args, **kwargs)

    return check
