"""Web pages: the main text, through trafilatura where it is installed, else a plain reader.

Both keep headings as Markdown writes them. The plain reader drops scripts, styles, navigation and
form fields, and keeps the text of the rest, a line per block. Nothing in a page is run or fetched.
A page that is not UTF-8 is read in the encoding it declares, if that is one of the web's own.
"""

from __future__ import annotations

import contextlib
import re
from html.parser import HTMLParser
from pathlib import Path

from lmworks.data.readers.base import Read, Unreadable
from lmworks.data.readers.markdown import without_comments
from lmworks.data.readers.text import decode

_DROPPED = {
    *("script", "style", "nav", "footer", "aside", "noscript", "template", "svg", "math"),
    *("select", "button", "textarea", "iframe", "object", "head"),
}
_BLOCKS = {
    *("address", "article", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "figure"),
    *("form", "header", "hr", "li", "main", "ol", "pre", "section", "table", "tr", "ul"),
}
_PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6"}
_DECLARED = re.compile(
    rb"<meta[^>]{0,200}charset\s*=\s*[\"']?(iso-8859-\d+|windows-125\d|koi8-[ru]|gbk|gb2312|gb18030"
    rb"|big5|shift_jis|euc-jp|euc-kr|iso-2022-jp)\b",
    re.IGNORECASE,
)
_DECLARED_WITHIN_BYTES = 2048


def read_html(path: Path, data: bytes) -> Read:
    """Title and main text. Raises: Unreadable for binary data and pages without text."""
    page = without_comments(_decoded(data)).partition("<!--")[0]  # an open one hides the rest
    plain = _MainText()
    plain.read(page)
    text = _extracted(page) or plain.text
    if not text.strip():
        raise Unreadable("no_text", "the page shows no text without its scripts")
    return Read(title=plain.title or path.name, text=text)


def _decoded(data: bytes) -> str:
    declared = _DECLARED.search(data[:_DECLARED_WITHIN_BYTES])
    if declared:
        with contextlib.suppress(UnicodeDecodeError):
            data = data.decode("utf-8").encode()  # a wrong declaration is common: UTF-8 goes first
            return decode(data)
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(declared[1].decode("ascii")).replace("\r\n", "\n")
    return decode(data)


def _extracted(page: str) -> str | None:
    try:
        import trafilatura
    except ImportError:
        return None
    import logging

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # we say ourselves what is dropped
    try:
        text: str | None = trafilatura.extract(
            page, output_format="markdown", include_comments=False, include_links=False
        )
    except (ValueError, TypeError, AttributeError, RecursionError):  # on pages it can't cope with
        return None
    return text


class _MainText(HTMLParser):
    """Collects the title, and text outside of the dropped elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces: list[str] = []
        self._title: list[str] = []
        self._dropped: list[str] = []
        self._in_title = False

    def read(self, page: str) -> None:
        """Parse a page without comments.

        What follows the last `>` holds no tag; the parser would try each `<` in it to the end,
        which takes minutes on a page made for that.
        """
        markup, closed, rest = page.rpartition(">")
        # It asserts on some malformed declarations; what was read until there stays.
        with contextlib.suppress(AssertionError):
            self.feed(markup + closed)
            self.close()
        self.handle_data(rest)

    @property
    def text(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self._pieces).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

    @property
    def title(self) -> str:
        return " ".join("".join(self._title).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "body":  # a head that was not closed ends here
            self._dropped.clear()
        elif tag in _DROPPED:
            self._dropped.append(tag)
        elif tag == "title":
            self._in_title = not self._title
        elif tag in _PARAGRAPHS:
            self._pieces.append("\n\n" + "#" * int(tag[1:] or 0) + " " * (tag != "p"))
        elif tag in _BLOCKS:
            self._pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._dropped:
            # A page may forget to close what is inside: go back to the matching one.
            while self._dropped.pop() != tag:
                pass
        self._in_title = False
        if tag in _PARAGRAPHS:
            self._pieces.append("\n\n")
        elif tag in _BLOCKS:
            self._pieces.append("\n")
        elif tag in ("td", "th"):
            self._pieces.append(" ")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data)
        elif not self._dropped:
            self._pieces.append(data)
