"""Conversations as batches in which only what the assistant said counts.

The masks come from `answer_masks`, for any chat template. A row that can't be used is refused with
its place and the reason, or left out and counted; none is ever trained on without a target.

Unpacked, rows of similar length share a batch. Packed, conversations stand behind each other in
rows of one length (best fit, Ding et al. 2024), each seen by itself: `documents` tells the model
which tokens belong together, so that the loss is that of the unpacked rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.files import read_json_lines
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.mask_config import MaskConfig

if TYPE_CHECKING:
    from lmworks.tokenizers.base import Tokenizer

_POOL_BATCHES = 16  # rows are sorted by length within pools of this many batches
_SHOWN = 5  # reasons kept
ROLES = ("system", "developer", "user", "assistant", "tool")
TOO_LONG = ("drop", "keep-start", "keep-end", "refuse")


def read_conversations(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a dataset file. Raises: UserError naming the file, line and field at fault."""
    for where, _, row in read_json_lines(path):
        check_messages(row.get("messages") if isinstance(row, dict) else None, where)
        yield {"where": where, **row}


def check_messages(messages: Any, where: str) -> None:
    """Raises: UserError unless `messages` is a list of roles and contents with an answer in it."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: 'messages' must be a list of messages")
    for index, message in enumerate(messages):
        place = f"{where}: messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(message, dict) and role not in ROLES:
            raise UserError(f"{place} has role {role!r}; known: {', '.join(ROLES)}")
        calls = isinstance(message, dict) and message.get("tool_calls")
        if not isinstance(message, dict) or (text := _text(message.get("content"))) is None:
            if not calls:
                raise UserError(f"{place} needs a text 'content'")
        elif role == "assistant" and not (text.strip() or calls or message.get("weight") == 0):
            raise UserError(f"{place} is an empty answer: it would teach to say nothing")
    if not any(m["role"] == "assistant" for m in messages):
        raise UserError(f"{where}: no assistant message, so there is nothing to learn")


def _text(content: Any) -> str | None:
    """The text of a content, which may come in parts; None for anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return None


