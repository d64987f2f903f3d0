"""JSON: the strings in it that are texts, in their order, a paragraph each.

A string is a text from a dozen words on; names, keys, paths and settings are not. Left out: what
the structure means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmworks.data.readers.base import Read, Unreadable
from lmworks.data.readers.text import decode

_MIN_WORDS = 12


def read_json(path: Path, data: bytes) -> Read:
    """All texts. Raises: Unreadable for broken JSON and for JSON without texts."""
    try:
        value = json.loads(decode(data))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "too deep or too long"
        raise Unreadable("broken", f"not valid JSON: {reason}") from error
    texts = [text.strip() for text in _strings(value) if len(text.split()) >= _MIN_WORDS]
    if not texts:
        raise Unreadable("no_text", f"no string of {_MIN_WORDS} words or more")
    return Read(title=path.name, text="\n\n".join(texts) + "\n")


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]  # no recursion: the file says how deep it is
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += reversed(value.values())
        elif isinstance(value, list):
            waiting += reversed(value)
