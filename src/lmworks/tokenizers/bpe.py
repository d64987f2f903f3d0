"""Byte-pair encoding: the model's data, and one piece of text to ids in readable Python.

Two kinds share the merge loop (merging.py). Byte-level: a token is its bytes and the first symbols
are the 256 bytes, so any text has ids. SentencePiece style: the first symbols are characters, and
one that the vocabulary lacks is written as its bytes (`<0x0A>`) or as the unknown token.

Sources: Sennrich et al. 2016, arXiv 1508.07909; on bytes: Radford et al. 2019, section 2.2;
byte fallback: Kudo and Richardson 2018, arXiv 1808.06226, and SentencePiece's release notes.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from lmworks.core.errors import UserError
from lmworks.tokenizers import calls
from lmworks.tokenizers.merging import merge

Pair = tuple[int, int]


class Token(NamedTuple):
    """An id and which characters of the piece it stands for."""

    id: int
    start: int
    end: int


_WORTH_KERNELS = 20_000  # merges from which on loading the kernels to check them pays


class Merges(Sequence[Pair]):
    """Pairs of ids in one flat array: half a million tuples would take a second and 50 MB."""

    def __init__(self, flat: array.array[int]) -> None:
        """`flat`: left, right, left, right ..., of type "i"."""
        self.flat = flat

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Merges:
        """Pairs as Merges; those that are stay as they are."""
        if isinstance(pairs, Merges):
            return pairs
        return cls(array.array("i", itertools.chain.from_iterable(pairs)))

    @property
    def pairs(self) -> Any:
        """int32 [merges, 2]."""
        import numpy as np

        return np.frombuffer(self.flat, dtype=np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.flat) // 2

    def __iter__(self) -> Iterator[Pair]:
        return iter(zip(self.flat[::2], self.flat[1::2]))

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Merges.of(tuple(self)[at])
        at = range(len(self))[at]
        return self.flat[2 * at], self.flat[2 * at + 1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Merges) and self.flat == other.flat

    def __hash__(self) -> int:
        return hash(self.flat.tobytes())


@dataclasses.dataclass(frozen=True, kw_only=True)
class BPE:
    """Raises: UserError for merges that make tokens which the vocabulary does not hold."""

    tokens: tuple[bytes, ...]  # by id; b"" where an id belongs to an added token or to nothing
    merges: Sequence[Pair]  # pairs of ids, lowest rank first; whatever is given becomes Merges
    ranks: Sequence[int] | None = None  # of the merges, where some share one; else the position
    byte_level: bool = True
    ignore_merges: bool = False  # a piece that is a token is that token, whatever the merges say
    byte_fallback: bool = False
    unk_id: int | None = None
    fuse_unk: bool = False  # unknown neighbours become one token
    end_of_word_suffix: str = ""
    continuing_subword_prefix: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "merges", Merges.of(self.merges))

    def check(self) -> None:
        """Raises: UserError for merges that make tokens which the vocabulary does not hold."""
        if len(self.merges) < _WORTH_KERNELS or not calls.ready():
            _ = self.ranked
        else:
            _ = self.merged

    @functools.cached_property
    def merged(self) -> Any:
        """int32 [merges]: the id that each merge makes. Raises: as `check`."""
        import numpy as np

        from lmworks.tokenizers.compiled_tables import VocabularyTable

        if self.continuing_subword_prefix or not calls.ready():
            found = (self.ranked[pair][1] for pair in self.merges)
            return np.fromiter(found, dtype=np.int32, count=len(self.merges))
        pairs = Merges.of(self.merges).pairs
        left, right = (np.ascontiguousarray(pairs[:, i]) for i in (0, 1))
        merged = VocabularyTable(self.tokens).merged_ids(left, right)
        if (missing := np.flatnonzero(merged < 0)).size:
            raise self._unknown(int(missing[0]), self.merges[missing[0]])
        return merged

    def _unknown(self, number: int, pair: Pair) -> UserError:
        left, right = self.tokens[pair[0]], self.tokens[pair[1]]
        return UserError(
            f"merge {number} joins {left!r} and {right!r} to a token that the "
            "vocabulary does not hold"
        )

    @functools.cached_property
    def ids(self) -> dict[bytes, int]:
        """Bytes of a token to its id."""
        return {token: i for i, token in enumerate(self.tokens) if token}

    @functools.cached_property
    def ranked(self) -> dict[Pair, tuple[int, int]]:
        """(left, right) -> (rank, merged id)."""
        prefix = len(self.continuing_subword_prefix.encode())
        ranked: dict[Pair, tuple[int, int]] = {}
        ranks = self.ranks if self.ranks is not None else range(len(self.merges))
        tokens, ids = self.tokens, self.ids
        for number, (pair, rank) in enumerate(zip(self.merges, ranks)):
            left, right = tokens[pair[0]], tokens[pair[1]]
            merged = ids.get(left + right[prefix:] if prefix else left + right)
            if merged is None:
                raise self._unknown(number, pair)
            ranked[pair] = (rank, merged)  # told twice: the last counts, as in tokenizers
        return ranked

    @functools.cached_property
    def byte_ids(self) -> tuple[int | None, ...]:
        """The id of each byte: its token, or its `<0x..>` token."""
        size = 1 if self.byte_level else 6
        sizes = map(len, self.tokens)
        found = {self.tokens[i]: i for i, number in enumerate(sizes) if number == size}
        if self.byte_level:
            return tuple(found.get(bytes([byte])) for byte in range(256))
        return tuple(found.get(b"<0x%02X>" % byte) for byte in range(256))

    def encode_piece(self, piece: str) -> list[int]:
        """Ids of one piece, as the pre-tokenizer cut it."""
        whole = self.ids.get(utf8(piece)) if self.ignore_merges else None
        if whole is not None:
            return [whole]
        return merge(self.first_symbols(piece), self.ranked)

    def first_symbols(self, piece: str) -> list[int]:
        """Ids of the bytes or characters that merging begins with."""
        if self.byte_level and not self.end_of_word_suffix and self.unk_id is None:
            return [i for byte in utf8(piece) if (i := self.byte_ids[byte]) is not None]
        return [token.id for token in self._first_symbols(piece)]

    def encode_spans(self, piece: str) -> list[Token]:
        """As `encode_piece`, with the characters that each id stands for."""
        whole = self.ids.get(utf8(piece)) if self.ignore_merges else None
        if whole is not None:
            return [Token(whole, 0, len(piece))]
        first = self._first_symbols(piece)
        found, at = [], 0
        for token_id in merge([token.id for token in first], self.ranked):
            width = self._widths.get(token_id, 1)
            found.append(Token(token_id, first[at].start, first[at + width - 1].end))
            at += width
        return found

    def merges_reach_all(self, apart: Collection[int] = ()) -> bool:
        """Whether the merges make every token but those `apart` out of its own bytes.

        Then `ignore_merges` makes no difference.
        """
        encode = dataclasses.replace(self, ignore_merges=False).encode_piece
        return all(
            encode(token.decode("utf-8", "surrogateescape")) == [i]
            for i, token in enumerate(self.tokens)
            if token and self.ids[token] == i and i not in apart
        )

    @functools.cached_property
    def _widths(self) -> dict[int, int]:
        """How many first symbols a merged token stands for."""
        begin, end = self.continuing_subword_prefix, self.end_of_word_suffix
        if self.byte_level:
            sizes = [len(token.removesuffix(end.encode())) for token in self.tokens]
        else:
            texts = (token.decode("utf-8", "replace") for token in self.tokens)
            sizes = [len(text.removeprefix(begin).removesuffix(end)) for text in texts]
        return {merged: sizes[merged] for _, merged in self.ranked.values()}

    def _first_symbols(self, piece: str) -> list[Token]:
        if self.byte_level:
            return list(self._bytes_of(piece))
        symbols: list[Token] = []
        unknown_before = False
        for at in range(len(piece)):
            token_id = self._character(piece, at)
            known = [] if token_id is not None else self._fallback(piece[at])
            if token_id is not None:
                symbols.append(Token(token_id, at, at + 1))
            elif known:
                symbols += [Token(i, at, at + 1) for i in known]
            elif self.unk_id is not None and unknown_before and self.fuse_unk:
                symbols[-1] = symbols[-1]._replace(end=at + 1)
            elif self.unk_id is not None:
                symbols.append(Token(self.unk_id, at, at + 1))
            unknown_before = token_id is None and not known
        return symbols

    def _bytes_of(self, piece: str) -> Iterator[Token]:
        """Bytes that the vocabulary lacks are unknown, or dropped where there is no such token."""
        suffix = self.end_of_word_suffix.encode()
        for at, character in enumerate(piece):
            data = utf8(character)
            for number, byte in enumerate(data):
                last = at == len(piece) - 1 and number == len(data) - 1
                token_id = self.ids.get(bytes([byte]) + suffix) if last else self.byte_ids[byte]
                token_id = self.unk_id if token_id is None else token_id
                if token_id is not None:
                    yield Token(token_id, at, at + 1)

    def _character(self, piece: str, at: int) -> int | None:
        text = piece[at]
        if at > 0:
            text = self.continuing_subword_prefix + text
        if at == len(piece) - 1:
            text += self.end_of_word_suffix
        return self.ids.get(utf8(text))

    def _fallback(self, character: str) -> list[int]:
        """The ids of its bytes, or nothing when one of them has none."""
        if not self.byte_fallback:
            return []
        ids = [self.byte_ids[byte] for byte in utf8(character)]
        return [i for i in ids if i is not None] if None not in ids else []


def utf8(text: str) -> bytes:
    """The bytes of `text`; surrogates that stand for invalid bytes are those bytes again."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape" if _escaped(text) else "surrogatepass")


def _escaped(text: str) -> bool:
    return all(0xDC80 <= ord(c) <= 0xDCFF for c in text if 0xD800 <= ord(c) <= 0xDFFF)
