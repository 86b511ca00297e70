"""The examples in docstrings run, and every public name has one."""

import doctest
import importlib
import inspect
import pathlib

import pytest

import fairjax

PACKAGE = pathlib.Path(fairjax.__file__).parent
MODULES = [
    ".".join(("fairjax", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


@pytest.mark.parametrize("name", fairjax.__all__)
def test_a_public_name_has_an_example(name):
    value = getattr(fairjax, name)
    docs = [value.__doc__ or ""]
    if inspect.ismodule(value):
        docs += [member.__doc__ or "" for member in vars(value).values()]
    assert any(">>> " in doc for doc in docs)
