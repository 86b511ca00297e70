"""What `python -m tests.submodels.matrix` found, in a sentence.

The matrix compares masked and sliced training over all methods, models, optimisers and
clips that are accepted. It is part of `make verify`, so it lives with the tests.
"""

from collections.abc import Mapping
from typing import Any


def finding(results: Mapping[str, Any]) -> str:
    """The largest difference of all cases.

    Args:
        results: the content of results.json.
    """
    return (
        f"{results['cases']} combinations of method, model, optimiser and clip: the "
        f"largest difference between masked and sliced is "
        f"{results['largest_difference']:.1e} ({results['what']})."
    )
