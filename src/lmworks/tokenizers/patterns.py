"""Named patterns of pre-tokenisation: how text is cut into words before merges are looked at.

A pattern is a list of regular expressions applied one after the other; each match is a word, and
what lies between matches is a word as well (the `Isolated` behaviour of Hugging Face tokenizers).

Which characters are letters is what the installed `regex` package says, whose Unicode may be newer
than Hugging Face's; they agree on every character of Unicode 14, and words that differ in newer
ones still give the same ids unless a vocabulary has merges across such characters.

Sources: gpt2: Radford et al. 2019, released code; cl100k, o200k: tiktoken; llama3, qwen2, deepseek:
their released tokenizer.json; smollm: every digit alone, then gpt2; tekken: Mistral's released
file. cl100k and llama3 cut alike.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from lmworks.core.errors import UserError, unknown_name

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_NO_WORD = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}|\p{{N}}{{1,3}}|{_NO_WORD}"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|{_NO_WORD}"
)
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

PATTERNS: dict[str, tuple[str, ...]] = {
    "cl100k": (_LLAMA3,),
    "deepseek": _DEEPSEEK,
    "gpt2": (_GPT2,),
    "llama3": (_LLAMA3,),
    "o200k": (_O200K,),
    "qwen2": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "smollm": (r"\p{N}", _GPT2),
    "tekken": (_TEKKEN,),
}

CUSTOM = "regex:"  # what a pattern of one's own begins with
_SECONDS = 30.0  # for one search over one text; patterns can take time without end


def pattern(name: str) -> tuple[str, ...]:
    """The expressions of a named pattern, or of `regex:EXPRESSION`.

    Raises: UserError with the nearest name, or for an expression that is not valid.
    """
    if name.startswith(CUSTOM):
        expression = name.removeprefix(CUSTOM)
        compiled(expression)
        return (expression,)
    if name not in PATTERNS:
        raise unknown_name("pattern", name, PATTERNS)
    return PATTERNS[name]


@functools.lru_cache(maxsize=64)
def compiled(expression: str) -> Any:
    """The expression, ready to use. Raises: UserError when it is not valid."""
    import regex

    try:
        return regex.compile(_own_dialect(expression))
    except regex.error as error:
        raise UserError(f"the pattern {expression[:80]!r} is not valid: {error}") from error


def _own_dialect(expression: str) -> str:
    """In files `$` is the end of the text; `regex` would match it before a last line break too."""
    return _DOLLAR.sub(lambda match: r"\Z" if match[0] == "$" else match[0], expression)


_DOLLAR = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$", re.DOTALL)  # escapes and classes stay


def spans_of(expression: str, text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every match; one that is empty still cuts.

    Raises: UserError when the search takes longer than any sensible pattern would.
    """
    try:
        for match in compiled(expression).finditer(text, timeout=_SECONDS):
            yield match.span()
    except TimeoutError as error:
        raise _given_up(expression, text) from error


def matches_of(expression: str, text: str) -> list[str]:
    """The text of every match of an expression without groups. Raises: as `spans_of`."""
    try:
        found: list[str] = compiled(expression).findall(text, timeout=_SECONDS)
    except TimeoutError as error:
        raise _given_up(expression, text) from error
    return found


def replaced(expression: str, text: str, content: str) -> str:
    """The text with `content` in the place of every match. Raises: as `spans_of`."""
    try:
        return str(compiled(expression).sub(lambda _: content, text, timeout=_SECONDS))
    except TimeoutError as error:
        raise _given_up(expression, text) from error


def _given_up(expression: str, text: str) -> UserError:
    return UserError(
        f"the pattern {expression[:80]!r} was given up after {_SECONDS:.0f} s on a text of "
        f"{len(text)} characters: it tries too many ways to match"
    )
