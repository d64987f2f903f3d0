"""One figure per held-out row, lower is better, whatever kind of row it is.

Answers and documents: bits per byte. Pairs: bits per byte of the answer that is liked, less those
of the other. Votes: bits per byte of a liked answer, and less than nothing for a disliked one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.evaluation.scores import Scores
from lmworks.training.continual.tasks import Kind, group_of

if TYPE_CHECKING:
    from lmworks.inference.logprobs import LogprobFn
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer

Rows = Sequence[Mapping[str, Any]]


def measure(model: Model, tokenizer: Tokenizer, kind: Kind, rows: Rows) -> Scores:
    """What each row costs a model. Raises: UserError where there is nothing to score."""
    from lmworks.inference.logprobs import decoder_logprobs

    logprobs = decoder_logprobs(model)
    if kind == "documents":
        return _documents(logprobs, tokenizer, rows)
    if kind == "answers":
        return _answers(logprobs, tokenizer, rows)
    return _preferences(logprobs, tokenizer, kind, rows)


def _documents(logprobs: LogprobFn, tokenizer: Tokenizer, rows: Rows) -> Scores:
    from lmworks.data.documents import Document
    from lmworks.evaluation.scores import score_documents

    documents = [
        Document(id=str(n), group=group_of(row), source="", title="", text=row["text"])
        for n, row in enumerate(rows)
    ]
    return score_documents(logprobs, documents, tokenizer)


def _answers(logprobs: LogprobFn, tokenizer: Tokenizer, rows: Rows) -> Scores:
    from lmworks.evaluation.scores import score_answers

    return score_answers(logprobs, [{**row, "document": group_of(row)} for row in rows], tokenizer)


def _preferences(logprobs: LogprobFn, tokenizer: Tokenizer, kind: Kind, rows: Rows) -> Scores:
    """Every answer is scored by itself, as a conversation that ends with it."""
    from lmworks.training.continual.rows import messages_of

    conversations, signs, owners = [], [], []
    for number, row in enumerate(rows):
        if kind == "pairs":
            sides = [(1, row), (-1, {**row, "chosen": row["rejected"]})]
        else:
            sides = [(1 if row["label"] else -1, {**row, "label": True})]
        for sign, side in sides:
            messages = messages_of(side)
            if not messages:
                raise UserError(f"held-out row {number + 1}: has no answer to score")
            conversations.append(messages)
            signs.append(sign)
            owners.append(number)
    scores = _scored_alone(logprobs, tokenizer, conversations)
    bits = np.zeros(len(rows))
    np.add.at(bits, owners, np.array(signs) * scores)
    return Scores(
        bits=bits,
        num_bytes=np.ones(len(rows), dtype=np.int64),
        groups=np.array([group_of(row) for row in rows], dtype=str),
    )


def _scored_alone(
    logprobs: LogprobFn, tokenizer: Tokenizer, conversations: Sequence[list[Any]]
) -> np.ndarray:
    """Bits per byte of the last answer of each conversation."""
    from lmworks.evaluation.scores import num_bytes
    from lmworks.training.answer_masks import mask_answers
    from lmworks.training.mask_config import MaskConfig

    config = MaskConfig(loss_on="last")
    masked = [
        mask_answers(tokenizer, messages, config=config, where=f"row {n}")
        for n, messages in enumerate(conversations, 1)
    ]
    sizes = np.array([num_bytes(str(messages[-1]["content"])) for messages in conversations])
    found = logprobs([one.ids for one in masked])
    nats = np.array([row[one.is_target[1:]].sum() for row, one in zip(found, masked)])
    bits: np.ndarray = -nats / np.log(2) / sizes
    return bits
