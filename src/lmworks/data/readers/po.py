"""Catalogues of translations (gettext's .po): what was written, and what it became.

As a document, each entry is a paragraph of two lines, the original and the translation; for pairs
of sentences by language see `data/parallel.py`. Entries without a translation, doubtful ones
(`fuzzy`) and obsolete ones are passed over. Of plurals, each form is an entry.

Source: GNU gettext manual, "The Format of PO Files".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from lmworks.data.readers.base import Read, Unreadable
from lmworks.data.readers.text import decode

_LINE = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[\d{1,3}\])?)?[ \t]*"(.*)"[ \t]*')
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|(.))")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A text, its translation, and where it is used."""

    context: str
    source: str
    translation: str


def read_po(path: Path, data: bytes) -> Read:
    """Entries as paragraphs. Raises: Unreadable for binary data and lines that are no PO."""
    pairs = [f"{entry.source}\n{entry.translation}" for entry in parse_po(decode(data))]
    if not pairs:
        raise Unreadable("no_text", "no entry is translated")
    return Read(title=path.name, text="\n\n".join(pairs) + "\n")


def parse_po(text: str) -> Iterator[Entry]:
    """Translated entries in order. Raises: Unreadable naming the line that is no PO."""
    fields: dict[str, str] = {}
    flags, key = "", ""
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line.startswith("#"):
            if _begins("#", fields):
                yield from _entries(fields, flags)
                fields, flags, key = {}, "", ""
            flags += line if line.startswith("#,") else ""
            continue
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None or not (match[1] or key):
            raise Unreadable("broken", f"line {number} is no line of a PO file: {line[:60]!r}")
        if match[1] and _begins(match[1], fields):
            yield from _entries(fields, flags)
            fields, flags = {}, ""
        key = match[1] or key
        fields[key] = fields.get(key, "") + _unescaped(match[2])
    yield from _entries(fields, flags)


def _begins(keyword: str, fields: dict[str, str]) -> bool:
    """Whether this line is of another entry than the fields."""
    return keyword in ("msgctxt", "msgid", "#") and any(key.startswith("msgstr") for key in fields)


def _entries(fields: dict[str, str], flags: str) -> Iterator[Entry]:
    source = fields.get("msgid", "")
    if not source or "fuzzy" in flags:  # the first entry, of no source, is the file's header
        return
    for key, translation in fields.items():
        if not key.startswith("msgstr") or not translation:
            continue
        plural = key.startswith("msgstr[") and key != "msgstr[0]"
        yield Entry(
            context=fields.get("msgctxt", ""),
            source=fields.get("msgid_plural", source) if plural else source,
            translation=translation,
        )


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 8))
        if match[2]:
            return chr(int(match[2], 16))
        return _ESCAPED.get(match[3], match[3])

    return _ESCAPE.sub(character, text) if "\\" in text else text
