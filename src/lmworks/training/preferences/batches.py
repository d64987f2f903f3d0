"""Preference rows as token ids, and batches of them.

The border between prompt and answer is exact: messages go through the chat template, and what the
assistant says after the prompt counts (see `answer_masks`), or, as in TRL, all that stands there;
texts are encoded with and without the answer, and the answer begins where the two part, since
tokens may merge across the border. What does not fit into the model is left out or cut, as asked,
and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.training.batches import IGNORED, Batch, Rows
from lmworks.training.conversations import encode_answers
from lmworks.training.preferences.rows import Text

if TYPE_CHECKING:
    import torch

    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.preferences.rows import Judged, Pair

Truncation = Literal["drop", "keep_start", "keep_end"]
# What the assistant says, up to the token that ends it; or all that stands behind the prompt.
Count = Literal["said", "all"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceBatch(Rows):
    """Pairs of answers; targets are pairs.

    Attributes:
        chosen, rejected: B rows each; labels on the answers alone.
        whole: (B, T) labels of all that stands in `chosen`, the prompt too.
        answer_share, whole_share: (B,) what a summed loss of a row is multiplied by, so that the
            mean over rows is the mean over the batch's tokens: B / tokens. It stays that of the
            whole batch when rows are cut out, so that micro-batches add up to it.
        reference: log-probabilities (B,) under the reference, by "chosen" and "rejected"; or empty.
    """

    chosen: Batch
    rejected: Batch
    whole: torch.Tensor
    answer_share: torch.Tensor
    whole_share: torch.Tensor
    reference: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_targets(self) -> int:
        """Pairs."""
        return self.num_rows

    def sequences(self) -> dict[str, Batch]:
        """What the reference has to score, by name."""
        return {"chosen": self.chosen, "rejected": self.rejected}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedBatch(Rows):
    """Single answers, liked or not; targets are answers.

    Attributes:
        answers: B rows, labels on the answers.
        mismatched: each prompt with the answer of the row before it, for an estimate of how far the
            model has moved from the reference on answers that nobody asked for.
        liked: (B,) bool.
        reference: by "answers" and "mismatched", (B,) each; or empty.
    """

    answers: Batch
    mismatched: Batch
    liked: torch.Tensor
    reference: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_targets(self) -> int:
        """Answers."""
        return self.num_rows

    def sequences(self) -> dict[str, Batch]:
        """What the reference has to score, by name."""
        return {"answers": self.answers, "mismatched": self.mismatched}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedAnswer:
    """`ids` (N,) of prompt and answer, `counted` (N,) True where the answer is."""

    ids: np.ndarray
    counted: np.ndarray

    @property
    def begin(self) -> int:
        """Where the answer begins."""
        return int(np.argmax(self.counted))


@dataclasses.dataclass(kw_only=True)
class Fit:
    """How rows are made to fit, and how many were not as they came.

    Attributes:
        length: most tokens that the model may be given at once.
        truncation: `drop` leaves a row out; `keep_start` cuts the end of the answer, `keep_end` the
            beginning of the prompt.
    """

    length: int
    truncation: Truncation = "drop"
    num_dropped: int = 0
    num_cut: int = 0

    def __call__(self, answers: Sequence[EncodedAnswer]) -> list[EncodedAnswer] | None:
        """The answers of one row, cut if need be, or None where the row is left out."""
        room = self.length + 1  # the last token is only predicted
        if all(len(answer.ids) <= room for answer in answers):
            return [*answers]
        if self.truncation == "drop":
            self.num_dropped += 1
            return None
        keep = slice(room) if self.truncation == "keep_start" else slice(-room, None)
        cut = [
            EncodedAnswer(ids=answer.ids[keep], counted=answer.counted[keep]) for answer in answers
        ]
        # Something of the answer must be left, and something before it to say it after.
        if any(not answer.counted[1:].any() or answer.counted[0] for answer in cut):
            self.num_dropped += 1
            return None
        self.num_cut += 1
        return cut


def encode_answer(
    tokenizer: Tokenizer, prompt: Text, answer: Text, where: str, count: Count = "said"
) -> EncodedAnswer:
    """Ids of a prompt and its answer, and which of them are the answer.

    Raises: UserError for a chat template under which nothing of the answer could be learnt.
    """
    if isinstance(prompt, str):
        return _encode_texts(tokenizer, prompt, str(answer))
    assert not isinstance(answer, str)
    if count == "said":
        # What was answered before is read, and not learnt.
        before = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in prompt]
        ids, counted = encode_answers(tokenizer, [*before, *answer], where)
        return EncodedAnswer(ids=ids, counted=counted)
    asked = tokenizer.encode_chat([*prompt], add_generation_prompt=True)
    whole = tokenizer.encode_chat([*prompt, *answer], add_generation_prompt=False)
    return _behind(asked, whole)


def encode_pair(
    tokenizer: Tokenizer, pair: Pair, count: Count = "said"
) -> tuple[EncodedAnswer, EncodedAnswer]:
    """Both answers of a pair; where tokens part, their prompt ends where it ends in both.

    Raises: UserError as `encode_answer`.
    """
    chosen = encode_answer(tokenizer, pair.prompt, pair.chosen, pair.where, count)
    rejected = encode_answer(tokenizer, pair.prompt, pair.rejected, pair.where, count)
    if isinstance(pair.prompt, str) or count == "all":
        begin = min(chosen.begin, rejected.begin)
        for answer in (chosen, rejected):
            answer.counted[begin:] = True
    return chosen, rejected


def _encode_texts(tokenizer: Tokenizer, prompt: str, answer: str) -> EncodedAnswer:
    before, ids = tokenizer.encode(prompt), tokenizer.encode(prompt + answer)
    first, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if first is not None and ids[:1] != [first]:  # as documents begin in pre-training
        before, ids = [first, *before], [first, *ids]
    if end is not None and ids[-1:] != [end]:
        ids = [*ids, end]
    return _behind(before, ids)


def _behind(prompt: Sequence[int], whole: Sequence[int]) -> EncodedAnswer:
    """All behind the prompt counts; but a decoder says its first token after something."""
    border = max(1, _common(prompt, whole))
    return EncodedAnswer(
        ids=np.array(whole, dtype=np.int32), counted=np.arange(len(whole)) >= border
    )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with."""
    for index, (a, b) in enumerate(zip(first, second)):
        if a != b:
            return index
    return min(len(first), len(second))


