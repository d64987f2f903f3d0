"""One encoded text with everything a model or a person may ask of it; truncation and padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lmworks.core.errors import UserError
from lmworks.tokenizers.aligned import Span


@dataclasses.dataclass
class Encoding:
    """Parallel lists, one entry per token; names as in Hugging Face tokenizers."""

    ids: list[int]
    offsets: list[Span]  # characters of the text that was given; (0, 0) for added special tokens
    type_ids: list[int]  # 0 for the first text, 1 for the second
    tokens: list[str]  # as files write them
    special_tokens_mask: list[int]
    attention_mask: list[int]  # 0 for padding
    word_ids: list[int | None]  # which piece of its text a token is in; None for added ones
    sequence_ids: list[int | None]  # 0 for the first text, 1 for the second; None for added ones
    overflowing: list[Encoding] = dataclasses.field(default_factory=list)  # what was cut off

    @classmethod
    def of(
        cls,
        ids: list[int],
        offsets: list[Span],
        tokens: list[str],
        *,
        words: list[int] | None = None,
        sequence: int = 0,
    ) -> Encoding:
        """Ordinary tokens of one text; without `words`, all are in one."""
        size = len(ids)
        return cls(
            *(ids, offsets, [0] * size, tokens, [0] * size, [1] * size),
            word_ids=[0] * size if words is None else [*words],
            sequence_ids=[sequence] * size,
        )

    @classmethod
    def special(cls, token_id: int, token: str, type_id: int = 0) -> Encoding:
        """One token that stands for no text."""
        return cls([token_id], [(0, 0)], [type_id], [token], [1], [1], [None], [None])

    def __len__(self) -> int:
        return len(self.ids)

    def with_type(self, type_id: int) -> Encoding:
        """The same tokens as part of the first or second text."""
        return dataclasses.replace(self, type_ids=[type_id] * len(self))

    def cut(self, start: int, end: int) -> Encoding:
        """The tokens from `start` to `end`."""
        return Encoding(*(part[start:end] for part in self._lists()))

    def joined(self, other: Encoding) -> Encoding:
        """The tokens of both."""
        return Encoding(*(a + b for a, b in zip(self._lists(), other._lists())))

    def _lists(self) -> tuple[list, ...]:  # type: ignore[type-arg]
        return (
            *(self.ids, self.offsets, self.type_ids),
            *(self.tokens, self.special_tokens_mask, self.attention_mask),
            *(self.word_ids, self.sequence_ids),
        )

    def padded(self, length: int, pad_id: int, pad_token: str, *, side: str = "right") -> Encoding:
        """Filled up to `length` tokens; as it is when it has as many."""
        more = length - len(self)
        if more <= 0:
            return self
        none: list[int | None] = [None] * more
        fill = Encoding(
            *([pad_id] * more, [(0, 0)] * more, [0] * more, [pad_token] * more),
            *([1] * more, [0] * more, none, none),
        )
        whole = self.joined(fill) if side == "right" else fill.joined(self)
        whole.overflowing = [
            part.padded(length, pad_id, pad_token, side=side) for part in self.overflowing
        ]
        return whole

    def char_to_token(self, position: int, sequence: int = 0) -> int | None:
        """The first token that stands for the character at `position` of a text."""
        for token, (owner, (start, end)) in enumerate(zip(self.sequence_ids, self.offsets)):
            if owner == sequence and start <= position < end:
                return token
        return None

    def char_to_word(self, position: int, sequence: int = 0) -> int | None:
        """The piece of a text that the character at `position` is in."""
        token = self.char_to_token(position, sequence)
        return None if token is None else self.word_ids[token]

    def token_to_chars(self, token: int) -> Span | None:
        """Start and end of a token in its text; None for an added one."""
        return None if self.sequence_ids[token] is None else self.offsets[token]

    def word_to_tokens(self, word: int, sequence: int = 0) -> Span | None:
        """The first token of a piece, and the one after its last."""
        inside = [
            token
            for token, (owner, own) in enumerate(zip(self.sequence_ids, self.word_ids))
            if owner == sequence and own == word
        ]
        return (inside[0], inside[-1] + 1) if inside else None

    def word_to_chars(self, word: int, sequence: int = 0) -> Span | None:
        """Start and end of a piece in its text."""
        tokens = self.word_to_tokens(word, sequence)
        return (
            None if tokens is None else (self.offsets[tokens[0]][0], self.offsets[tokens[1] - 1][1])
        )

    def windows(self, length: int, stride: int, *, side: str = "right") -> list[Encoding]:
        """Parts of `length` tokens that share `stride` with the part before; the kept one first.

        Raises: UserError when the stride leaves no room to go on.
        """
        if len(self) <= length:
            return [self]
        if length == 0:
            return [self.cut(0, 0), self]
        if stride >= length:
            raise UserError(f"stride = {stride} must be smaller than the {length} tokens kept")
        return [self.cut(start, end) for start, end in self._windows(length, stride, side)]

    def _windows(self, length: int, stride: int, side: str) -> Iterator[Span]:
        size, step = len(self), length - stride
        if side == "right":
            for start in range(0, size, step):
                yield start, min(start + length, size)
                if start + length >= size:
                    return
        else:
            for end in range(size, 0, -step):
                yield max(0, end - length), end
                if end <= length:
                    return


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts fit, the longer one cut first (`longest_first`)."""
    if first + second <= room:
        return first, second
    short = min(first, second)
    if short > room // 2:
        half = room // 2
        return (room - half, half) if first >= second else (half, room - half)
    return (room - short, short) if first >= second else (short, room - short)
