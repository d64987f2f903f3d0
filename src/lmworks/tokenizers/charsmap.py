"""A precompiled SentencePiece map: which character sequences become which.

A blob: the size of a double-array trie in bytes (uint32, little endian), the trie's units, then
replacements, each ended by a zero byte. A trie's value is the offset of a replacement.

Source: sentencepiece's model format; double arrays: Yata et al. 2007 (Darts-clone's unit layout).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from lmworks.core.errors import UserError


class CharsMap:
    """Raises: UserError for a blob that is damaged."""

    def __init__(self, blob: bytes) -> None:
        size = int.from_bytes(blob[:4], "little") if len(blob) >= 4 else 0
        if len(blob) < 4 or size % 4 or 4 + size > len(blob):
            raise UserError(f"the precompiled character map is damaged ({len(blob)} bytes)")
        self.units = struct.unpack(f"<{size // 4}I", blob[4 : 4 + size])
        self.replacements = blob[4 + size :]

    def longest_prefix(self, text: str) -> tuple[int, str] | None:
        """How many characters the longest known beginning has, and what it becomes."""
        *_, last = (None, *self._prefixes(text.encode("utf-8", "surrogatepass")))
        if last is None:
            return None
        length, value = last
        data = text.encode("utf-8", "surrogatepass")[:length]
        return len(data.decode("utf-8", "surrogatepass")), self._text(value)

    def shortest_prefix(self, text: str) -> str | None:
        """What the shortest known beginning becomes."""
        for _, value in self._prefixes(text.encode("utf-8", "surrogatepass")):
            return self._text(value)
        return None

    def ascii_beginnings(self) -> frozenset[int]:
        """Bytes of ASCII that are an entry, or begin one that goes on in ASCII."""
        root = _offset(self.units[0]) if self.units else 0
        found = set()
        for byte in range(1, 128):
            node, leaf = self._child(root, byte)
            if leaf or (node >= 0 and any(self._child(node, b)[0] >= 0 for b in range(1, 128))):
                found.add(byte)
        return frozenset(found)

    def _child(self, node: int, byte: int) -> tuple[int, bool]:
        """(node behind a byte or -1, whether an entry ends there)."""
        at = node ^ byte
        if at >= len(self.units) or self.units[at] & 0x800000FF != byte:
            return -1, False
        return at ^ _offset(self.units[at]), bool(self.units[at] >> 8 & 1)

    def _text(self, start: int) -> str:
        end = self.replacements.find(b"\0", start)
        return self.replacements[start : end if end >= 0 else None].decode("utf-8", "replace")

    def _prefixes(self, key: bytes) -> Iterator[tuple[int, int]]:
        """(bytes, value) of every entry that is a beginning of `key`, the shortest first."""
        units, size = self.units, len(self.units)
        if not size:
            return
        at = _offset(units[0])
        for length, byte in enumerate(key, 1):
            at ^= byte
            if byte == 0 or at >= size or units[at] & 0x800000FF != byte:
                return
            leaf = units[at] >> 8 & 1
            at ^= _offset(units[at])
            if at >= size:
                return
            if leaf:
                yield length, units[at] & 0x7FFFFFFF


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)
