"""The structure and text of an HTML page, for tests."""

import html.parser
import pathlib

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Outline(html.parser.HTMLParser):
    """Tags, cells and text of a page; raises on unbalanced tags."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.rows: dict[str, int] = {}
        self.section = ""
        self.text = ""
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "tr":
            self.rows[self.section] = self.rows.get(self.section, 0) + 1
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

    def values(self, attribute):
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]
