"""Texts, or pairs of texts, as the rows of ids that an encoder takes, each within its limit.

What a tokenizer puts around a text (`[CLS]`, `[SEP]`, an end token) is asked of it once, with a
letter; the texts then go through its fast path. The text of a special token stays text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lmworks.core.errors import UserError
from lmworks.tokenizers.encoding import shares

if TYPE_CHECKING:
    import torch

    from lmworks.tokenizers.tokenizer import PipelineTokenizer

Ids = Sequence[int]


class TextTooLong(UserError):
    """A text has more tokens than the model reads; `index` says which."""

    def __init__(self, index: int, tokens: int, limit: int) -> None:
        super().__init__(
            f"input {index} has {tokens} tokens and the model reads {limit}: shorten it, or let "
            "it be cut"
        )
        self.index, self.tokens, self.limit = index, tokens, limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One text's tokens, and for each the number of its text: 0, or 1 in the second of a pair."""

    ids: tuple[int, ...]
    types: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


class TextRows:
    """Makes rows of texts.

    Args:
        max_length: tokens of a row, those around the text counted.
        lower: read texts in lower case, as some folders ask for.
    """

    def __init__(
        self, tokenizer: PipelineTokenizer, max_length: int, *, lower: bool = False
    ) -> None:
        self.tokenizer, self.max_length, self._lower = tokenizer, max_length, lower
        self.padding_id = tokenizer.pad_token_id or 0
        self._frames = [_Frame.of(tokenizer, pair=pair) for pair in (False, True)]

    def of_texts(self, texts: Sequence[str], *, truncate: bool) -> list[Row]:
        """Rows of single texts.

        Args:
            truncate: cut what is too long instead of refusing it.
        Raises: TextTooLong.
        """
        return self._rows([[ids] for ids in self._encoded(texts)], truncate)

    def of_ids(self, inputs: Iterable[Ids], *, vocab_size: int, truncate: bool) -> list[Row]:
        """Rows of token ids that a client made; they are taken as they are, without a frame.

        Raises: TextTooLong; UserError for an id that is none, or no ids at all.
        """
        rows = []
        for index, ids in enumerate(inputs):
            if not ids:
                raise UserError(f"input {index} is empty: it needs at least one token")
            if wrong := [i for i in ids if not 0 <= i < vocab_size]:
                raise UserError(
                    f"input {index}: token id {wrong[0]} is not in the vocabulary of {vocab_size}"
                )
            if len(ids) > self.max_length and not truncate:
                raise TextTooLong(index, len(ids), self.max_length)
            kept = tuple(ids[: self.max_length])
            rows.append(Row(ids=kept, types=(0,) * len(kept)))
        return rows

    def of_pairs(self, query: str, texts: Sequence[str], *, truncate: bool) -> list[Row]:
        """Rows of `query` with each of `texts`; of one too long the longer part is cut first."""
        first = self._encoded([query])[0]
        return self._rows([[first, second] for second in self._encoded(texts)], truncate)

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        if self._lower:
            texts = [text.lower() for text in texts]
        return self.tokenizer.encode_batch(texts, allow_special=False)

    def _rows(self, inputs: Sequence[Sequence[Ids]], truncate: bool) -> list[Row]:
        rows = []
        for index, parts in enumerate(inputs):
            frame = self._frames[len(parts) - 1]
            room = self.max_length - frame.num_special
            total = sum(map(len, parts))
            if total > room:
                if not truncate:
                    raise TextTooLong(index, total + frame.num_special, self.max_length)
                rooms = (room,) if len(parts) == 1 else shares(len(parts[0]), len(parts[1]), room)
                parts = [part[:kept] for part, kept in zip(parts, rooms, strict=True)]
            row = frame.row(parts)
            if not row.ids:
                raise UserError(f"input {index} is empty: it needs at least one token")
            rows.append(row)
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Frame:
    """What stands around and between texts: (special id, type), or (number of a text, type)."""

    parts: tuple[tuple[bool, int, int], ...]  # (is special, id or number of the text, type)

    @classmethod
    def of(cls, tokenizer: PipelineTokenizer, *, pair: bool) -> _Frame:
        encoding = tokenizer.encoding("a", "a" if pair else None, allow_special=False)
        parts: list[tuple[bool, int, int]] = []
        for token_id, type_id, text in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids):
            part = (True, token_id, type_id) if text is None else (False, text, type_id)
            if text is None or part not in parts:
                parts.append(part)
        return cls(parts=tuple(parts))

    @property
    def num_special(self) -> int:
        return sum(special for special, _, _ in self.parts)

    def row(self, texts: Sequence[Ids]) -> Row:
        ids: list[int] = []
        types: list[int] = []
        for special, number, type_id in self.parts:
            new = [number] if special else texts[number]
            ids += new
            types += [type_id] * len(new)
        return Row(ids=tuple(ids), types=tuple(types))


def stacked(
    rows: Sequence[Row], padding_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows side by side, padded on the right: ids, types and mask, each (B, T) int64."""
    import numpy as np
    import torch

    length = max(map(len, rows))
    ids = np.full((len(rows), length), padding_id, dtype=np.int64)
    types, mask = np.zeros_like(ids), np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], types[number, : len(row)] = row.ids, row.types
        mask[number, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(mask)
