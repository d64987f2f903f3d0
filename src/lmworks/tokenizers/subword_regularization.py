"""Subword regularization: the same text cut in another way each time, to train a sturdier model.

Each kind of model has its own way, and all come to the ids of `encode` at one end of their setting:

- Unigram: a cut with probability proportional to its likelihood to the `alpha`, over all cuts of
  a piece, exactly. 1 is the model itself, 0 takes all cuts alike, and the larger, the more often
  the best one comes.
- BPE: BPE-dropout. Before each merge every possible one is left out with probability `dropout`;
  the first in rank of the others is made, and when none is left the cut is done. A piece that is
  a token is merged like any other (`ignore_merges`).
- WordPiece: MaxMatch-dropout. At each place the longest token is taken of those that were not
  left out, each with probability `dropout`, the shortest never. Tokens from which the end of the
  word can't be reached are not among them, so that no word becomes unknown by chance.

Decoded, a sampled cut is the same text. The exception is a Unigram vocabulary in which a character
is part of tokens and none itself, and that has no bytes: the unknown token may stand for it.

Hugging Face's BPE-dropout differs: a merge that was left out gets another chance whenever an entry
of its queue turns out to be out of date, so it merges more than the paper's.

Sources: Kudo 2018, arXiv 1804.10959, section 3.2; Provilkov et al. 2020, arXiv 1910.13267,
algorithm 1; Hiraoka 2022, arXiv 2209.04126, section 3.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from lmworks.core.errors import UserError
from lmworks.tokenizers.bpe import BPE, Token
from lmworks.tokenizers.merging import Ranks
from lmworks.tokenizers.unigram import Ending, Unigram
from lmworks.tokenizers.wordpiece import WordPiece

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

_ALPHA, _DROPOUT = 0.1, 0.1  # SentencePiece's and the papers' usual settings
_CACHED_PIECES = 1 << 16
_CACHED_CHARACTERS = 64

Sample = Callable[[str, random.Random], list[int]]


class SubwordSampler:
    """Random cuts of one tokenizer; remembers what the pieces of text may be cut into."""

    def __init__(
        self,
        tokenizer: PipelineTokenizer,
        *,
        alpha: float | None = None,
        dropout: float | None = None,
    ) -> None:
        """
        Args:
            alpha: for Unigram, 0.1 where nothing is said.
            dropout: for BPE and WordPiece, 0.1 where nothing is said.
        Raises: UserError for a setting that the tokenizer's model does not have.
        """
        self._tokenizer = tokenizer
        model = tokenizer.vocabulary.model
        self._sample: Sample
        if isinstance(model, Unigram):
            _refuse("dropout", dropout, "a Unigram model is sampled with alpha")
            self._sample = _UnigramCuts(model, _checked("alpha", alpha, _ALPHA, most=1e6))
            return
        kind = "BPE" if isinstance(model, BPE) else "WordPiece"
        _refuse("alpha", alpha, f"a {kind} model is sampled with dropout")
        rate = _checked("dropout", dropout, _DROPOUT, most=1.0)
        if isinstance(model, BPE):
            self._sample = lambda piece, draw: bpe_dropout(model, piece, rate, draw)
        else:
            self._sample = lambda piece, draw: max_match_dropout(model, piece, rate, draw)

    def encode(self, text: str | bytes, *, seed: int, allow_special: bool = False) -> list[int]:
        """Ids of a cut of `text`; the same seed gives the same."""
        draw, ids = random.Random(seed), []
        tokenizer = self._tokenizer
        for piece, token_id, begins in tokenizer.pieces(text, allow_special=allow_special):
            if token_id is not None:
                ids.append(token_id)
                continue
            changed = tokenizer.pre_tokenizer.change(piece, at_start=begins)
            for word in tokenizer.pre_tokenizer.words(changed):
                ids += self._sample(word, draw)
        return ids


def _checked(name: str, value: float | None, default: float, *, most: float) -> float:
    value = default if value is None else value
    if not 0 <= value <= most:
        raise UserError(f"{name} = {value}: a number from 0 to {most:g}")
    return value


def _refuse(name: str, value: float | None, instead: str) -> None:
    if value is not None:
        raise UserError(f"{name} = {value} has no meaning here: {instead}")


class _UnigramCuts:
    """Pieces to random cuts, with what was computed for the last ones."""

    def __init__(self, model: Unigram, alpha: float) -> None:
        self._model, self._alpha = model, alpha
        self._known: dict[str, list[Ending]] = {}

    def __call__(self, piece: str, draw: random.Random) -> list[int]:
        if len(piece) > _CACHED_CHARACTERS:
            return self._model.sample(piece, alpha=self._alpha, draw=draw)
        found = self._known.get(piece)
        if found is None:
            if len(self._known) >= _CACHED_PIECES:
                self._known.clear()
            found = self._known[piece] = self._model.endings(piece, alpha=self._alpha)
        return self._model.drawn(piece, found.__getitem__, draw)


def bpe_dropout(model: BPE, piece: str, dropout: float, draw: random.Random) -> list[int]:
    """Ids of one piece. Source: Provilkov et al. 2020, arXiv 1910.13267, algorithm 1."""
    return merge_with_dropout(model.first_symbols(piece), model.ranked, dropout, draw)


def merge_with_dropout(
    symbols: list[int], ranks: Ranks, dropout: float, draw: random.Random
) -> list[int]:
    """`merging.merge`, every possible merge being left out with probability `dropout` each time.

    Merges come off a heap in their order; those left out wait until another one is made.
    """
    symbols = list(symbols)
    after: list[int] = [*range(1, len(symbols)), -1]
    before: list[int] = [*range(-1, len(symbols) - 1)]
    heap: list[tuple[int, int, int, int]] = []
    left_out: list[tuple[int, int, int, int]] = []

    def offer(at: int) -> None:
        if at >= 0 and after[at] >= 0:
            found = ranks.get((symbols[at], symbols[after[at]]))
            if found is not None:
                heapq.heappush(heap, (found[0], at, symbols[at], symbols[after[at]]))

    for at in range(len(symbols) - 1):
        offer(at)
    while heap:
        entry = heapq.heappop(heap)
        _, at, left, right = entry
        following = after[at]
        if symbols[at] != left or following < 0 or symbols[following] != right:
            continue  # a merge nearby made it impossible
        if draw.random() < dropout:
            left_out.append(entry)
            continue
        symbols[at], symbols[following] = ranks[left, right][1], -1
        after[at] = after[following]
        if after[at] >= 0:
            before[after[at]] = at
        for waiting in left_out:
            heapq.heappush(heap, waiting)
        left_out.clear()
        offer(before[at])
        offer(at)
    return [symbol for symbol in symbols if symbol >= 0]


def max_match_dropout(
    model: WordPiece, piece: str, dropout: float, draw: random.Random
) -> list[int]:
    """Ids of one word. Source: Hiraoka 2022, arXiv 2209.04126, section 3."""
    best = model.encode_spans(piece)
    if best and best[0].id == model.unk_id:
        return [token.id for token in best]
    choices = _choices(model, piece)
    ids, start = [], 0
    while start < len(piece):
        *longer, shortest = choices[start]
        kept = (token for token in longer if draw.random() >= dropout)
        token = next(kept, shortest)
        ids.append(token.id)
        start = token.end
    return ids


def _choices(model: WordPiece, piece: str) -> list[list[Token]]:
    """Tokens from each place from which the end of the word can be reached, the longest first."""
    size, known = len(piece), model.by_text
    found: list[list[Token]] = [[] for _ in range(size)]
    for start in range(size - 1, -1, -1):
        prefix = model.continuing_subword_prefix if start else ""
        for end in range(min(size, start + model.longest), start, -1):
            token_id = known.get(prefix + piece[start:end])
            if token_id is not None and (end == size or found[end]):
                found[start].append(Token(token_id, start, end))
    return found


def best_cuts(
    tokenizer: PipelineTokenizer, text: str | bytes, number: int, *, allow_special: bool = False
) -> list[tuple[list[int], float]]:
    """The most probable cuts of a text under a Unigram model, and their log-probabilities (nats).

    Raises: UserError for a model that has no probabilities.
    """
    model = tokenizer.vocabulary.model
    if not isinstance(model, Unigram):
        raise UserError("only a Unigram model has probabilities to order cuts by")
    if number < 1:
        raise UserError(f"{number} cuts: ask for one or more")
    found: list[tuple[float, list[int]]] = [(0.0, [])]
    for piece, token_id, begins in tokenizer.pieces(text, allow_special=allow_special):
        if token_id is not None:
            found = [(score, [*ids, token_id]) for score, ids in found]
            continue
        changed = tokenizer.pre_tokenizer.change(piece, at_start=begins)
        for word in tokenizer.pre_tokenizer.words(changed):
            parts = model.best_cuts(word, number)
            both = ((a + b, (ids, more)) for a, ids in found for b, more in parts)
            kept = heapq.nlargest(number, both, key=lambda cut: cut[0])
            found = [(score, [*ids, *more]) for score, (ids, more) in kept]
    return [(ids, score) for score, ids in found]
