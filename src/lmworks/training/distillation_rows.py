"""What a student reads: conversations or windows of text, with the teacher's likeliest tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core import processes
from lmworks.core.errors import UserError
from lmworks.core.files import atomic_save
from lmworks.core.progress import track
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.preferences.batches import EncodedAnswer, collate
from lmworks.training.row_order import RowOrder

if TYPE_CHECKING:
    from lmworks.inference.local import LocalChat
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.objectives.distillation import TaughtBatch

_SCORED_ROWS = 8
_ASKED_AT_ONCE = 8


class TokenRows:
    """Batches of rows of tokens, those that do not fit left out and counted.

    Args:
        length: most tokens that the model may be given.
    Raises: UserError where nothing fits.
    """

    def __init__(
        self,
        rows: Sequence[EncodedAnswer],
        *,
        length: int,
        padding: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.rows = [row for row in rows if len(row.ids) <= length + 1]
        self.num_too_long = len(rows) - len(self.rows)
        if rows and not self.rows:
            raise UserError(f"none of the {len(rows)} rows fits into the model's {length} tokens")
        self._padding = padding
        lengths = [len(row.ids) for row in self.rows]
        self.order = RowOrder(lengths, batch_size=batch_size, seed=seed)
        # Where a row's tokens lie in the teacher's tables.
        targets = [int(row.counted[1:].sum()) for row in self.rows]
        self._starts = np.concatenate([[0], np.cumsum(targets)]).astype(np.int64)
        self._top: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, step: int) -> Batch | TaughtBatch:
        """Batch number `step`, counted from 0, through all epochs."""
        return self.collate(self.order(step))

    def collate(self, rows: Sequence[int] | np.ndarray) -> Batch | TaughtBatch:
        """The rows of these numbers, with the teacher's likeliest tokens where they are stored."""
        batch = collate([self.rows[i] for i in rows], self._padding)
        return batch if self._top is None else self._taught(batch, rows)

    def _taught(self, batch: Batch, rows: Sequence[int] | np.ndarray) -> TaughtBatch:
        import torch

        from lmworks.training.objectives.distillation import TaughtBatch

        assert self._top is not None
        counted = (batch.labels != IGNORED).numpy()
        where = [slice(self._starts[i], self._starts[i + 1]) for i in rows]
        tables = []
        for table in self._top:
            kind = np.int64 if table.dtype.kind in "iu" else np.float32
            laid = np.zeros((*counted.shape, table.shape[1]), dtype=kind)
            laid[counted] = np.concatenate([table[part] for part in where])
            tables.append(torch.from_numpy(laid))
        return TaughtBatch(batch=batch, top_ids=tables[0], top_logprobs=tables[1])

    def store_top(self, teacher: Any, count: int, temperature: float, path: Path) -> int:
        """Ask the teacher once for its `count` likeliest tokens at every place; keep them on disk.

        Log-probabilities are those at the temperature.

        Returns: bytes that they take. Raises: UserError when the disk is full.
        """
        ids_path, logprobs_path = path.with_suffix(".ids.npy"), path.with_suffix(".logprobs.npy")
        with processes.main_first():
            if not logprobs_path.is_file():
                ids, logprobs = self._ask(teacher, count, temperature)
                for place, table in ((ids_path, ids), (logprobs_path, logprobs)):
                    atomic_save(place, lambda part, table=table: _save(part, table))  # type: ignore[misc]
        self._top = (np.load(ids_path, mmap_mode="r"), np.load(logprobs_path, mmap_mode="r"))
        return sum(place.stat().st_size for place in (ids_path, logprobs_path))

    def _ask(self, teacher: Any, count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        import torch

        total = int(self._starts[-1])
        small = teacher.config.vocab_size <= 1 << 16
        ids = np.zeros((total, count), dtype=np.uint16 if small else np.int32)
        logprobs = np.zeros((total, count), dtype=np.float16)
        teacher.eval()
        by_length = np.argsort([len(row.ids) for row in self.rows], kind="stable")
        with torch.no_grad(), track("asking the teacher", total=len(self.rows)) as bar:
            for first in range(0, len(by_length), _SCORED_ROWS):
                rows = by_length[first : first + _SCORED_ROWS]
                batch = collate([self.rows[i] for i in rows], self._padding)
                hidden = teacher.hidden_states(batch.input_ids)[batch.labels != IGNORED]
                logits = teacher.logits(hidden).float() / temperature
                top = logits.log_softmax(-1).topk(count, dim=-1)
                at = 0
                for row in rows:
                    start, end = self._starts[row], self._starts[row + 1]
                    found = slice(at, at + end - start)
                    ids[start:end] = top.indices[found].numpy()
                    logprobs[start:end] = top.values[found].numpy()
                    at += end - start
                bar.advance(len(rows))
        return ids, logprobs


def _save(part: Path, table: np.ndarray) -> None:
    with open(part, "wb") as file:
        np.save(file, table)


def windows(tokens: np.ndarray, length: int) -> list[EncodedAnswer]:
    """A stream of tokens in windows of `length` inputs, each token asked for once.

    Raises: UserError for a stream that is shorter than one.
    """
    count = (len(tokens) - 1) // length
    if not count:
        raise UserError(f"the corpus has {len(tokens)} tokens, fewer than one window of {length}")
    everything = np.ones(length + 1, dtype=bool)
    return [
        EncodedAnswer(
            ids=np.asarray(tokens[i * length : i * length + length + 1]), counted=everything
        )
        for i in range(count)
    ]


def conversation_rows(conversations: Sequence[Any], tokenizer: Tokenizer) -> list[EncodedAnswer]:
    """Conversations with what the assistant says counted."""
    from lmworks.training.conversations import encode_answers

    encoded = [
        encode_answers(tokenizer, row["messages"], str(row.get("id", "row")))
        for row in conversations
    ]
    return [EncodedAnswer(ids=ids, counted=counted) for ids, counted in encoded]


def teacher_answers(
    chat: LocalChat, conversations: Sequence[Any], path: Path, *, max_tokens: int, seed: int
) -> list[dict[str, Any]]:
    """The last answer of each conversation, said by the teacher (greedily) instead.

    `path` keeps the answers as they come, so that a resume asks only for the rest. Conversations
    that leave the teacher no room, or that it answers with nothing, are left out.

    Source: Kim & Rush 2016, arXiv 1606.07947, section 3.2 (sequence-level distillation).
    """
    from lmworks.inference.many import answers_to

    done = _whole_lines(path)
    with (
        open(path, "w", encoding="utf-8") as file,
        track("the teacher answers", total=len(conversations)) as bar,
    ):
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in done)
        bar.advance(len(done))
        for first in range(len(done), len(conversations), _ASKED_AT_ONCE):
            part = conversations[first : first + _ASKED_AT_ONCE]
            prompts = [prompt_of(row) for row in part]
            said = answers_to(chat, prompts, temperature=0.0, max_tokens=max_tokens, seed=seed)
            for row, text in zip(part, said):
                answer = {"role": "assistant", "content": text or ""}
                made = {"id": str(row.get("id", "row")), "messages": [*prompt_of(row), answer]}
                file.write(json.dumps(made, ensure_ascii=False) + "\n")
                done.append(made)
            file.flush()
            bar.advance(len(part))
    return [row for row in done if row["messages"][-1]["content"].strip()]


def kept_answers(path: Path) -> list[dict[str, Any]]:
    """What `teacher_answers` left in `path` when it had them all."""
    return [row for row in _whole_lines(path) if row["messages"][-1]["content"].strip()]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """What an earlier run wrote, without a line that it did not finish."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def prompt_of(row: Any) -> list[Any]:
    """The messages before the last answer."""
    messages = row["messages"]
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return list(messages[:last])


def unanswered(rows: Iterator[Any]) -> list[Any]:
    """Conversations whose last answer answers something."""
    return [row for row in rows if prompt_of(row)]
