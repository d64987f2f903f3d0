"""Conversations as batches in which only the assistant's words count.

The mask comes from the template itself: the text up to an answer is rendered with the generation
prompt, then with the answer, and what the second adds to the first is the answer. A template that
changes its past when an answer is added gives no exact mask; such a conversation is refused with
the reason rather than trained on wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.training.batches import IGNORED, Batch

if TYPE_CHECKING:
    from lmworks.tokenizers.base import Tokenizer

_POOL_BATCHES = 16  # rows are sorted by length within pools of this many batches


def read_conversations(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a dataset file. Raises: UserError naming the file, line and field at fault."""
    import json

    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not valid JSON: {error.msg}") from error
            check_messages(row.get("messages") if isinstance(row, dict) else None, where)
            yield row


def check_messages(messages: Any, where: str) -> None:
    """Raises: UserError unless `messages` is a list of roles and contents with an answer in it."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: 'messages' must be a list of messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError(f"{where}: messages[{index}] needs a text 'content'")
        if message.get("role") not in ("system", "user", "assistant"):
            raise UserError(
                f"{where}: messages[{index}] has role {message.get('role')!r}; "
                "known: system, user, assistant"
            )
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        raise UserError(f"{where}: no assistant message with text, so there is nothing to learn")


def encode_answers(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], where: str = "conversation"
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a conversation and the mask of the answers.

    Returns: ids int32 (N,), is_answer bool (N,). The token that ends an answer counts as its part.
    Raises: UserError when the template gives no exact mask.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.encode_chat(messages[:index], add_generation_prompt=True)
        whole = tokenizer.encode_chat(messages[: index + 1], add_generation_prompt=False)
        if whole[: len(prompt)] != prompt or prompt[: len(ids)] != ids:
            raise UserError(
                f"{where}: the chat template rewrites earlier text when an answer is added, "
                "so no exact loss mask exists for it"
            )
        mask += [False] * (len(prompt) - len(ids)) + [True] * (len(whole) - len(prompt))
        ids = whole
    return np.array(ids, dtype=np.int32), np.array(mask, dtype=bool)


class Conversations:
    """Training batches of whole conversations, padded to the longest row of the batch.

    Rows of similar length share a batch; the order of batches depends only on (seed, step).
    Conversations longer than `context_length` are left out and counted in `num_too_long`.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        self._batch_size, self._seed = batch_size, seed
        self._padding = tokenizer.pad_token_id or 0
        self.num_too_long = 0
        for row in rows:
            ids, mask = encode_answers(tokenizer, row["messages"], str(row.get("id", "row")))
            if len(ids) - 1 > context_length:
                self.num_too_long += 1
            else:
                self._rows.append((ids, mask))
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __call__(self, step: int) -> Batch:
        """Batch number `step`, counted from 0, through all epochs."""
        epoch, within = divmod(step, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return self.collate(self._epoch[1][within])

    def _order(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([self._seed, epoch])
        lengths = np.array([len(ids) for ids, _ in self._rows])
        order = random.permutation(len(self._rows))
        pool = self._batch_size * _POOL_BATCHES
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            batches += [
                rows[i : i + self._batch_size] for i in range(0, len(rows), self._batch_size)
            ]
        return [batches[i] for i in random.permutation(len(batches))]

    def collate(self, rows: Iterable[int]) -> Batch:
        """Pad the rows on the right; causal attention never sees the padding."""
        import torch

        picked = [self._rows[i] for i in rows]
        width = max(len(ids) for ids, _ in picked) - 1
        input_ids = np.full((len(picked), width), self._padding, dtype=np.int64)
        labels = np.full((len(picked), width), IGNORED, dtype=np.int64)
        for row, (ids, mask) in enumerate(picked):
            input_ids[row, : len(ids) - 1] = ids[:-1]
            labels[row, : len(ids) - 1] = np.where(mask[1:], ids[1:], IGNORED)
        return Batch(input_ids=torch.from_numpy(input_ids), labels=torch.from_numpy(labels))
