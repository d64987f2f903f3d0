"""Finding added tokens in text, before it is cut into words.

The rules are those of Hugging Face tokenizers: at each place the longest token wins; one that is
passed over (special and not allowed, or inside a word) still hides what lies under it.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmworks.tokenizers.aligned import AlignedText
from lmworks.tokenizers.normalizers import Normalizer, SentencePiece
from lmworks.tokenizers.vocabulary import AddedToken

Found = tuple[int, int, int | None]  # start, end, and the id if it is an added token


class AddedTokenFinder:
    """Splits text at the added tokens of one tokenizer."""

    def __init__(self, tokens: Iterable[AddedToken], normalizer: Normalizer) -> None:
        tokens = [token for token in tokens if token.text]
        self.normalizer = normalizer
        self._raw = _Texts({token.text: token for token in tokens})
        self._before = _Texts({token.text: token for token in tokens if not token.normalized})
        # SentencePiece knows its symbols as they stand in changed text.
        clean = str if isinstance(normalizer, SentencePiece) else normalizer.normalize
        self._after = _Texts({clean(token.text): token for token in tokens if token.normalized})

    @property
    def normalized_texts(self) -> dict[str, AddedToken]:
        """Tokens that are looked for after normalisation, by the text that is looked for."""
        return self._after.tokens

    def split_raw(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Pieces of `text` as they are, all added tokens looked for by their plain text."""
        for start, end, token_id in self._raw.find(text, True):
            yield text[start:end], token_id

    def split(
        self, text: str, *, allow_special: bool, normalize: Callable[[str], str] | None = None
    ) -> Iterator[tuple[str, int | None, bool]]:
        """(piece, id or None, whether it begins the text); pieces without an id are normalised."""
        normalize = normalize or self.normalizer.normalize
        for start, end, token_id in self._before.find(text, allow_special):
            if token_id is not None:
                yield text[start:end], token_id, start == 0
                continue
            piece = normalize(text[start:end])
            for first, last, inner in self._after.find(piece, allow_special):
                yield piece[first:last], inner, start == 0 and first == 0

    def split_aligned(
        self, text: str, *, allow_special: bool
    ) -> Iterator[tuple[AlignedText, int | None]]:
        """As `split`, with spans into `text`."""
        whole = AlignedText(text)
        for start, end, token_id in self._before.find(text, allow_special):
            piece = whole.cut(start, end)
            if token_id is not None:
                yield piece, token_id
                continue
            piece = self.normalizer.align(piece)
            for first, last, inner in self._after.find(piece.text, allow_special):
                yield piece.cut(first, last), inner


class _Texts:
    """Added tokens by the text that is looked for."""

    def __init__(self, tokens: dict[str, AddedToken]) -> None:
        self.tokens = {text: token for text, token in tokens.items() if text}
        always = {text: token for text, token in self.tokens.items() if not token.special}
        self._needed = {True: bool(self.tokens), False: bool(always)}

    @functools.cached_property
    def _expression(self) -> re.Pattern[str]:
        return any_of(self.tokens)

    def find(self, text: str, allow_special: bool) -> Iterator[Found]:
        """Tokens and what lies between them, in order."""
        at = 0
        if self._needed[allow_special]:
            for match in self._expression.finditer(text):
                token = self.tokens[match[0]]
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
                    yield at, start, None
                yield start, end, token.id
                at = end
        if at < len(text):
            yield at, len(text), None


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """One expression for all of them: at each place the longest is found.

    Beginnings are shared, so that thousands of tokens cost little more than one.
    """
    return re.compile(_alternatives(sorted(texts)))


def _alternatives(texts: list[str]) -> str:
    """An expression for sorted texts, without the one that is empty."""
    parts = []
    for first, group in itertools.groupby(filter(None, texts), lambda text: text[0]):
        rests = [text[1:] for text in group]
        inner = _alternatives(rests)
        optional = "?" if "" in rests and inner else ""
        parts.append(re.escape(first) + (f"(?:{inner}){optional}" if inner else ""))
    return "|".join(parts)


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
