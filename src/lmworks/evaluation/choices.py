"""Multiple choice without a judge: which of several answers a model finds likeliest.

Two tasks that any text gives: which of several passages goes on a text (as HellaSwag asks, Zellers
et al. 2019, with wrong ones from other documents instead of written ones), and which of several
answers fits a question, for a dataset of conversations, with the answers of others as wrong ones.
An answer's score is its log-probability given what stands before, per byte where lengths differ
(as lm-eval's `acc_norm`). Models are asked the same questions, so accuracies are compared in pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.evaluation.sample_texts import SampleTexts
    from lmworks.inference.logprobs import LogprobFn
    from lmworks.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """Q questions with K answers each; the first one is right.

    Attributes:
        rows: Q times K rows of token ids, a question's answers one behind the other.
        scored: of each row, (T - 1,) bool, the tokens (but the first) that are the answer.
        sizes: (Q, K) by which an answer's log-probability is divided.
        groups: (Q,) str: questions of one group are resampled together.
    """

    rows: tuple[np.ndarray, ...]
    scored: tuple[np.ndarray, ...]
    sizes: np.ndarray
    groups: np.ndarray


def answered(logprobs: LogprobFn, choices: Choices) -> np.ndarray:
    """(Q,) 1.0 where the right answer is likeliest, 0.0 elsewhere."""
    nats = logprobs(list(choices.rows))
    sums = [row[mask].sum() for row, mask in zip(nats, choices.scored, strict=True)]
    scores = np.array(sums).reshape(choices.sizes.shape) / choices.sizes
    return (scores.argmax(1) == 0).astype(np.float64)


def continuations(
    texts: SampleTexts,
    *,
    num_choices: int = 4,
    context: int = 24,
    length: int = 8,
    most: int = 100,
    seed: int = 0,
) -> Choices:
    """Which passage goes on a text: places of the texts, wrong ones from other groups' texts.

    Args:
        context, length: tokens before the place, and of each passage.
        most: questions; several places of a text are asked for where it is long enough.
    Raises: UserError where fewer texts than choices are long enough.
    """
    random = np.random.default_rng(seed)
    step = context + length
    places = [
        (number, start)
        for number, row in enumerate(texts.rows)
        for start in range(1, len(row) - step + 1, step)
    ]
    spans: dict[str, list[np.ndarray]] = {}
    for number, start in places:
        passage = texts.rows[number][start + context : start + step]
        spans.setdefault(str(texts.groups[number]), []).append(passage)
    if len(spans) < num_choices:
        raise UserError(
            f"{len(spans)} groups of texts have {step} tokens: {num_choices} are needed to choose "
            "from; take more documents, or longer ones"
        )
    picked = [places[index] for index in sorted(random.permutation(len(places))[:most])]
    names = list(spans)
    rows, scored = [], []
    for number, start in picked:
        ids = texts.rows[number]
        before = np.array([ids[0], *ids[start : start + context]])
        others = [name for name in names if name != texts.groups[number]]
        wrong = [spans[name] for name in random.choice(others, num_choices - 1, replace=False)]
        passages = [each[random.integers(len(each))] for each in wrong]
        for passage in (ids[start + context : start + step], *passages):
            rows.append(np.concatenate([before, passage]))
            scored.append(np.arange(1, len(rows[-1])) >= len(before))
    return Choices(
        rows=tuple(rows),
        scored=tuple(scored),
        sizes=np.full((len(picked), num_choices), float(length)),
        groups=np.array([texts.groups[number] for number, _ in picked], dtype=str),
    )


def answers(
    conversations: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    num_choices: int = 4,
    most: int = 100,
    seed: int = 0,
) -> Choices:
    """Which answer fits: the last one of each conversation against those of others.

    Args:
        conversations: dataset rows with `messages`, and `document` (the group) or `id`.
    Raises: UserError where there are fewer different answers than choices, or no chat template.
    """
    from lmworks.training.answer_masks import mask_answers

    random = np.random.default_rng(seed)
    kept = [row for row in conversations if _last_answer(row["messages"])]
    texts = list(dict.fromkeys(_last_answer(row["messages"]) for row in kept))
    if len(texts) < num_choices:
        raise UserError(f"{len(texts)} different answers: {num_choices} are needed to choose from")
    picked = [kept[index] for index in sorted(random.permutation(len(kept))[:most])]
    rows, scored, sizes, groups = [], [], [], []
    for number, row in enumerate(picked, 1):
        right = _last_answer(row["messages"])
        others = [text for text in texts if text != right]
        wrong = random.choice(len(others), num_choices - 1, replace=False)
        name = str(row.get("id", f"conversation {number}"))
        for text in (right, *(others[index] for index in wrong)):
            messages = [*row["messages"][:-1], {"role": "assistant", "content": text}]
            masked = mask_answers(tokenizer, messages, tools=row.get("tools"), where=name)
            rows.append(masked.ids)
            scored.append(_last_span(masked.is_target[1:]))
            sizes.append(len(text.encode("utf-8", "replace")))
        groups.append(str(row.get("document") or name))
    return Choices(
        rows=tuple(rows),
        scored=tuple(scored),
        sizes=np.array(sizes, dtype=float).reshape(len(picked), num_choices),
        groups=np.array(groups, dtype=str),
    )


def _last_answer(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the answer that ends a conversation; "" where none does."""
    last = messages[-1] if messages else {}
    content = last.get("content") if last.get("role") == "assistant" else None
    return content if isinstance(content, str) else ""


def _last_span(mask: np.ndarray) -> np.ndarray:
    """The last run of True alone: earlier answers of the conversation are the same in all rows."""
    marked = np.flatnonzero(mask)
    if not len(marked):
        return mask
    jumps = np.flatnonzero(np.diff(marked) > 1)
    kept = np.zeros_like(mask)
    kept[marked[0 if not len(jumps) else jumps[-1] + 1] :] = True
    return kept & mask
