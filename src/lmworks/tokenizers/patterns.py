"""Pre-tokenisation: how text is cut into words before merges are looked at.

A pattern is a list of regular expressions applied one after the other; each match is a word, and
what lies between matches is a word as well (the `isolated` behaviour of Hugging Face tokenizers).

Which characters are letters is what the installed `regex` package says, whose Unicode may be newer
than Hugging Face's; they agree on every character of Unicode 14, and words that differ in newer
ones still give the same ids unless a vocabulary has merges across such characters.

Sources: gpt2: Radford et al. 2019, released code; cl100k: tiktoken; llama3, qwen2: their released
tokenizer.json; smollm: every digit alone, then gpt2. cl100k and llama3 cut alike.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lmworks.core.errors import UserError, unknown_name

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

PATTERNS: dict[str, tuple[str, ...]] = {
    "cl100k": (_LLAMA3,),
    "gpt2": (_GPT2,),
    "llama3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "smollm": (r"\p{N}", _GPT2),
}

_AT_ONCE = 1 << 22  # characters; the words of longer text are not held in memory together


def pattern(name: str) -> tuple[str, ...]:
    """The expressions of a named pattern. Raises: UserError with the nearest name."""
    if name not in PATTERNS:
        raise unknown_name("pattern", name, PATTERNS)
    return PATTERNS[name]


@functools.lru_cache(maxsize=64)
def compiled(expression: str) -> Any:
    """The expression, ready to use. Raises: UserError when it is not valid."""
    import regex

    try:
        return regex.compile(expression)
    except regex.error as error:
        raise UserError(f"the pattern {expression[:80]!r} is not valid: {error}") from error


def words_of(text: str, expressions: Sequence[str]) -> Iterable[str]:
    """The words of `text`, in order, none empty; joined they are `text` again."""
    words: Iterable[str] = (text,) if text else ()
    for expression in expressions:
        cut = functools.partial(_cut, compiled(expression))
        words = itertools.chain.from_iterable(map(cut, words))
    return words


def _cut(expression: Any, text: str) -> Iterable[str]:
    """Matches and what lies between them."""
    if expression.groups == 0 and len(text) <= _AT_ONCE:  # findall gives whole matches
        words: list[str] = expression.findall(text)
        if sum(map(len, words)) == len(text):  # nothing lies between
            return filter(None, words)
    return _matches_and_gaps(expression, text)


def _matches_and_gaps(expression: Any, text: str) -> Iterator[str]:
    at = 0
    for match in expression.finditer(text):
        start, end = match.span()
        if start > at:
            yield text[at:start]
        if end > start:
            yield text[start:end]
        at = max(at, end)
    if at < len(text):
        yield text[at:]