def collate(answers: Sequence[EncodedAnswer], padding: int) -> Batch:
    """Rows padded on the right; causal attention never sees the padding."""
    import torch

    width = max(len(answer.ids) for answer in answers) - 1
    input_ids = np.full((len(answers), width), padding, dtype=np.int64)
    labels = np.full((len(answers), width), IGNORED, dtype=np.int64)
    for row, answer in enumerate(answers):
        size = len(answer.ids) - 1
        input_ids[row, :size] = answer.ids[:-1]
        labels[row, :size] = np.where(answer.counted[1:], answer.ids[1:], IGNORED)
    return Batch(input_ids=torch.from_numpy(input_ids), labels=torch.from_numpy(labels))


def pair_batch(
    chosen: Sequence[EncodedAnswer], rejected: Sequence[EncodedAnswer], padding: int
) -> PreferenceBatch:
    """Pairs side by side."""
    import torch

    all_of_it = [
        EncodedAnswer(ids=answer.ids, counted=np.ones(len(answer.ids), dtype=bool))
        for answer in chosen
    ]
    liked, whole = collate(chosen, padding), collate(all_of_it, padding).labels
    count = len(chosen)
    return PreferenceBatch(
        chosen=liked,
        rejected=collate(rejected, padding),
        whole=whole,
        answer_share=torch.full((count,), count / max(1, liked.num_targets)),
        whole_share=torch.full((count,), count / max(1, int((whole != IGNORED).sum()))),
    )


def judged_batch(
    answers: Sequence[EncodedAnswer], liked: Sequence[bool], padding: int, length: int
) -> JudgedBatch:
    """Single answers, and each prompt with the answer of the row before (the first: the last's).

    Args:
        length: most tokens that the model may be given; a mismatched answer is cut to fit.
    """
    import torch

    mismatched = []
    for index, answer in enumerate(answers):
        other = answers[index - 1]
        prompt, said = answer.ids[: answer.begin], other.ids[other.begin :]
        counted = np.concatenate([np.zeros(len(prompt), bool), other.counted[other.begin :]])
        ids = np.concatenate([prompt, said])
        mismatched.append(EncodedAnswer(ids=ids[: length + 1], counted=counted[: length + 1]))
    return JudgedBatch(
        answers=collate(answers, padding),
        mismatched=collate(mismatched, padding),
        liked=torch.tensor([bool(label) for label in liked]),
    )


