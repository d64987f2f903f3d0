"""Bits per byte: how many bits a model needs for a byte of text it has not seen.

Log-probabilities of tokens can't be compared between tokenizers; divided by the bytes of the text
they can. Lower is better; 8 is what a file needs that nobody understands.

Documents: all tokens of the text, the first given the separator that stands before a document in
training. Answers: only the tokens of the assistant's messages (and the token that ends each), given
the rendered conversation before them. Every model is given the same text from the same start. The
token that ends a document is not counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.inference.logprobs import LogprobFn

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What each text cost, as columns of length N; the same texts give the same order."""

    bits: np.ndarray  # (N,) float64
    num_bytes: np.ndarray  # (N,) int64, of the UTF-8 text that was scored
    groups: np.ndarray  # (N,) str: texts of one group are alike and are resampled together

    @property
    def bits_per_byte(self) -> float:
        """The corpus figure: all bits over all bytes."""
        return float(self.bits.sum() / self.num_bytes.sum())


def score_documents(
    logprobs: LogprobFn, documents: Iterable[Document], tokenizer: Tokenizer
) -> Scores:
    """Bits of each document's text after a document separator. Empty documents are left out.

    Raises: UserError when no document has any text, or the tokenizer has no separator.
    """
    from lmworks.training.tokens import document_separator

    separator = document_separator(tokenizer)
    kept = [document for document in documents if document.text]
    if not kept:
        raise UserError("no held-out document has any text, so there is nothing to measure")
    texts = [document.text for document in kept]
    sequences = [np.array([separator, *ids]) for ids in tokenizer.encode_batch(texts)]
    nats = [row.sum() for row in logprobs(sequences)]
    return Scores(
        bits=-np.array(nats) / math.log(2),
        num_bytes=np.array([num_bytes(text) for text in texts]),
        groups=np.array([document.group for document in kept], dtype=str),
    )


def score_answers(
    logprobs: LogprobFn, conversations: Iterable[Mapping[str, Any]], tokenizer: Tokenizer
) -> Scores:
    """Bits of the assistant's messages of each conversation, given what comes before them.

    Args:
        conversations: dataset rows with `messages`, and `document` (the group) or `id`.
    Answers that the chat template rewrites once others follow are given, not scored.

    Raises: UserError when there is no answer, or the chat template hides it.
    """
    from lmworks.training.answer_masks import mask_answers

    sequences, masks, sizes, groups = [], [], [], []
    for number, row in enumerate(conversations, start=1):
        name = str(row.get("id", f"conversation {number}"))
        messages = row["messages"]
        if not any(m.get("content") for m in messages if m["role"] == "assistant"):
            continue
        masked = mask_answers(tokenizer, messages, tools=row.get("tools"), where=name)
        sequences.append(masked.ids)
        masks.append(masked.is_target[1:])
        sizes.append(sum(num_bytes(str(messages[i].get("content"))) for i in masked.learnt))
        groups.append(str(row.get("document") or name))
    if not sequences:
        raise UserError("no held-out question has an answer, so there is nothing to measure")
    nats = [row[mask].sum() for row, mask in zip(logprobs(sequences), masks)]
    return Scores(
        bits=-np.array(nats) / math.log(2),
        num_bytes=np.array(sizes),
        groups=np.array(groups, dtype=str),
    )


def num_bytes(text: str) -> int:
    """Bytes of the text as UTF-8; a lone surrogate counts 3, like the U+FFFD it is read as."""
    return len(text.encode("utf-8", "surrogatepass"))
