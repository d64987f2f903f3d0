"""Pre-tokenizers: how text is cut into pieces that the model then sees one by one.

Every pre-tokenizer of tokenizer.json comes down to two things: a change of the text (a space put
before it, spaces written as ▁) and cuts. A `Cut` is an expression and what becomes of its matches;
cuts are applied one after the other. The compiled path (automaton.py) runs the same cuts.

Source: Hugging Face tokenizers' documentation of pre-tokenizers and split behaviours.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Literal, get_args

from lmworks.core.errors import UserError
from lmworks.tokenizers.aligned import AlignedText, Span
from lmworks.tokenizers.patterns import PATTERNS, compiled, matches_of, spans_of
from lmworks.tokenizers.unicode_data import character_class, unassigned
from lmworks.tokenizers.vocabulary import Step

Behavior = Literal["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
_AT_ONCE = 1 << 22  # characters; the words of longer text are not held in memory together
_WHITE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where text is cut: at the matches of an expression.

    Isolated: matches and what lies between are pieces. Removed: only what lies between (with
    `invert`, only the matches). Merged: a match belongs to the piece before it, or after it.
    Contiguous: matches that touch are one piece.
    """

    expression: str
    behavior: Behavior = "Isolated"
    invert: bool = False

    def pieces(self, text: str, *, known: bool = False) -> Iterator[Span]:
        """Start and end of every piece, in order, none empty.

        Args:
            known: no character is newer than our tables.
        """
        if not known and not _all_known(text):
            matches = self._by_automaton(text)
        else:
            matches = spans_of(self.expression, text)
        if self.behavior == "Isolated":
            yield from _covered(matches, len(text))
        elif self.behavior == "Removed":
            for start, end, match in _marked(matches, len(text)):
                if match == self.invert:
                    yield start, end
        else:
            marked = _marked(matches, len(text))
            yield from _merged([(s, e, m != self.invert) for s, e, m in marked], self.behavior)

    def _by_automaton(self, text: str) -> Iterator[Span]:
        """Matches where `regex` may know characters that are newer than our tables."""
        from lmworks.tokenizers.automaton import Unsupported, automaton

        try:
            return automaton(self.expression).matches(text)
        except Unsupported:
            return spans_of(self.expression, text)


def _all_known(text: str) -> bool:
    return text.isascii() or not unassigned().search(text)


def _covered(matches: Iterator[Span], length: int) -> Iterator[Span]:
    return ((start, end) for start, end, _ in _marked(matches, length))


def _marked(matches: Iterator[Span], length: int) -> Iterator[tuple[int, int, bool]]:
    at = 0
    for start, end in matches:
        if start > at:
            yield at, start, False
        if end > start:
            yield start, end, True
        at = end
    if at < length:
        yield at, length, False


def _merged(parts: list[tuple[int, int, bool]], behavior: Behavior) -> list[Span]:
    if behavior == "MergedWithNext":
        turned = [(-end, -start, match) for start, end, match in reversed(parts)]
        return [(-e, -s) for s, e in reversed(_merged(turned, "MergedWithPrevious"))]
    pieces: list[Span] = []
    before: bool | None = None
    for start, end, match in parts:
        joins = match == before if behavior == "Contiguous" else match and before is False
        if joins:
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((start, end))
        before = match
    return pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """A change of the text, then cuts."""

    prefix: str = ""  # put before text that does not begin with it
    prefix_if: str = ""  # characters that count as the prefix already
    first_only: bool = False  # only before the text's very beginning
    spaces_as: str = ""  # what a space is written as; "" leaves it
    each_word: bool = False  # white space goes, and the prefix stands before every word
    cuts: tuple[Cut, ...] = ()

    def change(self, text: str, *, at_start: bool = True) -> str:
        """The text as it is cut."""
        if self.each_word:
            return "".join(self._prefixed(word) for word in _white().split(text) if word)
        if self.spaces_as:
            text = text.replace(" ", self.spaces_as)
        return self.prefix + text if self._needs_prefix(text, at_start) else text

    def align(self, text: AlignedText, *, at_start: bool = True) -> AlignedText:
        """As `change`, with spans."""
        if self.each_word:
            return self._words_aligned(text)
        if self.spaces_as:
            text = AlignedText(text.text.replace(" ", self.spaces_as), text.spans)
        return text.prepend(self.prefix) if self._needs_prefix(text.text, at_start) else text

    def _prefixed(self, word: str) -> str:
        return word if word.startswith(tuple(self.prefix_if)) else self.prefix + word

    def _words_aligned(self, text: AlignedText) -> AlignedText:
        characters: list[str] = []
        spans: list[Span] = []
        for match in compiled(_WHITE.replace("[", "[^", 1) + "+").finditer(text.text):
            word = self._prefixed(match[0])
            own = text.spans[match.start() : match.end()]
            characters.append(word)
            spans += own[:1] * (len(word) - len(own)) + own
        return AlignedText("".join(characters), spans)

    def _needs_prefix(self, text: str, at_start: bool) -> bool:
        if not self.prefix or not text or (self.first_only and not at_start):
            return False
        return not text.startswith(tuple(self.prefix_if))

    def words(self, text: str) -> Iterator[str]:
        """The pieces of a text that was changed already."""
        known = _all_known(text)
        one = len(self.cuts) == 1 and self.cuts[0].behavior == "Isolated"
        if known and one and len(text) < _AT_ONCE:
            expression = self.cuts[0].expression
            if compiled(expression).groups == 0:  # whole matches at once are the fastest way
                words = matches_of(expression, text)
                if sum(map(len, words)) == len(text):
                    return filter(None, words)
        return (text[start:end] for start, end in self.pieces(text))

    def pieces(self, text: str) -> Iterator[Span]:
        """Start and end of the pieces, in order, none empty."""
        return _cut(text, 0, len(text), self.cuts, _all_known(text)) if text else iter(())