class Pairs:
    """Training batches of pairs; those that do not fit are left out or cut, see `Fit`.

    Raises: UserError where nothing is left.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokenizer: Tokenizer,
        fit: Fit,
        *,
        batch_size: int,
        seed: int,
        count: Count = "said",
    ) -> None:
        from lmworks.training.row_order import RowOrder

        self.fit, self._padding = fit, tokenizer.pad_token_id or 0
        self.pairs: list[Pair] = []
        self._answers: list[list[EncodedAnswer]] = []
        for pair in pairs:
            fitting = fit(encode_pair(tokenizer, pair, count))
            if fitting is not None:
                self.pairs.append(pair)
                self._answers.append(fitting)
        if pairs and not self.pairs:
            raise nothing_fits(fit, len(pairs))
        lengths = [max(len(a.ids) for a in two) for two in self._answers]
        self.order = RowOrder(lengths, batch_size=batch_size, seed=seed)
        self.reference: Mapping[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def answer_lengths(self) -> np.ndarray:
        """(N, 2) tokens of the chosen and the rejected answers."""
        return np.array([[int(a.counted.sum()) for a in two] for two in self._answers])

    def __call__(self, step: int) -> PreferenceBatch:
        """Batch number `step`, counted from 0, through all epochs."""
        return self.collate(self.order(step))

    def collate(self, rows: Sequence[int] | np.ndarray) -> PreferenceBatch:
        """The rows of these numbers, with the reference where it is known."""
        chosen, rejected = zip(*(self._answers[i] for i in rows))
        return with_stored(pair_batch(chosen, rejected, self._padding), self.reference, rows)


class JudgedAnswers:
    """Training batches of single answers, for objectives without pairs.

    Batches keep their rows in all epochs, so that what the reference makes of the mismatched
    answers can be known from before.

    Raises: UserError where nothing is left, or for batches of one row, which have no mismatch.
    """

    def __init__(
        self,
        rows: Sequence[Judged],
        tokenizer: Tokenizer,
        fit: Fit,
        *,
        batch_size: int,
        seed: int,
        count: Count = "said",
    ) -> None:
        from lmworks.training.row_order import RowOrder

        if batch_size < 2:
            raise UserError(
                f"batch_size = {batch_size}: KTO pairs each prompt with another row's answer, "
                "which takes at least 2"
            )
        self.fit, self._padding = fit, tokenizer.pad_token_id or 0
        self.rows: list[Judged] = []
        self._answers: list[EncodedAnswer] = []
        for row in rows:
            fitting = fit([encode_answer(tokenizer, row.prompt, row.completion, row.where, count)])
            if fitting is not None:
                self.rows.append(row)
                self._answers += fitting
        if rows and not self.rows:
            raise nothing_fits(fit, len(rows))
        lengths = [len(answer.ids) for answer in self._answers]
        self.order = RowOrder(lengths, batch_size=batch_size, seed=seed, fixed=True)
        self.reference: Mapping[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, step: int) -> JudgedBatch:
        """Batch number `step`, counted from 0, through all epochs."""
        return self.collate(self.order(step))

    def collate(self, rows: Sequence[int] | np.ndarray) -> JudgedBatch:
        """The rows of these numbers, with the reference where it is known."""
        answers = [self._answers[i] for i in rows]
        liked = [self.rows[i].label for i in rows]
        batch = judged_batch(answers, liked, self._padding, self.fit.length)
        return with_stored(batch, self.reference, rows)


def with_stored(
    batch: Any, reference: Mapping[str, np.ndarray], rows: Sequence[int] | np.ndarray
) -> Any:
    """`batch` with what is stored of the reference for these rows."""
    import torch

    if not reference:
        return batch
    found = {
        name: torch.from_numpy(table[np.asarray(rows)].astype(np.float32))
        for name, table in reference.items()
    }
    return dataclasses.replace(batch, reference=found)


def nothing_fits(fit: Fit, count: int) -> UserError:
    """The line for data whose every row is too long."""
    hint = "" if fit.truncation != "drop" else "; --truncation keep_end cuts prompts to fit"
    return UserError(
        f"none of the {count} rows fits into {fit.length} tokens (--max-length, or the model's "
        f"context): nothing to train on{hint}"
    )


def tell_fit(fit: Fit, count: int) -> None:
    """Say how many of `count` rows did not fit as they came."""
    if fit.num_dropped or fit.num_cut:
        progress.say(
            f"  of {count} rows {fit.num_dropped} are too long for {fit.length} tokens and left "
            f"out, {fit.num_cut} are cut"
        )
