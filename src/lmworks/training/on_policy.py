"""On-policy distillation: in a share of the steps the student reads what it said itself.

A student that only ever reads others' text meets its own mistakes first when it is used. Here it
goes on with the beginnings of a batch's rows, as it is at that step, and the teacher says at each
of its tokens what should have come. Its own words are no label: only the divergence counts.

Source: Agarwal et al. 2023 (GKD), arXiv 2306.13649, algorithm 1; `share` is their lambda. No
    gradient goes through the drawing of tokens, as there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.training.batches import Rows
from lmworks.training.preferences.batches import EncodedAnswer, collate

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.byte_rows import ByteRows, Reader
    from lmworks.training.distillation_rows import TokenRows

STUDENT = "student"  # the `source` of a batch that the student wrote
_OWN = 0x0D  # parts these draws from other draws of the same (seed, step)
_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """What the student went on with; `ended` if it ended by itself."""

    ids: list[int]
    ended: bool


class OnPolicy:
    """Batches of which a share is the student's own text.

    A step is a function of (seed, step) and of the student's weights before it, so that a resume
    goes on as if nothing had been.

    Args:
        data: the rows that are there, and their order.
        own: (row numbers, seed) -> the student's text in their place; None where it says nothing.
    """

    def __init__(
        self,
        data: Any,
        own: Callable[[np.ndarray, int], Rows | None],
        *,
        share: float,
        seed: int,
    ) -> None:
        self.order, self._data, self._own = data.order, data, own
        self._share, self._seed = share, seed

    def __call__(self, step: int) -> Rows:
        """Batch number `step`."""
        random = np.random.default_rng([self._seed, step, _OWN])
        if random.random() < self._share:
            found = self._own(self.order(step), int(random.integers(1 << 31)))
            if found is not None:
                return found
        batch: Rows = self._data(step)
        return batch


def continued(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    seed: int,
) -> list[Said]:
    """What the model goes on with, drawn at temperature 1."""
    from lmworks.inference.engine import Engine
    from lmworks.inference.sampling import Sampling

    was_training = model.training
    model.eval()
    try:
        with Engine(model, tokenizer, max_batch=_AT_ONCE) as engine:
            streams = [
                engine.submit(
                    list(ids), Sampling(temperature=1.0, max_tokens=max_tokens, seed=seed + number)
                )
                for number, ids in enumerate(prompts)
            ]
            found = []
            for stream in streams:
                events = list(stream)
                ended = bool(events) and events[-1].finish_reason == "stop"
                found.append(Said(ids=[event.token_id for event in events], ended=ended))
            return found
    finally:
        model.train(was_training)


def own_tokens(
    rows: TokenRows, model: Model, tokenizer: Any, *, max_tokens: int, length: int
) -> Callable[[np.ndarray, int], Rows | None]:
    """For a teacher of the same tokenizer, who is asked when the loss is made."""

    def own(numbers: np.ndarray, seed: int) -> Rows | None:
        prompts = [_beginning(rows.rows[i], length) for i in numbers]
        said = continued(model, tokenizer, prompts, max_tokens=max_tokens, seed=seed)
        answers = []
        for prompt, answer in zip(prompts, said, strict=True):
            ids = np.array([*prompt, *answer.ids], dtype=np.int32)[: length + 1]
            if len(ids) > len(prompt):
                counted = np.arange(len(ids)) >= len(prompt)
                answers.append(EncodedAnswer(ids=ids, counted=counted))
        if not answers:
            return None
        return dataclasses.replace(collate(answers, tokenizer.pad_token_id or 0), source=STUDENT)

    return own


def own_bytes(
    rows: ByteRows,
    model: Model,
    teacher: Model,
    readers: Sequence[Reader],
    *,
    max_tokens: int,
    top: int,
) -> Callable[[np.ndarray, int], Rows | None]:
    """For a teacher of another tokenizer, who reads the text and is asked at once.

    Args:
        readers: of the student and of the teacher.
    """
    from lmworks.training.byte_rows import said_bytes, taught

    student, other = readers
    tokenizer = student.tokenizer

    def own(numbers: np.ndarray, seed: int) -> Rows | None:
        prompts: list[list[int]] = []
        begun: list[list[int]] = []  # of a text that the student goes on with
        for i in numbers:
            read = rows.rows[i][0]
            answers = bool(rows.passages[i].messages)
            size = read.first + 1 if answers else max(1, len(read.ids) // 4)
            prompts.append(read.ids[:size].tolist())
            begun.append([] if answers else prompts[-1][read.first + 1 :])
        reads, tops = [], []
        said = continued(model, tokenizer, prompts, max_tokens=max_tokens, seed=seed)
        for i, before, answer in zip(numbers, begun, said, strict=True):
            # In one go: a character, or a word's space, may lie on both sides.
            text = tokenizer.decode([*before, *answer.ids], skip_special=True)
            # A character that was cut in two is none.
            text = text.rstrip("\ufffd")
            asked = rows.passages[i]
            ended = answer.ended and bool(asked.messages)
            passage = dataclasses.replace(asked, text=text, ended=ended)
            pair = [reader.read(passage) for reader in readers] if text else [None]
            mine, theirs = pair[0], pair[-1]
            if mine is None or theirs is None or mine.ended != theirs.ended:
                continue
            if any(len(r.ids) > o.length + 1 for r, o in ((mine, student), (theirs, other))):
                continue
            best = said_bytes(teacher, theirs, other.trie).logprobs.topk(top, dim=-1)
            reads.append(mine)
            tops.append((best.indices.numpy(), best.values.numpy()))
        return taught(reads, tops, student, source=STUDENT) if reads else None

    return own


def _beginning(row: EncodedAnswer, length: int) -> list[int]:
    """What stands before an answer; of text that counts whole, its first quarter."""
    first = int(row.counted.argmax())
    size = first if first > 0 and not row.counted[:first].any() else max(1, len(row.ids) // 4)
    if row.counted[1:].all():
        size = max(1, len(row.ids) // 4)
    return [int(i) for i in row.ids[: min(size, length)]]
