"""Web pages: the main text, through trafilatura where it is installed, else a plain reader.

The plain reader drops scripts, styles, navigation and forms, and keeps the text of the rest, a
line per block. Nothing in a page is run or fetched.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from lmworks.data.readers.base import Read
from lmworks.data.readers.text import decode

_DROPPED = {"script", "style", "nav", "header", "footer", "aside", "form", "noscript", "template"}
_BLOCKS = {
    *("address", "article", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "figure"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "main", "ol", "p", "pre", "section"),
    *("table", "td", "th", "tr", "ul"),
}


def read_html(path: Path, data: bytes) -> Read:
    """Title and main text. Raises: Unreadable for binary data."""
    page = decode(data)
    plain = _MainText()
    plain.feed(page)
    plain.close()
    text = _extracted(page) or plain.text
    return Read(title=" ".join(plain.title.split()) or path.name, text=text)


def _extracted(page: str) -> str | None:
    try:
        import trafilatura
    except ImportError:
        return None
    text: str | None = trafilatura.extract(page, include_comments=False)
    return text


class _MainText(HTMLParser):
    """Collects text outside of the dropped elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._pieces: list[str] = []
        self._dropped: list[str] = []
        self._in_title = False

    @property
    def text(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self._pieces).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in _DROPPED:
            self._dropped.append(tag)
        self._in_title = tag == "title"
        if tag in _BLOCKS:
            self._pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._dropped:
            # A page may forget to close what is inside: go back to the matching one.
            while self._dropped.pop() != tag:
                pass
        self._in_title = False
        if tag in _BLOCKS:
            self._pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._dropped:
            self._pieces.append(data)