def encode_answers(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], where: str = "conversation"
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a conversation and the mask of the answers.

    Returns: ids int32 (N,), is_answer bool (N,). The token that ends an answer counts as its part.
    Raises: UserError when nothing of it could be learnt.
    """
    from lmworks.training.answer_masks import mask_answers

    masked = mask_answers(tokenizer, messages, where=where)
    return masked.ids, masked.is_target


@dataclasses.dataclass
class Counts:
    """What became of the rows."""

    num_conversations: int = 0  # that are trained on
    num_targets: int = 0  # tokens of them that count, in one pass
    num_tokens: int = 0  # all of theirs
    num_too_long: int = 0  # left out for their length
    num_cut: int = 0  # shortened
    num_refused: int = 0  # left out because nothing of them could be learnt
    num_answers_left_out: int = 0  # earlier answers that their template rewrites
    num_straddling: int = 0  # tokens across a border of an answer, not learnt
    num_without_end: int = 0  # conversations whose answers no token ends


class Conversations:
    """Training batches of whole conversations; the order depends only on (seed, step).

    Args:
        rows: with `messages`, and perhaps `tools` (JSON schemas), as `read_conversations` gives.
        context_length: T, the most tokens a row may take.
        batch_size: B, rows per batch: conversations, or packed rows.
        packing: several conversations to a row of T tokens.
        too_long: what happens to conversations of more than T tokens: `drop`, `keep-start`,
            `keep-end` (if something to learn is left), or `refuse`.
        skip_refused: leave rows out that can't be learnt from, instead of raising.
    Attributes:
        counts: what became of the rows.
        refused: the first reasons, each with the place.
    Raises: UserError for a row that can't be learnt from, and when none is left.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        masks: MaskConfig | None = None,
        packing: bool = False,
        too_long: str = "drop",
        skip_refused: bool = False,
    ) -> None:
        if too_long not in TOO_LONG:
            raise UserError(f"too_long = {too_long!r}; known: {', '.join(TOO_LONG)}")
        self._batch_size, self._seed, self._length = batch_size, seed, context_length
        self._padding = tokenizer.pad_token_id or 0
        self._too_long, self._skip = too_long, skip_refused
        self.counts = Counts()
        self.refused: list[str] = []
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        for number, row in enumerate(rows, start=1):
            self._add(row, tokenizer, masks or MaskConfig(), number)
        self.counts.num_conversations = len(self._rows)
        self.counts.num_tokens = sum(len(ids) for ids, _ in self._rows)
        self.counts.num_targets = sum(int(mask[1:].sum()) for _, mask in self._rows)
        self._packed = packing
        self._units = self._pack() if packing else [[i] for i in range(len(self._rows))]
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def _add(
        self, row: Mapping[str, Any], tokenizer: Tokenizer, masks: MaskConfig, number: int
    ) -> None:
        from lmworks.training.answer_masks import mask_answers

        where = str(row.get("where") or row.get("id") or f"row {number}")
        try:
            masked = mask_answers(
                tokenizer, row["messages"], tools=row.get("tools"), config=masks, where=where
            )
        except UserError as error:
            if not self._skip:
                raise
            self.counts.num_refused += 1
            self.refused += [str(error)] * (len(self.refused) < _SHOWN)
            return
        ids, mask = masked.ids, masked.is_target
        if len(ids) - 1 > self._length:
            if self._too_long == "refuse":
                raise UserError(
                    f"{where}: {len(ids)} tokens, of which {self._length + 1} fit: shorten it, or "
                    "pass --too-long drop, keep-start or keep-end"
                )
            kept = self._length + 1
            cut = slice(0, kept) if self._too_long == "keep-start" else slice(-kept, None)
            ids, mask = ids[cut], mask[cut]
            if self._too_long == "drop" or not mask[1:].any():
                self.counts.num_too_long += 1
                return
            self.counts.num_cut += 1
        self.counts.num_answers_left_out += len(masked.left_out)
        self.counts.num_straddling += masked.num_straddling
        self.counts.num_without_end += not masked.ends
        self._rows.append((ids, mask))

    def _pack(self) -> list[list[int]]:
        """Which conversations share a row; longest first, each where it fills a row best."""
        from lmworks.tokenizers.packing import pack

        lengths = [len(ids) - 1 for ids, _ in self._rows]
        return [[piece.document for piece in row] for row in pack(lengths, self._length).sequences]

    def remarks(self) -> list[str]:
        """What a person should know of the rows before they are trained on."""
        counts = self.counts
        told = [
            (counts.num_too_long, f"conversations longer than {self._length} tokens are left out"),
            (counts.num_cut, f"conversations are cut to {self._length} tokens"),
            (counts.num_refused, f"conversations are left out: {'; '.join(self.refused)}"),
            (
                counts.num_answers_left_out,
                "earlier answers are read and not learnt, since the chat template rewrites them "
                "once others follow",
            ),
            (
                counts.num_straddling,
                "tokens lie across the border of an answer and are not learnt",
            ),
            (
                counts.num_without_end,
                "conversations whose answers no token ends: the model will not learn to stop",
            ),
        ]
        return [f"{count:,} {what}" for count, what in told if count]

    def __len__(self) -> int:
        """Conversations that are trained on."""
        return len(self._rows)

    @property
    def num_rows(self) -> int:
        """Rows of batches that hold all conversations once."""
        return len(self._units)

    @property
    def num_too_long(self) -> int:
        return self.counts.num_too_long

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self._units) // self._batch_size)

    def fingerprint(self) -> str:
        """A hash of all tokens and masks, in order."""
        digest = hashlib.sha256()
        for ids, mask in self._rows:
            digest.update(np.int64(len(ids)).tobytes() + ids.tobytes() + mask.tobytes())
        return digest.hexdigest()

    def __call__(self, step: int) -> Batch:
        """Batch number `step`, counted from 0, through all epochs."""
        epoch, within = divmod(step, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return self._batch([self._units[i] for i in self._epoch[1][within]])

    def _order(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._units))
        size = self._batch_size
        if self._packed:
            return [order[i : i + size] for i in range(0, len(order), size)]
        lengths = np.array([len(ids) for ids, _ in self._rows])
        batches: list[np.ndarray] = []
        for start in range(0, len(order), size * _POOL_BATCHES):
            rows = order[start : start + size * _POOL_BATCHES]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            batches += [rows[i : i + size] for i in range(0, len(rows), size)]
        return [batches[i] for i in random.permutation(len(batches))]

    def collate(self, rows: Iterable[int]) -> Batch:
        """These conversations, one to a row, padded on the right: attention never sees that."""
        return self._batch([[row] for row in rows])

    def _batch(self, units: Sequence[Sequence[int]]) -> Batch:
        import torch

        sizes = [sum(len(self._rows[i][0]) - 1 for i in unit) for unit in units]
        shape = (len(units), max(sizes))
        input_ids = np.full(shape, self._padding, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int64)  # 0: padding
        for row, unit in enumerate(units):
            at = 0
            for number, index in enumerate(unit, start=1):
                ids, mask = self._rows[index]
                stop = at + len(ids) - 1
                input_ids[row, at:stop] = ids[:-1]
                labels[row, at:stop] = np.where(mask[1:], ids[1:], IGNORED)
                documents[row, at:stop] = number
                at = stop
        packed = any(len(unit) > 1 for unit in units)
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            inputs={"documents": torch.from_numpy(documents)} if packed else {},
        )
