"""Batches of conversations and of documents in one order, for tasks and for rows kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.training.conversations import Conversations

if TYPE_CHECKING:
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.mask_config import MaskConfig


class LearningRows(Conversations):
    """`Conversations` that takes rows with a `text` too: documents, of which every token is learnt.

    A document that is longer than a row becomes several rows; what is left behind the last whole
    one is a row of its own. Rows of preferences count with the answer that is liked, if there is
    one.
    """

    def _add(
        self, row: Mapping[str, Any], tokenizer: Tokenizer, masks: MaskConfig, number: int
    ) -> None:
        messages = messages_of(row)
        if messages is not None:
            super()._add({**row, "messages": messages}, tokenizer, masks, number)
            return
        if "text" not in row or not row["text"].strip():
            return
        from lmworks.training.tokens import document_separator

        ids = np.array(
            [document_separator(tokenizer), *tokenizer.encode(row["text"])], dtype=np.int32
        )
        for start in range(0, len(ids) - 1, self._length):
            piece = ids[start : start + self._length + 1]
            if len(piece) > 1:
                self._rows.append((piece, np.ones(len(piece), dtype=bool)))


def messages_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The conversation that a row holds up as good; None for a document or a disliked answer."""
    if "messages" in row:
        return list(row["messages"])
    if "chosen" in row:
        return _joined(row.get("prompt"), row["chosen"])
    if row.get("label") and "completion" in row:
        return _joined(row.get("prompt"), row["completion"])
    return None


def _joined(prompt: Any, answer: Any) -> list[Any]:
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    return [*before, *after]
