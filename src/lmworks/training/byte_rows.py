"""Rows of text for a student and a teacher of different tokenizers, which meet at its bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core import processes
from lmworks.core.errors import UserError
from lmworks.core.files import atomic_save
from lmworks.core.progress import track
from lmworks.tokenizers.byte_trie import ByteTrie, Covers
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.row_order import RowOrder

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.objectives.byte_distillation import Bytes, TaughtBytes

_LEAST_CHARACTERS = 16  # of a piece that is cut in two once more
_CHARACTERS = 4  # of a token, to begin with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passage:
    """Text to learn, and the messages before it; without them it begins a document.

    Attributes:
        ended: whether the text's end is learnt too.
    """

    text: str
    messages: Sequence[Any] = ()
    ended: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """A passage as one model reads it.

    Attributes:
        ids: (T + 1,) int32; the first T are given, each asks for the next.
        first: the position that asks for the text's first token.
        boundaries: byte of the text at which each of its tokens begins; with `ended`, its end too.
        lead: bytes before the text that its first token brings along: a space put in, or none.
    """

    ids: np.ndarray
    first: int
    boundaries: list[int]
    text: bytes
    lead: int
    ended: bool

    def covers(self, trie: ByteTrie) -> tuple[Covers, int]:
        """What the positions say about places of the passage; and how many places there are."""
        padded = b" " * self.lead + self.text
        found = trie.covers(padded, self.boundaries, ended=self.ended)
        kept = found.place >= self.lead
        columns = {f.name: getattr(found, f.name)[kept] for f in dataclasses.fields(found)}
        columns["place"] = columns["place"] - self.lead
        columns["boundary"] = columns["boundary"] + self.first
        return Covers(**columns), len(self.text) + (1 if self.ended else 0)


class Reader:
    """How one of the models reads passages.

    Args:
        length: most tokens that it may be given.
        vocab_size: rows of its head.
    """

    def __init__(self, tokenizer: Tokenizer, *, length: int, vocab_size: int) -> None:
        from lmworks.training.tokens import document_separator

        self.tokenizer, self.length = tokenizer, length
        self.trie = ByteTrie.of(tokenizer, vocab_size)
        self._before = [document_separator(tokenizer)]

    def read(self, passage: Passage) -> Read | None:
        """The passage, or None where its tokens' bytes are not its text."""
        text = passage.text.encode()
        ids = self.tokenizer.encode(passage.text)
        before = self.tokenizer.encode_chat(passage.messages) if passage.messages else self._before
        sizes = [len(self.tokenizer.decode_bytes([i])) for i in ids]
        joined = self.tokenizer.decode_bytes(ids)
        lead = len(joined) - len(text)
        if not ids or lead not in (0, 1) or joined != b" " * lead + text or min(sizes) < 1:
            return None
        ends = np.cumsum([0, *sizes]).tolist()
        end = self._end(passage, len(before) + len(ids)) if passage.ended else None
        boundaries = ends if end is not None else ends[:-1]
        after = [] if end is None else [end]
        return Read(
            ids=np.array([*before, *ids, *after], dtype=np.int32),
            first=len(before) - 1,
            boundaries=boundaries,
            text=text,
            lead=lead,
            ended=end is not None,
        )

    def _end(self, passage: Passage, place: int) -> int | None:
        """The token that ends an answer, as the template has it; `place` is behind the answer."""
        said = {"role": "assistant", "content": passage.text}
        whole = self.tokenizer.encode_chat([*passage.messages, said], add_generation_prompt=False)
        special = set(self.tokenizer.special_tokens.values())
        return whole[place] if len(whole) > place and whole[place] in special else None


