"""How good or how hard a document is: one number each, by which a curriculum sorts.

Quality without scores of your own is the mean of five measures that rules for web text look at
(Gopher: Rae et al. 2021, arXiv 2112.11446, table A1; C4: Raffel et al. 2020, section 2.2), each
from 0 to 1 and without a limit. It tells a page of prose from a list of names and not more: give
scores if you have some. Perplexity is bits per byte under a model of yours, or under an n-gram that
never saw the document: each half of the corpus is read by the model of the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.errors import UserError
from lmworks.data.documents import stable_share

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.inference.logprobs import LogprobFn
    from lmworks.tokenizers.base import Tokenizer

_NGRAM_ORDER = 3
_LINE_ENDS = tuple(".!?:;,\"')]}…。！？")
_USUAL_WORD = (3.0, 8.0)  # letters of a mean word between these are as good as any


def quality(documents: Sequence[Document], scores: Path | None) -> np.ndarray:
    """(N,) higher is better: from a file of scores, or `prose_quality`.

    Args:
        scores: JSON lines with `id` and `score`, one for every document.
    Raises: UserError for a line that is none of these, or documents without a score.
    """
    if scores is None:
        return np.array([prose_quality(document.text) for document in documents])
    found = _read_scores(scores)
    missing = [d.id for d in documents if d.id not in found]
    if missing:
        raise UserError(
            f"{scores} has no score for {len(missing):,} of {len(documents):,} documents, "
            f"the first {missing[0]}: write a line for each id of the corpus"
        )
    return np.array([found[d.id] for d in documents])


def _read_scores(path: Path) -> dict[str, float]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as lines of JSON: {error}") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            name, score = row["id"], float(row["score"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}, line {number}: not {{"id": ..., "score": 0.5}}') from error
        if not math.isfinite(score):
            raise UserError(f"{path}, line {number}: the score of {name} is {score}")
        found[str(name)] = score
    return found


def prose_quality(text: str) -> float:
    """From 0 to 1: how much the text looks like sentences that somebody wrote."""
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not words:
        return 0.0
    letters = sum(any(c.isalpha() for c in word) for word in words) / len(words)
    mean_length = sum(map(len, words)) / len(words)
    low, high = _USUAL_WORD
    length = max(0.0, 1 - max(low - mean_length, mean_length - high, 0.0) / high)
    ended = sum(line.endswith(_LINE_ENDS) for line in lines) / len(lines)
    new_lines = len(set(lines)) / len(lines)
    start = words[:200]  # a long text repeats its words whatever it is
    new_words = min(1.0, 1.5 * len(set(start)) / len(start))
    return (letters + length + ended + new_lines + new_words) / 5


def perplexity(
    documents: Sequence[Document],
    encoded: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    model: Path | None,
) -> np.ndarray:
    """(N,) bits per byte; lower is easier.

    Args:
        encoded: each document as the corpus's tokenizer cuts it, the separator first.
        model: a folder or file of a decoder, which brings its own tokenizer; None: an n-gram.
    """
    if model is None:
        nats = _cross_fitted(documents, encoded, tokenizer.vocab_size)
    else:
        nats = _under_model(documents, model)
    sizes = np.array([max(1, document.num_bytes) for document in documents])
    return -nats / math.log(2) / sizes


def _cross_fitted(
    documents: Sequence[Document], encoded: Sequence[np.ndarray], vocab_size: int
) -> np.ndarray:
    from lmworks.scratch.ngram import KneserNey

    # By group: pages of one manual would tell their half what the other says.
    first = np.array([stable_share("half", d.group) < 0.5 for d in documents])
    if first.all() or not first.any():
        raise UserError(
            "curriculum perplexity reads each half of the corpus with an n-gram of the other, and "
            "all documents are of one group: give a model with --curriculum-reference"
        )
    nats = np.zeros(len(documents))
    for half in (first, ~first):
        stream = np.concatenate([encoded[i] for i in np.flatnonzero(~half).tolist()])
        model = KneserNey.train(stream, vocab_size, _NGRAM_ORDER)
        for index in np.flatnonzero(half).tolist():
            nats[index] = model.logprobs(encoded[index])[1:].sum()
    return nats


def _under_model(documents: Sequence[Document], path: Path) -> np.ndarray:
    from lmworks.inference.logprobs import decoder_logprobs
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.tokens import document_separator

    tokenizer = load_tokenizer(path)
    separator = document_separator(tokenizer)
    logprobs: LogprobFn = decoder_logprobs(load_language_model(path))
    texts = [document.text for document in documents]
    sequences = [np.array([separator, *ids]) for ids in tokenizer.encode_batch(texts)]
    return np.array([row.sum() for row in logprobs(sequences)])
