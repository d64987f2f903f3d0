"""Plain text in the encodings that real files come in.

UTF-8 and UTF-16 with a byte-order mark are sure. Anything else is tried as Western single bytes
(cp1252), and taken only if that looks like a language: mostly ASCII, and the rest mostly letters.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from lmworks.data.readers.base import Read, Unreadable

_BOMS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
_LEGACY = "cp1252"
_MAX_CONTROL_SHARE = 0.01
_LOOKED_AT = 100_000
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_LINE_END = re.compile(r"\r\n?")


def read_text(path: Path, data: bytes) -> Read:
    """The whole file as it is. Raises: Unreadable for binary data."""
    return Read(title=path.name, text=decode(data))


def decode(data: bytes) -> str:
    """Bytes as text with `\\n` line ends.

    Raises: Unreadable for binary data, or with the place of the first byte that is not UTF-8.
    """
    text = _decoded(data)
    sample = text[:_LOOKED_AT]
    controls = len(_CONTROL.findall(sample))
    if controls > _MAX_CONTROL_SHARE * len(sample):
        raise Unreadable("binary", f"{controls} control characters in {len(sample)}")
    return _LINE_END.sub("\n", text)


def looks_binary(head: bytes) -> bool:
    """Whether the first bytes of a file of unknown kind are anything but UTF-8 text."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the cut may halve a character
    except UnicodeDecodeError:
        return True
    return b"\0" in head


def _decoded(data: bytes) -> str:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise Unreadable("encoding", f"broken {encoding} at byte {error.start}") from error
    if b"\0" in data[:8192]:
        raise Unreadable("binary", "holds NUL bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _legacy(data, error.start)


def _legacy(data: bytes, first_bad: int) -> str:
    """Accented letters are rare in Western text; where other bytes abound it is something else."""
    try:
        text = data.decode(_LEGACY)
    except UnicodeDecodeError as error:
        raise Unreadable("encoding", f"not UTF-8 text (byte {first_bad})") from error
    high = [c for c in text[:_LOOKED_AT] if ord(c) > 127]
    shown = min(len(text), _LOOKED_AT)
    if len(high) > 0.2 * shown or sum(c.isalpha() for c in high) < 0.7 * len(high):
        raise Unreadable("encoding", f"not UTF-8 text (byte {first_bad})")
    return text
