"""Finding added tokens in text, before it is cut into words.

The rules are those of Hugging Face tokenizers: at each place the longest token wins; one that is
passed over (special and not allowed, or inside a word) still hides what lies under it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmworks.tokenizers.vocabulary import AddedToken

Piece = tuple[str, int | None]  # text between added tokens, or the text and id of one


class AddedTokenFinder:
    """Splits text at the added tokens of one tokenizer."""

    def __init__(
        self, tokens: Iterable[AddedToken], normalize: Callable[[str], str] | None
    ) -> None:
        tokens = [token for token in tokens if token.text]
        self._normalize = normalize
        self._before = {token.text: token for token in tokens if not token.normalized}
        clean = normalize or str
        self._after = {clean(token.text): token for token in tokens if token.normalized}
        self._always = any(not token.special for token in tokens)

    def split(self, text: str, *, allow_special: bool) -> Iterator[Piece]:
        """Pieces of `text` in order, those without an id normalised."""
        for piece, token_id in self._find(text, self._before, allow_special):
            if token_id is not None:
                yield piece, token_id
                continue
            if self._normalize is not None:
                piece = self._normalize(piece)
            yield from self._find(piece, self._after, allow_special)

    def _find(
        self, text: str, tokens: dict[str, AddedToken], allow_special: bool
    ) -> Iterator[Piece]:
        if not tokens or not (allow_special or self._always):
            yield text, None
            return
        at = 0
        for match in _any_of(tuple(tokens)).finditer(text):
            token = tokens[match[0]]
            start, end = match.span()
            if token.special and not allow_special:
                continue
            if token.single_word and _inside_word(text, start, end):
                continue
            if token.lstrip:
                start = max(at, _space_before(text, start))
            if token.rstrip:
                end = _white().match(text, end).end()
            if start > at:
                yield text[at:start], None
            yield text[start:end], token.id
            at = end
        if at < len(text):
            yield text[at:], None


@functools.lru_cache(maxsize=64)
def _any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for all of them; longest first, so that none hides a longer one."""
    return re.compile("|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True)))


# `regex` where `re` differs: its \s is Unicode's White_Space, as in Hugging Face tokenizers.
@functools.cache
def _white() -> Any:
    import regex

    return regex.compile(r"\s*")


@functools.cache
def _word() -> Any:
    import regex

    return regex.compile(r"\w")


def _space_before(text: str, start: int) -> int:
    while start > 0 and _white().fullmatch(text[start - 1]):
        start -= 1
    return start


def _inside_word(text: str, start: int, end: int) -> bool:
    before = start > 0 and _word().match(text[start - 1])
    after = end < len(text) and _word().match(text[end])
    return bool(before or after)
