"""Texts that belong together, and batches of them for an encoder.

Rows are `anchor`, `positive` and perhaps `negative` (one text or a list), as sentence-transformers
has them; `query` and `question` are other names for the anchor. A row with `messages` is a question
and its answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.training.batches import Rows, Texts
from lmworks.training.preferences.reward_batches import padded
from lmworks.training.preferences.rows import BadRow
from lmworks.training.row_order import RowOrder

if TYPE_CHECKING:
    import torch

    from lmworks.tokenizers.tokenizer import PipelineTokenizer

_ANCHORS = ("anchor", "query", "question")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Triple:
    """A text, one that belongs to it, and some that do not."""

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    where: str
    group: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingBatch(Rows):
    """Texts that belong together; targets are rows.

    Attributes:
        negatives: by number, B texts each.
        text_keys: (B, 1 + negatives) what stands for a positive's or negative's text: equal where
            the texts are.
    """

    anchors: Texts
    positives: Texts
    text_keys: torch.Tensor
    negatives: Mapping[str, Texts] = dataclasses.field(default_factory=dict)

    @property
    def num_targets(self) -> int:
        """Rows."""
        return self.num_rows


def as_triple(where: str, row: Mapping[str, Any]) -> Triple:
    """A row as texts. Raises: BadRow for a missing or empty field."""
    if "messages" in row:
        row = _of_messages(where, row)
    name = next((name for name in _ANCHORS if name in row), "anchor")
    anchor, positive = _text(where, row, name), _text(where, row, "positive")
    given = row.get("negative", row.get("negatives"))
    negatives = [] if given is None else given if isinstance(given, list) else [given]
    for index, negative in enumerate(negatives):
        if not isinstance(negative, str) or not negative.strip():
            raise BadRow(f"{where}: negative {index} is empty or no text")
        if negative == positive:
            raise BadRow(f"{where}: 'positive' and 'negative' are the same")
    named = row.get("document")
    return Triple(
        anchor=anchor,
        positive=positive,
        negatives=tuple(negatives),
        where=where,
        group=named if isinstance(named, str) and named else positive,
    )


def _text(where: str, row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise BadRow(f"{where}: the field {field!r} must be a text")
    if not value.strip():
        raise BadRow(f"{where}: {field!r} is empty")
    return value


def _of_messages(where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A conversation as its first question and answer."""
    messages = row["messages"]
    said = {
        role: next(
            (m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == role),
            None,
        )
        for role in ("user", "assistant")
        if isinstance(messages, list)
    }
    found = {"anchor": said.get("user"), "positive": said.get("assistant")}
    return found | ({"document": row["document"]} if "document" in row else {})


class Triples:
    """Training batches of texts; longer ones than `length` tokens are cut and counted.

    All rows get as many negatives as the one with the fewest, so that a batch is a rectangle.
    """

    def __init__(
        self,
        rows: Sequence[Triple],
        tokenizer: PipelineTokenizer,
        *,
        length: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.rows, self._tokenizer, self._length = [*rows], tokenizer, length
        self.num_cut = 0
        self.num_negatives = min((len(row.negatives) for row in rows), default=0)
        self._ids: dict[str, np.ndarray] = {}
        self._keys: dict[str, int] = {}
        for row in rows:
            for text in (row.anchor, *self._choices(row)):
                self._encode(text)
        lengths = [
            max(len(self._ids[text]) for text in (row.anchor, *self._choices(row))) for row in rows
        ]
        # Batches keep no order by length alone: wrong answers should not be told by their length.
        self.order = RowOrder(
            [0] * len(lengths) if self.num_negatives == 0 else lengths,
            batch_size=batch_size,
            seed=seed,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, step: int) -> EmbeddingBatch:
        """Batch number `step`, counted from 0, through all epochs."""
        return self.collate(self.order(step))

    def collate(self, numbers: Sequence[int] | np.ndarray) -> EmbeddingBatch:
        """The rows of these numbers."""
        import torch

        rows = [self.rows[i] for i in numbers]
        choices = [self._choices(row) for row in rows]
        keys = [[self._keys[text] for text in texts] for texts in choices]
        return EmbeddingBatch(
            anchors=self.texts([row.anchor for row in rows]),
            positives=self.texts([texts[0] for texts in choices]),
            negatives={
                str(number): self.texts([texts[number + 1] for texts in choices])
                for number in range(self.num_negatives)
            },
            text_keys=torch.tensor(keys),
        )

    def texts(self, texts: Sequence[str]) -> Texts:
        """Texts side by side, padded."""
        padding = self._tokenizer.pad_token_id or 0
        return padded([self._encode(text) for text in texts], padding)

    def _choices(self, row: Triple) -> tuple[str, ...]:
        return (row.positive, *row.negatives[: self.num_negatives])

    def _encode(self, text: str) -> np.ndarray:
        if text not in self._ids:
            encoding = self._tokenizer.encoding(text, allow_special=False, max_length=self._length)
            self.num_cut += bool(encoding.overflowing)
            self._ids[text] = np.array(encoding.ids, dtype=np.int64)
            self._keys[text] = len(self._keys)
        return self._ids[text]
