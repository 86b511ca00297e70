"""A reader finds every work that a docstring names: by its number, or where it points.

A number is one of arXiv, a DOI, an ISBN or an address. A work without one points, by
"see `name`", to a module, a class or a function of the package whose docstring has it.
"""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "fairjax"
NUMBER = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,}/\S+|ISBN [\d-]+|https?://\S+")
POINTER = re.compile(r"\bsee `([\w.]+)`")
SOURCES = re.compile(r"Sources?:\s")
WORK = re.compile(r"[A-Z].*\b(?:1[89]|20)\d\d\b")
"""A capitalised name, and a year behind it."""
MENTION = re.compile(r"(\w+) et al\.,? (?:1[89]|20)\d\d\b")


def name_of(path: pathlib.Path) -> str:
    """The dotted name of the module."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every docstring, those of variables included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            if isinstance(child.value.value, str):
                yield name, child.value.value
        elif isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from docstrings(child, f"{name}.{child.name}")
        else:
            yield from docstrings(child, name)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
DOCSTRINGS = [
    (module, name, text)
    for module, path in MODULES.items()
    for name, text in docstrings(ast.parse(path.read_text()), module)
]
NAMES = {name for _, name, _ in DOCSTRINGS}
NUMBERED = {name for _, name, text in DOCSTRINGS if NUMBER.search(text)}


def targets(pointer: str, module: str) -> set[str]:
    """The names that a pointer in a module may mean.

    A module means its function of the same name too, which is how methods are named.
    """
    if f"{module}.{pointer}" in NAMES:
        return {f"{module}.{pointer}"}
    found = {name for name in NAMES if f".{name}".endswith(f".{pointer}")}
    return found | {f"{name}.{name.rpartition('.')[2]}" for name in found} & NAMES


def module_of(name: str) -> str:
    """The module in which something is defined."""
    return name if name in MODULES else module_of(name.rpartition(".")[0])


def is_found(words: str, module: str) -> bool:
    """Whether the words have a number, or point to a docstring that has one."""
    return bool(NUMBER.search(words)) or any(
        target in NUMBERED or module_of(target) in NUMBERED
        for pointer in POINTER.findall(words)
        for target in targets(pointer, module)
    )


def unfound(module: str, text: str) -> list[str]:
    """What a docstring says of works that a reader cannot find from there."""
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
    sources = [p for p in paragraphs if SOURCES.match(p)]
    clauses = [clause for p in sources for clause in p.split("; ")]
    bare = [
        clause
        for clause in clauses
        if WORK.search(NUMBER.sub("", SOURCES.sub("", clause)))
        and not is_found(clause, module)
    ]
    named = " ".join(sources)
    return bare + [
        paragraph
        for paragraph in paragraphs
        if paragraph not in sources
        and any(author not in named for author in MENTION.findall(paragraph))
        and not is_found(paragraph, module)
    ]


def test_works_are_found():
    lost = [
        (name, words)
        for module, name, text in DOCSTRINGS
        for words in unfound(module, text)
    ]
    assert not lost


def test_pointers_of_sources_lead_somewhere():
    lost = [
        (name, pointer)
        for module, name, text in DOCSTRINGS
        for paragraph in re.split(r"\n\s*\n", text)
        if SOURCES.match(paragraph.strip())
        for pointer in POINTER.findall(" ".join(paragraph.split()))
        if not targets(pointer, module)
    ]
    assert not lost


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Source: Doe et al. 2021, eq. 3.", 1),
        ('Source: Doe, "A title", Annals 1958.', 1),
        ("Sources: Doe 2021, arXiv:2101.00001; Roe 2022.", 1),
        ("Source: Doe 2021 (see `nowhere`).", 1),
        ("Source: Doe 2021 (see `fairjax.core.trees`).", 1),
        ("As Doe et al. 2021 say.", 1),
        ("Source: ours. Deviates: nothing.", 0),
        ("Source: Doe 1950, doi:10.1002/10(1950)3:1<32::AID>3.0.CO;2-3.", 0),
        ("Source: Doe 2023, https://openreview.net/forum?id=x.", 0),
        ("Source: Zhang et al. 2025 (see `fairjax.submodels.dynamicfl`).", 0),
        ("As Doe et al. 2021 say.\n\nSource: Doe et al., 2021, arXiv:2101.00001.", 0),
    ],
)
def test_what_is_found(text, number):
    assert len(unfound("fairjax", text)) == number
