"""A lazy beartype decorator, which compiles a check at the first call.

beartype generates code for every decorated function, and for an inner function whenever
its outer function runs. Most tests check no annotations (`ANNOTATED` in conftest.py),
so generating the code in advance would be wasted.
"""

from beartype import beartype


def lazily(function):
    """A function that checks its arguments and result as `beartype(function)` does."""
    checked = None

    def check(*args, **kwargs):
        nonlocal checked
        checked = checked or beartype(function)
        return checked(*args, **kwargs)

    return check