def _cut(text: str, start: int, end: int, cuts: tuple[Cut, ...], known: bool) -> Iterator[Span]:
    if not cuts:
        yield start, end
        return
    for first, last in cuts[0].pieces(text[start:end], known=known):
        if len(cuts) == 1:
            yield start + first, start + last
        else:
            yield from _cut(text, start + first, start + last, cuts[1:], known)


def _byte_level(step: Step) -> PreTokenizer:
    cuts = (Cut(PATTERNS["gpt2"][0]),) if step.get("use_regex", True) else ()
    if not step.get("add_prefix_space", True):
        return PreTokenizer(cuts=cuts)
    return PreTokenizer(prefix=" ", prefix_if=" ", cuts=cuts)


def _metaspace(step: Step) -> PreTokenizer:
    mark = step.get("replacement", "▁")
    if not isinstance(mark, str) or len(mark) != 1:
        raise UserError(f"Metaspace's replacement {str(mark)[:40]!r} is not one character")
    scheme = step.get("prepend_scheme")
    if scheme is None:
        scheme = "always" if step.get("add_prefix_space", True) else "never"
    if scheme not in ("always", "first", "never"):
        raise UserError(f"Metaspace's prepend_scheme {scheme!r} can't be read")
    return PreTokenizer(
        prefix=mark if scheme != "never" else "",
        prefix_if=mark,
        first_only=scheme == "first",
        spaces_as=mark,
        cuts=(Cut(re.escape(mark), "MergedWithNext"),) if step.get("split", True) else (),
    )


def _split(step: Step) -> PreTokenizer:
    import regex

    given = step["pattern"]
    expression = str(given["Regex"] if "Regex" in given else regex.escape(given["String"]))
    behavior = step["behavior"]
    if behavior not in get_args(Behavior):
        raise UserError(f"the pre-tokenizer Split with behavior {behavior!r} can't be read")
    compiled(expression)
    return PreTokenizer(cuts=(Cut(expression, behavior, bool(step.get("invert"))),))


def _only(*cuts: Cut) -> Callable[[Step], PreTokenizer]:
    return lambda step: PreTokenizer(cuts=cuts)


_WORDS = (Cut(_WHITE, "Removed"),)


def _digits(step: Step) -> PreTokenizer:
    one = bool(step.get("individual_digits"))
    return PreTokenizer(cuts=(Cut(r"\p{N}" if one else r"\p{N}+"),))


def _punctuation(step: Step) -> PreTokenizer:
    return PreTokenizer(
        cuts=(Cut(character_class("punctuation"), step.get("behavior", "Isolated")),)
    )


def _bert(step: Step) -> PreTokenizer:
    return PreTokenizer(cuts=(Cut(_WHITE, "Removed"), Cut(character_class("punctuation"))))


@functools.cache
def _white() -> re.Pattern[str]:
    return re.compile(_WHITE + "+")


def _sequence(step: Step) -> PreTokenizer:
    parts = [build(inner) for inner in step["pretokenizers"]]
    words = len(parts) > 1 and parts[0].cuts == _WORDS and parts[1]
    if words and words.spaces_as and words.prefix and words.cuts and not words.first_only:
        parts[:2] = [dataclasses.replace(words, spaces_as="", each_word=True)]  # XLM-R's
    changing = [part for part in parts if part.prefix or part.spaces_as]
    if len(changing) > 1 or (
        changing and any(part.cuts for part in parts[: parts.index(changing[0])])
    ):
        raise UserError("pre-tokenizers that change text after it was cut can't be read")
    first = changing[0] if changing else PreTokenizer()
    return dataclasses.replace(first, cuts=tuple(cut for part in parts for cut in part.cuts))


PRE_TOKENIZERS: dict[str, Callable[[Step], PreTokenizer]] = {
    "BertPreTokenizer": _bert,
    "ByteLevel": _byte_level,
    "CharDelimiterSplit": lambda step: PreTokenizer(
        cuts=(Cut(re.escape(str(step["delimiter"])), "Removed"),)
    ),
    "Digits": _digits,
    "Metaspace": _metaspace,
    "Punctuation": _punctuation,
    "Sequence": _sequence,
    "Split": _split,
    "Whitespace": _only(Cut(r"\w+|[^\w\s]+", "Removed", True)),
    "WhitespaceSplit": _only(*_WORDS),
}


def build(step: Step | None) -> PreTokenizer:
    """The pre-tokenizer of a step. Raises: UserError for one that is not known."""
    if step is None:
        return PreTokenizer()
    kind = str(step["type"])
    if kind not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"the pre-tokenizer {kind!r} can't be read; known: {known}")
    return PRE_TOKENIZERS[kind](step)


def byte_level_step(expressions: tuple[str, ...]) -> Step:
    """The step of a byte-level tokenizer that cuts at the given expressions."""
    splits = [
        {"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False}
        for e in expressions
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, BYTE_LEVEL]}


# Maps bytes and does nothing else; also the decoder.
BYTE_LEVEL: Step = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
