"""Span corruption: short spans are taken out of a text and told one behind the other.

Each span leaves one sentinel in the text; the answer is every sentinel followed by what it stands
for. All rows of a length have as many spans and as many tokens taken out, so nothing is padded:
how long the spans are, and how far apart, is drawn.

An encoder-decoder reads the text and tells the answer. A decoder gets both as one row, the text
read both ways, and is asked for the answer alone (UL2); the window is then shorter, so that the row
fits its context. Separators between documents may be taken out like any token, which is how the
answer comes to say where a document ends; documents that may not know of each other are refused.

Source: Raffel et al. 2020 (T5), arXiv 1910.10683, section 3.1.4 and the code it was released with;
on a decoder: Tay et al. 2022 (UL2), arXiv 2205.05131, section 3.1.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.models.config.base import VISIBLE
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.objectives.causal import token_cross_entropy
from lmworks.training.objectives.prefix import prefix_visible
from lmworks.training.objectives.text import (
    Architecture,
    PlainText,
    TokenFacts,
    check_share,
    tensors,
)

if TYPE_CHECKING:
    import torch

    from lmworks.models.model import Model
    from lmworks.training.objectives.base import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceBatch(Batch):
    """What a decoder is asked about a text that an encoder reads.

    Attributes:
        source_ids: (B, S) int64, for the encoder; input_ids and labels are the decoder's.
    """

    source_ids: torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(PlainText):
    """Spans of a text from the rest of it."""

    share: float = option(0.15, help="of the tokens, those that are taken out")
    mean_span: float = option(3.0, help="tokens of a span, on average")
    decoder: bool = option(False, help="text and answer as one row, for a decoder")
    both_ways: bool = option(True, help="whether a decoder reads the text both ways")

    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder-decoder", "decoder")

    def __post_init__(self) -> None:
        check_share(self.share, most=0.9)
        if self.mean_span < 1:
            raise UserError(f"mean_span = {self.mean_span}: a span has one token at least")

    @property
    def told(self) -> frozenset[str]:  # type: ignore[override]
        """A decoder that reads both ways is told what it may look at."""
        return frozenset({VISIBLE}) if self.decoder and self.both_ways else frozenset()

    def for_architecture(self, architecture: Architecture) -> SpanCorruption:
        """One row for a decoder, two sides for an encoder-decoder."""
        return dataclasses.replace(self, decoder=architecture == "decoder")

    def num_sentinels(self, context_length: int) -> int:
        """One for each span."""
        return self.counts(self.text_length(context_length))[1]

    def counts(self, length: int) -> tuple[int, int]:
        """How many tokens of a text are taken out, in how many spans."""
        taken = min(max(round(length * self.share), 1), length - 1)
        spans = min(max(round(taken / self.mean_span), 1), taken, length - taken)
        return taken, spans

    def text_length(self, context_length: int) -> int:
        """Tokens of a window that are used: for a decoder text and answer fit its context."""
        length = context_length
        while self.decoder and length > 2 and self._row_length(length) > context_length:
            length -= 1
        if length < 2:
            raise UserError(f"context_length = {context_length}: too short to take spans out")
        return length

    def _row_length(self, length: int) -> int:
        return length + 2 * self.counts(length)[1]

    def corrupt(self, windows: np.ndarray, random: np.random.Generator, facts: TokenFacts) -> Batch:
        """See the module. Raises: UserError for documents that are apart."""
        if facts.apart:
            raise UserError("span corruption takes spans out across documents: use packing=stream")
        text = windows[:, : self.text_length(windows.shape[1] - 1)]
        _, spans = self.counts(text.shape[1])
        if len(facts.sentinels) < spans:
            raise UserError(
                f"{spans} spans need as many sentinels, the tokenizer has {len(facts.sentinels)}"
            )
        taken = self.drawn_spans(text.shape, random)
        sentinels = np.array(facts.sentinels[:spans])
        end = np.full((len(text), 1), facts.separator)
        source = collapse(text, taken, sentinels)
        answer = np.concatenate([collapse(text, ~taken, sentinels), end], axis=1)
        return self._one_row(source, answer) if self.decoder else _two_sides(source, answer, end)

    def drawn_spans(self, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        """(B, T) bool: text and spans in turn, text first and a span last."""
        rows, length = shape
        taken, spans = self.counts(length)
        mask = np.zeros(shape, dtype=bool)
        for row in range(rows):
            kept, gone = (_cut(total, spans, random) for total in (length - taken, taken))
            sizes = np.stack([kept, gone], axis=1).flatten()
            mask[row] = np.repeat(np.arange(2 * spans) % 2 == 1, sizes)
        return mask

    def _one_row(self, source: np.ndarray, answer: np.ndarray) -> Batch:
        row = np.concatenate([source, answer], axis=1)
        ids, labels = row[:, :-1], row[:, 1:].copy()
        labels[:, : source.shape[1] - 1] = IGNORED
        inputs = {}
        if self.both_ways:
            ends = np.full(len(ids), source.shape[1])
            inputs = tensors(visible=prefix_visible(ends, ids.shape[1]))
        return Batch(**tensors(input_ids=ids, labels=labels), inputs=inputs)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        """Mean cross-entropy of the answer; in evaluation its accuracy."""
        inputs = dict(batch.inputs)
        if isinstance(batch, SourceBatch):
            inputs["encoded"] = model.encode(batch.source_ids)
        hidden = model.hidden_states(batch.input_ids, **inputs)
        return token_cross_entropy(model, hidden, batch.labels, accuracy=not model.training)


def _two_sides(source: np.ndarray, answer: np.ndarray, end: np.ndarray) -> SourceBatch:
    """The decoder begins with the separator, and the source ends in it, as the answer does."""
    return SourceBatch(
        **tensors(
            source_ids=np.concatenate([source, end], axis=1),
            input_ids=np.concatenate([end, answer[:, :-1]], axis=1),
            labels=answer,
        )
    )


def collapse(ids: np.ndarray, taken: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Ids (B, T) with one sentinel, in their order, for each run of `taken` (B, T).

    All rows must have as many runs as there are sentinels, and as many tokens taken.
    """
    begins = taken & ~np.concatenate([np.zeros((len(ids), 1), bool), taken[:, :-1]], axis=1)
    number = np.cumsum(begins, axis=1) - 1
    filled = np.where(begins, sentinels[number.clip(min=0)], ids)
    return filled[~taken | begins].reshape(len(ids), -1)


def _cut(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """(parts,) sizes above 0 that sum to `total`, every such cut as likely as any other."""
    borders = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(borders, prepend=0, append=total)
