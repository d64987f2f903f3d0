"""Unigram language model: the most probable way to cut a piece into tokens, or a sampled one.

Every token has a log-probability; the best path through all ways to cut is found by Viterbi's
algorithm. A character that no token covers is the unknown token, at a price below every other.

Two roundings are published, and near-ties depend on them: Hugging Face adds scores in 64 bits from
the start of each piece, SentencePiece in 32 bits from the start of the text (`float32`), the sums
beginning anew whenever they are beyond 100,000.

Source: Kudo 2018, arXiv 1804.10959 (sections 3.1 and 3.2: sampling).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import heapq
import math
import random
from collections.abc import Callable
from typing import Any

from lmworks.tokenizers.bpe import Token, utf8

RESET_BEYOND = 100_000.0  # a sum that SentencePiece takes back to 0
_UNKNOWN_PENALTY = 10.0  # below the least probable token


Ending = tuple[list[Token], list[float]]  # tokens with one end, and their weights added up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unigram:
    """Tokens with their log-probabilities."""

    tokens: tuple[bytes, ...]  # by id, the UTF-8 of their text
    scores: tuple[float, ...]
    unk_id: int | None = None
    byte_fallback: bool = False
    float32: bool = False  # scores are added as SentencePiece does
    unmatched: frozenset[int] = frozenset()  # control and byte tokens: text never matches them

    @functools.cached_property
    def by_text(self) -> dict[str, int]:
        """Text to id, of the tokens that text may match."""
        return {
            token.decode("utf-8", "replace"): i
            for i, token in enumerate(self.tokens)
            if token and i not in self.unmatched
        }

    @functools.cached_property
    def longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.by_text), default=0)

    @functools.cached_property
    def unknown_score(self) -> float:
        used = [s for i, s in enumerate(self.scores) if i not in self.unmatched]
        return min(used, default=0.0) - _UNKNOWN_PENALTY

    @functools.cached_property
    def byte_ids(self) -> tuple[int | None, ...]:
        """The id of each byte's `<0x..>` token."""
        ids = {token: i for i, token in enumerate(self.tokens)}
        return tuple(ids.get(b"<0x%02X>" % byte) for byte in range(256))

    def encode_piece(self, piece: str) -> list[int]:
        """Ids of the most probable cut."""
        return [token.id for token in self.encode_spans(piece)]

    def encode_spans(self, piece: str) -> list[Token]:
        """As `encode_piece`, with the characters that each id stands for."""
        return self._with_bytes(piece, self._best_path(piece))

    def sample(self, piece: str, *, alpha: float, draw: random.Random) -> list[int]:
        """Ids of a cut drawn with probability proportional to its likelihood to the `alpha`.

        Forward filtering, backward sampling: exact, over all cuts (l = infinity in the paper).
        """
        total = self._totals(piece, alpha)
        return self.drawn(piece, lambda end: self._ending(piece, end, total, alpha), draw)

    def endings(self, piece: str, *, alpha: float) -> list[Ending]:
        """For each end in the piece, the tokens that end there and their weights, added up."""
        total = self._totals(piece, alpha)
        return [self._ending(piece, end, total, alpha) for end in range(len(piece) + 1)]

    def _totals(self, piece: str, alpha: float) -> list[float]:
        """For each end, the logarithm of the weights of all ways to get there."""
        total = [0.0] + [-math.inf] * len(piece)
        for start in range(len(piece)):
            for _, end, score in self._from(piece, start):
                total[end] = _log_add(total[end], total[start] + alpha * score)
        return total

    def _ending(self, piece: str, end: int, total: list[float], alpha: float) -> Ending:
        tokens: list[Token] = []
        weights: list[float] = []
        reached = 0.0
        for start in range(max(0, end - self.longest), end):
            token_id, score = self.by_text.get(piece[start:end]), self.unknown_score
            if token_id is not None:
                score = self.scores[token_id]
            elif start == end - 1:
                token_id = -1 if self.unk_id is None else self.unk_id
            else:
                continue
            reached += math.exp(total[start] + alpha * score - total[end])
            tokens.append(Token(token_id, start, end))
            weights.append(reached)
        return tokens, weights

    def drawn(self, piece: str, ending: Callable[[int], Ending], draw: random.Random) -> list[int]:
        """Ids of a cut drawn from the last token to the first; `ending` gives `endings`."""
        path, end = [], len(piece)
        while end > 0:
            tokens, weights = ending(end)
            last = len(tokens) - 1
            at = bisect.bisect(weights, draw.random() * weights[last], 0, last) if last else 0
            path.append(tokens[at])
            end = path[-1].start
        return [token.id for token in self._with_bytes(piece, path[::-1])]

    def best_cuts(self, piece: str, number: int) -> list[tuple[float, list[int]]]:
        """The most probable cuts, the best first: log-probability (nats) and ids.

        Each end keeps its best paths, as many as are wanted. Of equals, the one whose last token
        is longer comes first. Scores are added in 64 bits.
        """
        best: list[list[tuple[float, Any]]] = [[] for _ in range(len(piece) + 1)]
        best[0] = [(0.0, None)]
        for start in range(len(piece)):
            best[start] = heapq.nlargest(number, best[start], key=lambda path: path[0])
            for token_id, end, score in self._from(piece, start):
                token = Token(token_id, start, end)
                best[end] += [(before + score, (path, token)) for before, path in best[start]]
        ranked = heapq.nlargest(number, best[-1], key=lambda path: path[0])
        return [
            (score, [token.id for token in self._with_bytes(piece, _unrolled(path))])
            for score, path in ranked
        ]

    def _score(self, token_id: int) -> float:
        return self.unknown_score if token_id == self.unk_id else self.scores[token_id]

    def _from(self, piece: str, start: int) -> list[tuple[int, int, float]]:
        """(id, end, score) of each token that begins at `start`; the unknown one if need be."""
        found = []
        known, scores = self.by_text, self.scores
        for end in range(start + 1, min(len(piece), start + self.longest) + 1):
            token_id = known.get(piece[start:end])
            if token_id is not None:
                found.append((token_id, end, scores[token_id]))
        if not any(end == start + 1 for _, end, _ in found):
            found.append(
                (-1 if self.unk_id is None else self.unk_id, start + 1, self.unknown_score)
            )
        return found

    def _best_path(self, piece: str) -> list[Token]:
        rounded: Callable[[float], float] = _to_float32 if self.float32 else float
        best: list[tuple[float, Token] | None] = [None] * (len(piece) + 1)
        reached = 0.0
        for start in range(len(piece)):
            before = best[start]
            reached = before[0] if before else 0.0
            if self.float32 and abs(reached) > RESET_BEYOND:
                for at in range(start, len(best)):
                    if (found := best[at]) is not None:
                        best[at] = (rounded(found[0] - reached), found[1])
                reached = 0.0
            for token_id, end, score in self._from(piece, start):
                total = rounded(rounded(score) + reached)
                there = best[end]
                if there is None or total > there[0]:
                    best[end] = (total, Token(token_id, start, end))
        path, end = [], len(piece)
        while end > 0 and (step := best[end]) is not None:
            path.append(step[1])
            end = step[1].start
        return path[::-1]

    def _with_bytes(self, piece: str, path: list[Token]) -> list[Token]:
        """Unknown neighbours joined, then written as bytes where there are tokens for them."""
        if not any(token.id in (self.unk_id, -1) for token in path):
            return path
        found: list[Token] = []
        for token in path:
            if token.id in (self.unk_id, -1):
                if found and found[-1].id == token.id:
                    found[-1] = found[-1]._replace(end=token.end)
                else:
                    found.append(token)
            else:
                found.append(token)
        if not self.byte_fallback:
            return [token for token in found if token.id >= 0]
        return [part for token in found for part in self._bytes_of(piece, token)]

    def _bytes_of(self, piece: str, token: Token) -> list[Token]:
        if token.id != self.unk_id:
            return [token]
        ids = [self.byte_ids[byte] for byte in utf8(piece[token.start : token.end])]
        if None in ids:
            return [token]
        return [token._replace(id=i) for i in ids if i is not None]


def _unrolled(path: Any) -> list[Token]:
    """Tokens of (((None, first), second), third)."""
    tokens: list[Token] = []
    while path is not None:
        path, token = path
        tokens.append(token)
    return tokens[::-1]


def _log_add(a: float, b: float) -> float:
    low, high = min(a, b), max(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def _to_float32(value: float) -> float:
    import numpy as np

    return float(np.float32(value))
