"""Learning a Unigram vocabulary from counted words: seeds, rounds of EM, pruning.

Frequent substrings are the first pieces. In each round the probabilities are fitted to the words
(two steps of EM), then the pieces whose loss would hurt the likelihood least are dropped, until a
tenth more than wanted is left; of those the most probable ones are kept and fitted once more.

As SentencePiece's trainer, in 64 bits and with these choices:

- A seed is a substring that no one-character extension occurs as often as. Words are weighted by
  their counts, and the end of a word counts as an extension of its own, so that a word that is
  always followed by a space is a seed as well.
- A character is never dropped while pieces are learnt: one that is expected less than half a time
  counts as half. There is always a way to cut a word, without an unknown token.
- The M-step is SentencePiece's: exp(digamma(count) - digamma(sum)), a Dirichlet prior of 0 in
  variational Bayes, which makes rare pieces rarer than their share.
- The chosen pieces are fitted once more, so that their probabilities are those of the vocabulary
  that there is in the end.
- A piece that is on no best path has no loss: such pieces go first, and of equals the one whose
  text sorts last. Of equally probable cuts the one whose last piece is longer is best, as when
  text is encoded (tokenizers/unigram.py).

The lattices (`Lattices`) are what takes the time; the ones here are plain Python and the oracle of
the compiled ones (compiled_unigram.py).

Sources: Kudo 2018, arXiv 1804.10959, section 3.2; the M-step: Liang and Klein 2007, "Structured
Bayesian nonparametric models with variational inference", section 3; pruning by what a piece's
second best cut costs: SentencePiece's released code.
Checked: against SentencePiece 0.2.3, bench/unigram_training.py.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.tokenizers.word_counts import WordCounts

_LEAST_EXPECTED = 0.5  # pieces expected less often are dropped
_ROOM = 1.1  # of the size wanted, what is left when the most probable are chosen
_DIGITS = 10


def learn_unigram(
    words: WordCounts,
    *,
    vocab_size: int,
    required: Sequence[str] = (),
    min_frequency: int = 2,
    max_piece_length: int = 16,
    seed_size: int = 1_000_000,
    shrinking_factor: float = 0.75,
    num_sub_iterations: int = 2,
) -> tuple[list[str], list[float]]:
    """Pieces and their log-probabilities (nats), the most probable first.

    The same words in the same order give the same bytes, whatever the number of threads. There
    are fewer than `vocab_size` pieces where the words have no more frequent substrings.

    Args:
        words: bytes of UTF-8; no piece reaches from one word into another.
        required: pieces that are always there, an alphabet as a rule. One of several characters
            that is no seed gets the probability of the rarest piece.
        min_frequency: a substring seen less often is no seed; below 2 is as 2.
        max_piece_length: characters.
        seed_size: substrings to begin with, those with the most characters of text.
        shrinking_factor: of the pieces, what a round leaves.
        num_sub_iterations: steps of EM in a round.
    Raises: UserError when there are no words, or `required` does not fit.
    """
    from lmworks.tokenizers.trainers.compiled_unigram import CompiledLattices

    _check(words, vocab_size, required)
    if not 1 <= max_piece_length <= 255:
        raise UserError(f"max_piece_length = {max_piece_length}: a number from 1 to 255")
    if not 0 <= seed_size < 1 << 23:
        raise UserError(f"seed_size = {seed_size}: a number from 0 to {(1 << 23) - 1}")
    if not 0 < shrinking_factor < 1:
        raise UserError(f"shrinking_factor = {shrinking_factor}: a number between 0 and 1")
    lattices = CompiledLattices(words, max_piece_length, seed_size, min_frequency)
    return learn_from(
        lattices,
        vocab_size=vocab_size,
        required=required,
        shrinking_factor=shrinking_factor,
        num_sub_iterations=num_sub_iterations,
    )


def _check(words: WordCounts, vocab_size: int, required: Sequence[str]) -> None:
    if not len(words):
        raise UserError("there is no text to learn a tokenizer from")
    if len(set(required)) > vocab_size:
        raise UserError(
            f"vocab_size = {vocab_size}: at least {len(set(required))} are needed for the required "
            "pieces (the alphabet): ask for more, or require fewer characters"
        )


class Lattices(Protocol):
    """All ways to cut the words into pieces. Ids of characters come first, by code point."""

    num_characters: int
    lengths: Any  # int64 [pieces], characters
    weights: Any  # float64 [pieces]: characters of text, before anything is fitted

    def texts(self) -> list[str]:
        """Every piece, by id."""

    def expected(self, scores: Any) -> tuple[Any, float]:
        """How often each piece is expected [pieces], and the log-likelihood of all words, nats."""

    def best_counts(self, scores: Any) -> Any:
        """int64 [pieces]: how often each piece is on the best paths."""

    def losses(self, scores: Any, counts: Any) -> Any:
        """float64 [pieces]: about how many nats all words lose with a piece.

        inf for a piece that can't be cut otherwise, -inf for one that no best path can hold.
        """

    def keep(self, kept: Any) -> None:
        """Drop the pieces that are False in bool [pieces]; the others close ranks."""


def learn_from(
    lattices: Lattices,
    *,
    vocab_size: int,
    required: Sequence[str] = (),
    shrinking_factor: float = 0.75,
    num_sub_iterations: int = 2,
) -> tuple[list[str], list[float]]:
    """`learn_unigram` over given lattices."""
    desired = int(_ROOM * vocab_size)
    needed = set(required)
    protected = np.arange(len(lattices.weights)) < lattices.num_characters
    if any(len(text) > 1 for text in needed):
        protected |= np.array([text in needed for text in lattices.texts()], dtype=bool)
    scores = np.log(lattices.weights) - math.log(lattices.weights.sum())
    rounds = math.log(max(len(scores) / desired, 1)) / -math.log(shrinking_factor) + 1
    with track("learning pieces", total=math.ceil(rounds)) as bar:
        while True:
            for _ in range(max(1, num_sub_iterations)):
                expected, likelihood = lattices.expected(scores)
                kept = (expected >= _LEAST_EXPECTED) | protected
                scores = _probabilities(expected[kept])
                protected = protected[kept]
                lattices.keep(kept)
            bar.advance(pieces=len(scores), nats_per_piece=-likelihood / expected.sum())
            if len(scores) <= desired:
                break
            size = max(desired, int(shrinking_factor * len(scores)))
            kept = _pruned(lattices, scores, protected, size)
            if kept.all():  # what is left is all required
                break
            scores, protected = scores[kept], protected[kept]
            lattices.keep(kept)
    return _chosen(lattices, scores, vocab_size, needed)


def _probabilities(expected: Any) -> Any:
    """Expected counts to log-probabilities.

    Rounded, so that pieces which are equally probable stay so whatever the order of the sums.
    """
    counts = np.maximum(expected, _LEAST_EXPECTED)
    return np.round(digamma(counts) - digamma(counts.sum()), _DIGITS)


def _pruned(lattices: Lattices, scores: Any, protected: Any, size: int) -> Any:
    """bool [pieces]: those that stay when `size` of them are to be left."""
    losses = lattices.losses(scores, lattices.best_counts(scores))
    losses[protected] = np.inf
    order = np.argsort(-losses, kind="stable")
    size = max(size, int(np.count_nonzero(losses == np.inf)))
    kept = np.zeros(len(losses), dtype=bool)
    kept[order[:size]] = True
    return kept & (losses > -np.inf)


def _chosen(
    lattices: Lattices, scores: Any, vocab_size: int, required: set[str]
) -> tuple[list[str], list[float]]:
    """The required pieces and the most probable others, fitted once more to the words."""
    texts = lattices.texts()
    chosen = set(required)
    for text, _ in _by_score(dict(zip(texts, scores.tolist()))):
        if len(chosen) >= vocab_size:
            break
        chosen.add(text)
    kept = np.array([text in chosen for text in texts], dtype=bool)
    kept[: lattices.num_characters] = True  # a way to cut every word
    lattices.keep(kept)
    expected, _ = lattices.expected(scores[kept])
    fitted = dict(zip(itertools.compress(texts, kept), _probabilities(expected).tolist()))
    least = min(fitted.values())
    ranked = _by_score({text: fitted.get(text, least) for text in chosen})
    return [text for text, _ in ranked], [score for _, score in ranked]


def _by_score(pieces: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(pieces.items(), key=lambda piece: (-piece[1], piece[0]))


def digamma(x: Any) -> Any:
    """The derivative of log(gamma), for positive numbers, to some 12 digits.

    Recurrence up to 8, then the asymptotic series. Source: Abramowitz and Stegun 1964, 6.3.5 and
    6.3.18.
    """
    x = np.array(x, dtype=np.float64)
    shifted = np.zeros_like(x)
    for _ in range(8):
        small = x < 8
        shifted -= np.where(small, 1 / x, 0.0)
        x += small
    y = 1 / (x * x)
    series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y * (1 / 132)))))
    return shifted + np.log(x) - 0.5 / x - series


class ReadableLattices:
    """`Lattices` in plain Python: the oracle."""

    def __init__(
        self, words: WordCounts, max_piece_length: int, seed_size: int, min_frequency: int = 2
    ) -> None:
        self._words = [(word.decode(), count) for word, count in words.items()]
        characters: Counter[str] = Counter()
        for word, count in self._words:
            for character in word:
                characters[character] += count
        seeds = _seeds(self._words, max_piece_length, max(2, min_frequency))
        weighed = sorted(((-n * len(text), text) for text, n in seeds.items()))[:seed_size]
        weights = dict(sorted((text, -weight) for weight, text in weighed))
        self.num_characters = len(characters)
        self.weights = np.array(
            [n for _, n in sorted(characters.items())] + list(weights.values()), dtype=np.float64
        )
        self._set([*sorted(characters), *weights])

    def _set(self, texts: Iterable[str]) -> None:
        self._texts = list(texts)
        self.lengths = np.array([len(text) for text in self._texts], dtype=np.int64)
        self._ids = {text: i for i, text in enumerate(self._texts)}
        self._longest = int(self.lengths.max())

    def texts(self) -> list[str]:
        return self._texts

    def keep(self, kept: Any) -> None:
        self._set(itertools.compress(self._texts, kept))
        self.weights = self.weights[kept]

    def _edges(self, word: str) -> list[tuple[int, int, int]]:
        """(start, end, id) of every piece in a word, by start and then by end."""
        return [
            (start, end, piece)
            for start in range(len(word))
            for end in range(start + 1, min(len(word), start + self._longest) + 1)
            if (piece := self._ids.get(word[start:end])) is not None
        ]

    def expected(self, scores: Any) -> tuple[Any, float]:
        found, likelihood = np.zeros(len(scores)), 0.0
        for word, count in self._words:
            edges = self._edges(word)
            before, after = [-math.inf] * (len(word) + 1), [-math.inf] * (len(word) + 1)
            before[0] = after[-1] = 0.0
            for start, end, piece in edges:
                before[end] = np.logaddexp(before[end], before[start] + scores[piece])
            for start, end, piece in reversed(edges):
                after[start] = np.logaddexp(after[start], after[end] + scores[piece])
            for start, end, piece in edges:
                path = before[start] + scores[piece] + after[end] - before[-1]
                found[piece] += count * math.exp(path)
            likelihood += count * float(before[-1])
        return found, likelihood

    def best_counts(self, scores: Any) -> Any:
        found = np.zeros(len(scores), dtype=np.int64)
        for word, count in self._words:
            for piece in _best_path(len(word), self._edges(word), scores)[1]:
                found[piece] += count
        return found

    def losses(self, scores: Any, counts: Any) -> Any:
        total, found = counts.sum(), np.full(len(scores), np.inf)
        for piece, text in enumerate(self._texts):
            if len(text) == 1:
                continue
            edges = [edge for edge in self._edges(text) if edge[2] != piece]
            score, others = _best_path(len(text), edges, scores)
            count = counts[piece]
            if count == 0:
                found[piece] = -np.inf if score > scores[piece] else 0.0
                continue
            # Its occurrences become occurrences of the pieces of its second best cut.
            more = math.log(total + count * (len(others) - 1))
            without = sum(math.log(counts[other] + count) - more for other in reversed(others))
            found[piece] = count * (math.log(count) - math.log(total) - without)
        return found


def _seeds(words: Iterable[tuple[str, int]], longest: int, least: int) -> dict[str, int]:
    """Substrings that occur often enough, and their extensions less often."""
    counts: Counter[str] = Counter()
    for word, count in words:
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest + 1) + 1):
                counts[word[start:end]] += count
    extended = {text[:-1] for text, n in counts.items() if n == counts[text[:-1]]}
    return {
        text: n
        for text, n in counts.items()
        if n >= least and 2 <= len(text) <= longest and text not in extended
    }


def _best_path(
    size: int, edges: Iterable[tuple[int, int, int]], scores: Any
) -> tuple[float, list[int]]:
    """The score and the pieces of the most probable cut."""
    best = [-math.inf] * (size + 1)
    steps: list[tuple[int, int]] = [(0, 0)] * (size + 1)
    best[0] = 0.0
    for start, end, piece in edges:
        if best[start] + scores[piece] > best[end]:
            best[end], steps[end] = best[start] + scores[piece], (start, piece)
    path, at = [], size
    while at > 0:
        at, piece = steps[at]
        path.append(piece)
    return best[size], path[::-1]
