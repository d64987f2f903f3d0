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
    overflowing: list[Encoding] = dataclasses.field(default_factory=list)  # what was cut off

    @classmethod
    def of(cls, ids: list[int], offsets: list[Span], tokens: list[str]) -> Encoding:
        """Ordinary tokens of one text."""
        size = len(ids)
        return cls(ids, offsets, [0] * size, tokens, [0] * size, [1] * size)

    @classmethod
    def special(cls, token_id: int, token: str, type_id: int = 0) -> Encoding:
        """One token that stands for no text."""
        return cls([token_id], [(0, 0)], [type_id], [token], [1], [1])

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
        )

    def padded(self, length: int, pad_id: int, pad_token: str, *, side: str = "right") -> Encoding:
        """Filled up to `length` tokens; as it is when it has as many."""
        more = length - len(self)
        if more <= 0:
            return self
        fill = Encoding(
            [pad_id] * more, [(0, 0)] * more, [0] * more, [pad_token] * more, [1] * more, [0] * more
        )
        whole = self.joined(fill) if side == "right" else fill.joined(self)
        whole.overflowing = [
            part.padded(length, pad_id, pad_token, side=side) for part in self.overflowing
        ]
        return whole

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
