"""A precompiled SentencePiece map: which character sequences become which.

A blob: the size of a double-array trie in bytes (uint32, little endian), the trie's units, then
replacements, each ended by a zero byte. A trie's value is the offset of a replacement.

Source: sentencepiece's model format; double arrays: Yata et al. 2007 (Darts-clone's unit layout).
"""

from __future__ import annotations

import itertools
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

    def later_characters(self) -> frozenset[str]:
        """Characters that stand in an entry, but not at its beginning."""
        import numpy as np

        units = np.array(self.units, dtype=np.int64)
        offsets = (units >> 10) << ((units & 0x200) >> 6)
        labels = np.arange(1, 256)
        found: set[str] = set()
        nodes = np.array([_offset(self.units[0])] if self.units else [], dtype=np.int64)
        keys = [b""]
        while len(keys):
            places = nodes[:, None].astype(np.int64) ^ labels
            inside = places < len(units)
            child = np.where(inside, units[np.minimum(places, len(units) - 1)], -1)
            row, column = np.nonzero(inside & ((child & 0x800000FF) == labels))
            places = places[row, column]
            nodes = places ^ offsets[places]
            keys = [keys[r] + bytes([labels[c]]) for r, c in zip(row, column)]
            leaves = (units[places] >> 8 & 1).astype(bool)
            for key in itertools.compress(keys, leaves):
                found.update(key.decode("utf-8", "replace")[1:])
        return frozenset(found)

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
