"""How names are written in figures: by fonts that have their signs, or as numbers.

matplotlib draws an empty box, and warns, for a sign that its font lacks. Here the fonts
of the computer are asked first; a name that none of them can write goes by a number,
and the figure's caption, which the reader's browser writes, says whose number it is.
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
_ONE = threading.RLock()
"""Runs that share a program end in threads, and matplotlib's settings are global."""


@contextlib.contextmanager
def drawing(texts: Iterable[str]) -> Iterator[None]:
    """While figures are drawn: fonts for these texts, and no warning on the terminal.

    What matplotlib still warns of is logged, at the level of information.
    """
    fonts = logging.getLogger(font_manager.__name__)
    with _ONE, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        level = fonts.level
        fonts.setLevel(logging.ERROR)  # that another weight stands for a bold one
        try:
            with matplotlib.rc_context({"font.family": [*_families(), *_more(texts)]}):
                yield
        finally:
            fonts.setLevel(level)
            for each in caught:
                _LOG.info("%s: %s", each.category.__name__, each.message)


class Names:
    """The names that a figure writes.

    Args:
        names: in the order of their numbers.
        what: they are names of, for those that go by a number.
    """

    def __init__(self, names: Iterable[str], what: str = "hospital"):
        names = dict.fromkeys(names)
        self._numbered = {
            name: f"{what} {number}"
            for number, name in enumerate(names, 1)
            if not _drawable(name)
        }

    def short(self, name: str, length: int) -> str:
        """The name, or its number, at most so long."""
        return formats.shorten(self._numbered.get(name, name), length)

    @property
    def key(self) -> str:
        """A sentence for the caption that says whose numbers there are; "" for none."""
        if not self._numbered:
            return ""
        pairs = (f"{number}: {name}" for name, number in self._numbered.items())
        return f" {'; '.join(pairs)}."


def literal(text: str) -> str:
    """Keeps matplotlib from reading a text as mathematics."""
    return text.replace("$", r"\$")


def _families() -> list[str]:
    return list(matplotlib.rcParams["font.family"])


def _drawable(text: str) -> bool:
    """Whether the fonts in force have all its signs."""
    return not _missing(text, tuple(_families()))


@functools.cache
def _missing(text: str, families: tuple[str, ...]) -> frozenset[str]:
    """The signs that these fonts lack."""
    fonts = (font_manager.FontProperties(family=[name]) for name in families)
    known = (_signs(font_manager.findfont(font)) for font in fonts)
    return frozenset(text).difference(*known)


@functools.cache
def _signs(path: str) -> frozenset[str]:
    """What a font writes; nothing if it writes most signs alike, as placeholders do."""
    glyphs = font_manager.get_font(path).get_charmap()
    if 2 * len(set(glyphs.values())) < len(glyphs):
        return frozenset()
    return frozenset(map(chr, glyphs))


def _more(texts: Iterable[str]) -> list[str]:
    """Families of this computer that together write what is missing, or most of it."""
    families = tuple(_families())
    wanted = frozenset().union(*(_missing(text, families) for text in texts))
    found = []
    for font in font_manager.fontManager.ttflist if wanted else ():
        with contextlib.suppress(OSError, RuntimeError):  # a file that is no font
            has = wanted & _signs(font.fname)
            if has:
                found.append(font.name)
                wanted -= has
        if not wanted:
            break
    return found
