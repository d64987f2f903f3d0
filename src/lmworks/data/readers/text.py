"""Plain text and source code, in the encodings that real files come in."""

from __future__ import annotations

from pathlib import Path

from lmworks.data.readers.base import Read, Unreadable

_BOMS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
_LEGACY = "cp1252"
_MAX_CONTROL_SHARE = 0.01


def read_text(path: Path, data: bytes) -> Read:
    """The whole file as it is. Raises: Unreadable for binary data."""
    return Read(title=path.name, text=decode(data))


def decode(data: bytes) -> str:
    """Bytes as text: UTF-8, UTF-16 with a byte-order mark, else Western single bytes if plausible.

    Raises: Unreadable with the place of the first byte that is not UTF-8.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise Unreadable("encoding", f"broken {encoding} at byte {error.start}") from error
    if b"\0" in data[:8192]:
        raise Unreadable("binary", "holds NUL bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        text = _legacy(data, error.start)
    controls = sum(1 for c in text[:100_000] if ord(c) < 32 and c not in "\t\n\r\f\x1b")
    if controls > _MAX_CONTROL_SHARE * min(len(text), 100_000):
        raise Unreadable("binary", f"{controls} control characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _legacy(data: bytes, first_bad: int) -> str:
    """Accented letters are rare in Western text; where other bytes abound it is something else."""
    try:
        text = data.decode(_LEGACY)
    except UnicodeDecodeError as error:
        raise Unreadable("encoding", f"not UTF-8 text (byte {first_bad})") from error
    high = [c for c in text if ord(c) > 127]
    if len(high) > 0.2 * len(text) or sum(c.isalpha() for c in high) < 0.7 * len(high):
        raise Unreadable("encoding", f"not UTF-8 text (byte {first_bad})")
    return text
