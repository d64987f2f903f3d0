"""Markdown: kept as it is (a model should learn to read it), less front matter and comments."""

from __future__ import annotations

import re
from pathlib import Path

from lmworks.data.readers.base import Read
from lmworks.data.readers.text import decode

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_HEADING = re.compile(r"^#{1,2}[ \t]+(\S[^\n]*)$", re.MULTILINE)


def read_markdown(path: Path, data: bytes) -> Read:
    """The text, titled by its first heading. Raises: Unreadable for binary data."""
    text = without_comments(_FRONT_MATTER.sub("", decode(data)))
    heading = _HEADING.search(text)
    title = heading[1].rstrip("# \t") if heading else ""
    return Read(title=title or path.name, text=text)


def without_comments(text: str) -> str:
    """Text without `<!-- -->`. By hand: a regex tries each open comment to the end of the file."""
    kept, start = [], 0
    while (opened := text.find("<!--", start)) >= 0 and (end := text.find("-->", opened)) >= 0:
        kept.append(text[start:opened])
        start = end + len("-->")
    return "".join(kept) + text[start:]
