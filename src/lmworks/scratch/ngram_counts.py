"""Counting n-grams of token ids by sorting: no dictionary, a few arrays per order.

An n-gram is named by its place in the sorted table of its order. Its key packs the name of its
first n-1 tokens (a place in the table below) with its last token into one int64, so a table of any
order is one sorted array of integers, the n-grams of one context lie side by side, and looking up
is a binary search.

Two counts are kept. `raw` is how often the n-gram occurs. `continuation` is in how many contexts:
the number of distinct tokens that precede it (Kneser & Ney 1995), which is what the lower orders of
a Kneser-Ney model estimate from. Two rules for the edge of the stream: its first token is context
only and is not counted as predicted, and an n-gram that opens the stream has "nothing" as one
distinct predecessor. Both are KenLM's rules for its sentence start.

Left out: tables larger than memory, and cutting off rare n-grams.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lmworks.core.errors import UserError

MAX_ORDER = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrderCounts:
    """The n-grams of one order, U of them; `keys` is sorted and without repeats."""

    keys: np.ndarray  # (U,) int64: place of the context in the order below * vocab_size + token
    raw: np.ndarray  # (U,) int64
    continuation: np.ndarray  # (U,) int64; empty for the highest order counted
    num_contexts: int  # size of the table below


def count_ngrams(tokens: np.ndarray, vocab_size: int, max_order: int) -> list[OrderCounts]:
    """Count all n-grams of order 1 to `max_order` in a stream.

    Args:
        tokens: (N,) ids in [0, vocab_size).
    Returns: one OrderCounts per order; order 1 has an entry for every id of the vocabulary.
    Raises: UserError for an id outside the vocabulary, an order outside 1..6, or a vocabulary so
        large that a key would not fit into 63 bits.
    """
    tokens = check_tokens(tokens, vocab_size)
    if not 1 <= max_order <= MAX_ORDER:
        raise UserError(f"n-gram order {max_order} is not supported: choose 1 to {MAX_ORDER}")
    if max(len(tokens), vocab_size) * vocab_size >= 2**63:
        raise UserError(f"a vocabulary of {vocab_size} is too large to count n-grams in")
    keys = np.arange(vocab_size, dtype=np.int64)
    raw = np.bincount(tokens[1:], minlength=vocab_size)
    names = tokens  # names[j]: the n-gram that ends at token j + order - 1
    num_contexts = 1
    counted = []
    for order in range(1, max_order):
        longer = names[:-1] * vocab_size + tokens[order:]
        longer_keys, first, places, longer_raw = np.unique(
            longer, return_index=True, return_inverse=True, return_counts=True
        )
        # One occurrence of each longer n-gram tells which suffix it continues.
        continuation = np.bincount(names[1:][first], minlength=len(keys))
        if order > 1 and len(names):
            continuation[names[0]] += 1
        counted.append(_order(keys, raw, continuation, num_contexts))
        num_contexts = len(keys)
        keys, raw, names = longer_keys, longer_raw, places
    counted.append(_order(keys, raw, np.empty(0, np.int64), num_contexts))
    return counted


def _order(
    keys: np.ndarray, raw: np.ndarray, continuation: np.ndarray, num_contexts: int
) -> OrderCounts:
    return OrderCounts(keys=keys, raw=raw, continuation=continuation, num_contexts=num_contexts)


def check_tokens(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """`tokens` as (N,) int64. Raises: UserError for an id outside [0, vocab_size)."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
        raise UserError("token ids must be one row of whole numbers")
    tokens = tokens.astype(np.int64)
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        wrong = int(tokens.max() if tokens.max() >= vocab_size else tokens.min())
        raise UserError(
            f"token id {wrong} is outside the vocabulary of {vocab_size}: "
            "is this the tokenizer the n-gram was trained with?"
        )
    return tokens