def cut(texts: Iterable[str], readers: Sequence[Reader]) -> Iterator[Passage]:
    """Documents in pieces that each reader has room for, cut at spaces."""
    for text in texts:
        waiting = [text]
        while waiting:
            piece = waiting.pop()
            if not piece.strip():
                continue
            length = min(reader.length for reader in readers)
            if len(piece) > 2 * _CHARACTERS * length or any(
                len(reader.tokenizer.encode(piece)) >= reader.length for reader in readers
            ):
                if len(piece) > _LEAST_CHARACTERS:
                    most = min(len(piece) // 2, _CHARACTERS * length)
                    space = piece.rfind(" ", _LEAST_CHARACTERS // 2, most)
                    place = space if space > 0 else most
                    waiting += [piece[place:], piece[:place]]
                continue
            yield Passage(text=piece)


class ByteRows:
    """Batches of passages with what the teacher says about each byte.

    Args:
        passages: those whose tokens don't spell them, in either model, are left out and counted in
            `num_unspelt`; those that don't fit in `num_too_long`.
    Raises: UserError where nothing is left.
    """

    def __init__(
        self,
        passages: Iterable[Passage],
        *,
        student: Reader,
        teacher: Reader,
        batch_size: int,
        seed: int,
    ) -> None:
        self._student, self._teacher = student, teacher
        self.num_too_long = self.num_unspelt = total = 0
        self.rows: list[tuple[Read, Read]] = []
        self.passages: list[Passage] = []
        for passage in passages:
            total += 1
            mine, theirs = student.read(passage), teacher.read(passage)
            if mine is None or theirs is None or mine.ended != theirs.ended:
                self.num_unspelt += 1
            elif len(mine.ids) > student.length + 1 or len(theirs.ids) > teacher.length + 1:
                self.num_too_long += 1
            else:
                self.rows.append((mine, theirs))
                self.passages.append(passage)
        if total and not self.rows:
            raise UserError(
                f"none of the {total} texts is left: {self.num_too_long} are too long for the "
                f"models, of {self.num_unspelt} a tokenizer does not keep every byte"
            )
        lengths = [len(mine.ids) for mine, _ in self.rows]
        self.order = RowOrder(lengths, batch_size=batch_size, seed=seed)
        places = [len(mine.text) + mine.ended for mine, _ in self.rows]
        self._starts = np.concatenate([[0], np.cumsum(places)]).astype(np.int64)
        self._top: tuple[np.ndarray, np.ndarray] | None = None
        self._untold = np.zeros((int(self._starts[-1]), 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, step: int) -> TaughtBytes:
        """Batch number `step`, counted from 0, through all epochs."""
        return self.collate(self.order(step))

    def store_top(self, teacher: Model, count: int, path: Path) -> int:
        """Ask the teacher once for its `count` likeliest bytes at every place; keep them on disk.

        Returns: bytes that they take. Raises: UserError when the disk is full.
        """
        paths = [path.with_suffix(f".{name}.npy") for name in ("symbols", "logprobs")]
        with processes.main_first():
            if not paths[1].is_file():
                for place, table in zip(paths, self._ask(teacher, count), strict=True):
                    atomic_save(place, lambda part, table=table: _save(part, table))  # type: ignore[misc]
        symbols, logprobs = (np.load(place, mmap_mode="r") for place in paths)
        self._top = symbols, logprobs
        return sum(place.stat().st_size for place in paths)

    def _ask(self, teacher: Model, count: int) -> tuple[np.ndarray, np.ndarray]:
        total = int(self._starts[-1])
        symbols = np.zeros((total, count), dtype=np.uint16)
        logprobs = np.zeros((total, count), dtype=np.float16)
        with track("asking the teacher", total=len(self.rows)) as bar:
            for row, (_, read) in enumerate(self.rows):
                part = slice(self._starts[row], self._starts[row + 1])
                top = said_bytes(teacher, read, self._teacher.trie).logprobs.topk(count, dim=-1)
                symbols[part], logprobs[part] = top.indices.numpy(), top.values.numpy()
                bar.advance(1)
        return symbols, logprobs

    def collate(self, rows: Sequence[int] | np.ndarray) -> TaughtBytes:
        """The rows of these numbers."""
        top = self._top or (self._untold, self._untold)
        tops = [tuple(table[self._starts[i] : self._starts[i + 1]] for table in top) for i in rows]
        return taught([self.rows[i][0] for i in rows], tops, self._student)


def said_bytes(model: Model, read: Read, trie: ByteTrie) -> Bytes:
    """What a model says about the bytes of a passage, without gradients."""
    import torch

    from lmworks.training.objectives.byte_distillation import byte_logprobs

    covers, places = read.covers(trie)
    ids = torch.from_numpy(read.ids.astype(np.int64))
    labels = ids[1:].clone()
    labels[: read.first] = IGNORED
    table = np.stack([getattr(covers, f.name) for f in dataclasses.fields(covers)])
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            hidden = model.hidden_states(ids[None, :-1])[0]
            order = torch.from_numpy(trie.order)
            return byte_logprobs(model, hidden, labels, torch.from_numpy(table), order, places)
    finally:
        model.train(was_training)


def taught(
    reads: Sequence[Read],
    tops: Sequence[Any],
    student: Reader,
    *,
    source: str = "",
) -> TaughtBytes:
    """A batch of passages as the student reads them.

    Args:
        tops: per passage the teacher's likeliest symbols and their log-probabilities, (places, K).
    """
    import torch

    from lmworks.training.objectives.byte_distillation import TaughtBytes

    found = [read.covers(student.trie) for read in reads]
    width = max(len(read.ids) for read in reads) - 1
    most = max(places for _, places in found)
    padding = student.tokenizer.pad_token_id or 0
    ids = np.full((len(reads), width), padding, dtype=np.int64)
    labels = np.full((len(reads), width), IGNORED, dtype=np.int64)
    covers = np.zeros((len(reads), 5, max(len(each) for each, _ in found)), dtype=np.int64)
    counted = np.zeros((len(reads), most), dtype=bool)
    symbols = np.zeros((len(reads), most, tops[0][0].shape[-1]), dtype=np.int64)
    logprobs = np.zeros(symbols.shape, dtype=np.float32)
    for row, (read, (each, places), top) in enumerate(zip(reads, found, tops, strict=True)):
        size = len(read.ids) - 1
        ids[row, :size] = read.ids[:-1]
        labels[row, read.first : size] = read.ids[read.first + 1 :]
        for line, field in enumerate(dataclasses.fields(each)):
            covers[row, line, : len(each)] = getattr(each, field.name)
        counted[row, :places] = True
        symbols[row, :places], logprobs[row, :places] = top
    tensors = [torch.from_numpy(each) for each in (covers, counted, symbols, logprobs)]
    batch = Batch(input_ids=torch.from_numpy(ids), labels=torch.from_numpy(labels), source=source)
    return TaughtBytes(
        batch=batch,
        covers=tensors[0],
        counted=tensors[1],
        top_symbols=tensors[2],
        top_logprobs=tensors[3],
    )


def _save(part: Path, table: np.ndarray) -> None:
    with open(part, "wb") as file:
        np.save(file, table)
