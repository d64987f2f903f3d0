"""WordPiece: each word is cut from the left, the longest known token first.

A word that can't be cut so is the unknown token, whole, and so is one that is too long.

Source: Schuster and Nakajima 2012; the greedy rule: Devlin et al. 2019, arXiv 1810.04805, released
code.
"""

from __future__ import annotations

import dataclasses
import functools

from lmworks.tokenizers.bpe import Token


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordPiece:
    """Tokens; those that go on inside a word carry a prefix."""

    tokens: tuple[bytes, ...]  # by id, the UTF-8 of their text
    unk_id: int
    continuing_subword_prefix: str = "##"
    max_input_chars_per_word: int = 100

    @functools.cached_property
    def by_text(self) -> dict[str, int]:
        """Text, prefix included, to id."""
        return {t.decode("utf-8", "replace"): i for i, t in enumerate(self.tokens) if t}

    @functools.cached_property
    def longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.by_text), default=0)

    def encode_piece(self, piece: str) -> list[int]:
        """Ids of one word."""
        return [token.id for token in self.encode_spans(piece)]

    def encode_spans(self, piece: str) -> list[Token]:
        """As `encode_piece`, with the characters that each id stands for."""
        unknown = [Token(self.unk_id, 0, len(piece))]
        if len(piece) > self.max_input_chars_per_word:
            return unknown
        found, start = [], 0
        while start < len(piece):
            token = self._longest_from(piece, start)
            if token is None:
                return unknown
            found.append(token)
            start = token.end
        return found

    def _longest_from(self, piece: str, start: int) -> Token | None:
        prefix = self.continuing_subword_prefix if start else ""
        for end in range(min(len(piece), start + self.longest), start, -1):
            token_id = self.by_text.get(prefix + piece[start:end])
            if token_id is not None:
                return Token(token_id, start, end)
        return None
