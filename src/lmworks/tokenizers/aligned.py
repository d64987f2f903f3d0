"""Text that remembers, character by character, which part of the original it came from.

Normalizers and pre-tokenizers change text; offsets must still point into what the caller gave.
A change is told as characters with a number each, as Hugging Face tokenizers counts: 0 replaces the
next character, 1 is put in beside it, -n replaces one and swallows the n that follow.
"""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[int, int]
Change = tuple[str, int]


class AlignedText:
    """`text` and, per character, the span of the original that it stands for."""

    __slots__ = ("_spans", "text")

    def __init__(self, text: str, spans: list[Span] | None = None) -> None:
        self.text = text
        self._spans = spans  # None: every character is itself

    @property
    def spans(self) -> list[Span]:
        if self._spans is None:
            self._spans = [(i, i + 1) for i in range(len(self.text))]
        return self._spans

    def cut(self, start: int, end: int) -> AlignedText:
        """The part from `start` to `end`."""
        return AlignedText(self.text[start:end], self.spans[start:end])

    def span(self, start: int, end: int) -> Span:
        """Where the characters from `start` to `end` come from."""
        spans = self.spans
        return (spans[start][0], spans[end - 1][1]) if end > start else (0, 0)

    def changed(self, changes: Iterable[Change], skipped: int = 0) -> AlignedText:
        """The text after `changes`, the first `skipped` characters gone."""
        spans, at = self.spans, skipped
        characters: list[str] = []
        aligned: list[Span] = []
        for character, change in changes:
            if change > 0:
                aligned.append(spans[at - 1] if at else (0, 0))
            else:
                aligned.append(spans[at])
                at += 1 - change
            characters.append(character)
        return AlignedText("".join(characters), aligned)

    def prepend(self, text: str) -> AlignedText:
        """`text` before the first character, as part of that character."""
        if not self.text:
            return self
        return AlignedText(text + self.text, [self.spans[0]] * len(text) + self.spans)

    def replace(self, matches: Iterable[Span], content: str) -> AlignedText:
        """Each match replaced; what comes in stands for the last character that went."""
        out: list[str] = []
        aligned: list[Span] = []
        at = 0
        for start, end in matches:
            out.append(self.text[at:start])
            aligned += self.spans[at:start]
            out.append(content)
            aligned += [self.spans[end - 1] if end else (0, 0)] * len(content)
            at = end
        out.append(self.text[at:])
        aligned += self.spans[at:]
        return AlignedText("".join(out), aligned)

    def kept(self, keep: list[bool]) -> AlignedText:
        """Only the characters marked True."""
        spans = self.spans
        text = "".join(c for c, k in zip(self.text, keep) if k)
        return AlignedText(text, [s for s, k in zip(spans, keep) if k])
