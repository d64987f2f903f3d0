"""A vocabulary by its bytes: which tokens say that a text goes on with a given byte.

At a place of a text, between two tokens or within one, whatever the model might say there is a
token that began at this place or at a boundary before it and agrees with the text so far. Tokens in
the order of their bytes that begin alike are neighbours, so all that go on with one byte are a
range, and their probability is a difference of two sums.

    trie = ByteTrie.of(tokenizer)
    covers = trie.covers(b"some text", boundaries)

A token without bytes, such as an end of text, is the symbol STOP.

Source: Phan et al. 2024, "Exact Byte-Level Probabilities from Tokenized Language Models",
    arXiv 2410.09303, section 4 (cover encodings). Differs: only covers whose earlier tokens are
    those of the text itself, which one forward knows; what is missing is told as `rest`.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lmworks.tokenizers.base import Tokenizer

STOP = 256  # the symbol of tokens without bytes
NUM_SYMBOLS = 257


@dataclasses.dataclass(frozen=True, kw_only=True)
class Covers:
    """Ranges of tokens in the order of `ByteTrie.order`, each saying one symbol at one place.

    Attributes, all (E,) int64:
        boundary: from which boundary the range's tokens begin, counted from 0; ascending.
        place: the byte of the text that the symbol would be.
        symbol: 0 to 255, or STOP; -1 for tokens that end right before `place` and are not the
            text's own: what comes after them another forward would have to say.
        low, high: the range.
    """

    boundary: np.ndarray
    place: np.ndarray
    symbol: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __len__(self) -> int:
        return len(self.place)


class ByteTrie:
    """Tokens in the order of their bytes, and the ranges that share a beginning.

    Args:
        tokens: bytes of each id; empty for one that stands for no text.

    Attributes:
        order: (V,) int64 ids: those with bytes, sorted, then those without.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        with_bytes = sorted((token, index) for index, token in enumerate(tokens) if token)
        self._sorted = [token for token, _ in with_bytes]
        without = [index for index, token in enumerate(tokens) if not token]
        ids = [index for _, index in with_bytes]
        self.order = np.array(ids + without, dtype=np.int64)
        self._nodes: dict[bytes, _Node] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int = 0) -> ByteTrie:
        """Of a tokenizer's tokens; special ones, and rows of a padded table, have no bytes."""
        special = set(tokenizer.special_tokens.values())
        count = tokenizer.vocab_size
        tokens = [b"" if i in special else tokenizer.decode_bytes([i]) for i in range(count)]
        return cls(tokens + [b""] * max(0, vocab_size - count))

    def covers(self, text: bytes, boundaries: Sequence[int], *, ended: bool = False) -> Covers:
        """All that tokens from these boundaries say about the places of a text.

        Args:
            text: the bytes that the tokens stand for.
            boundaries: the byte at which each token begins; the first is 0, ascending.
            ended: whether what comes behind the text is a place too; then the text's end is the
                last boundary.
        """
        last = len(text) + (1 if ended else 0)
        following = [*boundaries[1:], -1]
        columns: list[list[np.ndarray]] = [[], [], [], []]
        origins: list[int] = []
        sizes: list[int] = []
        for number, (start, after) in enumerate(zip(boundaries, following, strict=True)):
            node, place = self._node(b""), start
            while place < last:
                # At `after` the text's own token ends, which is gone on from there.
                ranges = node.known if place == after else node.symbols
                if len(ranges[0]):
                    columns[0].append(np.full(len(ranges[0]), place))
                    for column, values in zip(columns[1:], ranges, strict=True):
                        column.append(values)
                    sizes.append(len(ranges[0]))
                    origins.append(number)
                if place >= len(text) or text[place] not in node.children:
                    break
                node = self._node(node.prefix + text[place : place + 1])
                place += 1
        places, symbols, lows, highs = (
            np.concatenate(column).astype(np.int64) if column else np.zeros(0, np.int64)
            for column in columns
        )
        boundary = np.repeat(np.array(origins, dtype=np.int64), sizes)
        return Covers(boundary=boundary, place=places, symbol=symbols, low=lows, high=highs)

    def _node(self, prefix: bytes) -> _Node:
        found = self._nodes.get(prefix)
        if found is None:
            found = self._nodes[prefix] = self._made(prefix)
        return found

    def _made(self, prefix: bytes) -> _Node:
        depth, tokens = len(prefix), self._sorted
        low, high = 0, len(tokens)
        if prefix:
            parent = self._node(prefix[:-1])
            low, high = parent.children[prefix[-1]]
        first = low
        while first < high and len(tokens[first]) == depth:
            first += 1  # they are `prefix` itself
        children: dict[int, tuple[int, int]] = {}
        at = first
        while at < high:
            byte = tokens[at][depth]
            after = tokens[at][:depth] + bytes([byte])
            # The first token that no longer begins so.
            end = bisect.bisect_right(tokens, after + b"\xff" * _LONGER, at, high)
            children[byte] = (at, end)
            at = end
        rows = [(byte, *part) for byte, part in children.items()]
        if not prefix:
            rows.append((STOP, len(tokens), len(self.order)))
        known = _columns(rows)
        return _Node(
            prefix=prefix,
            children=children,
            known=known,
            symbols=_columns([(-1, low, first), *rows]) if first > low else known,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Node:
    prefix: bytes
    children: dict[int, tuple[int, int]]
    known: Any  # symbols, lows and highs of the children
    symbols: Any  # with the tokens that are `prefix` itself


_LONGER = 512  # more bytes than a token has


def _columns(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, ...]:
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
