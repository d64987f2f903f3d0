"""Interpolated modified Kneser-Ney: the strongest n-gram model that is only counting.

    model = KneserNey.train(tokens, vocab_size, order=5)
    nats = model.logprobs(heldout)

    p_n(w | c) = max(count(c w) - D(count(c w)), 0) / count(c .)  +  backoff(c) * p_{n-1}(w | c')

with c' = c without its oldest token, raw counts at the highest order and continuation counts below,
three discounts D1, D2, D3+ per order, and backoff(c) what the discounts freed. The recursion ends
in the uniform distribution, so every token has a probability above zero. A context never seen
passes the question on unchanged.

When an order's counts of counts give no usable discounts (one of n1..n4 is zero, or D_j lies
outside [0, j], as with little or artificial text), that order takes 0.5, 1 and 1.5, which is what
KenLM's `--discount_fallback` does.

Source: Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling",
section 3 and equation 26; Heafield et al. 2013 for the details that the paper leaves open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from lmworks.core.errors import UserError
from lmworks.scratch.ngram_counts import OrderCounts, check_tokens, count_ngrams

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """D1, D2 and D3+ of one order, from how many n-grams occur once, twice, 3 and 4 times.

    Source: Chen & Goodman 1999, equation 26. Falls back as the module docstring says.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)
    if not n[1:5].all():
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    d1, d2, d3 = (float(j - (j + 1) * y * n[j + 1] / n[j]) for j in (1, 2, 3))
    if not (0 <= d1 <= 1 and 0 <= d2 <= 2 and 0 <= d3 <= 3):
        return FALLBACK_DISCOUNTS
    return d1, d2, d3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One order of the model, as its counts leave it after discounting."""

    keys: np.ndarray  # (U,) int64, see OrderCounts
    share: np.ndarray  # (U,) float64: max(count - D, 0) / total of the context
    backoff: np.ndarray  # (contexts,) float64: what is left for the order below
    discounts: tuple[float, float, float]

    @classmethod
    def make(cls, table: OrderCounts, counts: np.ndarray, vocab_size: int) -> Level:
        """Turn counts (raw or continuation) into shares and backoffs."""
        amounts = discounts(counts)
        discount = np.array([0.0, *amounts])[np.minimum(counts, 3)]
        context = table.keys // vocab_size if table.num_contexts > 1 else np.zeros_like(table.keys)
        total = np.bincount(context, counts, table.num_contexts)
        freed = np.bincount(context, discount, table.num_contexts)
        seen = total > 0
        backoff = np.ones(table.num_contexts)
        backoff[seen] = freed[seen] / total[seen]
        share = (counts - discount) / np.where(seen, total, 1.0)[context]
        return cls(keys=table.keys, share=share, backoff=backoff, discounts=amounts)


class KneserNey:
    """An n-gram model over token ids. Made by `train` or `best`."""

    def __init__(self, levels: Sequence[Level], vocab_size: int) -> None:
        self.levels, self.vocab_size = tuple(levels), vocab_size

    @property
    def order(self) -> int:
        """The most tokens the model looks at, the predicted one included."""
        return len(self.levels)

    @property
    def num_ngrams(self) -> int:
        """N-grams of all orders that carry a share."""
        return sum(int(np.count_nonzero(level.share)) for level in self.levels)

    @classmethod
    def train(cls, tokens: np.ndarray, vocab_size: int, order: int) -> KneserNey:
        """Estimate from a stream of ids, in which a separator stands between documents.

        Args:
            tokens: (N,) ids; the first is context only (a separator, as `token_stream` makes it).
            order: 1 to 6.
        Raises: UserError for an id outside the vocabulary or an order outside 1..6.
        """
        counted = count_ngrams(tokens, vocab_size, order)
        lower = _lower(counted[:-1], vocab_size)
        return cls([*lower, _highest(counted[-1], vocab_size)], vocab_size)

    @classmethod
    def best(
        cls,
        tokens: np.ndarray,
        heldout: Sequence[np.ndarray],
        *,
        vocab_size: int,
        orders: Iterable[int] = range(2, 7),
    ) -> tuple[KneserNey, dict[int, float]]:
        """The best order for some held-out documents; all orders are counted once.

        The choice is made on the very text it is then judged on: that favours the baseline, so a
        model that beats it has beaten every order.

        Args:
            heldout: documents, each (N,) ids that open with the separator (not scored).
        Returns: the model, and nats per token of every order.
        Raises: UserError as `train`, or when nothing is left to score.
        """
        orders = sorted(set(orders))
        counted = count_ngrams(tokens, vocab_size, max(orders, default=0))
        lower = _lower(counted[:-1], vocab_size)
        num_scored = sum(max(len(document) - 1, 0) for document in heldout)
        if not num_scored:
            raise UserError("no held-out tokens to choose the n-gram order with")
        figures: dict[int, float] = {}
        models: dict[int, KneserNey] = {}
        for order in orders:
            top = _highest(counted[order - 1], vocab_size)
            models[order] = cls([*lower[: order - 1], top], vocab_size)
            nats = sum(models[order].logprobs(document)[1:].sum() for document in heldout)
            figures[order] = float(-nats / num_scored)
        return models[min(orders, key=figures.__getitem__)], figures

    def logprobs(self, tokens: np.ndarray) -> np.ndarray:
        """Log-probability of each token given those before it in the array.

        Args:
            tokens: (N,) ids; the first is given nothing.
        Returns: (N,) float64, nats.
        Raises: UserError for an id outside the vocabulary.
        """
        tokens = check_tokens(tokens, self.vocab_size)
        bottom = self.levels[0]
        p = bottom.share[tokens] + bottom.backoff[0] / self.vocab_size
        names = tokens  # the n-gram that ends at each token, -1 where it was never seen
        for order, level in enumerate(self.levels[1:], start=2):
            names = self._raise(p[order - 1 :], level, names[:-1], tokens[order - 1 :])
        logprobs: np.ndarray = np.log(p)
        return logprobs

    def _raise(
        self, p: np.ndarray, level: Level, context: np.ndarray, tokens: np.ndarray
    ) -> np.ndarray:
        """Refine `p` in place by one order; return the names of the n-grams of this order."""
        if not len(level.keys) or not len(tokens):
            return np.full(len(tokens), -1)
        key = np.where(context >= 0, context * self.vocab_size + tokens, -1)
        place = np.minimum(np.searchsorted(level.keys, key), len(level.keys) - 1)
        seen = level.keys[place] == key
        p *= np.where(context >= 0, level.backoff[context], 1.0)
        p += np.where(seen, level.share[place], 0.0)
        return np.where(seen, place, -1)

    def distribution(self, context: Sequence[int] | np.ndarray) -> np.ndarray:
        """Probabilities of every token after `context` (the newest token last).

        Returns: (vocab_size,) float64 that sums to 1.
        """
        context = check_tokens(np.asarray(context, dtype=np.int64), self.vocab_size)
        everything = np.arange(self.vocab_size)
        bottom = self.levels[0]
        p = bottom.share + bottom.backoff[0] / self.vocab_size
        for order, level in enumerate(self.levels[1 : len(context) + 1], start=2):
            name = self._find(context[-(order - 1) :])
            self._raise(p, level, np.full(self.vocab_size, name), everything)
        return p

    def _find(self, ngram: np.ndarray) -> int:
        """The place of an n-gram in the table of its order, or -1."""
        name = int(ngram[0])
        for level, token in zip(self.levels[1:], ngram[1:]):
            key = name * self.vocab_size + int(token)
            place = int(np.searchsorted(level.keys, key))
            if place == len(level.keys) or level.keys[place] != key:
                return -1
            name = place
        return name


def _lower(counted: Sequence[OrderCounts], vocab_size: int) -> list[Level]:
    return [Level.make(table, table.continuation, vocab_size) for table in counted]


def _highest(table: OrderCounts, vocab_size: int) -> Level:
    return Level.make(table, table.raw, vocab_size)
