"""Markdown: kept as it is (a model should learn to read it), less front matter and comments."""

from __future__ import annotations

import re
from pathlib import Path

from lmworks.data.readers.base import Read
from lmworks.data.readers.text import decode

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING = re.compile(r"^#{1,2}[ \t]+(\S[^\n]*)$", re.MULTILINE)


def read_markdown(path: Path, data: bytes) -> Read:
    """The text, titled by its first heading. Raises: Unreadable for binary data."""
    text = _FRONT_MATTER.sub("", decode(data))
    if "-->" in text:  # without it the search would try each opening to the end
        text = _COMMENT.sub("", text)
    heading = _HEADING.search(text)
    title = heading[1].rstrip("# \t") if heading else ""
    return Read(title=title or path.name, text=text)
