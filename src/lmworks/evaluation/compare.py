"""Several models on the same held-out texts: bits per byte, and every difference with its interval.

Candidates come in the order of a model's life (untrained, pre-trained, tuned, 8-bit): each is
compared with the one before it and with the best n-gram. They are taken one at a time, so a
generator that loads each when it is asked for holds only one in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.evaluation.report import GainRow, GainTable, verdict
from lmworks.evaluation.scores import Scores, score_answers, score_documents
from lmworks.evaluation.statistics import Interval, paired_interval, ratio_interval
from lmworks.inference.logprobs import LogprobFn, decoder_logprobs, ngram_logprobs

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to measure, with the tokenizer it was trained with."""

    name: str
    logprobs: LogprobFn
    tokenizer: Tokenizer
    note: str = ""
    is_stage: bool = True  # False: stands beside the others, is not compared with the one before


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Measured:
    """What stays of a candidate once it is scored; its weights can go before the next come."""

    name: str
    note: str
    is_stage: bool
    scores: Scores

    @classmethod
    def of(cls, candidate: Candidate, scores: Scores) -> _Measured:
        return cls(
            name=candidate.name,
            note=candidate.note,
            is_stage=candidate.is_stage,
            scores=scores,
        )


def decoder_candidate(
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    *,
    note: str = "",
    is_stage: bool = True,
    window: int = 0,
) -> Candidate:
    """A decoder as a candidate; `window` as in `decoder_logprobs`."""
    return Candidate(
        name=name,
        logprobs=decoder_logprobs(model, window=window),
        tokenizer=tokenizer,
        note=note,
        is_stage=is_stage,
    )


def untrained(
    name: str, like: Model, tokenizer: Tokenizer, *, seed: int = 0, window: int = 0
) -> Candidate:
    """A model of the same shape with fresh weights: what the architecture knows by itself."""
    import torch

    from lmworks.models.model import Model

    model = Model(like.config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    note = "the same shape with random weights"
    return decoder_candidate(name, model, tokenizer, note=note, window=window)


def best_ngram(
    tokens: np.ndarray, documents: Iterable[Document], tokenizer: Tokenizer
) -> Candidate:
    """The Kneser-Ney model of the order, 2 to 6, that suits the held-out documents best.

    Args:
        tokens: (N,) the training stream, as `token_stream` makes it with this tokenizer.
    """
    from lmworks.scratch.ngram import KneserNey
    from lmworks.training.tokens import document_separator

    separator = document_separator(tokenizer)
    texts = tokenizer.encode_batch([document.text for document in documents])
    model, figures = KneserNey.best(
        tokens, [np.array([separator, *ids]) for ids in texts], vocab_size=tokenizer.vocab_size
    )
    return Candidate(
        name="Best n-gram",
        logprobs=ngram_logprobs(model),
        tokenizer=tokenizer,
        note=f"Kneser-Ney on the same tokens, order {model.order}: "
        f"the best of {min(figures)} to {max(figures)}",
        is_stage=False,
    )


def evaluate_models(
    candidates: Iterable[Candidate],
    *,
    documents: Sequence[Document],
    ngram: Candidate | None = None,
    conversations: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
) -> tuple[GainTable, ...]:
    """Measure all candidates on held-out documents, and on the answers of conversations.

    Args:
        candidates: in the order of the model's life; consumed one by one.
        ngram: the baseline for documents (`best_ngram`), or None.
        conversations: dataset rows; a candidate without a chat template is left out there.
        seed: of the bootstrap.
    Returns: one table for documents, and one for answers if there are conversations.
    Raises: UserError when there is nothing to score.
    """
    on_documents: list[_Measured] = []
    on_answers: list[_Measured] = []
    for each in candidates:
        scores = score_documents(each.logprobs, documents, each.tokenizer)
        on_documents.append(_Measured.of(each, scores))
        if conversations and each.tokenizer.chat_template:
            scores = score_answers(each.logprobs, conversations, each.tokenizer)
            on_answers.append(_Measured.of(each, scores))
    if not on_documents:
        raise UserError("no model to measure")
    if conversations and not on_answers:
        raise UserError("no model here has a chat template, so answers can't be measured")
    baseline = None
    if ngram is not None:
        scores = score_documents(ngram.logprobs, documents, ngram.tokenizer)
        baseline = _Measured.of(ngram, scores)
    tables = [_table("Held-out documents", "documents", on_documents, baseline, seed)]
    if on_answers:
        tables.append(_table("Held-out answers", "conversations", on_answers, None, seed))
    return tuple(tables)


def sentence(row: GainRow, against: str = "the best n-gram") -> str:
    """What a row's interval against the n-gram says, as one sentence for a person."""
    difference = row.versus_ngram
    if difference is None:
        return f"{row.name} needs {row.bits_per_byte.estimate:.3f} bits per byte of held-out text."
    judged = verdict(difference)
    if judged == "no difference shown":
        return f"On held-out text, no difference between {row.name} and {against} is shown."
    ends = sorted((abs(difference.low), abs(difference.high)))
    return (
        f"On held-out text, {row.name} needs {abs(difference.estimate):.3f} bits per byte "
        f"{'less' if judged == 'better' else 'more'} than {against} "
        f"(95 % interval {ends[0]:.3f} to {ends[1]:.3f})."
    )


def _table(
    title: str,
    things: str,
    measured: Sequence[_Measured],
    baseline: _Measured | None,
    seed: int,
) -> GainTable:
    rows = [_row(baseline, None, None, seed)] if baseline else []
    previous: _Measured | None = None
    for each in measured:
        before = previous if each.is_stage else None
        rows.append(_row(each, baseline, before, seed))
        previous = each if each.is_stage else previous
    scores = measured[0].scores
    note = (
        f"{len(scores.bits):,} {things} in {len(np.unique(scores.groups)):,} groups, "
        f"{scores.num_bytes.sum() / 1e3:,.0f} kB."
    )
    return GainTable(title=title, note=note, rows=tuple(rows))


def _row(
    measured: _Measured, ngram: _Measured | None, previous: _Measured | None, seed: int
) -> GainRow:
    scores = measured.scores
    return GainRow(
        name=measured.name,
        note=measured.note,
        bits_per_byte=ratio_interval(scores.bits, scores.num_bytes, scores.groups, seed=seed),
        versus_ngram=_difference(scores, ngram, seed),
        versus_previous=_difference(scores, previous, seed),
        previous=previous.name if previous else "",
    )


def _difference(scores: Scores, other: _Measured | None, seed: int) -> Interval | None:
    if other is None:
        return None
    return paired_interval(
        scores.bits, other.scores.bits, scores.num_bytes, scores.groups, seed=seed
    )
