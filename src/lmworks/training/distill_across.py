"""What `distill` does where teacher and student have different tokenizers: they meet at bytes."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmworks.core.stages import Run
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.byte_rows import ByteRows, Passage, Reader
    from lmworks.training.distill import DistillConfig

TOP_BYTES = 16  # of 257; all others are one more outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesson:
    """Rows to train on and to hold out, the objective, and figures of what was prepared."""

    train: Any
    heldout: Any
    objective: Any
    metrics: dict[str, Any]
    batches: Any = None  # in the place of `train` itself


def lesson_across(
    config: DistillConfig,
    run: Run,
    student: Model,
    teacher: Model,
    tokenizers: tuple[Tokenizer, Tokenizer],
) -> Lesson:
    """Read both, ask the teacher once; `tokenizers` are the student's and the teacher's.

    Raises: UserError for a tokenizer that loses bytes of the text, or data with nothing in it.
    """
    import torch

    from lmworks.tokenizers.byte_trie import NUM_SYMBOLS
    from lmworks.training.byte_rows import Reader
    from lmworks.training.objectives.base import build_objective
    from lmworks.training.on_policy import OnPolicy, own_bytes

    length = config.context_length or student.config.max_position_embeddings
    readers = tuple(
        Reader(
            tokenizer,
            length=min(length, model.config.max_position_embeddings),
            vocab_size=max(tokenizer.vocab_size, model.config.vocab_size),
        )
        for tokenizer, model in zip(tokenizers, (student, teacher), strict=True)
    )
    assert len(readers) == 2
    objective: Any = build_objective("byte_distillation", config.settings)
    objective = dataclasses.replace(objective, order=torch.from_numpy(readers[0].trie.order))
    top = min(config.top_k or TOP_BYTES, NUM_SYMBOLS)
    found, size = {}, 0
    for name in ("train", "heldout"):
        rows = _rows(config, run, readers, name)
        if rows is not None and objective.label_weight < 1:
            size += rows.store_top(teacher, top, run.work / f"teacher-{name}")
        found[name] = rows
    train = found["train"]
    assert train is not None
    taught = sum(len(read.text) for rows in found.values() if rows for read, _ in rows.rows)
    metrics = {"num_unspelt": train.num_unspelt, "teacher_bytes": size, "text_bytes": taught}
    batches = None
    if config.on_policy:
        own = own_bytes(train, student, teacher, readers, max_tokens=config.max_tokens, top=top)
        batches = OnPolicy(train, own, share=config.on_policy, seed=config.seed)
    return Lesson(
        train=train,
        heldout=found["heldout"] if found["heldout"] is not None else (),
        objective=objective,
        metrics=metrics,
        batches=batches,
    )


def _rows(
    config: DistillConfig, run: Run, readers: tuple[Reader, ...], name: str
) -> ByteRows | None:
    from lmworks.training.byte_rows import ByteRows
    from lmworks.training.distill import HELDOUT_ROWS

    passages = _passages(config, run, readers, name)
    if name == "heldout":
        passages = itertools.islice(passages, HELDOUT_ROWS)
    else:
        # What no step comes to need not be asked about.
        steps = config.num_steps * config.batch_size
        passages = itertools.islice(passages, steps) if steps else passages
    rows = ByteRows(
        passages,
        student=readers[0],
        teacher=readers[1],
        batch_size=config.batch_size,
        seed=config.seed,
    )
    if len(rows):
        return rows
    if name == "train":
        raise UserError("there is no row to train on: give a larger corpus, or more questions")
    return None


def _passages(
    config: DistillConfig, run: Run, readers: tuple[Reader, ...], name: str
) -> Iterable[Passage]:
    from lmworks.data.documents import read_documents
    from lmworks.training.byte_rows import Passage, cut
    from lmworks.training.conversations import read_conversations
    from lmworks.training.distillation_rows import prompt_of, unanswered

    field = "corpus" if config.corpus else "questions"
    path: Path = run.inputs[field] / f"{name}.jsonl"
    if not path.is_file():
        if name == "heldout":
            return
        raise UserError(f"{path} is missing: give a {field} folder that a stage of lmworks made")
    if config.corpus:
        yield from cut((document.text for document in read_documents(path)), readers)
        return
    for row in unanswered(read_conversations(path)):
        before = prompt_of(row)
        text = str(row["messages"][len(before)].get("content") or "").strip()
        if text:
            yield Passage(text=text, messages=before, ended=True)
