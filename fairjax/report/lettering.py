"""Names in figures: written with a font that has their characters, or as numbers.

Matplotlib draws an empty box, and warns, for a character that its font lacks. This
module searches the fonts of the computer for the characters. A figure shows a number
for a name that no font can write, and its caption, which the reader's browser renders,
says which name has that number.
"""

import contextlib
import functools
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator

import matplotlib
from matplotlib import font_manager

from fairjax.report import formats

_LOG = logging.getLogger(__name__)
_LOCK = threading.RLock()
"""Runs of one program end in threads, and matplotlib's settings are global."""


@contextlib.contextmanager
def font_context(texts: Iterable[str]) -> Iterator[None]:
    """Provides fonts for `texts` while figures are drawn, and silences matplotlib.

    Its warnings are logged at the level of information.

    Args:
        texts: names that the figures will show.
    """
    fonts = logging.getLogger(font_manager.__name__)
    with _LOCK, warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        level = fonts.level
        # Matplotlib warns where it replaces a bold font by one of another weight.
        fonts.setLevel(logging.ERROR)
        try:
            with matplotlib.rc_context(
                {"font.family": [*_families(), *_fallback_families(texts)]}
            ):
                yield
        finally:
            fonts.setLevel(level)
            for warning in caught_warnings:
                _LOG.info("%s: %s", warning.category.__name__, warning.message)


class Names:
    """The names in a figure, with a number for each name that cannot be drawn.

    Args:
        names: the names, in the order of their numbers.
        noun: the word before a number, as in "hospital 3".
    """

    def __init__(self, names: Iterable[str], noun: str = "hospital"):
        names = dict.fromkeys(names)
        self._numbered = {
            name: f"{noun} {number}"
            for number, name in enumerate(names, 1)
            if not _is_drawable(name)
        }

    def short(self, name: str, length: int) -> str:
        """The name or its number, in at most `length` characters."""
        return formats.shorten(self._numbered.get(name, name), length)

    @property
    def key(self) -> str:
        """A sentence for the caption that explains the numbers; "" if none is used."""
        if not self._numbered:
            return ""
        pairs = (f"{number}: {name}" for name, number in self._numbered.items())
        return f" {'; '.join(pairs)}."


def literal(text: str) -> str:
    """Escapes dollar signs, which matplotlib reads as the delimiters of mathematics."""
    return text.replace("$", r"\$")


def _families() -> list[str]:
    return list(matplotlib.rcParams["font.family"])


def _is_drawable(text: str) -> bool:
    """Whether the current fonts have all characters of the text."""
    return not _missing_glyphs(text, tuple(_families()))


@functools.cache
def _missing_glyphs(text: str, families: tuple[str, ...]) -> frozenset[str]:
    """The characters of the text that these fonts lack."""
    fonts = (font_manager.FontProperties(family=[name]) for name in families)
    charsets = (_charset(font_manager.findfont(font)) for font in fonts)
    return frozenset(text).difference(*charsets)


@functools.cache
def _charset(path: str) -> frozenset[str]:
    """The characters of a font; none for a placeholder font.

    A placeholder font draws most of its characters with one glyph.
    """
    glyphs = font_manager.get_font(path).get_charmap()
    if 2 * len(set(glyphs.values())) < len(glyphs):
        return frozenset()
    return frozenset(map(chr, glyphs))


def _fallback_families(texts: Iterable[str]) -> list[str]:
    """Font families of this computer that supply the missing characters it has."""
    families = tuple(_families())
    missing_glyphs = frozenset().union(
        *(_missing_glyphs(text, families) for text in texts)
    )
    fallbacks = []
    for font in font_manager.fontManager.ttflist if missing_glyphs else ():
        with contextlib.suppress(OSError, RuntimeError):  # the file is not a font
            covered_glyphs = missing_glyphs & _charset(font.fname)
            if covered_glyphs:
                fallbacks.append(font.name)
                missing_glyphs -= covered_glyphs
        if not missing_glyphs:
            break
    return fallbacks
