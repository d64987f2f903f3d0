"""What the tokenizer page draws: rows of a text as coloured pieces, and what each token is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lmworks.studio.kept import Kept
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
        self._texts = Kept(_KEPT_TEXTS)
        self._rows = Kept(_KEPT_ROWS)

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
