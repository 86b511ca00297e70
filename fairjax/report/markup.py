"""HTML of figures, tables and pages, without network or scripts; text is escaped."""

import base64
import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fairjax.report import formats
from fairjax.report.canvas import Image

EMPTY_NOTE = '<p class="soft">Nothing recorded.</p>'


class Section(NamedTuple):
    """A part of a page."""

    key: str
    title: str
    content: str
    """HTML; empty when there is nothing to show."""
    optional: bool = False
    """Whether the page omits the section when it is empty, or says so."""


def document(title: str, header: str, sections: Sequence[Section]) -> str:
    """The HTML of a complete page.

    Args:
        title: the heading, as plain text.
        header: HTML between the heading and the list of sections.
        sections: the sections, in order.
    """
    style = pathlib.Path(__file__).with_name("page.css").read_text()
    visible_sections = [
        section for section in sections if section.content or not section.optional
    ]
    links = " ".join(
        f'<a href="#{section.key}">{section.title}</a>' for section in visible_sections
    )
    body = "\n".join(
        f'<section id="{section.key}">\n<h2>{section.title}</h2>\n'
        f"{section.content or EMPTY_NOTE}\n</section>"
        for section in visible_sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)} &ndash; fairjax</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
{header}
<nav>{links}</nav>
</header>
<main>
{body}
</main>
<footer><p class="soft">“&ndash;” stands for a value that was not estimated or not \
recorded.</p></footer>
</body>
</html>
"""


def paragraph(text: str) -> str:
    """A paragraph of plain text in a subdued colour."""
    return f'<p class="soft">{html.escape(text)}</p>\n'


def figures(images: Sequence[Image], layout: str = "figures") -> str:
    """Figures with their captions, side by side where there is room.

    Args:
        images: the figures.
        layout: CSS classes of the box around them.
    """

    def figure_html(image: Image) -> str:
        source = base64.b64encode(image.png).decode()
        return (
            f'<figure><img src="data:image/png;base64,{source}" '
            f'alt="{html.escape(image.alt)}">'
            f"<figcaption>{html.escape(image.caption)}</figcaption></figure>"
        )

    if not images:
        return ""
    return (
        f'<div class="{layout}">\n' + "\n".join(map(figure_html, images)) + "\n</div>\n"
    )


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    text: str | None = None,
) -> str:
    """A table in its own scrolling box.

    Args:
        caption: a remark above the table.
        head: the names of the columns.
        rows: the cells; a row of one cell spans all columns.
        text: the column that holds words, if there is one.
    """
    style = [' class="text"' if name == text else "" for name in head]

    def row_html(row: Sequence[str]) -> str:
        if len(row) == 1 < len(head):
            cell = html.escape(row[0])
            return f'<tr><td class="gap" colspan="{len(head)}">{cell}</td></tr>'
        cells = "".join(
            f"<td{kind}>{html.escape(cell)}</td>"
            for kind, cell in zip(style[1:], row[1:], strict=True)
        )
        return f'<tr><th scope="row">{html.escape(row[0])}</th>{cells}</tr>'

    heads = "".join(
        f'<th scope="col"{kind}>{html.escape(cell)}</th>'
        for kind, cell in zip(style, head, strict=True)
    )
    body = "\n".join(map(row_html, rows))
    return (
        f"{paragraph(caption)}"
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n"
    )


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values of a nested mapping as a table; nothing for an empty one."""
    if not values:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f'<td class="text">{html.escape(formats.plain(value))}</td></tr>'
        for name, value in flatten(values).items()
    )
    return (
        '<div class="scroll" tabindex="0"><table><tbody>\n'
        f"{rows}\n</tbody></table></div>\n"
    )


def collapsible(summary: str, content: str) -> str:
    """Content that a click on `summary` shows or hides."""
    head = f"<summary>{html.escape(summary)}</summary>"
    return f"<details>{head}\n{content}</details>\n"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as one mapping from dotted names, as on the command line."""
    result = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
