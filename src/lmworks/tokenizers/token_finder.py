"""Added tokens in the text that kernels see, where nothing but their own text matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmworks.tokenizers import slots
from lmworks.tokenizers.buffers import Buffer
from lmworks.tokenizers.calls import kernel
from lmworks.tokenizers.compiled_tables import Trie

NO_TOKENS = np.zeros(0, dtype=np.int64)


class TokenFinder:
    """Finds texts, the longest at each place; special ones only where the caller allows them."""

    def __init__(self, texts: Sequence[bytes], ids: Sequence[int], special: Sequence[bool]) -> None:
        self._any = {True: bool(texts), False: not all(special)}
        if not texts:
            return
        trie = self._trie = Trie(list(texts), range(len(texts)))
        self._ids = np.array(ids, dtype=np.int64)
        self._special = np.array(special, dtype=np.uint8)
        self._first = np.zeros(256, dtype=np.uint8)
        begins = {text[0] for text in texts}
        self._first[list(begins)] = 1
        self._run = kernel("find_tokens")
        self._slots = np.zeros(slots.FIND_SLOTS, dtype=np.int64)
        self._slots[slots.FIND_ONLY] = begins.pop() if len(begins) == 1 else -1
        self._slots[slots.FIND_MASK] = trie.mask
        for slot, array in (
            (slots.FIND_FIRST, self._first),
            (slots.FIND_TRIE, trie.table),
            (slots.FIND_VALUES, trie.values),
            (slots.FIND_SPECIAL, self._special),
        ):
            self._slots[slot] = array.ctypes.data

    def seen(self, text: Buffer, allow_special: bool) -> bool:
        """Whether there is one in the text."""
        return self._any[allow_special] and self._find(text, allow_special, NO_TOKENS) > 0

    def find(self, text: Buffer, allow_special: bool) -> Any:
        """int64 [3 * tokens]: start, end, id of each."""
        if not self._any[allow_special]:
            return NO_TOKENS
        room = 256
        while True:
            out = np.empty(3 * room, dtype=np.int64)
            found = self._find(text, allow_special, out)
            if found <= room:
                out = out[: 3 * found]
                out[2::3] = self._ids[out[2::3]]
                return out
            room = found

    def _find(self, text: Buffer, allow_special: bool, out: Any) -> int:
        a = self._slots.copy()
        a[slots.FIND_TEXT], a[slots.FIND_SIZE] = text.address, text.size
        a[slots.FIND_ALLOW] = allow_special
        if len(out):
            a[slots.FIND_OUT], a[slots.FIND_ROOM] = out.ctypes.data, len(out) // 3
        return self._run(a.ctypes.data)
