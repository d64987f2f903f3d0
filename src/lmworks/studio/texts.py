"""Texts that pages work on: sent once, then called by their id.

Megabytes go over the wire once, however often a page asks about them. An id is the hash of the
text, so that sending a text again costs nothing. What was not used for the longest is dropped when
there is too much.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict

from lmworks.serving.errors import ApiError
from lmworks.tokenizers.token_spans import IndexedText

_HELD_BYTES = 128 << 20
_WORD = re.compile(r"\S+")


class StoredText(IndexedText):
    """A text with its id and size."""

    def __init__(self, data: bytes) -> None:
        """Raises: ApiError (400) for bytes that are no UTF-8."""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            message = f"this is no UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}"
            raise ApiError(400, message, code="not_utf8") from None
        super().__init__(text)
        self.id = hashlib.sha256(data).hexdigest()[:32]
        self.words = sum(1 for _ in _WORD.finditer(text))

    def about(self) -> dict[str, int | str]:
        """What a page is told."""
        return {
            "id": self.id,
            "bytes": len(self.data),
            "characters": len(self.text),
            "words": self.words,
        }


class Texts:
    """The texts at hand, by id."""

    def __init__(self, held_bytes: int = _HELD_BYTES) -> None:
        self._room = held_bytes
        self._texts: OrderedDict[str, StoredText] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, data: bytes) -> StoredText:
        """Keep a text. Raises: ApiError (400) for bytes that are no UTF-8."""
        text = StoredText(data)
        with self._lock:
            text = self._texts.setdefault(text.id, text)
            self._texts.move_to_end(text.id)
            while sum(len(t.data) for t in self._texts.values()) > self._room:
                if len(self._texts) == 1:
                    break
                self._texts.popitem(last=False)
        return text

    def get(self, text_id: str) -> StoredText:
        """Raises: ApiError (404, `text_gone`) for one that is not here (any more)."""
        with self._lock:
            if text_id not in self._texts:
                raise ApiError(404, "this text is not here any more: send it again",
                               code="text_gone")  # fmt: skip
            self._texts.move_to_end(text_id)
            return self._texts[text_id]
