"""Annotations hold: types, ranks, and that letters are the same size in a signature.

Checking them makes tests that train up to a third longer, so here they are checked for
what calls most of what has arrays. `make verify` runs all tests with them.
"""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

TESTS = (
    "tests/test_aggregate.py",
    "tests/test_axes.py",
    "tests/test_cost.py",
    "tests/test_specs.py::test_every_model_trains",
    "tests/submodels/test_heterofl.py",
)


def test_annotations_hold_where_arrays_are():
    checked = "--jaxtyping-packages=fairjax,beartype.beartype"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", checked, *TESTS]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-5000:]
