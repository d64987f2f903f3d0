"""Pre-tokenisation: how text is cut into words before merges are looked at.

A pattern is a list of regular expressions applied one after the other; each match is a word, and
what lies between matches is a word as well (the `isolated` behaviour of Hugging Face tokenizers).

Sources: gpt2: Radford et al. 2019, released code; llama3, qwen2: their released tokenizer.json;
smollm: every digit alone, then gpt2.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from lmworks.core.errors import UserError, unknown_name

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt2": (_GPT2,),
    "llama3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "smollm": (r"\p{N}", _GPT2),
}

# What llama.cpp calls them in `tokenizer.ggml.pre`.
GGUF_NAMES = {"gpt-2": "gpt2", "llama-bpe": "llama3", "qwen2": "qwen2", "smollm": "smollm"}


def pattern(name: str) -> tuple[str, ...]:
    """The expressions of a named pattern. Raises: UserError with the nearest name."""
    if name not in PATTERNS:
        raise unknown_name("pattern", name, PATTERNS)
    return PATTERNS[name]


@functools.lru_cache(maxsize=64)
def _compiled(expression: str) -> Any:
    import regex

    try:
        return regex.compile(expression)
    except regex.error as error:
        raise UserError(f"the pattern {expression[:80]!r} is not valid: {error}") from error


def split(text: str, expressions: Sequence[str]) -> Iterator[str]:
    """The words of `text`, in order; joined they are `text` again."""
    if not expressions:
        if text:
            yield text
        return
    *rest, last = expressions
    for piece in split(text, rest) if rest else (text,):
        at = 0
        for match in _compiled(last).finditer(piece):
            start, end = match.span()
            if start > at:
                yield piece[at:start]
            if end > start:
                yield piece[start:end]
            at = max(at, end)
        if at < len(piece):
            yield piece[at:]
