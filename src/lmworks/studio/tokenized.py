"""What the tokenizer page draws: rows of a text as coloured pieces, and what each token is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from lmworks.studio.rows import Rows
from lmworks.studio.texts import StoredText
from lmworks.tokenizers.readable import visible
from lmworks.tokenizers.token_spans import TokenizedText, Unit
from lmworks.tokenizers.tokenizer import PipelineTokenizer

_KEPT_TEXTS, _KEPT_ROWS = 16, 6
_HEX_BYTES = 48  # of a token, shown


class Tokenized:
    """Tokenized texts and rows, kept for the requests to come."""

    def __init__(self) -> None:
        self._texts = _Kept(_KEPT_TEXTS)
        self._rows = _Kept(_KEPT_ROWS)

    def text(
        self, tokenizer: PipelineTokenizer, text: StoredText, allow_special: bool
    ) -> TokenizedText:
        """The text under a tokenizer."""
        return self._texts.get(
            (id(tokenizer), text.id, allow_special),
            lambda: TokenizedText(tokenizer, text, allow_special=allow_special),
        )

    def rows(self, text: StoredText, columns: int) -> Rows:
        """The text in rows of that many columns."""
        return self._rows.get((text.id, columns), lambda: Rows(text.text, columns))


class _Kept:
    """The last few of what takes long to make; each is made once, whoever asks."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[Any, Any] = OrderedDict()
        self._making: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, make: Any) -> Any:
        with self._lock:
            own = self._making.setdefault(key, threading.Lock())
        with own:
            if key not in self._found:
                made = make()
                with self._lock:
                    self._found[key] = made
                    while len(self._found) > self._most:
                        gone, _ = self._found.popitem(last=False)
                        self._making.pop(gone, None)
            with self._lock:
                found = self._found[key]
                self._found.move_to_end(key)
                return found


def view(found: TokenizedText, rows: Rows, first: int, count: int) -> dict[str, Any]:
    """Some rows, as the page draws them.

    Returns: `rows`: for each row its pieces, [text, unit]; `units`: of each [first token,
    character, end, byte, ids]; `tokens`: what each id is; `total`: rows in all.
    """
    spans = rows.spans(first, count)
    units = found.units(spans[0][0], spans[-1][1]) if spans else []
    drawn: list[list[tuple[str, int]]] = []
    at = 0
    for start, end in spans:
        pieces = []
        while at < len(units) and units[at].start < end:
            begin, stop = max(units[at].start, start), min(units[at].end, end)
            if stop > begin:
                pieces.append((visible(found.source.text[begin:stop]), at))
            if units[at].end > end:
                break
            at += 1
        drawn.append(pieces)
    return {
        "first": first,
        "total": len(rows),
        "rows": drawn,
        "units": [[u.first, u.start, u.end, found.source.byte_at(u.start), u.ids] for u in units],
        "tokens": described(found.tokenizer, units),
    }


def described(tokenizer: PipelineTokenizer, units: Iterable[Unit]) -> dict[int, list[str]]:
    """Of each id: its text as files write it, its bytes, and what is special about it."""
    return {
        token_id: _described(tokenizer, token_id)
        for token_id in {token_id for unit in units for token_id in unit.ids}
    }


def _described(tokenizer: PipelineTokenizer, token_id: int) -> list[str]:
    data = tokenizer.token_bytes(token_id)
    more = "…" if len(data) > _HEX_BYTES else ""
    text = visible(tokenizer.token_text(token_id))
    return [text[:200], data[:_HEX_BYTES].hex(" ") + more, _role(tokenizer, token_id)]


def _role(tokenizer: PipelineTokenizer, token_id: int) -> str:
    if token_id == tokenizer.unk_token_id:
        return "unknown"
    for token in tokenizer.vocabulary.added_tokens:
        if token.id == token_id:
            return "special" if token.special else "added"
    return ""
