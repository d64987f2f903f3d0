"""Program text, whole and as it is, titled by its file name; judged by the limits for code.

Left out: code written by machines for machines (minified, one line without end), which teaches
nothing a person would ask for.
"""

from __future__ import annotations

from pathlib import Path

from lmworks.data.readers.base import Read, Unreadable
from lmworks.data.readers.text import decode

_MAX_MEAN_LINE_CHARACTERS = 400


def read_source(path: Path, data: bytes) -> Read:
    """The whole file. Raises: Unreadable for binary data and minified code."""
    text = decode(data)
    mean = len(text) / (text.count("\n") + 1)
    if mean > _MAX_MEAN_LINE_CHARACTERS:
        raise Unreadable("minified", f"lines of {mean:.0f} characters on average")
    return Read(title=path.name, text=text)
